"""What an index that also held parts of its images would find of small crops, and what that would cost.

    python -m experiments.studies.parts BENCHMARK [--models rdcd-effb0-128 ...]

The references of BENCHMARK, a DISC-shaped folder, are embedded whole and, beside, in the five parts that `search
--variants=crops` takes of a query: six descriptors an image, of which the best score counts. Looked for are crops of
every eighth reference (the middle half, third and quarter of the sides) and the benchmark's queries, of which the
distractors show false alarms. Thresholds are the models' own of 90 % precision, of as many descriptors as are compared;
scores are normalised as in an index. The result goes to experiments/results/parts.json.
"""

import argparse
import pathlib
import time

import numpy as np
from PIL import Image

from rdcd_jax.benchmarks.ground_truth import find_disc_layout, read_ground_truth
from rdcd_jax.benchmarks.metrics import evaluate
from rdcd_jax.core.files import write_json
from rdcd_jax.images.sources import ImageSet, find_images
from rdcd_jax.index.variants import parts
from rdcd_jax.search.scoring import Scoring, scoring_of
from rdcd_jax.training.record import environment
from rdcd_jax.weights.engines import AUTO, load_by
from rdcd_jax.weights.shipped import list_models

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULT = ROOT / "experiments" / "results" / "parts.json"
EVERY = 8
# A crop's sides as a share of the image's.
CROPS = {"half": 1 / 2, "third": 1 / 3, "quarter": 1 / 4}
# What an index may hold.
HELD = ("whole", "whole and parts")
_AT_ONCE = 64


def middle(image: Image.Image, share: float) -> Image.Image:
    """The middle of an image."""
    width, height = (max(1, round(share * side)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def embedded_parts(model, images: ImageSet) -> np.ndarray:
    """[5 M, D]: the descriptors of five parts of each image."""
    found = []
    for first in range(0, len(images), _AT_ONCE):
        positions = range(first, min(first + _AT_ONCE, len(images)))
        found.append(model.embed([part for i in positions for part in parts(images.decode(i))]))
    return np.concatenate(found)


class Found:
    """Scores of queries [N, D] with references, the best of each reference's descriptors.

    Args:
        queries: [N, D].
        references: M descriptors or more; those of an image lie M apart.
        count: M.
        scoring: of the model.
    """

    def __init__(self, queries: np.ndarray, references: np.ndarray, count: int, scoring: Scoring):
        scores = scoring.scores(queries @ references.T, scoring.adjustment(queries)[:, None])
        self.scores = scores.reshape(len(queries), -1, count).max(axis=1)
        self.threshold = scoring.threshold(0.9, len(references))

    def first(self, expected: list[int]) -> float:
        """Percent of the queries whose own reference comes first and reaches the threshold."""
        own = self.scores[np.arange(len(expected)), expected]
        return _percent(np.mean((own == self.scores.max(axis=1)) & (own >= self.threshold)))

    def benchmark(self, queries, references, pairs) -> dict:
        """Figures of the benchmark's queries."""
        best = np.argsort(-self.scores, axis=1)[:, :10]
        rows = [
            (queries[i], references[j], self.scores[i, j])
            for i in range(len(best))
            for j in best[i]
        ]
        figures = evaluate(pairs, *zip(*rows, strict=True))
        true, copies = set(pairs), {query for query, _ in pairs}
        above = [(query, reference) for query, reference, score in rows if score >= self.threshold]
        right = [pair for pair in above if pair in true]
        return {
            "µAP": _percent(figures.average_precision),
            "copies found": _percent(len(right) / len(pairs)),
            "precision": _percent(len(right) / max(1, len(above))),
            "distractors with a match": len({query for query, _ in above} - copies),
        }


def _percent(share: float) -> float:
    return round(100 * float(share), 1)


def measured(name: str, benchmark: pathlib.Path) -> dict:
    """All figures of one model."""
    model = load_by(name, AUTO)
    scoring = scoring_of(model.background, model.card.get("calibration"))
    layout = find_disc_layout(benchmark)
    references, queries = find_images(layout.references), find_images(layout.queries)
    pairs = read_ground_truth(layout.ground_truth).pairs
    begun = time.monotonic()
    whole = model.embed(references)
    between = time.monotonic()
    # [M, 5, D] to five times M.
    others = embedded_parts(model, references).reshape(len(references), 5, -1)
    seconds = {"whole": between - begun, "parts": time.monotonic() - between}
    both = np.concatenate([whole, *others.transpose(1, 0, 2)])
    expected = list(range(0, len(references), EVERY))
    looked_for = {
        kind: model.embed([middle(references.decode(i), share) for i in expected])
        for kind, share in CROPS.items()
    }
    asked = model.embed(queries)
    result = {}
    for held, rows in zip(HELD, (whole, both), strict=True):
        found = {
            kind: Found(each, rows, len(references), scoring).first(expected)
            for kind, each in looked_for.items()
        }
        row = Found(asked, rows, len(references), scoring)
        result[held] = found | row.benchmark(queries.ids, references.ids, pairs)
    return {"seconds to embed": {key: round(each, 1) for key, each in seconds.items()}, **result}


def table(percent: dict[str, dict]) -> str:
    """The result in Markdown."""
    kinds = (*CROPS, "copies found", "precision", "distractors with a match")
    lines = [
        f"| | an index of | {' | '.join(kinds)} |",
        f"|---|---{'|---' * len(kinds)}|",
    ]
    for name, row in percent.items():
        for number, held in enumerate(HELD):
            cells = ["" if number else f"`{name}`", held, *(row[held][kind] for kind in kinds)]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Measures every model, and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("--models", nargs="+", default=list_models())
    options = parser.parse_args()
    models = {}
    for name in options.models:
        models[name] = measured(name, options.benchmark)
        print(name, models[name], flush=True)
    write_json(RESULT, {"environment": environment(), "percent": models})


if __name__ == "__main__":
    main()

"""What an index that also holds parts of its images finds of small crops, and what that costs.

    python -m experiments.studies.parts BENCHMARK [--models rdcd-effb0-128 ...]

The references of BENCHMARK, a DISC-shaped folder, are put into an index without and with their parts (`index build
--parts`). Looked for are crops of every eighth reference (the middle quarter, ninth and sixteenth of its area) and the
benchmark's queries, of which the distractors show false alarms, by each model's own threshold of 90 % precision.

`chance` is by how many times more often parts resemble unrelated images: of 1,000 training images in an index and 1,000
others, the pairs with a normalised similarity of 0 or more, with parts and without, before those of parts are lowered.
The result goes to experiments/results/parts.json.
"""

import argparse
import pathlib
import tempfile
import time

from PIL import Image

from experiments.studies.found import found_by
from experiments.studies.recorded import record
from rdcd_jax.benchmarks.ground_truth import find_disc_layout, read_ground_truth
from rdcd_jax.images.sources import ImageSet, find_images
from rdcd_jax.index import Index
from rdcd_jax.index.queries import embed_queries
from rdcd_jax.training.fitting import evenly_spread
from rdcd_jax.training.record import environment
from rdcd_jax.weights.engines import AUTO, load_by
from rdcd_jax.weights.shipped import list_models

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULT = ROOT / "experiments" / "results" / "parts.json"
EVERY, CHANCE = 8, 1000
# A crop's sides as a share of the image's.
# Of the sides, by the share of the area.
CROPS = {"1/4 of the area": 1 / 2, "1/9": 1 / 3, "1/16": 1 / 4}
# What an index may hold.
HELD = {"whole": False, "whole and parts": True}


def middle(image: Image.Image, share: float) -> Image.Image:
    """The middle of an image."""
    width, height = (max(1, round(share * side)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def crops_found(index: Index, references: ImageSet) -> dict[str, float]:
    """Percent of some references whose crops find them first, at the index's own threshold or above."""
    expected = range(0, len(references), EVERY)
    found = {}
    for kind, share in CROPS.items():
        crops = [middle(references.decode(i), share) for i in expected]
        first = {match.query: match.path for match in index.search(crops, k=1, variants=())}
        right = [first.get(f"#{n}") == references.paths[i] for n, i in enumerate(expected)]
        found[kind] = _percent(sum(right) / len(right))
    return found


def copies_found(index: Index, queries: ImageSet, pairs: list[tuple[str, str]]) -> dict:
    """Figures of the benchmark's queries."""
    found = found_by(index, queries, pairs, variants=())
    return {
        "µAP": round(found.average_precision, 1),
        "copies found": round(found.recall, 1),
        "precision": round(found.precision, 1),
        "distractors with a match": found.distractors,
    }


def _percent(share: float) -> float:
    return round(100 * float(share), 1)


def likenesses(model, training: ImageSet, folder: pathlib.Path, parts: bool) -> int:
    """How many of a million pairs of training images have a normalised similarity of 0 or more."""
    some = evenly_spread(len(training), 2 * CHANCE)
    index = Index.build(folder, training.subset(some[::2]), model=model, parts=parts)
    queries = embed_queries(model, training.subset(some[1::2]).seen()).descriptors
    similarities, _ = index.nearest(queries, CHANCE)
    return int((similarities + index.scoring().adjustment(queries)[:, None] >= 0).sum())


def measured(name: str, benchmark: pathlib.Path) -> dict:
    """All figures of one model."""
    model = load_by(name, AUTO)
    layout = find_disc_layout(benchmark)
    references, queries = find_images(layout.references), find_images(layout.queries)
    training = find_images(str(benchmark / "train"))
    pairs = list(read_ground_truth(layout.ground_truth).pairs)
    result, seconds, chance = {}, {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for held, parts in HELD.items():
            folder = pathlib.Path(temporary) / held
            begun = time.monotonic()
            index = Index.build(folder / "references", references, model=model, parts=parts)
            seconds[held] = round(time.monotonic() - begun, 1)
            result[held] = crops_found(index, references) | copies_found(index, queries, pairs)
            chance[held] = likenesses(model, training, folder / "training", parts)
    ratio = round(chance["whole and parts"] / chance["whole"], 2)
    return {"seconds to build": seconds, "chance": ratio, **result}


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
    record(RESULT, {"environment": environment(), "percent": models})


if __name__ == "__main__":
    main()

"""How far the precision that a shipped student's calibration predicts is from the actual one, on labelled images.

    python -m experiments.studies.calibration BENCHMARK [OTHER ...] [--models rdcd-effb0-128 ...] [--splits 50]

BENCHMARK is the DISC-shaped folder that the calibrations in the students' cards were fitted to. Here they are fitted to
half of its queries and applied to the others, over and over; and, to see what becomes of them in a larger collection,
fitted to a sixth of its references with their queries and applied to the other queries among all references. Of each
OTHER, such as rdcd_jax/sample or the collection of studies/clipart.py, all matches are judged by the calibration in
the card. Predicted is the mean probability of the matches whose own estimate reaches a level, actual the share of
them that are copies; and of the matches that reach the threshold of a precision, the share that are copies. Scores are
normalised by the models' backgrounds, as in an index. The result goes to experiments/results/calibration.json.
"""

import argparse
import dataclasses
import pathlib

import numpy as np

from experiments.studies.recorded import record
from rdcd_jax.benchmarks.calibrating import best_matches
from rdcd_jax.benchmarks.ground_truth import GroundTruth, find_disc_layout, read_ground_truth
from rdcd_jax.embedding.descriptors import Descriptors
from rdcd_jax.embedding.stream import embed_images
from rdcd_jax.images.sources import find_images
from rdcd_jax.search.calibration import Calibration, fit_calibration
from rdcd_jax.search.score_norm import DEFAULT
from rdcd_jax.search.scoring import scoring_of
from rdcd_jax.training.record import environment
from rdcd_jax.weights.library import load_model
from rdcd_jax.weights.shipped import list_models

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULT = ROOT / "experiments" / "results" / "calibration.json"
# Of the references, for the fit that is applied among all of them.
PART = 1 / 6
LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95)


def sets_of(model, folder: str) -> tuple[Descriptors, Descriptors, GroundTruth]:
    """Queries, references and the true pairs of a DISC-shaped folder."""
    layout = find_disc_layout(folder)
    queries, references = (
        embed_images(model, find_images(source))[0]
        for source in (layout.queries, layout.references)
    )
    return queries, references, read_ground_truth(layout.ground_truth)


@dataclasses.dataclass(frozen=True)
class Judged:
    """Matches and what a calibration says of them.

    Attributes:
        probability: [P] that each is a copy.
        correct: [P] bool, whether it is.
        reached: by level, [P] bool, whether its score reaches the threshold of that precision.
    """

    probability: np.ndarray
    correct: np.ndarray
    reached: dict[float, np.ndarray]


def judged(
    calibration: Calibration, scores: np.ndarray, correct: np.ndarray, references: int
) -> Judged:
    """What a calibration says of matches [N, k] among so many references."""
    scores = scores.ravel()
    reached = {level: scores >= calibration.threshold(level, references) for level in LEVELS}
    return Judged(calibration.probability(scores, references), correct.ravel(), reached)


def agreement(parts: list[Judged]) -> list[dict]:
    """Predicted and actual precision in percent of what reaches each level, and how many matches of a part do."""
    stored, correct = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("probability", "correct")
    )
    rows = []
    for level in LEVELS:
        sure = stored >= level
        found = np.concatenate([part.reached[level] for part in parts])
        row = {"level": level, "found": round(found.sum() / len(parts))}
        if sure.any():
            predicted, actual = (round(100 * float(x[sure].mean()), 1) for x in (stored, correct))
            row |= {"predicted": predicted, "actual": actual}
            row["matches"] = round(sure.sum() / len(parts))
        if found.any():
            row["precision of what is found"] = round(100 * float(correct[found].mean()), 1)
        rows.append(row)
    return rows


def across_halves(
    queries: Descriptors,
    references: Descriptors,
    truth: GroundTruth,
    background: np.ndarray | None,
    splits: int,
) -> list[dict]:
    """As `agreement`, of matches whose queries the calibration was not fitted to."""
    scores, correct = best_matches(queries, references, truth, background)
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(splits):
        order = rng.permutation(len(scores))
        half, other = order[: len(order) // 2], order[len(order) // 2 :]
        fitted = _fitted(scores[half], correct[half], len(references), background)
        parts.append(judged(fitted, scores[other], correct[other], len(references)))
    return agreement(parts)


def across_sizes(
    queries: Descriptors,
    references: Descriptors,
    truth: GroundTruth,
    background: np.ndarray | None,
    splits: int,
) -> list[dict]:
    """The same, fitted to so few references as `PART` tells, and applied among all of them."""
    scores, correct = best_matches(queries, references, truth, background)
    original = dict(truth.pairs)
    originals = np.asarray([original.get(name, "") for name in queries.ids.tolist()])
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(splits):
        few = _some(references, rng.random(len(references)) < PART)
        # Queries whose copies are there, and of those without a copy as large a part.
        chance = (originals == "") & (rng.random(len(queries)) < PART)
        some = np.isin(originals, few.ids) | chance
        found = best_matches(_some(queries, some), few, truth, background)
        fitted = _fitted(*found, len(few), background)
        parts.append(judged(fitted, scores[~some], correct[~some], len(references)))
    return agreement(parts)


def _fitted(
    scores: np.ndarray, correct: np.ndarray, references: int, background: np.ndarray | None
) -> Calibration:
    return fit_calibration(
        scores.ravel(),
        correct.ravel(),
        references=references,
        measured_on="a part",
        score_norm="" if background is None else DEFAULT,
    )


def _some(found: Descriptors, kept: np.ndarray) -> Descriptors:
    return Descriptors(found.ids[kept], found.descriptors[kept], found.model)


def table(figures: dict[str, dict]) -> str:
    """The result at the level of 90 % in Markdown."""
    names = sorted(figures, key=lambda name: int(name.rpartition("-")[2]))
    lines = [
        f"| | {' | '.join(f'`{name}`' for name in names)} |",
        f"|---{'|---' * len(names)}|",
    ]
    for where in figures[names[0]]:
        cells = []
        for name in names:
            (row,) = (row for row in figures[name][where] if row["level"] == 0.9)
            said = f"{row['predicted']}, {row['actual']}" if "actual" in row else "none"
            cells.append(f"{said}; {row.get('precision of what is found', 'none')}")
        lines.append(f"| {where} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures all models on all sets, and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark")
    parser.add_argument("others", nargs="*")
    parser.add_argument("--models", nargs="+", default=list_models())
    parser.add_argument("--splits", type=int, default=50)
    options = parser.parse_args()
    result = {}
    for name in options.models:
        model = load_model(name)
        sets, where = sets_of(model, options.benchmark), pathlib.Path(options.benchmark).name
        own = scoring_of(model.background, model.card["calibration"])
        rows = {
            f"{where}, halves": across_halves(*sets, own.background, options.splits),
            f"{where}, a sixth of the references": across_sizes(
                *sets, own.background, options.splits
            ),
        }
        for other in options.others:
            queries, references, truth = sets_of(model, other)
            found = best_matches(queries, references, truth, own.background)
            # As an index does: among few images of one's own, copies are rarer than among a benchmark's.
            compared = max(len(references), own.calibration.references)
            rows[pathlib.Path(other).name] = agreement([judged(own.calibration, *found, compared)])
        result[name] = rows
        for where, lines in rows.items():
            print(name, where)
            for row in lines:
                print("   ", row)
    record(RESULT, {"environment": environment(), "figures": result})


if __name__ == "__main__":
    main()

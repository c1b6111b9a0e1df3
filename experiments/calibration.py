"""How far the precision that a shipped student's calibration predicts is from the actual one, on labelled pictures.

    python experiments/calibration.py BENCHMARK [OTHER ...] [--models rdcd-effb0-128 ...] [--splits 50]

BENCHMARK is the DISC-shaped folder that the calibrations in the students' cards were fitted to. Here they are fitted to
half of its queries and applied to the others, over and over; and, to see what becomes of them in a larger collection,
fitted to a sixth of its references with their queries and applied to the other queries among all references. Of each
OTHER, such as rdcd_jax/sample or the collection of experiments/clipart.py, all matches are judged by the calibration in
the card. Predicted is the mean of what is told of the matches whose own estimate reaches a level, actual the share of
them that are copies. The result goes to experiments/results/calibration.json.
"""

import argparse
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rdcd_jax.data.sources import find_images  # noqa: E402
from rdcd_jax.evaluation.calibration import (  # noqa: E402
    Calibration,
    fit_calibration,
    read_calibration,
)
from rdcd_jax.evaluation.descriptors import Descriptors  # noqa: E402
from rdcd_jax.evaluation.embed import embed_images  # noqa: E402
from rdcd_jax.evaluation.ground_truth import (  # noqa: E402
    GroundTruth,
    find_disc_layout,
    read_ground_truth,
)
from rdcd_jax.evaluation.runs import best_matches  # noqa: E402
from rdcd_jax.files import write_json  # noqa: E402
from rdcd_jax.train.record import environment  # noqa: E402
from rdcd_jax.weights.library import load_describer, shipped_names  # noqa: E402

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


def agreement(told: np.ndarray, correct: np.ndarray) -> list[dict]:
    """Predicted and actual precision in percent of what reaches each level, and how many those are."""
    rows = []
    for level in LEVELS:
        reached = told >= level
        if reached.any():
            predicted, actual = (100 * float(x[reached].mean()) for x in (told, correct))
            rows.append(
                {
                    "level": level,
                    "predicted": round(predicted, 1),
                    "actual": round(actual, 1),
                    "matches": int(reached.sum()),
                }
            )
    return rows


def across_halves(
    queries: Descriptors, references: Descriptors, truth: GroundTruth, splits: int
) -> list[dict]:
    """As `agreement`, of matches whose queries the calibration was not fitted to; matches are those of one split."""
    scores, correct = best_matches(queries, references, truth)
    rng = np.random.default_rng(0)
    told, right = [], []
    for _ in range(splits):
        order = rng.permutation(len(scores))
        half, other = order[: len(order) // 2], order[len(order) // 2 :]
        fitted = _fitted(scores[half], correct[half], len(references))
        told.append(fitted.probability(scores[other].ravel(), len(references)))
        right.append(correct[other].ravel())
    return _of_one(splits, told, right)


def across_sizes(
    queries: Descriptors, references: Descriptors, truth: GroundTruth, splits: int
) -> list[dict]:
    """The same, fitted to so few references as `PART` tells, and applied among all of them."""
    scores, correct = best_matches(queries, references, truth)
    original = dict(truth.pairs)
    originals = np.asarray([original.get(name, "") for name in queries.ids.tolist()])
    rng = np.random.default_rng(0)
    told, right = [], []
    for _ in range(splits):
        few = _some(references, rng.random(len(references)) < PART)
        # Queries whose copies are there, and of those without a copy as large a part.
        chance = (originals == "") & (rng.random(len(queries)) < PART)
        some = np.isin(originals, few.ids) | chance
        found = best_matches(_some(queries, some), few, truth)
        fitted = _fitted(*found, len(few))
        told.append(fitted.probability(scores[~some].ravel(), len(references)))
        right.append(correct[~some].ravel())
    return _of_one(splits, told, right)


def _fitted(scores: np.ndarray, correct: np.ndarray, references: int) -> Calibration:
    return fit_calibration(
        scores.ravel(), correct.ravel(), references=references, measured_on="a part"
    )


def _some(found: Descriptors, kept: np.ndarray) -> Descriptors:
    return Descriptors(found.ids[kept], found.descriptors[kept], found.model)


def _of_one(splits: int, told: list[np.ndarray], right: list[np.ndarray]) -> list[dict]:
    rows = agreement(np.concatenate(told), np.concatenate(right))
    return [{**row, "matches": round(row["matches"] / splits)} for row in rows]


def main() -> None:
    """Measures all models on all sets, and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark")
    parser.add_argument("others", nargs="*")
    parser.add_argument("--models", nargs="+", default=shipped_names())
    parser.add_argument("--splits", type=int, default=50)
    options = parser.parse_args()
    result = {}
    for name in options.models:
        model = load_describer(name)
        sets, where = sets_of(model, options.benchmark), pathlib.Path(options.benchmark).name
        rows = {
            f"{where}, halves": across_halves(*sets, options.splits),
            f"{where}, a sixth of the references": across_sizes(*sets, options.splits),
        }
        for other in options.others:
            queries, references, truth = sets_of(model, other)
            scores, correct = best_matches(queries, references, truth)
            told = read_calibration(model.card["calibration"]).probability(
                scores.ravel(), len(references)
            )
            rows[pathlib.Path(other).name] = agreement(told, correct.ravel())
        result[name] = rows
        for where, lines in rows.items():
            print(name, where)
            for row in lines:
                print("   ", row)
    write_json(RESULT, {"environment": environment(), "figures": result})


if __name__ == "__main__":
    main()

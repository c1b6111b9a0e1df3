"""How far the precision that a shipped student's calibration predicts is from the actual one, on labelled pictures.

    python experiments/calibration.py BENCHMARK [OTHER ...] [--models rdcd-effb0-128 ...] [--splits 50]

BENCHMARK is the DISC-shaped folder that the calibrations in the students' cards were fitted to: here they are fitted to
half of its queries and applied to the others, over and over. Of each OTHER, such as rdcd_jax/sample or the collection
of experiments/clipart.py, all matches are judged by the calibration in the card. Predicted is the mean of what is told
of the matches whose own estimate reaches a level, actual the share of them that are copies. The result goes to
experiments/results/calibration.json.
"""

import argparse
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rdcd_jax.data.sources import find_images  # noqa: E402
from rdcd_jax.evaluation.calibration import fit_calibration  # noqa: E402
from rdcd_jax.evaluation.embed import embed_images  # noqa: E402
from rdcd_jax.evaluation.ground_truth import (  # noqa: E402
    find_disc_layout,
    read_ground_truth,
)
from rdcd_jax.evaluation.runs import best_matches  # noqa: E402
from rdcd_jax.files import write_json  # noqa: E402
from rdcd_jax.index.search import calibration_of  # noqa: E402
from rdcd_jax.train.record import environment  # noqa: E402
from rdcd_jax.weights.library import load_describer, shipped_names  # noqa: E402

RESULT = ROOT / "experiments" / "results" / "calibration.json"
LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95)


def matches_of(model, folder: str) -> tuple[np.ndarray, np.ndarray, int]:
    """The best matches of each query: scores [Q, k], whether they are copies [Q, k], and how many references."""
    layout = find_disc_layout(folder)
    queries, references = (
        embed_images(model, find_images(source))[0]
        for source in (layout.queries, layout.references)
    )
    truth = read_ground_truth(layout.ground_truth)
    return *best_matches(queries, references, truth), len(references)


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


def across_halves(scores: np.ndarray, correct: np.ndarray, references: int, splits: int) -> list:
    """As `agreement`, of matches whose queries the calibration was not fitted to; matches are those of one split."""
    rng = np.random.default_rng(0)
    told, right = [], []
    for _ in range(splits):
        order = rng.permutation(len(scores))
        half, other = order[: len(order) // 2], order[len(order) // 2 :]
        fitted = fit_calibration(
            scores[half].ravel(), correct[half].ravel(), references=references, measured_on="half"
        )
        told.append(fitted.precision(scores[other].ravel(), references))
        right.append(correct[other].ravel())
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
        found = matches_of(model, options.benchmark)
        rows = {
            f"{pathlib.Path(options.benchmark).name}, halves": across_halves(*found, options.splits)
        }
        for other in options.others:
            scores, correct, references = matches_of(model, other)
            told = calibration_of(model).precision(scores.ravel(), references)
            rows[pathlib.Path(other).name] = agreement(told, correct.ravel())
        result[name] = rows
        for where, lines in rows.items():
            print(name, where)
            for row in lines:
                print("   ", row)
    write_json(RESULT, {"environment": environment(), "figures": result})


if __name__ == "__main__":
    main()

"""What a similarity means: the probability that a match with that score is a copy. Numpy and SciPy only."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np
from scipy.optimize import isotonic_regression

from rdcd_jax.errors import UserError

# Steps between the least and the largest score that was measured, where a threshold is looked for.
_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Precision by score, measured on a labelled set.

    Attributes:
        scores: ascending.
        precisions: of a match with that score, between 0 and 1, never falling; linear between scores, level outside.
        references: pictures that the queries were compared with when it was measured.
        measured_on: name of the set.
    """

    scores: tuple[float, ...]
    precisions: tuple[float, ...]
    references: int
    measured_on: str

    def precision(self, scores: np.ndarray, references: int) -> np.ndarray:
        """The estimated probability that each of some matches is a copy.

        Args:
            scores: any shape.
            references: pictures that the queries are compared with. Of twice as many, twice as many resemble a query
                by chance: so the odds fall as the collection grows.

        Returns:
            The same shape, float64.
        """
        precision = np.interp(scores, self.scores, self.precisions)
        chance = (1 - precision) * references / self.references
        return precision / (precision + chance)

    def threshold(self, precision: float, references: int) -> float | None:
        """The least score of which matches are right with that probability; None where it is never reached."""
        scores = np.linspace(self.scores[0], self.scores[-1], _STEPS)
        reached = self.precision(scores, references) >= precision
        return float(scores[reached.argmax()]) if reached.any() else None


def read_calibration(told: Mapping[str, object] | str | os.PathLike) -> Calibration:
    """A calibration from a JSON file, or from what such a file holds.

    Raises:
        UserError: it is something else.
    """
    name = "This" if isinstance(told, Mapping) else told
    try:
        if not isinstance(told, Mapping):
            told = json.loads(pathlib.Path(told).read_text(encoding="utf-8"))
        lists = (tuple(map(float, told[name])) for name in ("scores", "precisions"))
        found = Calibration(*lists, int(told["references"]), str(told["measured_on"]))
        scores, precisions = np.asarray(found.scores), np.asarray(found.precisions)
        sound = 0 < len(scores) == len(precisions) and found.references > 0
        sound = sound and (np.diff(scores) >= 0).all() and (np.diff(precisions) >= 0).all()
        if not sound or precisions[0] <= 0 or precisions[-1] >= 1:
            raise ValueError("its numbers do not rise as a calibration's do")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{name} is no calibration ({error}); give the calibration.json that `rdcd-jax evaluate disc` writes."
        ) from error
    return found


def fit_calibration(
    scores: np.ndarray, correct: np.ndarray, *, references: int, measured_on: str
) -> Calibration:
    """Measures precision by score.

    Args:
        scores: [P] of the best matches of every query, distractors' included.
        correct: [P] bool, whether it is a copy.
        references: how many pictures the queries were compared with.
        measured_on: name of the set.

    Raises:
        UserError: there are no copies or nothing but copies among the matches.

    Source: isotonic regression; each level is drawn in by half an observation, for no finite set makes certain.
    """
    correct = np.asarray(correct, bool)
    if correct.shape != np.shape(scores):
        raise ValueError(f"there are {len(scores)} scores and {len(correct)} labels")
    if correct.all() or not correct.any():
        raise UserError(
            "A calibration needs right and wrong matches; give queries some of which have copies and some have none."
        )
    order = np.argsort(scores, kind="stable")
    x = np.asarray(scores, np.float64)[order]
    fitted = isotonic_regression(correct[order].astype(np.float64))
    knots, values = [], []
    for first, last in zip(fitted.blocks[:-1], fitted.blocks[1:], strict=True):
        count, right = last - first, correct[order][first:last].sum()
        # A block is level; between blocks the precision rises along a line.
        knots.append(float(x[first:last].mean()))
        values.append(float((right + 0.5) / (count + 1)))
    values = np.maximum.accumulate(values)
    return Calibration(tuple(knots), tuple(values.tolist()), references, measured_on)

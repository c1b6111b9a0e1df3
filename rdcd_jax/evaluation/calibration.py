"""What a similarity means: the probability that a match with that score is a copy. Numpy and SciPy only."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from rdcd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Precision by score, measured on a labelled set: its log-odds rise in proportion to the score.

    Attributes:
        offset: log-odds of a match with score 0.
        slope: by how much they rise from score 0 to score 1, above 0.
        references: pictures that the queries were compared with when it was measured.
        measured_on: name of the set.
    """

    offset: float
    slope: float
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
        return expit(self._odds(references) + self.slope * np.asarray(scores, np.float64))

    def threshold(self, precision: float, references: int) -> float:
        """The least score of a match that is a copy with that probability; above 1 where no cosine reaches it."""
        return float((logit(precision) - self._odds(references)) / self.slope)

    def require_threshold(self, precision: float, references: int) -> float:
        """As `threshold`, for those who need a score that a match can have.

        Raises:
            UserError: no cosine reaches it.
        """
        score = self.threshold(precision, references)
        if score > 1:
            most = self.precision(np.ones(()), references)
            raise UserError(
                f"Among {references:,} pictures even a score of 1 means a copy in {100 * most:.0f} % of cases only, by"
                f" the calibration on {self.measured_on}; choose a threshold yourself, such as 0.8, or calibrate on a"
                " set of such a size (`rdcd-jax evaluate disc` writes a calibration.json)."
            )
        return score

    def _odds(self, references: int) -> float:
        """Log-odds of a match with score 0 among so many references."""
        return self.offset - math.log(references / self.references)


def read_calibration(told: Mapping[str, object] | str | os.PathLike) -> Calibration:
    """A calibration from a JSON file, or from what such a file holds.

    Raises:
        UserError: it is something else.
    """
    name = "This" if isinstance(told, Mapping) else told
    try:
        if not isinstance(told, Mapping):
            told = json.loads(pathlib.Path(told).read_text(encoding="utf-8"))
        numbers = (float(told[name]) for name in ("offset", "slope"))
        found = Calibration(*numbers, int(told["references"]), str(told["measured_on"]))
        if not (math.isfinite(found.offset) and 0 < found.slope < math.inf):
            raise ValueError("its slope does not rise")
        if found.references < 1:
            raise ValueError("it has no references")
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
        UserError: there are no copies or nothing but copies among the matches, or copies do not score higher.

    Source: Platt, "Probabilistic outputs for support vector machines", 1999, with his targets, which are drawn in by
    one observation, for no finite set makes certain.
    """
    correct = np.asarray(correct, bool)
    if correct.shape != np.shape(scores):
        raise ValueError(f"there are {len(scores)} scores and {len(correct)} labels")
    if correct.all() or not correct.any():
        raise UserError(
            "A calibration needs right and wrong matches; give queries some of which have copies and some have none."
        )
    x = np.asarray(scores, np.float64)
    right, wrong = correct.sum(), (~correct).sum()
    target = np.where(correct, (right + 1) / (right + 2), 1 / (wrong + 2))

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        """Cross-entropy of the targets, and its gradient."""
        odds = line[0] + line[1] * x
        rest = expit(odds) - target
        return np.sum(np.logaddexp(0, odds) - target * odds), np.array([rest.sum(), rest @ x])

    offset, slope = minimize(loss, np.zeros(2), jac=True).x
    if slope <= 0:
        raise UserError(
            "A calibration needs a model whose copies score higher than other pictures."
        )
    return Calibration(float(offset), float(slope), references, measured_on)

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

# Scores nearer to 0 or 1 are as good as at this distance: two pictures that are one file, of which a ground truth knows
# nothing, must not outweigh all others.
_EDGE = 1e-3


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Precision by score, measured on a labelled set: the odds of a copy are a power of the score's own, s / (1 - s).

    Attributes:
        offset: log-odds of a match with score 0.5.
        exponent: by how much they rise with the log-odds of the score, above 0.
        references: pictures that the queries were compared with when it was measured.
        measured_on: name of the set.
    """

    offset: float
    exponent: float
    references: int
    measured_on: str

    def precision(self, scores: np.ndarray, references: int) -> np.ndarray:
        """The estimated probability that each of some matches is a copy.

        Args:
            scores: any shape; what is not above 0 is as good as 0.
            references: pictures that the queries are compared with. Of twice as many, twice as many resemble a query
                by chance: so the odds fall as the collection grows.

        Returns:
            The same shape, float64.
        """
        return expit(self._offset(references) + self.exponent * _log_odds(scores))

    def threshold(self, precision: float, references: int) -> float:
        """The least score of a match that is a copy with that probability; 0.999 at most, which equal pictures have."""
        score = expit((logit(precision) - self._offset(references)) / self.exponent)
        return float(min(score, 1 - _EDGE))

    def _offset(self, references: int) -> float:
        """Log-odds of a match with score 0.5 among so many references."""
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
        numbers = (float(told[each]) for each in ("offset", "exponent"))
        found = Calibration(*numbers, int(told["references"]), str(told["measured_on"]))
        if not (math.isfinite(found.offset) and 0 < found.exponent < math.inf):
            raise ValueError("its probabilities do not rise with the score")
        if found.references < 1:
            raise ValueError("it has no references")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
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

    Source: Kull, Silva Filho and Flach, "Beta calibration", 2017, with one exponent for both sides: fitted to half of a
        benchmark it told the other half as well as two did, or better, and better than a line in the score. The targets
        are drawn in by one observation, for no finite set makes certain: Platt, "Probabilistic outputs for support
        vector machines", 1999.
    """
    correct = np.asarray(correct, bool)
    if correct.shape != np.shape(scores):
        raise ValueError(f"there are {len(scores)} scores and {len(correct)} labels")
    if correct.all() or not correct.any():
        raise UserError(
            "A calibration needs right and wrong matches; give queries some of which have copies and some have none."
        )
    x = _log_odds(scores)
    right, wrong = correct.sum(), (~correct).sum()
    target = np.where(correct, (right + 1) / (right + 2), 1 / (wrong + 2))

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        """Cross-entropy of the targets, and its gradient."""
        odds = line[0] + line[1] * x
        rest = expit(odds) - target
        return np.sum(np.logaddexp(0, odds) - target * odds), np.array([rest.sum(), rest @ x])

    offset, exponent = minimize(loss, np.zeros(2), jac=True).x
    if exponent <= 0:
        raise UserError(
            "A calibration needs a model whose copies score higher than other pictures."
        )
    return Calibration(float(offset), float(exponent), references, measured_on)


def _log_odds(scores: np.ndarray) -> np.ndarray:
    return logit(np.clip(np.asarray(scores, np.float64), _EDGE, 1 - _EDGE))

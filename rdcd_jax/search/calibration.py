"""What a similarity means: the probability that a match with that score is a copy. Numpy and SciPy only."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping

import numpy as np
from scipy.special import expit, logit

from rdcd_jax.core.errors import MALFORMED, UserError

# Scores nearer to 0 or 1 are as good as at this distance: two images that are one file, of which a ground truth knows
# nothing, must not outweigh all others.
_EDGE = 1e-3
# Whatever is lowered, equal images stay equal.
_EQUAL = 1e-6
# Similarities are from -1 to 1, and score normalisation takes up to 1 off.
LEAST_SCORE, MOST_SCORE = -2, 1
# Scores of true matches that are kept.
_COPIES = 100


def require_score(threshold: float) -> None:
    """Refuses what no match can score.

    Raises:
        UserError: it is below -2, above 1 or NaN.
    """
    if not LEAST_SCORE <= threshold <= MOST_SCORE:
        raise UserError(
            f"{threshold} is no score; they run from {LEAST_SCORE} to {MOST_SCORE}, and copies mostly score 0.1 to 0.9."
        )


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a score means, measured on a labelled set: the odds of a copy are a power of the score's own, s / (1 - s).

    Attributes:
        offset: log-odds of a match with score 0.5; of normalised scores, with score 0.
        exponent: by how much they rise with the log-odds of the score, above 0.
        references: images that the queries were compared with when it was measured.
        measured_on: name of the set.
        copies: scores that the set's true matches had, evenly chosen, descending; empty in files of version 0.1.
        score_norm: of scores that were normalised by a background, how; these lie between -1 and 1.
    """

    offset: float
    exponent: float
    references: int
    measured_on: str
    copies: tuple[float, ...] = ()
    score_norm: str = ""

    def probability(self, scores: np.ndarray, references: int | np.ndarray) -> np.ndarray:
        """The estimated probability that each of some matches is a copy.

        Args:
            scores: any shape; what is not above 0 is as good as 0.
            references: images that the queries are compared with; of the same shape where that differs. Of twice as
                many, twice as many resemble a query by chance: so the odds fall as the collection grows.

        Returns:
            The same shape, float64.
        """
        return expit(self._log_odds(scores, references))

    def threshold(self, precision: float, references: int) -> float:
        """The score from which on that share of the matches are copies; 0.999 at most, which equal images have.

        It is the precision of all that is found, as in a benchmark's "recall at 90 % precision": the least sure matches
        are copies with a smaller probability.

        Args:
            precision: 0 to 1.
            references: as for `probability`.

        Raises:
            UserError: a precision that is no such number.
        """
        if not 0 <= precision <= 1:
            raise UserError(f"{precision} is no precision; give a number from 0 to 1, such as 0.9.")
        if not self.copies:
            # Version 0.1 knew the probability of a single match alone.
            score = expit((logit(precision) - self._offset(references)) / self.exponent)
            return float(min(self._from_unit(score), 1 - _EDGE))
        # For each true match with its score, so many false ones.
        false = np.cumsum(np.exp(-self._log_odds(np.asarray(self.copies), references)))
        true = np.arange(1, len(false) + 1)
        reached = np.flatnonzero(true >= precision * (true + false))
        return self.copies[reached[-1]] if reached.size else 1 - _EDGE

    def lowered(self, scores: np.ndarray, chances: float | np.ndarray) -> np.ndarray:
        """Scores of matches that chance makes so many times as often, lowered to what is as probable without that.

        Args:
            scores: any shape.
            chances: 1 or more; of a shape that goes with theirs.

        Returns:
            The scores' shape and type; where `chances` is 1 the scores themselves.
        """
        chances = np.broadcast_to(chances, scores.shape)
        # Most searches have none.
        some = chances > 1
        unit = self._to_unit(scores[some])
        odds = logit(np.clip(unit, _EQUAL, 1 - _EQUAL)) - np.log(chances[some]) / self.exponent
        found = scores.copy()
        found[some] = self._from_unit(expit(odds))
        return found

    def _log_odds(self, scores: np.ndarray, references: int | np.ndarray) -> np.ndarray:
        return self._offset(references) + self.exponent * _log_odds(self._to_unit(scores))

    def _to_unit(self, scores: np.ndarray) -> np.ndarray:
        scores = np.asarray(scores, np.float64)
        return (scores + 1) / 2 if self.score_norm else scores

    def _from_unit(self, scores: float | np.ndarray) -> float | np.ndarray:
        return 2 * scores - 1 if self.score_norm else scores

    def _offset(self, references: int | np.ndarray) -> float | np.ndarray:
        """Log-odds of a match with score 0.5 among so many references."""
        return self.offset - np.log(references / self.references)


def read_calibration(
    stored: Mapping[str, object] | str | os.PathLike, *, normalised: bool = False
) -> Calibration | None:
    """A calibration from a JSON file, or from what such a file holds.

    Args:
        stored: the file, or its content: the calibration of inner products, and where the model has a background under
            `normalised` that of normalised scores.
        normalised: gives the latter, or None where there is none.

    Raises:
        UserError: it is something else.
    """
    name = "This" if isinstance(stored, Mapping) else stored
    try:
        if not isinstance(stored, Mapping):
            stored = json.loads(pathlib.Path(stored).read_text(encoding="utf-8"))
        if normalised:
            if "normalised" not in stored:
                return None
            stored = stored["normalised"]
        numbers = (float(stored[each]) for each in ("offset", "exponent"))
        copies = tuple(sorted(map(float, stored.get("copies", ())), reverse=True))
        found = Calibration(
            *numbers,
            int(stored["references"]),
            str(stored["measured_on"]),
            copies,
            str(stored.get("score_norm", "")),
        )
        if not all(map(math.isfinite, copies)):
            raise ValueError("the scores of its copies are not finite")
        if normalised != bool(found.score_norm):
            raise ValueError("it mixes normalised scores with others")
        if not (math.isfinite(found.offset) and 0 < found.exponent < math.inf):
            raise ValueError("its probabilities do not rise with the score")
        if found.references < 1:
            raise ValueError("it has no references")
    except (OSError, *MALFORMED) as error:
        raise UserError(
            f"{name} is no calibration ({error}); give the calibration.json that `rdcd-jax evaluate disc` writes."
        ) from error
    return found


def read_file(path: str | os.PathLike) -> dict:
    """What a calibration file holds, checked.

    Raises:
        UserError: it is something else.
    """
    for normalised in (False, True):
        read_calibration(path, normalised=normalised)
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


def fit_calibration(
    scores: np.ndarray,
    correct: np.ndarray,
    *,
    references: int,
    measured_on: str,
    score_norm: str = "",
) -> Calibration:
    """Measures the probability of a copy by score.

    Args:
        scores: [P] of the best matches of every query, distractors' included.
        correct: [P] bool, whether it is a copy.
        references: how many images the queries were compared with.
        measured_on: name of the set.
        score_norm: see `Calibration`.

    Raises:
        UserError: there are no copies or nothing but copies among the matches, or copies do not score higher.

    Source: Kull, Silva Filho and Flach, "Beta calibration", 2017, with one exponent for both sides: fitted to half of a
        benchmark it predicted the other half as well as two did, or better, and better than a line in the score. The
        targets are drawn in by one observation, for no finite set makes certain: Platt, "Probabilistic outputs for
        support vector machines", 1999.
    """
    correct = np.asarray(correct, bool)
    if correct.shape != np.shape(scores):
        raise ValueError(f"there are {len(scores)} scores and {len(correct)} labels")
    if correct.all() or not correct.any():
        raise UserError(
            "A calibration needs right and wrong matches; give queries some of which have copies and some have none."
        )
    start = Calibration(0.0, 1.0, references, measured_on, score_norm=score_norm)
    x = start._log_odds(scores, references)
    right, wrong = correct.sum(), (~correct).sum()
    target = np.where(correct, (right + 1) / (right + 2), 1 / (wrong + 2))

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        """Cross-entropy of the targets, and its gradient."""
        odds = line[0] + line[1] * x
        rest = expit(odds) - target
        return np.sum(np.logaddexp(0, odds) - target * odds), np.array([rest.sum(), rest @ x])

    # Slow to import, and nobody who searches needs it.
    from scipy.optimize import minimize

    offset, exponent = minimize(loss, np.zeros(2), jac=True).x
    if exponent <= 0:
        raise UserError("A calibration needs a model whose copies score higher than other images.")
    true = np.sort(np.asarray(scores, np.float64)[correct])[::-1]
    chosen = np.linspace(0, len(true) - 1, min(len(true), _COPIES)).round().astype(int)
    copies = tuple(round(score, 4) for score in true[chosen].tolist())
    return dataclasses.replace(start, offset=float(offset), exponent=float(exponent), copies=copies)


def _log_odds(scores: np.ndarray) -> np.ndarray:
    return logit(np.clip(np.asarray(scores, np.float64), _EDGE, 1 - _EDGE))

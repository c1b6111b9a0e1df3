"""From similarities to scores, and what these mean."""

import dataclasses

import numpy as np

from rdcd_jax.search.calibration import Calibration, read_calibration
from rdcd_jax.search.score_norm import DEFAULT, query_adjustment

# From this similarity on descriptors are equal, whatever they are near to besides: copies without any edit must not be
# lost among images of which many look alike.
EQUAL = 0.998


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How the similarity of two descriptors becomes a score, and what a score means.

    Attributes:
        background: [T, D] float32, what normalises scores; None for similarities as they are.
        calibration: of these scores; None where nobody measured it.
    """

    background: np.ndarray | None = None
    calibration: Calibration | None = None

    def adjustment(self, descriptors: np.ndarray) -> np.ndarray:
        """What is added to the similarities of each of some queries [N, D]: [N] float32.

        A query that is itself in the background, as one's own images are in that of a model which was fine-tuned on
        them, is not compared with itself.
        """
        if self.background is None:
            return np.zeros(len(descriptors), np.float32)
        return query_adjustment(descriptors, self.background, DEFAULT, itself_from=EQUAL)

    def scores(
        self, similarities: np.ndarray, adjustment: np.ndarray, chances: float | np.ndarray = 1
    ) -> np.ndarray:
        """Scores of similarities, each with its query's adjustment; of equal descriptors the similarity itself.

        Args:
            similarities: any shape.
            adjustment: see there; of a shape that goes with theirs.
            chances: as of `Calibration.lowered`; without a calibration nothing is lowered.

        Source: the inner-product form of SSCD's score normalisation, see `score_norm.apply_score_norm`.
        Differs: for equal descriptors, and by `chances`.
        """
        found = np.where(similarities >= EQUAL, similarities, similarities + adjustment)
        return found if self.calibration is None else self.calibration.lowered(found, chances)

    def threshold(self, precision: float, references: int) -> float | None:
        """The score from which on that share of matches are copies; None where nobody measured it."""
        if self.calibration is None:
            return None
        return self.calibration.threshold(precision, self._compared(references))

    def probability(self, scores: np.ndarray, references: int) -> list[float | None]:
        """The probability that each match [M] is a copy; None where nobody measured it.

        Args:
            scores: [M].
            references: images that the queries are compared with.
        """
        if self.calibration is None:
            return [None] * len(scores)
        return self.calibration.probability(scores, self._compared(references)).tolist()

    def _compared(self, references: int) -> int:
        # Among few images of one's own copies are rarer than among a benchmark's.
        return max(references, self.calibration.references)


def scoring_of(background: np.ndarray | None, stored: dict | None) -> Scoring:
    """The scoring by a background, if there is one.

    Args:
        background: [T, D] float32, or None.
        stored: a card's `calibration`, if it has one.
    """
    normalised = background is not None
    return Scoring(background, stored and read_calibration(stored, normalised=normalised))

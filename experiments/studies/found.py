"""What a search finds of a benchmark's copies, by the index's own threshold."""

import dataclasses
from collections.abc import Sequence

from rdcd_jax.benchmarks.metrics import evaluate
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.index import Index
from rdcd_jax.index.search import DEFAULT_VARIANTS
from rdcd_jax.search.calibration import LEAST_SCORE


@dataclasses.dataclass(frozen=True)
class Found:
    """Figures of a search; percent but for the last.

    Attributes:
        average_precision: of all matches, whatever their scores.
        recall: copies found from the threshold on.
        precision: matches that are copies, likewise.
        distractors: queries without a copy that have a match there.
    """

    average_precision: float
    recall: float
    precision: float
    distractors: int

    def percent(self) -> dict[str, float]:
        """The percentages, as result files have them."""
        return {
            "µAP": round(self.average_precision, 2),
            "recall from the threshold on": round(self.recall, 2),
            "precision from the threshold on": round(self.precision, 2),
        }


def found_by(
    index: Index,
    queries: ImageSet,
    pairs: Sequence[tuple[str, str]],
    variants: Sequence[str] = DEFAULT_VARIANTS,
) -> Found:
    """Searches the queries, of which some have the copies that `pairs` name as (query, reference)."""
    matches = list(index.search(queries, threshold=LEAST_SCORE, variants=variants))
    names = [(match.query, match.reference) for match in matches]
    figures = evaluate(pairs, *zip(*names, strict=True), [match.score for match in matches])
    least, true = index.threshold(), set(pairs)
    above = [pair for pair, match in zip(names, matches, strict=True) if match.score >= least]
    right = [pair for pair in above if pair in true]
    return Found(
        100 * figures.average_precision,
        100 * len(right) / len(pairs),
        100 * len(right) / max(1, len(above)),
        len({query for query, _ in above} - {query for query, _ in pairs}),
    )

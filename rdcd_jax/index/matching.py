"""From the nearest rows of an index to matches: what is reported of each query."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rdcd_jax.index.manifest import Manifest
from rdcd_jax.index.queries import Looks
from rdcd_jax.index.results import Match
from rdcd_jax.index.rows import EXACT, Rows
from rdcd_jax.index.variants import PARTS_CHANCES
from rdcd_jax.search.calibration import require_score
from rdcd_jax.search.scoring import Scoring

# Of matches that are reported where no threshold is given.
PRECISION = 0.9
# The most that is promised of pages of text and drawings, which resemble each other whatever is on them
# (experiments/results/documents.json).
PLAIN_PROBABILITY = 0.5


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a search asks for; see `Index.search`."""

    k: int
    threshold: float | None = None
    normalised: bool = True
    engine: str = EXACT

    def __post_init__(self):
        if self.threshold is not None:
            require_score(self.threshold)


def matches_of(
    rows: Rows,
    manifest: Manifest,
    scoring: Scoring,
    looks: Looks,
    names: Sequence[str],
    asked: Asked,
) -> list[Match]:
    """The matches, query by query in their order, best first, at most `asked.k` of each.

    Args:
        rows: of the index.
        manifest: which of its segments count.
        scoring: see `Index.scoring`.
        looks: what is searched.
        names: the queries' ids.
        asked: what is asked for.
    """
    if not len(manifest):
        return []
    similarities, positions, scores = _scored(rows, manifest, scoring, looks, asked)
    least = asked.threshold
    if least is None:
        least = scoring.threshold(PRECISION, len(manifest))
    # An approximate search may lack some.
    found = np.isfinite(similarities)
    if least is not None:
        found &= scores >= least
    look, column = np.nonzero(found)
    best = _best(looks.query[look], positions[look, column], scores[look, column])
    look, column = look[best], column[best]
    probabilities = scoring.probability(scores[look, column], len(manifest))
    known = rows.known(manifest, positions[look, column])
    matches: dict[str, list[Match]] = {name: [] for name in names}
    for i, j, probability in zip(look.tolist(), column.tolist(), probabilities, strict=True):
        query = int(looks.query[i])
        if probability is not None and query in looks.plain:
            probability = min(probability, PLAIN_PROBABILITY)
        image = known[int(positions[i, j])]
        score, similarity = float(scores[i, j]), float(similarities[i, j])
        match = Match(
            names[query],
            image.id,
            image.path,
            score,
            similarity,
            probability,
            looks.variant[i],
            *image[2:],
        )
        matches[names[query]].append(match)
    return [
        match
        for of_query in matches.values()
        for match in sorted(of_query, key=lambda match: (-match.score, match.reference))[: asked.k]
    ]


def _scored(
    rows: Rows, manifest: Manifest, scoring: Scoring, looks: Looks, asked: Asked
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Similarities, positions of images and scores [R, n] of what is nearest to each look; an image may come twice."""
    similarities, nearest = rows.nearest_rows(manifest, looks.descriptors, asked.k, asked.engine)
    positions, part = np.divmod(nearest, manifest.per_image)
    chances = looks.chances[:, None] * np.where(part, 1 + PARTS_CHANCES, 1)
    adjustment = scoring.adjustment(looks.descriptors)[:, None]
    return similarities, positions, scoring.scores(similarities, adjustment, chances)


def _best(queries: np.ndarray, positions: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Of each pair of a query and an image the place where it scores best."""
    order = np.lexsort((-scores, positions, queries))
    pairs = np.stack([queries, positions])[:, order]
    is_first = np.r_[True, (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)][: len(order)]
    return order[is_first]

"""Score normalisation: how near a query is to unrelated images is taken off its scores."""

import dataclasses
import re

import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.search import exact

DEFAULT = "1.0[0,2]"
# So many descriptors are its ranks 0 to 2.
LEAST_BACKGROUND = 3
# Far beyond any use; larger ones would drown the scores they are added to.
_MOST_BETA = 1e6
# Training descriptors that may be of the query's own image.
_MOST_ITSELF = 4


@dataclasses.dataclass(frozen=True)
class ScoreNorm:
    """`beta[first,last]`: subtract beta times the mean similarity to training neighbours.

    Attributes:
        beta: the weight.
        first: rank of the first training neighbour, zero-based.
        last: rank of the last, included.
    """

    beta: float
    first: int
    last: int

    def adjustment(self, similarities: np.ndarray) -> np.ndarray:
        """Returns what is added to each query's scores.

        Args:
            similarities: [N, >= last + 1] inner products with the nearest training descriptors,
                descending.

        Returns:
            [N] float32.
        """
        neighbours = similarities[:, self.first : self.last + 1]
        return (-self.beta * neighbours.mean(axis=1, dtype=np.float64)).astype(np.float32)


def parse_score_norm(spec: str) -> ScoreNorm:
    """Reads `beta[first,last]` or `beta[rank]`.

    Args:
        spec: such as "1.0[0,2]" or "0.5[3]".

    Returns:
        The normalisation.

    Raises:
        UserError: anything else.
    """
    match = re.fullmatch(r"\s*([+-]?\d*\.?\d+)\s*\[\s*(\d{1,9})\s*(?:,\s*(\d{1,9})\s*)?\]\s*", spec)
    if match is None:
        raise UserError(
            f"unknown score normalisation {spec!r}; write beta[first,last] such as 1.0[0,2], "
            "or beta[rank]."
        )
    beta, first, last = match.groups()
    norm = ScoreNorm(float(beta), int(first), int(last if last is not None else first))
    if not abs(norm.beta) <= _MOST_BETA:
        raise UserError(f"score normalisation {spec!r}: beta is at most {_MOST_BETA:g}.")
    if norm.last < norm.first:
        raise UserError(f"score normalisation {spec!r}: the last rank lies before the first.")
    return norm


def parse_score_norms(specs: str) -> list[str | None]:
    """Splits several normalisations separated by `;`, in which `None` stands for no normalisation.

    Args:
        specs: such as "None;1.0[0,2];0.5[1,4]".

    Returns:
        The specifications in order, each checked; None for `None`.

    Raises:
        UserError: an unknown one, or none at all.
    """
    names = [name.strip() for name in specs.split(";") if name.strip()]
    if not names:
        raise UserError(f"no score normalisation in {specs!r}; write None or such as 1.0[0,2].")
    parsed = [None if name.lower() == "none" else name for name in names]
    for name in parsed:
        if name is not None:
            parse_score_norm(name)
    return parsed


def apply_score_norm(
    queries: np.ndarray, references: np.ndarray, training: np.ndarray, spec: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns descriptors of one more dimension whose inner products are the normalised scores.

    Args:
        queries: [N, D] finite numbers.
        references: [M, D] finite numbers.
        training: [T, D] finite numbers, unrelated to both; any T, since memory is bounded.
        spec: such as "1.0[0,2]".

    Returns:
        queries [N, D + 1] float32, ending in the adjustment, and references [M, D + 1] float32,
        ending in 1.

    Raises:
        UserError: an unknown spec, differing dimensions, NaN, or fewer training descriptors than
            ranks used.

    Source: SSCD, section 5 (score normalisation), in its inner-product form.

    Examples:
        >>> import numpy as np
        >>> import rdcd_jax as rdcd
        >>> rows = np.eye(4, dtype=np.float32)
        >>> queries, references = rdcd.apply_score_norm(rows[:2], rows[:3], rows, "1.0[0,0]")
        >>> (queries @ references.T).round(2).tolist()
        [[0.0, -1.0, -1.0], [-1.0, 0.0, -1.0]]
    """
    queries = exact.require_descriptors("queries", queries)
    references = exact.require_descriptors("references", references)
    training = exact.require_descriptors("training descriptors", training)
    if not queries.shape[1] == references.shape[1] == training.shape[1]:
        raise UserError(
            f"queries, references and training descriptors have {queries.shape[1]}, "
            f"{references.shape[1]} and {training.shape[1]} dimensions; they must agree."
        )
    return append_adjustment(queries, references, query_adjustment(queries, training, spec))


def query_adjustment(
    queries: np.ndarray, training: np.ndarray, spec: str, *, itself_from: float = np.inf
) -> np.ndarray:
    """What a normalisation adds to each query's scores.

    Args:
        queries: [N, D] float32.
        training: [T, D] float32, unrelated to the queries.
        spec: such as "1.0[0,2]".
        itself_from: from this similarity on a training descriptor is of the query's own image, and is passed over; of
            four at most, so that enough are left.

    Returns:
        [N] float32.

    Raises:
        UserError: an unknown spec, or fewer training descriptors than ranks used.
    """
    norm = parse_score_norm(spec)
    require_ranks(norm, len(training))
    ranks = norm.last + 1
    more = _MOST_ITSELF if itself_from < np.inf else 0
    similarities, _ = exact.blocked_neighbours(queries, training, min(ranks + more, len(training)))
    itself = (similarities[:, : similarities.shape[1] - ranks] >= itself_from).sum(axis=1)
    others = itself[:, None] + np.arange(ranks)
    return norm.adjustment(np.take_along_axis(similarities, others, axis=1))


def require_ranks(norm: ScoreNorm, n_training: int) -> None:
    """Raises UserError where there are fewer training descriptors than ranks used."""
    if n_training <= norm.last:
        raise UserError(
            f"score normalisation over ranks {norm.first} to {norm.last} needs at least "
            f"{norm.last + 1} training descriptors, but there are {n_training}."
        )


def append_adjustment(
    queries: np.ndarray, references: np.ndarray, adjustment: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns queries with the adjustment as a last column, references with a column of ones.

    Args:
        queries: [N, D] float32.
        references: [M, D] float32.
        adjustment: [N] float32.

    Returns:
        [N, D + 1] and [M, D + 1] float32.
    """
    ones = np.ones((len(references), 1), np.float32)
    return np.hstack([queries, adjustment[:, None]]), np.hstack([references, ones])

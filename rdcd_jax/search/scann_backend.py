"""Search by ScaNN: brute force, or a tree of leaves, asymmetric hashing in them and exact scores for the best."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from rdcd_jax.core.errors import UserError

# Below this ScaNN cannot build a tree of quantised rows.
_LEAST_ROWS = 16


@dataclasses.dataclass(frozen=True)
class Hashing:
    """How widely the approximate search looks; `hashing_for` gives settings by the recall wanted.

    Attributes:
        leaves: parts into which the database is divided.
        leaves_to_search: of these, how many each query sees.
        reorder: how many of the best by hashing are scored exactly.
    """

    leaves: int
    leaves_to_search: int
    reorder: int

    def searching(self, share: float, reorder: int) -> "Hashing":
        """The same leaves, a share of them searched, but one at least."""
        return Hashing(self.leaves, max(1, round(share * self.leaves)), reorder)


def hashing_for(n_rows: int, k: int, recall: float = 0.99) -> Hashing:
    """Settings for a database of descriptors.

    Args:
        n_rows: of the database.
        k: neighbours wanted of each query.
        recall: of how many queries the nearest row should be found, 0 to 1. The settings come from
            `benchmarks/search.py`; what they find among other rows is to be measured by `recall_against_exact`.

    Raises:
        UserError: a recall that is no share.
    """
    if not 0 <= recall <= 1:
        raise UserError(f"recall is {recall}; give a share from 0 to 1.")
    # More than is usual: as few of them are searched, and each is smaller.
    times = 2 if n_rows < _MANY_ROWS else 4
    leaves = max(1, min(n_rows, times * round(math.sqrt(n_rows))))
    searched = next(searched for reached, searched in _SEARCHED if recall <= reached)
    # Leaves enough to hold several times k rows.
    searched = max(searched, math.ceil(5 * k * leaves / n_rows))
    return Hashing(leaves, min(leaves, searched), min(n_rows, max(50, 5 * k)))


def numbers_a_code(dim: int) -> int:
    """How many of a row's D numbers share a code of 4 bits."""
    # Of many numbers coarse codes are read in half the time, and exact scores for more rows make up for them.
    return 2 if dim < 512 else 4


_MANY_ROWS = 500_000
# How many leaves each query sees, by the recall wanted: about as many among 100,000 rows as among a million.
_SEARCHED = ((0.95, 16), (0.98, 32), (0.99, 48), (0.995, 80), (1.0, 256))


def make_scann(
    database: np.ndarray, k: int, hashing: Hashing | None
) -> Callable[[np.ndarray, Hashing | None], tuple[np.ndarray, np.ndarray]]:
    """Builds ScaNN's searcher.

    Args:
        database: [M, D] float32.
        k: rows wanted of each query.
        hashing: how to approximate; None for brute force, which under 16 rows is taken anyway.

    Returns:
        A function from queries [N, D] float32, and settings for this once with the same leaves or None, to inner
        products [N, k] float32 and their rows [N, k] int64, minus infinity and -1 where it found too few.

    Raises:
        UserError: ScaNN is not installed, or the settings make no sense.
    """
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except ImportError as error:
        raise UserError(
            "the ScaNN search backends need the scann package, which has wheels for Linux on "
            "x86-64 only; choose the backend jax or numpy."
        ) from error
    n_rows = len(database)
    builder = scann_ops_pybind.builder(database, k, "dot_product")
    hashed = hashing is not None and n_rows >= _LEAST_ROWS
    if hashed:
        _require_sound(hashing, hashing.leaves, n_rows, k)
        builder = builder.tree(
            num_leaves=hashing.leaves,
            num_leaves_to_search=hashing.leaves_to_search,
            training_sample_size=min(n_rows, 250_000),
            # Small leaves stay as they are: merged ones would be read for the sake of few rows.
            min_partition_size=10,
            # A leaf's centre minds errors along its rows, which change the score, more than those across.
            avq=6.0,
            # Each row lies in a second leaf too, chosen for the queries that its first one fails (SOAR).
            soar_lambda=1.5,
        )
        width = numbers_a_code(database.shape[1])
        # Fine codes gain by doing so too; coarse ones find more without.
        told = {"anisotropic_quantization_threshold": 0.2} if width == 2 else {}
        builder = builder.score_ah(width, **told).reorder(hashing.reorder)
    else:
        builder = builder.score_brute_force()
    searcher = builder.build()

    def find(queries: np.ndarray, other: Hashing | None = None) -> tuple[np.ndarray, np.ndarray]:
        told = {}
        if hashed and other is not None:
            _require_sound(other, hashing.leaves, n_rows, k)
            told = {
                "leaves_to_search": other.leaves_to_search,
                "pre_reorder_num_neighbors": other.reorder,
            }
        rows, scores = searcher.search_batched_parallel(queries, **told)
        # Rows of too few neighbours are padded with index 0 and score NaN.
        missing = np.isnan(scores)
        return np.where(missing, -np.inf, scores), np.where(missing, -1, rows.astype(np.int64))

    return find


def _require_sound(hashing: Hashing, leaves: int, n_rows: int, k: int) -> None:
    """Refuses settings that make no sense for a database divided into so many leaves."""
    if hashing.leaves != leaves:
        raise UserError(f"the database is divided into {leaves} leaves, not {hashing.leaves}.")
    limits = {"leaves": n_rows, "leaves_to_search": leaves, "reorder": n_rows}
    for name, most in limits.items():
        value, least = getattr(hashing, name), k if name == "reorder" else 1
        if not least <= value <= most:
            raise UserError(f"{name} of ScaNN's settings is {value}; give {least} to {most}.")

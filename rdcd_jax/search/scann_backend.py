"""Search by ScaNN: brute force, or a tree of leaves, asymmetric hashing in them and exact scores for the best."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable

import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.search.scann_kernels import use_instructions

# Below this ScaNN cannot build a tree of quantised rows.
LEAST_ROWS = 16


@dataclasses.dataclass(frozen=True)
class ScannConfig:
    """How widely the approximate search looks; `scann_config_for` gives settings by the recall wanted.

    Attributes:
        leaves: parts into which the database is divided.
        leaves_to_search: of these, how many each query sees.
        reorder: how many of the best by hashing are scored exactly.
    """

    leaves: int
    leaves_to_search: int
    reorder: int

    def searching(self, share: float, reorder: int) -> "ScannConfig":
        """The same leaves, a share of them searched, but one at least."""
        return ScannConfig(self.leaves, max(1, round(share * self.leaves)), reorder)


def scann_config_for(n_rows: int, k: int, recall: float = 0.99) -> ScannConfig:
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
    times = 2 if n_rows < _MANY_ROWS else 6
    leaves = max(1, min(n_rows, times * round(math.sqrt(n_rows))))
    searched = next(searched for reached, searched in _SEARCHED if recall <= reached)
    # Leaves enough to hold several times k rows.
    searched = max(searched, math.ceil(5 * k * leaves / n_rows))
    return ScannConfig(leaves, min(leaves, searched), min(n_rows, max(50, 5 * k)))


def dims_per_block(dim: int) -> int:
    """How many of a row's D dimensions share a code of 4 bits."""
    # Of many dimensions coarse codes are read in half the time, and exact scores for more rows make up for them.
    return 2 if dim < 512 else 4


_MANY_ROWS = 500_000
# More are no quicker: their distances to the leaves' centres do not fit the cache.
_MOST_AT_ONCE = 2048
# How many leaves each query sees, by the recall wanted: about as many among 100,000 rows as among a million.
_SEARCHED = ((0.95, 16), (0.98, 32), (0.99, 48), (0.995, 80), (1.0, 256))


def make_scann(
    database: np.ndarray, k: int, scann_config: ScannConfig | None
) -> Callable[[np.ndarray, ScannConfig | None], tuple[np.ndarray, np.ndarray]]:
    """Builds ScaNN's searcher.

    Args:
        database: [M, D] float32.
        k: rows wanted of each query.
        scann_config: how to approximate; None for brute force, which under 16 rows is taken anyway.

    Returns:
        A function from queries [N, D] float32, and settings for this once with the same leaves or None, to inner
        products [N, k] float32 and their rows [N, k] int64, minus infinity and -1 where it found too few.

    Raises:
        UserError: ScaNN is not installed, or the settings make no sense.
    """
    n_rows = len(database)
    hashed = scann_config is not None and n_rows >= LEAST_ROWS
    if hashed:
        _require_sound(scann_config, scann_config.leaves, n_rows, k)
        builder = _hashed(database, k, scann_config).reorder(scann_config.reorder)
    else:
        builder = _scann().builder(database, k, "dot_product").score_brute_force()
    searcher = builder.build()

    def find(
        queries: np.ndarray, other: ScannConfig | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        stored = {}
        if hashed and other is not None:
            _require_sound(other, scann_config.leaves, n_rows, k)
            stored = {
                "leaves_to_search": other.leaves_to_search,
                "pre_reorder_num_neighbors": other.reorder,
            }
        rows, scores = searcher.search_batched_parallel(
            queries, batch_size=_batch_size(len(queries)), **stored
        )
        # Rows of too few neighbours are padded with index 0 and score NaN.
        missing = np.isnan(scores)
        return np.where(missing, -np.inf, scores), np.where(missing, -1, rows.astype(np.int64))

    return find


def save_scann(database: np.ndarray, k: int, config: ScannConfig, folder: pathlib.Path) -> None:
    """Builds a searcher of hashed rows alone and writes it; its candidates are to be scored exactly elsewhere.

    Args:
        database: [M, D] float32, `LEAST_ROWS` at least.
        k: candidates of each query.
        config: how widely it looks.
        folder: an empty one.

    Raises:
        UserError: ScaNN is not installed.
    """
    _hashed(database, k, config).build().serialize(str(folder), relative_path=True)


def load_scann(folder: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """What `save_scann` wrote, as a function of queries [N, D] to candidates [N, k] int64, -1 where it found too few.

    Raises:
        UserError: ScaNN is not installed, or the files are damaged.
    """
    try:
        searcher = _scann().load_searcher(str(folder))
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{folder} is damaged ({error}); delete that folder and build it again."
        ) from error

    def find(queries: np.ndarray) -> np.ndarray:
        rows, scores = searcher.search_batched_parallel(
            np.ascontiguousarray(queries, np.float32), batch_size=_batch_size(len(queries))
        )
        return np.where(np.isnan(scores), -1, rows.astype(np.int64))

    return find


def _scann():
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except ImportError as error:
        raise UserError(
            "the ScaNN search backends need the scann package, which has wheels for Linux on "
            "x86-64 only; choose the backend jax or numpy."
        ) from error
    use_instructions(scann_ops_pybind.scann_pybind.__file__)
    return scann_ops_pybind


def _hashed(database: np.ndarray, k: int, scann_config: ScannConfig):
    """A builder of a tree with hashed rows in its leaves."""
    builder = (
        _scann()
        .builder(database, k, "dot_product")
        .tree(
            num_leaves=scann_config.leaves,
            num_leaves_to_search=scann_config.leaves_to_search,
            training_sample_size=min(len(database), 250_000),
            # Small leaves stay as they are: merged ones would be read for the sake of few rows.
            min_partition_size=10,
            # A leaf's centre minds errors along its rows, which change the score, more than those across.
            avq=6.0,
            # Each row lies in a second leaf too, chosen for the queries that its first one fails (SOAR).
            soar_lambda=1.5,
        )
    )
    width = dims_per_block(database.shape[1])
    # Fine codes gain by doing so too; coarse ones find more without.
    stored = {"anisotropic_quantization_threshold": 0.2} if width == 2 else {}
    return builder.score_ah(width, **stored)


def _batch_size(n_queries: int) -> int:
    """How many queries a thread takes at once.

    Those of one leaf read its rows together, so many at once are quicker, but no thread should be left without any.
    """
    return min(_MOST_AT_ONCE, max(1, -(-n_queries // (os.cpu_count() or 1))))


def _require_sound(scann_config: ScannConfig, leaves: int, n_rows: int, k: int) -> None:
    """Refuses settings that make no sense for a database divided into so many leaves."""
    if scann_config.leaves != leaves:
        raise UserError(f"the database is divided into {leaves} leaves, not {scann_config.leaves}.")
    limits = {"leaves": n_rows, "leaves_to_search": leaves, "reorder": n_rows}
    for name, most in limits.items():
        value, least = getattr(scann_config, name), k if name == "reorder" else 1
        if not least <= value <= most:
            raise UserError(f"{name} of ScaNN's settings is {value}; give {least} to {most}.")

"""Nearest descriptors by inner product, exactly or approximately, on several backends."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rdcd_jax.errors import UserError
from rdcd_jax.evaluation import exact

_DATABASE_BLOCK = 131_072
_QUERY_BLOCK = 1024
# Below this ScaNN cannot build a tree of quantised rows.
_MIN_HASHED_ROWS = 16


def knn(
    queries: np.ndarray, database: np.ndarray, k: int, backend: str = "jax"
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each query's k rows of largest inner product.

    The exact backends (jax, scann, numpy) give the same answer, the order included: their float32
    candidates are scored again in float64, rounded to float32 and sorted by descending score, then
    ascending index; queries whose k-th place float32 leaves open are compared with every row in
    float64. So equal rows never lose their order and no tie at the k-th place is decided by chance.
    The approximate backends (jax_approx, scann_ah) score and sort what they find in the same way
    but may miss rows: measure them with `recall_against_exact` and name them beside any figure.

    Args:
        queries: [N, D] finite numbers.
        database: [M, D] finite numbers.
        k: neighbours a query, 1 to M.
        backend: `jax` (blocked product and top-k on JAX's default device), `jax_approx`
            (`approx_max_k`, approximate on TPU only), `scann` (brute force), `scann_ah` (tree,
            asymmetric hashing, reordering; brute force under 16 rows) or `numpy`.

    Returns:
        scores [N, k] float32, descending, and indices [N, k] int64, without repetition in a row.

    Raises:
        UserError: an unknown backend, k outside 1..M, dimensions that differ, an empty side, NaN,
            or ScaNN where it is not installed.
    """
    if backend not in BACKENDS:
        raise UserError(f"unknown search backend {backend!r}; choose one of {', '.join(BACKENDS)}.")
    queries = exact.require_descriptors("queries", queries)
    database = exact.require_descriptors("database descriptors", database)
    if queries.shape[1] != database.shape[1]:
        raise UserError(
            f"queries are {queries.shape[1]}-d and the database is {database.shape[1]}-d; "
            "describe both with the same model."
        )
    if not 1 <= k <= len(database):
        raise UserError(
            f"cannot find k = {k} neighbours in a database of {len(database)} descriptors; "
            f"choose k from 1 to {len(database)}."
        )
    candidates = BACKENDS[backend](queries, database, min(k + exact.MARGIN, len(database)))
    complete = backend in EXACT_BACKENDS
    return exact.settled_neighbours(queries, database, k, candidates, complete)


def best_pairs(
    queries: np.ndarray, database: np.ndarray, n: int, backend: str = "jax"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the n best (query, row) pairs of all, however many fall to one query.

    Args:
        queries: [N, D] finite numbers.
        database: [M, D] finite numbers.
        n: pairs wanted; N * M at most are there.
        backend: as in `knn`; exact with the exact ones.

    Returns:
        scores [P] float32, descending, query indices [P] and row indices [P] int64, with
        P = min(n, N * M); lower query, then lower row first among equals.

    Raises:
        UserError: as `knn`, and n below 1.
    """
    if n < 1:
        raise UserError(f"cannot give the {n} best pairs; ask for at least 1.")
    n_rows = len(database)
    k = min(n_rows, max(1, math.ceil(2 * n / max(1, len(queries)))))
    scores, rows = knn(queries, database, k, backend)
    who = np.arange(len(queries))
    found = [np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64)]
    while True:
        # Queries searched again bring longer lists, which take the place of their old ones.
        other = ~np.isin(found[1], who)
        fresh = [scores.ravel(), np.repeat(who, k), rows.ravel()]
        joined = [np.concatenate([old[other], new]) for old, new in zip(found, fresh, strict=True)]
        order = np.lexsort((joined[2], joined[1], -joined[0]))[:n]
        found = [values[order] for values in joined]
        # Only a query whose last neighbour still belongs to the best may hide more of them.
        full = len(found[0]) == n
        hiding = scores[:, -1] >= found[0][-1] if full else np.full(len(who), True)
        if k == n_rows or not hiding.any():
            return found[0], found[1], found[2]
        who, k = who[hiding], min(n_rows, 2 * k)
        scores, rows = knn(queries[who], database, k, backend)


def recall_against_exact(indices: np.ndarray, exact_indices: np.ndarray) -> float:
    """Returns which fraction of the true neighbours an approximate search found.

    Args:
        indices: [N, k] row indices found.
        exact_indices: [N, k] the true ones.

    Returns:
        0 to 1.
    """
    hits = (indices[:, :, None] == exact_indices[:, None, :]).any(axis=1)
    return float(hits.mean())


@functools.partial(jax.jit, static_argnames=("k", "approximate"))
def _merge_block(best, where, queries, block, offset, n_valid, *, k, approximate):
    """Joins the best so far with one block of the database, of which n_valid rows are real."""
    scores = jnp.matmul(queries, block.T, precision=jax.lax.Precision.HIGHEST)
    column = jnp.arange(block.shape[0], dtype=jnp.int32)
    scores = jnp.where(column[None, :] < n_valid, scores, -jnp.inf)
    top = jax.lax.approx_max_k if approximate else jax.lax.top_k
    found, columns = top(scores, min(k, block.shape[0]))
    found = jnp.concatenate([best, found], axis=1)
    rows = jnp.concatenate([where, columns + offset], axis=1)
    best, kept = jax.lax.top_k(found, k)
    return best, jnp.take_along_axis(rows, kept, axis=1)


def _jax_candidates(
    queries: np.ndarray, database: np.ndarray, k: int, *, approximate: bool = False
) -> np.ndarray:
    width = min(_DATABASE_BLOCK, len(database))
    step = min(_QUERY_BLOCK, len(queries))
    starts = range(0, len(queries), step)
    blocks = [jnp.asarray(_padded(queries[i : i + step], step)) for i in starts]
    nothing = jnp.full((step, k), -jnp.inf, jnp.float32), jnp.full((step, k), -1, jnp.int32)
    best = [nothing] * len(blocks)
    # The database passes through the device once, a block at a time, so its size has no bound.
    for j in range(0, len(database), width):
        rows = database[j : j + width]
        block, offset, n_valid = jnp.asarray(_padded(rows, width)), np.int32(j), np.int32(len(rows))
        best = [
            _merge_block(*so_far, each, block, offset, n_valid, k=k, approximate=approximate)
            for so_far, each in zip(best, blocks, strict=True)
        ]
    return np.concatenate([np.asarray(where) for _, where in best])[: len(queries)]


def _padded(rows: np.ndarray, n: int) -> np.ndarray:
    return np.pad(rows, ((0, n - len(rows)), (0, 0))) if len(rows) < n else rows


def _numpy_candidates(queries: np.ndarray, database: np.ndarray, k: int) -> np.ndarray:
    return exact.blocked_neighbours(queries, database, k)[1]


def _scann_candidates(
    queries: np.ndarray, database: np.ndarray, k: int, *, hashed: bool = False
) -> np.ndarray:
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except ImportError as error:
        raise UserError(
            "the ScaNN search backends need the scann package, which has wheels for Linux on "
            "x86-64 only; choose the backend jax or numpy."
        ) from error
    n_rows = len(database)
    builder = scann_ops_pybind.builder(database, k, "dot_product")
    if hashed and n_rows >= _MIN_HASHED_ROWS:
        # About sqrt(N) leaves, as ScaNN advises, but searched widely: recall before speed.
        leaves = max(1, int(math.sqrt(n_rows)))
        builder = builder.tree(
            num_leaves=leaves,
            num_leaves_to_search=max(min(leaves, 100), leaves // 4),
            training_sample_size=min(n_rows, 250_000),
        )
        builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2)
        builder = builder.reorder(min(n_rows, max(200, 10 * k)))
    else:
        builder = builder.score_brute_force()
    rows, scores = builder.build().search_batched_parallel(queries)
    # Rows of too few neighbours are padded with index 0 and score NaN.
    return np.where(np.isnan(scores), -1, rows.astype(np.int64))


EXACT_BACKENDS = ("jax", "scann", "numpy")
BACKENDS: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "jax": _jax_candidates,
    "jax_approx": functools.partial(_jax_candidates, approximate=True),
    "scann": _scann_candidates,
    "scann_ah": functools.partial(_scann_candidates, hashed=True),
    "numpy": _numpy_candidates,
}

"""Nearest descriptors by inner product, exactly or approximately, on several backends."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.mesh import local_mesh
from rdcd_jax.search import exact, sharded
from rdcd_jax.search.scann_backend import ScannConfig, make_scann, scann_config_for
from rdcd_jax.search.sharded import StoredRows

EXACT_BACKENDS = ("jax", "scann", "numpy")
BACKENDS = (*EXACT_BACKENDS, "jax_approx", "scann_ah")


class Neighbours(NamedTuple):
    """What a search found.

    Attributes:
        scores: [N, k] float32, descending.
        indices: [N, k] int64, without repetition in a row.
    """

    scores: np.ndarray
    indices: np.ndarray


def knn(
    queries: np.ndarray,
    database: np.ndarray,
    k: int,
    backend: str = "jax",
    *,
    mesh: Mesh | None = None,
    scann_config: ScannConfig | None = None,
) -> Neighbours:
    """Returns each query's k rows of largest inner product.

    The exact backends (jax, scann, numpy) give the same answer, the order included: their
    candidates are scored again in float64, rounded to float32 and sorted by descending score, then
    ascending index; queries whose k-th position the search leaves open are compared with every row in
    float64. So equal rows never lose their order and no tie at the k-th position is decided by chance.
    The approximate backends (jax_approx, scann_ah) may miss rows and give scores as their float32
    sums had them: measure them with `recall_against_exact` and name them beside any figure.

    Args:
        queries: [N, D] finite numbers.
        database: [M, D] finite numbers; the JAX backends bring it to the devices a part at a time, so that its size has
            no bound there.
        k: neighbours a query, 1 to M.
        backend: `jax` (each device of the mesh searches a part of the database), `jax_approx` (the same with
            `approx_max_k`, approximate on TPU only), `scann` (brute force), `scann_ah` (tree, asymmetric hashing,
            reordering; brute force under 16 rows) or `numpy`.
        mesh: the devices of the JAX backends, with an axis `data`; all by default.
        scann_config: settings of `scann_ah`; by default those of `scann_config_for` for a recall of 0.99.

    Raises:
        UserError: an unknown backend, k outside 1..M, dimensions that differ, an empty side, NaN,
            or ScaNN where it is not installed.

    Examples:
        >>> import numpy as np
        >>> import rdcd_jax as rdcd
        >>> rows = np.eye(3, dtype=np.float32)
        >>> rdcd.knn(rows[:1], rows, 2, backend="numpy").indices.tolist()
        [[0, 1]]
    """
    search = make_search(database, k, backend, mesh=mesh, scann_config=scann_config, keep=False)
    return Neighbours(*search(queries))


def make_search(
    database: np.ndarray,
    k: int,
    backend: str = "jax",
    *,
    mesh: Mesh | None = None,
    scann_config: ScannConfig | None = None,
    keep: bool = True,
) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Returns a function that does as `knn`, for a database that is searched more than once.

    Args:
        database: [M, D] finite numbers.
        k: as in `knn`.
        backend: as in `knn`.
        mesh: as in `knn`.
        scann_config: as in `knn`.
        keep: keeps the database on the devices of the JAX backends between calls.

    Returns:
        A function from queries to scores and indices; it also takes `scann_config`, other settings of `scann_ah` with
        the same leaves, for that call.

    Raises:
        UserError: see `knn`.
    """
    if backend not in BACKENDS:
        raise UserError(f"unknown search backend {backend!r}; choose one of {', '.join(BACKENDS)}.")
    database = exact.require_descriptors("database descriptors", database)
    exact.require_neighbours(k, database)
    complete = backend in EXACT_BACKENDS
    # A first look at half the bytes, whose rounding leaves more candidates open.
    halved = backend == "jax" and sharded.multiplies_bfloat16(mesh or local_mesh())
    margin = max(exact.MARGIN, k) if halved else exact.MARGIN
    wanted = min(k + margin, len(database)) if complete else k
    longest = exact.longest_row(database)
    if backend in ("jax", "jax_approx"):
        rows = sharded.in_memory(database, in_bfloat16=halved)
        find = _make_jax(rows, wanted, mesh or local_mesh(), backend == "jax_approx", keep)
    elif backend == "numpy":
        find = lambda queries, _: exact.blocked_neighbours(queries, database, wanted)  # noqa: E731
    else:
        hashed = scann_config or scann_config_for(len(database), k)
        find = make_scann(database, wanted, None if complete else hashed)

    def search(
        queries: np.ndarray, scann_config: ScannConfig | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        queries = exact.require_descriptors("queries", queries)
        exact.require_comparable(queries, database)
        found = find(queries, scann_config)
        if complete:
            return exact.settled_neighbours(
                queries, database, k, found, longest, in_bfloat16=halved
            )
        return exact.filled_neighbours(queries, database, found)

    return search


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


def recall_against_exact(scores: np.ndarray, exact_scores: np.ndarray) -> float:
    """Returns which fraction of the nearest rows an approximate search found.

    A row that scores as well as the last of the nearest is one of them: copies of an image, or blank ones, have the
    same descriptor, and which of them is named is chance.

    Args:
        scores: [N, k] of the rows found, each row once for a query.
        exact_scores: [N, k] of the nearest rows.

    Returns:
        0 to 1.
    """
    least = exact_scores.min(axis=1, keepdims=True)
    rounding = 1e-6 * np.maximum(1, np.abs(least))
    return float((scores >= least - rounding).mean())


def _make_jax(database: StoredRows, k: int, mesh: Mesh, approximate: bool, keep: bool):
    by_maxima = not approximate and sharded.selects_by_maxima(len(database), k, mesh)
    kept = list(sharded.make_slabs(database, mesh, by_maxima)) if keep else None

    def find(queries: np.ndarray, _) -> tuple[np.ndarray, np.ndarray]:
        found = kept or sharded.make_slabs(database, mesh, by_maxima)
        return sharded.nearest_rows(
            queries, found, k, mesh, by_maxima=by_maxima, approximate=approximate
        )

    return find

"""Neighbours by Euclidean distance, on top of the exact search by inner product."""

import numpy as np

from rdcd_jax.search import backends, exact

_BLOCK_ENTRIES = 1 << 22


def nearest(
    queries: np.ndarray, database: np.ndarray, k: int, backend: str = "jax"
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each query's k nearest rows.

    Args:
        queries: [N, D] finite numbers, of any length.
        database: [M, D] finite numbers.
        k: neighbours a query, 1 to M.
        backend: as in `backends.knn`.

    Returns:
        squared distances [N, k] float64, ascending, and indices [N, k] int64; lower index first among equals.

    Raises:
        UserError: as `backends.knn`.

    Differs: faiss computes the distances in float32.
    """
    queries = exact.require_descriptors("queries", queries)
    database = exact.require_descriptors("database descriptors", database)
    exact.require_neighbours(k, database)
    exact.require_comparable(queries, database)
    near, rows = _about_the_middle(queries, database)
    # |q - r|^2 = |q|^2 - 2 (q.r - |r|^2 / 2), of which |q|^2 is the same for every row r.
    half = np.einsum("md,md->m", rows, rows, dtype=np.float64) / 2
    queries_and_1 = np.hstack([near, np.ones((len(near), 1), np.float32)])
    rows_and_half = np.hstack([rows, -half[:, None].astype(np.float32)])
    # More than asked, since what was rounded may change places with its neighbours.
    wanted = min(k + exact.MARGIN, len(database))
    _, found = backends.knn(queries_and_1, rows_and_half, wanted, backend)
    distances = np.empty(found.shape)
    step = max(1, _BLOCK_ENTRIES // (wanted * queries.shape[1]))
    for i in range(0, len(queries), step):
        block = slice(i, i + step)
        apart = database[found[block]].astype(np.float64) - queries[block, None]
        distances[block] = np.einsum("nkd,nkd->nk", apart, apart)
    order = np.lexsort((found, distances), axis=-1)[:, :k]
    return np.take_along_axis(distances, order, 1), np.take_along_axis(found, order, 1)


def _about_the_middle(queries: np.ndarray, database: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both seen from the database's mean and at most 1: far from it lengths would lose what tells rows apart."""
    middle = database.mean(axis=0, dtype=np.float64)
    apart = [each - middle for each in (queries, database)]
    largest = max(float(np.abs(each).max()) for each in apart) or 1.0
    return tuple((each / largest).astype(np.float32) for each in apart)

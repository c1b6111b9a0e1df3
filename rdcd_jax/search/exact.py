"""Exact neighbours by inner product: what every exact search backend must answer. Numpy only."""

import numpy as np

from rdcd_jax.core.errors import UserError

# How many neighbours more than asked a float32 search should bring: enough that its rounding seldom
# leaves open which of them are the best.
MARGIN = 16
# Of how many rows a second look scores anew, for a query, those that could be among the best.
_MOST_NEAR = 4096
_QUERIES = 1024
_BLOCK_ENTRIES = 1 << 22
# So many in float64 stay in a core's cache.
_CACHED_ENTRIES = 1 << 16
_LOW = (1 << 32) - 1
# Inner products of larger numbers would leave single precision.
LARGEST = 1e15


def require_descriptors(name: str, x: np.ndarray) -> np.ndarray:
    """Returns `x` as [N, D] float32, or says what is wrong with it.

    Args:
        name: what to call it in the error, such as "queries".
        x: [N, D] numbers, N and D at least 1.

    Returns:
        [N, D] float32, contiguous.

    Raises:
        UserError: another shape, no rows, no numbers, NaN, infinity or numbers beyond `LARGEST`.
    """
    x = np.asarray(x)
    if x.ndim != 2 or 0 in x.shape:
        raise UserError(f"the {name} must be descriptors of shape [N, D], not {x.shape}.")
    if x.dtype.kind not in "biuf":
        raise UserError(f"the {name} must be descriptors of numbers, not {x.dtype}.")
    x = np.ascontiguousarray(x, np.float32)
    bad = rows_not_finite(x)
    if bad.size:
        raise UserError(
            f"{bad.size} of the {len(x)} {name} hold NaN or infinity, the first in row {bad[0]}; "
            "compute them again."
        )
    if max(float(x.max()), -float(x.min())) > LARGEST:
        raise UserError(f"the {name} hold numbers beyond {LARGEST:g}; divide them by their length.")
    return x


def require_comparable(queries: np.ndarray, database: np.ndarray) -> None:
    """Refuses queries [N, D] of other dimensions than those of a database [M, D].

    Raises:
        UserError: naming both.
    """
    if queries.shape[1] != database.shape[1]:
        raise UserError(
            f"queries are {queries.shape[1]}-d and the database is {database.shape[1]}-d; embed both with the same"
            " model."
        )


def require_neighbours(k: int, database: np.ndarray) -> None:
    """Refuses to look for k neighbours in a database [M, D] that has not so many, or for none.

    Raises:
        UserError: naming both.
    """
    if not 1 <= k <= len(database):
        raise UserError(
            f"cannot find k = {k} neighbours in a database of {len(database)} descriptors; choose k from 1 to"
            f" {len(database)}."
        )


def rows_not_finite(x: np.ndarray) -> np.ndarray:
    """Returns the indices of the rows of `x` [N, D] that hold NaN or infinity."""
    # One float64 sum a row spares a copy of everything. Finite float32 values cannot overflow it.
    with np.errstate(invalid="ignore"):
        return np.flatnonzero(~np.isfinite(x.sum(axis=1, dtype=np.float64)))


def longest_row(x: np.ndarray) -> float:
    """Returns the largest Euclidean length of the rows of `x` [N, D]."""
    return float(np.sqrt(np.einsum("nd,nd->n", x, x).max()))


def blocked_neighbours(
    queries: np.ndarray, database: np.ndarray, k: int, dtype: type = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each query's k rows of largest inner product, lower index first among equals.

    Args:
        queries: [N, D] float32.
        database: [M, D] float32, k at most M. Only a block of it is compared at a time.
        k: neighbours a query.
        dtype: the precision of the products, which are rounded to float32 before they are ranked.

    Returns:
        scores [N, k] float32, descending, and indices [N, k] int64.
    """
    best = np.empty((len(queries), k), np.int64)
    width = max(k, _BLOCK_ENTRIES // _QUERIES)
    for i in range(0, len(queries), _QUERIES):
        block = queries[i : i + _QUERIES].astype(dtype)
        kept = np.empty((len(block), 0), np.int64)
        for j in range(0, len(database), width):
            rows = database[j : j + width]
            products = (block @ rows.T.astype(dtype)).astype(np.float32, copy=False)
            floor = _scores_and_indices(kept.min(axis=1))[0] if j else np.float32(-np.inf)
            kept = _largest(np.hstack([kept, _keys_from(products, floor, j)]), k)
        best[i : i + _QUERIES] = kept
    return _scores_and_indices(np.sort(best, axis=1)[:, ::-1])


def rounding(queries: np.ndarray, longest: float, *, in_bfloat16: bool = False) -> np.ndarray:
    """Returns how far a search's inner products may lie from the true ones, [N].

    Args:
        queries: [N, D] float32.
        longest: see `longest_row`.
        in_bfloat16: both sides were rounded to bfloat16 before they were multiplied; the sums are in float32 always.
    """
    # One search's sums, those of its second look, and what the true ones lose where they are rounded to float32.
    share = 32 * np.finfo(np.float32).eps * np.sqrt(queries.shape[1])
    if in_bfloat16:
        # Each number by 2^-8 of itself at most, so each side by that share of its length.
        share += 2 * 2**-8 + 2**-16
    # Devices may take what is below the smallest normal number for 0, in each product.
    least = queries.shape[1] * np.finfo(np.float32).tiny
    return share * longest * np.linalg.norm(queries, axis=1) + least


def settled_neighbours(
    queries: np.ndarray,
    database: np.ndarray,
    k: int,
    found: tuple[np.ndarray, np.ndarray],
    longest: float,
    *,
    in_bfloat16: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k best of what an exhaustive search found, scored anew, lower index first among equals.

    A search rounds each product differently by backend and by position in a block, so equal rows come back with
    unequal scores. Scoring the few candidates again in float64 gives every backend the same answer. Where the worst
    candidate lies within rounding of the k-th, rows that belong before it may have been left out: then every row is
    looked at in float32, and what lies near the k-th is scored in float64 too.

    Args:
        queries: [N, D] float32.
        database: [M, D] float32, k at most M.
        k: neighbours a query.
        found: scores [N, C] and integers [N, C], C at least k: the best C rows of the database by the search, in any
            order, without repetition. Minus infinity and -1 mark a position that it could not fill.
        longest: see `longest_row`.
        in_bfloat16: how the search multiplied, see `rounding`.

    Returns:
        scores [N, k] float32, descending, and indices [N, k] int64.
    """
    uncertain = rounding(queries, longest, in_bfloat16=in_bfloat16)
    best, unsettled = _scored_again(queries, database, k, found, uncertain)
    if unsettled.any():
        some = queries[unsettled]
        least = best[0][unsettled, -1] - rounding(some, longest)
        for whole, part in zip(best, _near_neighbours(some, database, k, least), strict=True):
            whole[unsettled] = part
    return best


def _near_neighbours(
    queries: np.ndarray, database: np.ndarray, k: int, least: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows by float64, which all have `least` [N] at least in float32."""
    scores, indices = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    for i in range(0, len(queries), _QUERIES):
        block, part = queries[i : i + _QUERIES], slice(i, i + _QUERIES)
        near = _rows_from(block, database, least[part])
        few = np.asarray([rows is not None for rows in near])
        if few.any():
            candidates = _filled_up([rows for rows in near if rows is not None])
            # That no other row could belong to the best is known.
            found = np.full(candidates.shape, -np.inf, np.float32), candidates
            best, _ = _scored_again(block[few], database, k, found, np.zeros(few.sum()))
            scores[part][few], indices[part][few] = best
        scores[part], indices[part] = _with_whole(
            block, database, scores[part], indices[part], ~few
        )
    return scores, indices


def _filled_up(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of different lengths in one array, -1 behind each."""
    filled = np.full((len(rows), max(map(len, rows))), -1, np.int64)
    for whole, part in zip(filled, rows, strict=True):
        whole[: len(part)] = part
    return filled


def _rows_from(
    queries: np.ndarray, database: np.ndarray, least: np.ndarray
) -> list[np.ndarray | None]:
    """Each query's rows whose float32 product is `least` [N] at least; None where there are too many."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    least = np.where(np.isfinite(least), least, np.inf)
    counts = np.where(np.isfinite(least), 0, _MOST_NEAR + 1)
    width = _BLOCK_ENTRIES // _QUERIES
    for j in range(0, len(database), width):
        who, where = np.nonzero(queries @ database[j : j + width].T >= least[:, None])
        counts += np.bincount(who, minlength=len(queries))
        # Of what has too many already no more are looked for.
        least = np.where(counts > _MOST_NEAR, np.inf, least)
        found.append((who, where + j))
    who, where = (np.concatenate(each) for each in zip(*found, strict=True))
    order = np.argsort(who, kind="stable")
    parts = np.split(where[order], np.cumsum(np.bincount(who, minlength=len(queries)))[:-1])
    return [None if count > _MOST_NEAR else rows for count, rows in zip(counts, parts, strict=True)]


def _scored_again(
    queries: np.ndarray,
    database: np.ndarray,
    k: int,
    found: tuple[np.ndarray, np.ndarray],
    uncertain: np.ndarray,
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """The k best of the candidates by float64, and of which queries [N] another row may belong to them."""
    searched, candidates = found
    n_candidates, dimensions = candidates.shape[1], queries.shape[1]
    keys = np.empty(candidates.shape, np.int64)
    step = max(1, _CACHED_ENTRIES // (n_candidates * dimensions))
    for i in range(0, len(queries), step):
        where = candidates[i : i + step].astype(np.int64)
        rows, block = (x.astype(np.float64) for x in (database[where], queries[i : i + step, None]))
        again = np.where(where < 0, -np.inf, np.vecdot(rows, block)).astype(np.float32)
        keys[i : i + step] = _keys(again, where)
    scores, indices = _scores_and_indices(np.sort(keys, axis=1)[:, : -k - 1 : -1])
    unsettled = ~np.isfinite(scores[:, -1])
    if n_candidates < len(database):
        # No row that the search left out scored above its worst candidate.
        unsettled |= scores[:, -1] - searched.min(axis=1) <= uncertain
    return (scores, indices), unsettled


def filled_neighbours(
    queries: np.ndarray, database: np.ndarray, found: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what an approximate search found, lower index first among equals, without gaps.

    Args:
        queries: [N, D] float32.
        database: [M, D] float32.
        found: inner products [N, k] float32 and their rows [N, k] without repetition, k at most M, in any order. Minus
            infinity and -1 mark a position the search could not fill; its query is compared with the whole database.

    Returns:
        scores [N, k] float32, descending, and indices [N, k] int64.
    """
    scores, indices = _scores_and_indices(np.sort(_keys(*found), axis=1)[:, ::-1])
    return _with_whole(queries, database, scores, indices, ~np.isfinite(scores).all(axis=1))


def _with_whole(
    queries: np.ndarray,
    database: np.ndarray,
    scores: np.ndarray,
    indices: np.ndarray,
    unsettled: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The neighbours [N, k], those of unsettled queries [N] from the whole database."""
    scores, indices = scores.copy(), indices.copy()
    if unsettled.any():
        scores[unsettled], indices[unsettled] = blocked_neighbours(
            queries[unsettled], database, scores.shape[1], np.float64
        )
    return scores, indices


def _keys_from(products: np.ndarray, floor: np.ndarray, offset: int) -> np.ndarray:
    """[N, C] keys of each row's products that reach its floor, the rows filled up with no key."""
    # After the first block few products do, and sorting only those is what makes this fast.
    rows, columns = np.nonzero(products >= np.reshape(floor, (-1, 1)))
    counts = np.bincount(rows, minlength=len(products))
    position = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    keys = np.full((len(products), counts.max()), np.iinfo(np.int64).min)
    keys[rows, position] = _keys(products[rows, columns], columns + offset)
    return keys


def _keys(scores: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Integers that order like (score ascending, index descending): unique, so ties never arise."""
    bits = (scores + np.float32(0)).view(np.int32)  # -0.0 becomes 0.0
    ordered = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)
    return (ordered.astype(np.int64) << 32) | (_LOW - indices)


def _scores_and_indices(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `_keys` was made from."""
    ordered = (keys >> 32).astype(np.int32)
    bits = np.where(ordered < 0, ordered ^ np.int32(0x7FFFFFFF), ordered)
    return bits.view(np.float32), _LOW - (keys & _LOW)


def _largest(keys: np.ndarray, k: int) -> np.ndarray:
    """The k largest of each row (all, where there are no more), in any order."""
    return keys if keys.shape[1] <= k else np.partition(keys, -k, axis=1)[:, -k:]

"""Search by inner product on JAX devices: each keeps part of the database, and their best are merged."""

import concurrent.futures
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rdcd_jax.core.processor import instructions

# Rows of the database on a device at a time, where only maxima of scores are kept and where all are.
_WIDE, _NARROW = 524_288, 65_536
_QUERIES = 1024
# Scores of so many rows stay in the core's cache until their maxima are taken.
_BLOCK = 2048
# Rows that one maximum stands for: first of few rows, then of several such.
_SMALL, _GROUP = 8, 32


@dataclasses.dataclass(frozen=True)
class StoredRows:
    """A database of M descriptors as they are stored, which need not be in memory.

    Attributes:
        count: M.
        dim: D.
        rows: gives those from one position up to another, [n, D] float32, bfloat16, float16 or int8.
        scales: gives what they are to be multiplied by, [n] float32; None where nothing.
    """

    count: int
    dim: int
    rows: Callable[[int, int], np.ndarray]
    scales: Callable[[int, int], np.ndarray] | None = None

    def __len__(self) -> int:
        return self.count


def in_memory(database: np.ndarray, *, in_bfloat16: bool = False) -> StoredRows:
    """Descriptors [M, D] that are in memory, for the devices in their own type or rounded to bfloat16."""
    dtype = jnp.bfloat16 if in_bfloat16 else database.dtype
    return StoredRows(
        *database.shape, lambda start, stop: database[start:stop].astype(dtype, copy=False)
    )


@functools.cache
def multiplies_bfloat16(mesh: Mesh) -> bool:
    """Whether the devices multiply bfloat16 in hardware; of CPUs few do, and the others lose by it."""
    if mesh.devices.flat[0].platform != "cpu":
        return True
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(instructions())


@dataclasses.dataclass(frozen=True)
class Slab:
    """Some rows of a database, on the devices of a mesh.

    Attributes:
        rows: [devices * width, D] as they are stored, width rows on each device, filled up with zeros.
        scales: [devices * width] float32, what each row is to be multiplied by; None for nothing.
        first: which row of the database the first one is.
        count: how many of them are rows of the database.
    """

    rows: jax.Array
    scales: jax.Array | None
    first: int
    count: int


def selects_by_maxima(n_rows: int, k: int, mesh: Mesh) -> bool:
    """Whether a search pays that keeps only the maximum of each group of scores and looks into the k best groups.

    XLA's CPU code gains twofold where no score but these leaves the cache. On accelerators the second look, query by
    query, would cost more than it saves; so it would for a large k.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return on_cpu and 8 * k * _GROUP <= min(n_rows // mesh.size, _WIDE // 2)


def slab_width(n_rows: int, mesh: Mesh, by_maxima: bool) -> int:
    """Rows of a database of so many that a device has of each slab."""
    most = (_WIDE if by_maxima else _NARROW) * mesh.size
    n_slabs = math.ceil(n_rows / most)
    width = math.ceil(n_rows / (n_slabs * mesh.size))
    # Slabs of sizes alike share a program.
    return math.ceil(width / _BLOCK) * _BLOCK


def make_slabs(database: StoredRows, mesh: Mesh, by_maxima: bool) -> Iterator[Slab]:
    """Brings a database to the devices, a slab at a time; of several processes each reads what its devices keep.

    Args:
        database: its rows.
        mesh: the devices; the rows are split over its axis `data`.
        by_maxima: see `selects_by_maxima`.

    Yields:
        Slabs of one shape, in order.
    """
    width = slab_width(len(database), mesh, by_maxima)
    step = width * mesh.size
    sharding = NamedSharding(mesh, P("data"))

    def placed(read: Callable[[int, int], np.ndarray], first: int, *shape: int) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(step)
            start, stop = (min(first + each, len(database)) for each in (start, stop))
            return _padded(read(start, stop), width)

        return jax.make_array_from_callback((step, *shape), sharding, part)

    for first in range(0, len(database), step):
        scales = None if database.scales is None else placed(database.scales, first)
        rows = placed(database.rows, first, database.dim)
        yield Slab(rows, scales, first, min(step, len(database) - first))


def nearest_rows(
    queries: np.ndarray,
    slabs: Iterable[Slab],
    k: int,
    mesh: Mesh,
    *,
    by_maxima: bool,
    approximate: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k rows of largest float32 score of each query, in no order among equals.

    Args:
        queries: [N, D] float32.
        slabs: from `make_slabs`, of at least k rows in all; gone through once.
        k: rows wanted.
        mesh: the devices that the slabs lie on.
        by_maxima: as it was for `make_slabs`.
        approximate: takes `approx_max_k` for `top_k`.

    Returns:
        scores [N, k] float32 and rows [N, k] int64, -1 where the score is minus infinity.
    """
    step = min(_QUERIES, len(queries))
    everywhere = NamedSharding(mesh, P())
    blocks = [_padded(queries[i : i + step], step) for i in range(0, len(queries), step)]
    blocks = [
        jax.make_array_from_callback(block.shape, everywhere, block.__getitem__) for block in blocks
    ]
    best = [(np.full((step, k), -np.inf, np.float32), np.full((step, k), -1, np.int32))] * len(
        blocks
    )

    def joined(so_far: tuple, block: jax.Array, slab: Slab) -> tuple:
        position = np.asarray([slab.first, slab.count], np.int32)
        options = {"k": k, "mesh": mesh, "by_maxima": by_maxima, "approximate": approximate}
        # A caller's own mesh, such as a training run's that evaluates, may have fewer devices.
        with jax.set_mesh(mesh):
            found = merged(*so_far, block, slab.rows, slab.scales, position, **options)
        return jax.block_until_ready(found) if by_maxima else found

    with concurrent.futures.ThreadPoolExecutor(_threads(mesh)) as pool:
        for slab in slabs:
            best = list(pool.map(joined, best, blocks, [slab] * len(blocks)))
    scores, rows = (np.concatenate(each)[: len(queries)] for each in zip(*best, strict=True))
    return scores, np.where(np.isneginf(scores), -1, rows.astype(np.int64))


def _threads(mesh: Mesh) -> int:
    """How many blocks of queries are searched at once.

    XLA gives much of a block's work to one core of a CPU. Where devices exchange their best, all must do so in one
    order.
    """
    alone_on_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    return (os.cpu_count() or 1) if alone_on_cpu else 1


@functools.partial(jax.jit, static_argnames=("k", "mesh", "by_maxima", "approximate"))
def merged(best, where, queries, rows, scales, position, *, k, mesh, by_maxima, approximate):
    """Joins the best so far with those of a slab."""
    first, count = position
    n_local = min(k, rows.shape[0] // mesh.size)

    def local(queries, rows, scales, first, count):
        start = jax.lax.axis_index("data") * rows.shape[0]
        find = _found_by_maxima if by_maxima else functools.partial(_found, approximate=approximate)
        scores, columns = find(queries, rows, scales, count - start, n_local)
        return scores, columns + (start + first)

    parts = P(None, "data")
    scores, columns = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P("data"), P("data"), P(), P()), out_specs=(parts, parts)
    )(queries, rows, scales, first, count)
    whole = NamedSharding(mesh, P())
    scores, columns = (jax.lax.with_sharding_constraint(x, whole) for x in (scores, columns))
    best, kept = jax.lax.top_k(jnp.concatenate([best, scores], axis=1), k)
    where = jnp.concatenate([where, columns], axis=1)
    return best, jnp.take_along_axis(where, kept, axis=1)


def _found(queries, rows, scales, n_valid, k, *, approximate):
    """The k best of one device's rows, of which the first n_valid count."""
    scores = _masked(_products(queries, rows, scales), jnp.arange(rows.shape[0]), n_valid)
    top = jax.lax.approx_max_k if approximate else jax.lax.top_k
    return top(scores, k)


def _found_by_maxima(queries, rows, scales, n_valid, k):
    """The same: the k best rows lie in the k groups of largest maxima, and in the k small groups of largest maxima.

    A small group is of rows that lie `_BLOCK // _SMALL` apart, since maxima of whole stretches are vectors' work.
    """
    n_blocks, n_queries = rows.shape[0] // _BLOCK, len(queries)
    apart, parts = _BLOCK // _SMALL, _GROUP // _SMALL

    def maxima(start, block):
        def largest(scores):
            return scores.reshape(n_queries, _SMALL, apart).max(axis=1)

        def of_valid(scores):
            return largest(_masked(scores, start + jnp.arange(_BLOCK), n_valid))

        # Of most blocks all rows count, and need no mask.
        whole = start + _BLOCK <= n_valid
        return start + _BLOCK, jax.lax.cond(whole, largest, of_valid, _products(queries, *block))

    # Varying over the mesh, as n_valid does.
    start = jnp.zeros_like(n_valid)
    blocks = (
        rows.reshape(n_blocks, _BLOCK, -1),
        None if scales is None else scales.reshape(n_blocks, _BLOCK),
    )
    _, small = jax.lax.scan(maxima, start, blocks)
    small = small.reshape(n_blocks, n_queries, parts, apart // parts)
    large = jnp.moveaxis(small.max(axis=2), 0, 1).reshape(n_queries, -1)
    _, groups = jax.lax.top_k(large, min(k, large.shape[1]))
    block, within = jnp.divmod(groups, apart // parts)
    # [queries, groups, small ones of a group]
    who = jnp.arange(n_queries)[:, None, None]
    within = within[:, :, None]
    part = jnp.arange(parts)[None, None, :]
    own = small[block[:, :, None], who, part, within].reshape(n_queries, -1)
    first = (block[:, :, None] * _BLOCK + part * (apart // parts) + within).reshape(n_queries, -1)
    _, kept = jax.lax.top_k(own, groups.shape[1])
    first = jnp.take_along_axis(first, kept, axis=1)

    # One query at a time: its rows are gathered in the cache, not in memory.
    def again(each):
        query, first = each
        columns = (first[:, None] + jnp.arange(0, _BLOCK, apart)[None, :]).reshape(-1)
        own = None if scales is None else scales[columns]
        found = _products(query[None], rows[columns], own)[0]
        best, kept = jax.lax.top_k(_masked(found, columns, n_valid), k)
        return best, columns[kept]

    return jax.lax.map(again, (queries, first))


def _products(queries, rows, scales):
    if rows.dtype == jnp.bfloat16:
        queries, precision = queries.astype(rows.dtype), None
    else:
        rows, precision = rows.astype(jnp.float32), jax.lax.Precision.HIGHEST
    # Written as a product with the transpose it would be slow in bfloat16: XLA's CPU code has no kernel for that.
    found = jax.lax.dot_general(
        queries,
        rows,
        (((1,), (1,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    return found if scales is None else found * scales[None, :]


def _masked(scores, columns, n_valid):
    return jnp.where(jnp.broadcast_to(columns < n_valid, scores.shape), scores, -jnp.inf)


def _padded(rows: np.ndarray, n: int) -> np.ndarray:
    if len(rows) == n:
        return rows
    return np.pad(rows, [(0, n - len(rows))] + [(0, 0)] * (rows.ndim - 1))

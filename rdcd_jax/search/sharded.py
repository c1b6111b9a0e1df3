"""Search by inner product on JAX devices: each keeps part of the database, and their best are merged."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# Rows of the database on a device at a time, where only maxima of scores are kept and where all are.
_WIDE, _NARROW = 262_144, 65_536
_QUERIES = 1024
# Scores of so many rows stay in the core's cache until their maxima are taken.
_BLOCK = 1024
# Rows that one maximum stands for: of short descriptors, whose products are cheap, and of longer ones.
_GROUPS, _SHORT = (32, 16), 128


@dataclasses.dataclass(frozen=True)
class Slab:
    """Some rows of a database, on the devices of a mesh.

    Attributes:
        rows: [devices * width, D] float32, width rows on each device, filled up with zeros.
        first: which row of the database the first one is.
        count: how many of them are rows of the database.
    """

    rows: jax.Array
    first: int
    count: int


def selects_by_maxima(n_rows: int, k: int, mesh: Mesh) -> bool:
    """Whether a search pays that keeps only the maximum of each group of scores and looks into the k best groups.

    XLA's CPU code gains twofold where no score but these leaves the cache. On accelerators the second look, query by
    query, would cost more than it saves; so it would for a large k.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return on_cpu and 8 * k * max(_GROUPS) <= min(n_rows // mesh.size, _WIDE // 2)


def make_slabs(database: np.ndarray, mesh: Mesh, by_maxima: bool) -> Iterator[Slab]:
    """Brings a database to the devices, a slab at a time.

    Args:
        database: [M, D] float32.
        mesh: the devices; the rows are split over its axis `data`.
        by_maxima: see `selects_by_maxima`.

    Yields:
        Slabs of one shape, in order.
    """
    most = (_WIDE if by_maxima else _NARROW) * mesh.size
    n_slabs = math.ceil(len(database) / most)
    width = math.ceil(len(database) / (n_slabs * mesh.size))
    # Slabs of sizes alike share a program.
    width = math.ceil(width / _BLOCK) * _BLOCK
    step = width * mesh.size
    sharding = NamedSharding(mesh, P("data"))
    for first in range(0, len(database), step):
        rows = database[first : first + step]
        padded = _padded(rows, step)
        placed = jax.make_array_from_callback(padded.shape, sharding, padded.__getitem__)
        yield Slab(placed, first, len(rows))


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
    # A caller's own mesh, such as a training run's that evaluates, may have fewer devices.
    with jax.set_mesh(mesh):
        for slab in slabs:
            position = np.asarray([slab.first, slab.count], np.int32)
            best = [
                _merged(
                    *so_far,
                    block,
                    slab.rows,
                    position,
                    k=k,
                    mesh=mesh,
                    by_maxima=by_maxima,
                    approximate=approximate,
                )
                for so_far, block in zip(best, blocks, strict=True)
            ]
    scores, rows = (np.concatenate(each)[: len(queries)] for each in zip(*best, strict=True))
    return scores, np.where(np.isneginf(scores), -1, rows.astype(np.int64))


@functools.partial(jax.jit, static_argnames=("k", "mesh", "by_maxima", "approximate"))
def _merged(best, where, queries, rows, position, *, k, mesh, by_maxima, approximate):
    """Joins the best so far with those of a slab."""
    first, count = position
    n_local = min(k, rows.shape[0] // mesh.size)

    def local(queries, rows, first, count):
        start = jax.lax.axis_index("data") * rows.shape[0]
        find = _found_by_maxima if by_maxima else functools.partial(_found, approximate=approximate)
        scores, columns = find(queries, rows, count - start, n_local)
        return scores, columns + (start + first)

    parts = P(None, "data")
    scores, columns = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P("data"), P(), P()), out_specs=(parts, parts)
    )(queries, rows, first, count)
    whole = NamedSharding(mesh, P())
    scores, columns = (jax.lax.with_sharding_constraint(x, whole) for x in (scores, columns))
    best, kept = jax.lax.top_k(jnp.concatenate([best, scores], axis=1), k)
    where = jnp.concatenate([where, columns], axis=1)
    return best, jnp.take_along_axis(where, kept, axis=1)


def _found(queries, rows, n_valid, k, *, approximate):
    """The k best of one device's rows, of which the first n_valid count."""
    scores = _masked(_products(queries, rows), jnp.arange(rows.shape[0]), n_valid)
    top = jax.lax.approx_max_k if approximate else jax.lax.top_k
    return top(scores, k)


def _found_by_maxima(queries, rows, n_valid, k):
    """The same: the k best rows lie in the k groups of largest maxima."""
    n_blocks = rows.shape[0] // _BLOCK
    group = _GROUPS[rows.shape[1] > _SHORT]

    def maxima(start, block):
        scores = _masked(_products(queries, block), start + jnp.arange(_BLOCK), n_valid)
        grouped = scores.reshape(len(queries), _BLOCK // group, group)
        return start + _BLOCK, grouped.max(axis=2)

    # Varying over the mesh, as n_valid does.
    start = jnp.zeros_like(n_valid)
    _, found = jax.lax.scan(maxima, start, rows.reshape(n_blocks, _BLOCK, -1))
    found = jnp.moveaxis(found, 0, 1).reshape(len(queries), -1)
    _, groups = jax.lax.top_k(found, k)

    # One query at a time: its rows are gathered in the cache, not in memory.
    def again(each):
        query, groups = each
        columns = (groups[:, None] * group + jnp.arange(group)[None, :]).reshape(-1)
        scores, kept = jax.lax.top_k(_masked(_products(rows[columns], query), columns, n_valid), k)
        return scores, columns[kept]

    return jax.lax.map(again, (queries, groups))


def _products(x, y):
    return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


def _masked(scores, columns, n_valid):
    return jnp.where(jnp.broadcast_to(columns < n_valid, scores.shape), scores, -jnp.inf)


def _padded(rows: np.ndarray, n: int) -> np.ndarray:
    return np.pad(rows, ((0, n - len(rows)), (0, 0))) if len(rows) < n else rows

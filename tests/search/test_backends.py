import sys

import jax
import numpy as np
import pytest

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.mesh import make_mesh
from rdcd_jax.search import backends
from rdcd_jax.search.scann_backend import ScannConfig, scann_config_for

BACKENDS = backends.BACKENDS


def expected_neighbours(queries, database, k):
    scores = (queries.astype(np.float64) @ database.astype(np.float64).T).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def made(name):
    rng = np.random.default_rng(0)
    if name == "random":
        return rng.normal(size=(60, 33)), rng.normal(size=(1500, 33))
    if name == "heavy ties":
        return rng.integers(-1, 2, size=(60, 4)), rng.integers(-1, 2, size=(1500, 4))
    if name == "exact duplicates":
        return rng.normal(size=(60, 33)), np.tile(rng.normal(size=(30, 33)), (50, 1))
    if name == "one row":
        return rng.normal(size=(3, 2)), rng.normal(size=(1, 2))
    assert name == "signed zeros"
    return np.array([[0.0], [-0.0], [1.0]]), np.array([[1.0], [-1.0], [0.0], [-0.0], [2.0]])


@pytest.mark.parametrize("backend", backends.EXACT_BACKENDS)
@pytest.mark.parametrize(
    "name", ["random", "heavy ties", "exact duplicates", "one row", "signed zeros"]
)
def test_exact_backends_agree_in_every_position(backend, name):
    queries, database = (x.astype(np.float32) for x in made(name))
    k = min(10, len(database))
    scores, indices = backends.knn(queries, database, k, backend)
    expected_scores, expected_indices = expected_neighbours(queries, database, k)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-6)
    assert scores.dtype == np.float32
    assert scores.shape == indices.shape == (len(queries), k)


@pytest.mark.parametrize("backend", backends.EXACT_BACKENDS)
def test_products_too_small_for_a_device_are_told_apart(backend):
    rows = (1e-20 * np.random.default_rng(0).normal(size=(3000, 16))).astype(np.float32)
    _, indices = backends.knn(rows[:3], rows, 3, backend)
    np.testing.assert_array_equal(indices, expected_neighbours(rows[:3], rows, 3)[1])


@pytest.fixture
def small_parts(monkeypatch):
    """Blocks so small that few rows make many of them, on 8 devices, unevenly."""
    sharded = backends.sharded
    for name, value in {
        "_WIDE": 256,
        "_NARROW": 64,
        "_QUERIES": 25,
        "_BLOCK": 16,
        "_GROUP": 4,
        "_SMALL": 2,
    }.items():
        monkeypatch.setattr(sharded, name, value)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("name", ["random", "heavy ties", "exact duplicates", "one row"])
@pytest.mark.parametrize("by_maxima", [True, False])
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("k", [1, 30])
@pytest.mark.parametrize("halved", [True, False])
def test_parts_make_no_difference(monkeypatch, small_parts, name, by_maxima, devices, k, halved):
    monkeypatch.setattr(backends.sharded, "selects_by_maxima", lambda *_: by_maxima)
    monkeypatch.setattr(backends.sharded, "multiplies_bfloat16", lambda _: halved)
    queries, database = (x.astype(np.float32) for x in made(name))
    k = min(k, len(database))
    assert len(jax.devices()) == 8
    _, indices = backends.knn(queries, database, k, "jax", mesh=make_mesh(devices))
    np.testing.assert_array_equal(indices, expected_neighbours(queries, database, k)[1])


def test_what_bfloat16_cannot_tell_apart_is_told_apart(monkeypatch):
    monkeypatch.setattr(backends.sharded, "multiplies_bfloat16", lambda _: True)
    rng = np.random.default_rng(3)
    # All rows are one in bfloat16, and so are the candidates that a search by it brings.
    database = 1 + np.linspace(0, 2**-10, 2000, dtype=np.float32)[rng.permutation(2000)][:, None]
    queries = np.array([[1.0], [-1.0]], np.float32)
    scores, indices = backends.knn(queries, database, 5, "jax")
    expected_scores, expected_indices = expected_neighbours(queries, database, 5)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(scores, expected_scores.astype(np.float32))


@pytest.mark.parametrize("name", ["heavy ties", "exact duplicates"])
@pytest.mark.parametrize("most", [3, 60, 10_000])
def test_however_many_rows_are_near_the_last_the_answer_is_the_same(name, most, monkeypatch):
    """All queries, some or none have more rows near their last neighbour than are scored for each."""
    monkeypatch.setattr(backends.exact, "_MOST_NEAR", most)
    monkeypatch.setattr(backends.exact, "_BLOCK_ENTRIES", 1024 * 100)
    monkeypatch.setattr(backends.exact, "_QUERIES", 1024)
    queries, database = (x.astype(np.float32) for x in made(name))
    scores, indices = backends.knn(queries, database, 4, "jax")
    expected_scores, expected_indices = expected_neighbours(queries, database, 4)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("n_rows", [1, 7, 1025, 3000])
def test_devices_keep_a_part_each(n_rows):
    database = np.arange(2.0 * n_rows, dtype=np.float32).reshape(n_rows, 2)
    mesh = make_mesh()
    slabs = list(backends.sharded.make_slabs(backends.sharded.in_memory(database), mesh, True))
    assert sum(slab.count for slab in slabs) == n_rows
    for slab in slabs:
        parts = {tuple(shard.data.shape) for shard in slab.rows.addressable_shards}
        assert parts == {(len(slab.rows) // 8, 2)}
        np.testing.assert_array_equal(slab.rows[: slab.count], database[slab.first :][: slab.count])


def test_a_search_is_made_once_and_used_often():
    queries, database = (x.astype(np.float32) for x in made("random"))
    find = backends.make_search(database, 3)
    for part in (queries[:1], queries[1:8]):
        np.testing.assert_array_equal(find(part)[1], expected_neighbours(part, database, 3)[1])


def test_scann_is_tunable():
    rng = np.random.default_rng(0)
    queries, database = (rng.normal(size=(n, 32)).astype(np.float32) for n in (50, 4000))
    expected = expected_neighbours(queries, database, 5)[0]
    narrow, wide = ScannConfig(60, 2, 10), ScannConfig(60, 60, 100)
    find = backends.make_search(database, 5, "scann_ah", scann_config=narrow)
    few = backends.recall_against_exact(find(queries)[0], expected)
    many = backends.recall_against_exact(find(queries, scann_config=wide)[0], expected)
    assert few < 0.8 < 0.98 < many
    assert (
        scann_config_for(10**6, 10, 0.9).leaves_to_search
        < scann_config_for(10**6, 10).leaves_to_search
    )


@pytest.mark.parametrize(
    "scann_config, message",
    [
        (ScannConfig(0, 1, 10), "leaves of ScaNN's settings is 0; give 1 to 100"),
        (ScannConfig(8, 9, 10), "leaves_to_search of ScaNN's settings is 9; give 1 to 8"),
        (ScannConfig(8, 8, 1), "reorder of ScaNN's settings is 1; give 2 to 100"),
    ],
)
def test_wrong_settings_are_refused(scann_config, message):
    x = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    with pytest.raises(UserError, match=message):
        backends.knn(x, x, 2, "scann_ah", scann_config=scann_config)


@pytest.mark.parametrize("backend", ["jax_approx", "scann_ah"])
@pytest.mark.parametrize("n_rows", [5, 16, 2000])
def test_approximate_backends_find_most(backend, n_rows):
    rng = np.random.default_rng(0)
    queries, database = (rng.normal(size=(n, 32)).astype(np.float32) for n in (50, n_rows))
    scores, indices = backends.knn(queries, database, 5, backend)
    expected = expected_neighbours(queries, database, 5)[0]
    assert backends.recall_against_exact(scores, expected) > 0.9
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(row)) == 5 for row in indices.tolist())
    products = np.vecdot(database[indices].astype(np.float64), queries[:, None])
    np.testing.assert_allclose(scores, products, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["random", "heavy ties"])
@pytest.mark.parametrize("n", [1, 25, 5000, 10**6])
def test_best_pairs_are_those_of_the_whole_table(name, n):
    queries, database = (x[:200].astype(np.float32) for x in made(name))
    # One query holds most of the best pairs.
    queries[7] *= 50
    scores, query, row = backends.best_pairs(queries, database, n, "numpy")
    table = (queries.astype(np.float64) @ database.astype(np.float64).T).astype(np.float32)
    order = np.argsort(-table.ravel(), kind="stable")[:n]
    np.testing.assert_array_equal(query * len(database) + row, order)
    np.testing.assert_allclose(scores, table.ravel()[order], rtol=1e-6)


@pytest.mark.parametrize("dim", [64, 256, 512])
def test_hashing_finds_copies(dim):
    rng = np.random.default_rng(0)
    database = rng.normal(size=(3000, dim)).astype(np.float32)
    queries = database[:200] + rng.normal(size=(200, dim)).astype(np.float32)
    _, rows = backends.knn(queries, database, 1, "scann_ah")
    assert (rows[:, 0] == np.arange(200)).mean() > 0.95


def test_recall_counts_what_ties_with_the_nearest():
    exact = np.array([[0.9, 0.5], [1.0, 1.0]])
    assert backends.recall_against_exact(np.array([[0.9, 0.4], [1.0, 1.0 - 1e-7]]), exact) == 0.75
    assert backends.recall_against_exact(np.array([[0.89], [-np.inf]]), exact[:, :1]) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_input_is_refused(backend):
    x = np.eye(3, dtype=np.float32)
    with pytest.raises(UserError, match="k = 4 neighbours in a database of 3"):
        backends.knn(x, x, 4, backend)
    with pytest.raises(UserError, match="k = 0"):
        backends.knn(x, x, 0, backend)
    with pytest.raises(UserError, match="3-d and the database is 2-d"):
        backends.knn(x, x[:, :2], 1, backend)
    with pytest.raises(UserError, match=r"1 of the 3 queries hold NaN or infinity.*row 2"):
        backends.knn(np.array([[1.0], [2.0], [np.inf]]), x[:, :1], 1, backend)
    with pytest.raises(UserError, match="database descriptors hold NaN or infinity"):
        backends.knn(x[:, :2], np.array([[np.inf, -np.inf]]), 1, backend)
    with pytest.raises(UserError, match="database descriptors must be"):
        backends.knn(x, x[:0], 1, backend)
    with pytest.raises(UserError, match=r"queries hold numbers beyond 1e\+15; divide them by"):
        backends.knn(np.float32([[1e20, 0, 0]]), x, 1, backend)
    with pytest.raises(UserError, match="queries must be descriptors of numbers, not <U1"):
        backends.knn(np.array([["a", "b", "c"]]), x, 1, backend)


def test_unknown_and_missing_backends_are_refused(monkeypatch):
    x = np.eye(3, dtype=np.float32)
    with pytest.raises(UserError, match="unknown search backend 'faiss'"):
        backends.knn(x, x, 1, "faiss")
    monkeypatch.setitem(sys.modules, "scann.scann_ops.py", None)
    with pytest.raises(UserError, match="need the scann package"):
        backends.knn(x, x, 1, "scann")

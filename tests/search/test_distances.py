import numpy as np
import pytest

from rdcd_jax.benchmarks.metrics import evaluate
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.codecs import parse_codec
from rdcd_jax.search import distances as distances_module
from rdcd_jax.search.distances import nearest


def encoded(g, codec):
    encode = parse_codec(codec).fit(g["train"])
    return encode(g["query"]), encode(g["ref"])


@pytest.mark.parametrize("backend", ["jax", "scann", "numpy"])
def test_brute_force_finds_the_same(backend, monkeypatch):
    monkeypatch.setattr(distances_module, "_BLOCK_ENTRIES", 5 * 6 * 3)
    rng = np.random.default_rng(0)
    # Lengths differ, so that the largest inner product is often not the nearest row.
    queries = rng.normal(size=(20, 6)) * rng.uniform(0.1, 3, (20, 1))
    database = rng.normal(size=(50, 6)) * rng.uniform(0.1, 3, (50, 1))
    queries, database = queries.astype(np.float32), database.astype(np.float32)
    apart = ((queries[:, None].astype(float) - database) ** 2).sum(-1)
    expected = np.argsort(apart, axis=1)[:, :5]
    got, found = nearest(queries, database, 5, backend)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(got, np.take_along_axis(apart, expected, 1), rtol=1e-12)
    assert (np.argmax(queries @ database.T, axis=1) != expected[:, 0]).any()


@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize("scale", [1e-25, 1, 1e10])
def test_neighbours_do_not_depend_on_where_the_rows_lie(offset, scale):
    rows = np.random.default_rng(0).normal(size=(1000, 32))
    rows = (scale * (rows + offset)).astype(np.float32)
    exact = ((rows[:20, None].astype(float) - rows) ** 2).sum(-1)
    distances, found = nearest(rows[:20], rows, 5, "numpy")
    np.testing.assert_array_equal(found, np.argsort(exact, axis=1)[:, :5])
    np.testing.assert_allclose(distances, np.sort(exact, axis=1)[:, :5], rtol=1e-12)


def test_equal_rows_come_in_order_and_at_distance_zero():
    row = np.random.default_rng(0).normal(size=(1, 8)).astype(np.float32)
    got, found = nearest(row, np.repeat(row, 4, axis=0), 3, "numpy")
    assert found.tolist() == [[0, 1, 2]] and got.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("codec", ["Flat", "PCAW64,L2norm,Flat", "PCAW32,L2norm,Flat"])
def test_the_references_neighbours(vectors, codec):
    g = vectors("g_scorenorm_pcaw")
    position = f"{codec.replace(',', '_')}/sn_None"
    scores, ids = g[f"{position}/l2_knn_scores"], g[f"{position}/l2_knn_ids"]
    got, found = nearest(*encoded(g, codec), 10, "numpy")
    np.testing.assert_allclose(got, scores, rtol=0, atol=4e-5)
    # Neighbours nearer to each other than the reference's rounding may change positions.
    same = found == ids
    assert same.mean() > 0.99
    np.testing.assert_allclose(got[~same], scores[~same], rtol=0, atol=4e-5)


def test_the_references_figures(vectors):
    g = vectors("g_scorenorm_pcaw")
    checked = 0
    for codec, metric, values in zip(
        g["table_codec"].tolist(),
        g["table_metric"].tolist(),
        g["table_values_uAP_acc1_rp90_r10"],
        strict=True,
    ):
        if not metric.startswith("l2"):
            continue
        queries, references = encoded(g, codec)
        k = len(references) if metric == "l2_global" else 10
        distances, found = nearest(queries, references, k, "numpy")
        best = np.argsort(distances, axis=None, kind="stable")[: 10 * len(queries)]
        query = np.repeat(np.arange(len(queries)), k)[best]
        figures = evaluate(g["gt"], query, found.ravel()[best], -distances.ravel()[best])
        got = [figures.average_precision, figures.recall_at_1]
        got += [figures.recall_at_p90 or 0.0, figures.recall_at_10]
        compared = 3 if metric == "l2_global" else 4
        # See test_protocols.py for the looser ones; here whitening without an L2 norm is as delicate.
        atol = 2e-4 if "PCAW64" in codec else 1e-12
        np.testing.assert_allclose(got[:compared], values[:compared], rtol=0, atol=atol)
        checked += 1
    assert checked == 8


def test_bad_input_is_refused():
    x = np.eye(3, dtype=np.float32)
    with pytest.raises(UserError, match="queries hold NaN"):
        nearest(x * np.nan, x, 1)
    with pytest.raises(UserError, match="4-d and the database is 5-d|3-d"):
        nearest(x, np.eye(4), 1)
    for k in (0, 4):
        with pytest.raises(UserError, match=f"k = {k} neighbours"):
            nearest(x, x, k)

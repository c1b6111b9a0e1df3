import dataclasses

import numpy as np
import pytest

from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding import whitening
from rdcd_jax.embedding.codecs import parse_codec, parse_codecs, unit_rows
from rdcd_jax.embedding.whitening import PCAWhitening, training_selection

CODECS = (
    "Flat",
    "PCAW64,L2norm,Flat",
    "PCAW32,L2norm,Flat",
    "PCAW16,L2norm,Flat",
    "PCA64,L2norm,Flat",
    "L2norm,PCAW64,Flat",
)


@pytest.mark.parametrize("codec", CODECS[1:])
def test_codecs_give_the_references_inner_products(vectors, codec):
    g = vectors("g_scorenorm_pcaw")
    encode = parse_codec(codec).fit(g["train"])
    name = codec.replace(",", "_")
    expected, got = g[f"{name}/query"], encode(g["query"])
    assert got.dtype == np.float32
    # The sign of a component is arbitrary, inner products are not.
    np.testing.assert_allclose(got @ got.T, expected @ expected.T, rtol=0, atol=2e-5)
    # Directions of nearly equal eigenvalue, towards the end, mix at the reference's float32.
    leading = (np.abs(x[:, :16]) for x in (got, expected))
    np.testing.assert_allclose(*leading, rtol=0, atol=2e-5)
    for part, rows in (("ref", g["ref"]), ("train_head", g["train"][:100])):
        found = encode(rows)
        products = expected @ g[f"{name}/{part}"].T
        np.testing.assert_allclose(got @ found.T, products, rtol=0, atol=2e-5, err_msg=part)


@pytest.mark.parametrize("codec", CODECS[1:])
def test_fitted_projections_are_the_references(vectors, codec):
    g = vectors("g_scorenorm_pcaw")
    name, parsed = codec.replace(",", "_"), parse_codec(codec)
    rows = unit_rows(g["train"]) if parsed.norm_first else g["train"]
    fitted = PCAWhitening.fit(rows, parsed.dim, parsed.whiten)
    np.testing.assert_allclose(fitted.mean, g[f"{name}/mean"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(fitted.eigenvalues, g[f"{name}/eigenvalues"], rtol=1e-4, atol=1e-6)
    # faiss keeps y = A x + b, and its signs are arbitrary; the trailing directions mix at its float32.
    matrix, offset = g[f"{name}/A"][:16], g[f"{name}/b"][:16]
    components = fitted.components[:16]
    scale = np.abs(components).max()
    np.testing.assert_allclose(np.abs(components), np.abs(matrix), rtol=0, atol=2e-4 * scale)
    shift = components @ fitted.mean
    np.testing.assert_allclose(np.abs(shift), np.abs(offset), rtol=0, atol=2e-4 * scale)


def test_flat_leaves_descriptors_as_they_are(vectors):
    query = vectors("g_scorenorm_pcaw")["query"]
    np.testing.assert_array_equal(parse_codec("Flat").fit(None)(query), query)
    assert not parse_codec("L2norm,Flat").needs_training
    scaled = parse_codec("L2norm,Flat").fit(None)(query * np.float32(3))
    np.testing.assert_allclose(scaled, query, rtol=0, atol=1e-6)


def test_large_training_sets_are_cut_to_the_references_rows(vectors):
    g = vectors("g_scorenorm_pcaw")
    x = g["subsample/x"]
    assert len(x) > int(g["subsample/max_points_per_d"]) * 4
    fitted = PCAWhitening.fit(x, 4)
    np.testing.assert_allclose(fitted.eigenvalues, g["subsample/eigenvalues"], rtol=1e-6)
    np.testing.assert_allclose(fitted.mean, g["subsample/mean"], rtol=0, atol=1e-6)
    chosen = training_selection(len(x), 4000)
    assert len(set(chosen.tolist())) == 4000
    # The others have no say.
    others = np.setdiff1d(np.arange(len(x)), chosen)
    x[others] = 9
    np.testing.assert_array_equal(PCAWhitening.fit(x, 4).eigenvalues, fitted.eigenvalues)


def test_a_large_training_set_passes_in_blocks(monkeypatch):
    training = np.random.default_rng(0).normal(size=(5000, 4)).astype(np.float32)
    whole = PCAWhitening.fit(training, 4)
    monkeypatch.setattr(whitening, "_BLOCK_ROWS", 700)
    blocked = PCAWhitening.fit(training, 4)
    np.testing.assert_allclose(np.abs(blocked.components), np.abs(whole.components), rtol=1e-9)
    np.testing.assert_allclose(blocked.apply(training[:50]), whole.apply(training[:50]), atol=1e-6)


def test_whitened_training_rows_have_unit_scatter():
    training = np.random.default_rng(0).normal(size=(50, 8)) * np.arange(1, 9)
    x = PCAWhitening.fit(training, 5).apply(training).astype(np.float64)
    np.testing.assert_allclose(x.T @ x, np.eye(5), atol=1e-6)


def test_save_and_load(tmp_path):
    training = np.random.default_rng(0).normal(size=(50, 8))
    fitted = PCAWhitening.fit(training, 5)
    fitted.save(tmp_path / "w.npz")
    loaded = PCAWhitening.load(tmp_path / "w.npz")
    np.testing.assert_array_equal(loaded.apply(training), fitted.apply(training))
    whole = (tmp_path / "w.npz").read_bytes()
    for content in (b"", b"nothing", whole[:-50]):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.npz is not a saved whitening"):
            PCAWhitening.load(tmp_path / "bad.npz")
    dataclasses.replace(fitted, mean=fitted.mean[1:]).save(tmp_path / "bad.npz")
    with pytest.raises(UserError, match=r"bad\.npz is not a saved whitening"):
        PCAWhitening.load(tmp_path / "bad.npz")
    np.save(tmp_path / "bad.npy", training)
    with pytest.raises(UserError, match=r"bad\.npy is not a saved whitening"):
        PCAWhitening.load(tmp_path / "bad.npy")


def test_bad_input_is_refused():
    good = np.random.default_rng(0).normal(size=(50, 8))
    with pytest.raises(UserError, match="7 given for 8"):
        PCAWhitening.fit(good[:7], 4)
    with pytest.raises(UserError, match="cannot keep 9 dimensions of 8"):
        PCAWhitening.fit(good, 9)
    holed = good.copy()
    holed[3, 3] = np.nan
    with pytest.raises(UserError, match="NaN"):
        PCAWhitening.fit(holed, 4)
    with pytest.raises(UserError, match="NaN"):
        PCAWhitening.fit(good, 4).apply(holed)
    with pytest.raises(UserError, match="8-d descriptors"):
        PCAWhitening.fit(good, 4).apply(good[:, :5])
    flat = np.tile(good[:, :3], (1, 3))[:, :8]
    with pytest.raises(UserError, match="only 3 directions"):
        PCAWhitening.fit(flat, 4)


@pytest.mark.parametrize(
    "name",
    ["", "IVF64,Flat", "PCAW0,L2norm,Flat", "L2norm", "PCAR8,Flat", f"PCA{'9' * 5000},Flat"],
    ids=lambda name: name[:20],
)
def test_unknown_codecs_are_refused_by_name(name):
    with pytest.raises(UserError, match=f"unknown codec {name!r}"):
        parse_codec(name)


def test_several_codecs():
    parsed = parse_codecs("Flat; PCAW128,L2norm,Flat")
    assert [codec.name for codec in parsed] == ["Flat", "PCAW128,L2norm,Flat"]
    assert (parsed[1].dim, parsed[1].whiten, parsed[1].norm_last) == (128, True, True)
    with pytest.raises(UserError, match="fitted on training descriptors"):
        parsed[1].fit(None)

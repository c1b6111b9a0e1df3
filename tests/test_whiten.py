import numpy as np
import pytest

from rdcd_jax.errors import UserError
from rdcd_jax.evaluation.codecs import parse_codec, parse_codecs
from rdcd_jax.evaluation.whiten import PCAWhitening, training_selection

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
    expected = g[codec.replace(",", "_") + "/query"]
    got = encode(g["query"])[: len(expected)]
    assert got.dtype == np.float32
    # The sign of a component is arbitrary, inner products are not.
    np.testing.assert_allclose(got @ got.T, expected @ expected.T, rtol=0, atol=2e-5)
    # Directions of nearly equal eigenvalue, towards the end, mix at the reference's float32.
    leading = (np.abs(x[:, :16]) for x in (got, expected))
    np.testing.assert_allclose(*leading, rtol=0, atol=2e-5)
    if f"{codec.replace(',', '_')}/ref" in g:
        references = g[codec.replace(",", "_") + "/ref"]
        found = encode(g["ref"])[: len(references)]
        np.testing.assert_allclose(got @ found.T, expected @ references.T, rtol=0, atol=2e-5)


def test_flat_leaves_descriptors_as_they_are(vectors):
    query = vectors("g_scorenorm_pcaw")["query"]
    np.testing.assert_array_equal(parse_codec("Flat").fit(None)(query), query)
    assert not parse_codec("L2norm,Flat").needs_training
    scaled = parse_codec("L2norm,Flat").fit(None)(query * np.float32(3))
    np.testing.assert_allclose(scaled, query, rtol=0, atol=1e-6)


def test_eigenvalues_are_those_of_the_scatter_matrix(vectors):
    g = vectors("g_scorenorm_pcaw")
    fitted = PCAWhitening.fit(g["train"], 64)
    np.testing.assert_allclose(
        fitted.eigenvalues, g["PCAW64_L2norm_Flat/eigenvalues"], rtol=1e-4, atol=1e-6
    )


def test_large_training_sets_are_cut_to_the_references_rows(vectors):
    g = vectors("g_scorenorm_pcaw")
    # In tests/data the rows that are not selected are zero.
    fitted = PCAWhitening.fit(g["subsample/x"], 4)
    np.testing.assert_allclose(fitted.eigenvalues, g["subsample/eigenvalues"], rtol=1e-6)
    np.testing.assert_allclose(fitted.mean, g["subsample/mean"], rtol=0, atol=1e-6)
    assert len(set(training_selection(9000, 4000).tolist())) == 4000


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
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"bad\.npz"):
        PCAWhitening.load(tmp_path / "bad.npz")


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

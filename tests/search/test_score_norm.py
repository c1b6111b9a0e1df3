import numpy as np
import pytest

from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.codecs import parse_codec
from rdcd_jax.search import exact
from rdcd_jax.search.score_norm import apply_score_norm, parse_score_norm, parse_score_norms

CODECS = (
    "Flat",
    "PCAW64,L2norm,Flat",
    "PCAW32,L2norm,Flat",
    "PCAW16,L2norm,Flat",
    "PCA64,L2norm,Flat",
    "L2norm,PCAW64,Flat",
)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("spec", ["1.0[0,2]", "0.5[1,4]", "1.0[0]"])
def test_adjustments_of_the_reference(vectors, codec, spec):
    g = vectors("g_scorenorm_pcaw")
    encode = parse_codec(codec).fit(g["train"])
    encoded = [encode(g[part]) for part in ("query", "ref", "train")]
    queries, references = apply_score_norm(*encoded, spec)
    expected = g[f"{codec.replace(',', '_')}/sn_{spec}/adjustment"]
    np.testing.assert_allclose(queries[:, -1], expected, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(queries[:, :-1], encoded[0])
    np.testing.assert_array_equal(references[:, :-1], encoded[1])
    assert (references[:, -1] == 1).all()
    assert queries.dtype == references.dtype == np.float32


def test_training_larger_than_a_block_gives_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    queries, training = rng.normal(size=(7, 4)), rng.normal(size=(100, 4))
    whole, _ = apply_score_norm(queries, queries, training, "1.0[0,2]")
    monkeypatch.setattr(exact, "_QUERIES", 2)
    monkeypatch.setattr(exact, "_BLOCK_ENTRIES", 18)
    blocked, _ = apply_score_norm(queries, queries, training, "1.0[0,2]")
    np.testing.assert_allclose(blocked, whole, rtol=1e-6)
    expected = -np.sort(queries @ training.T, axis=1)[:, -3:].mean(axis=1)
    np.testing.assert_allclose(whole[:, -1], expected, rtol=1e-5)


def test_specifications():
    norm = parse_score_norm("0.5[1,4]")
    assert (norm.beta, norm.first, norm.last) == (0.5, 1, 4)
    assert parse_score_norm("2[3]") == parse_score_norm("2.0[3,3]")
    assert parse_score_norms("None; 1.0[0,2];0.5[3]") == [None, "1.0[0,2]", "0.5[3]"]


@pytest.mark.parametrize(
    "spec",
    [
        *("", "1.0", "[0,2]", "1.0[2,0]", "1.0[-1,2]", "a[0]", "1.0[0,2]x"),
        *(f"1[0,{'9' * 5000}]", f"{'9' * 400}[0]", "1e7[0]"),
    ],
    ids=lambda spec: spec[:20],
)
def test_other_specifications_are_refused(spec):
    with pytest.raises(UserError, match="score normalisation"):
        parse_score_norms(spec)


def test_bad_input_is_refused():
    x = np.eye(3)
    with pytest.raises(UserError, match="at least 5 training descriptors, but there are 3"):
        apply_score_norm(x, x, x, "1.0[0,4]")
    with pytest.raises(UserError, match="3, 2 and 3 dimensions"):
        apply_score_norm(x, x[:, :2], x, "1.0[0]")
    with pytest.raises(UserError, match="training descriptors hold NaN"):
        apply_score_norm(x, x, np.full((3, 3), np.nan), "1.0[0]")

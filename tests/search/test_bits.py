"""Descriptors as bits, and queries that keep their numbers."""

import functools

import numpy as np
import pytest
from toy import unit_rows as toy_rows

from rdcd_jax.core.errors import UserError
from rdcd_jax.search import bits

DIM = 256
unit_rows = functools.partial(toy_rows, dim=DIM)


def test_bits_come_back_as_signs_at_unit_length():
    rows = unit_rows(20)
    rows[0, :3] = 0
    kept = bits.packed(rows)
    assert kept.shape == (20, DIM // 8) and kept.dtype == np.uint8
    back = bits.signs(kept) * bits.sign_scales(20, DIM)[:, None]
    np.testing.assert_array_equal(back, bits.rounded(rows))
    np.testing.assert_array_equal(back > 0, rows > 0)
    np.testing.assert_allclose(np.linalg.norm(back, axis=1), 1, rtol=1e-6)


def test_a_query_and_its_own_bits_have_the_similarity_of_equals():
    rows = unit_rows(20)
    own = (bits.compared_with_bits(rows) * bits.rounded(rows)).sum(axis=1)
    np.testing.assert_allclose(own, 1, rtol=1e-6)
    # Bits themselves are left as they are.
    np.testing.assert_allclose(
        bits.compared_with_bits(bits.rounded(rows)), bits.rounded(rows), rtol=1e-6
    )


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.6, 0.9])
def test_similarities_estimate_the_cosine(cosine):
    queries, others = unit_rows(4000, 1), unit_rows(4000, 2)
    others -= (others * queries).sum(axis=1, keepdims=True) * queries
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    copies = cosine * queries + np.sqrt(1 - cosine**2) * others
    found = (bits.compared_with_bits(queries) * bits.rounded(copies)).sum(axis=1)
    assert found.mean() == pytest.approx(cosine, abs=0.01)
    # Signs on both sides say less: their agreement is no such estimate, and spreads more around its own mean.
    both = np.sin(np.pi / 2 * (bits.rounded(queries) * bits.rounded(copies)).sum(axis=1))
    assert found.std() < 0.9 * both.std()


def test_zeros_resemble_nothing():
    assert not bits.compared_with_bits(np.zeros((2, DIM), np.float32)).any()


def test_bits_fill_bytes():
    bits.require_whole_bytes(64)
    with pytest.raises(UserError, match="of 100 dimensions cannot be kept as bits.*use int8"):
        bits.require_whole_bytes(100)

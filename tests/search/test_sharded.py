"""Slabs of descriptors as they are stored."""

import numpy as np
import pytest

from rdcd_jax.core.mesh import make_mesh
from rdcd_jax.search import sharded
from rdcd_jax.search.int8 import quantised


@pytest.mark.parametrize("by_maxima", [False, True])
def test_int8_rows_are_found_by_their_scales(by_maxima):
    random = np.random.default_rng(0)
    # Of several lengths, so that levels alone would find others.
    database = random.standard_normal((5000, 64)) * random.uniform(0.1, 3, (5000, 1))
    levels, scales = quantised(database.astype(np.float32))
    queries = random.standard_normal((7, 64)).astype(np.float32)
    mesh = make_mesh()
    rows = sharded.StoredRows(
        5000, 64, lambda a, b: levels[a:b].copy(), lambda a, b: scales[a:b].copy()
    )
    slabs = list(sharded.make_slabs(rows, mesh, by_maxima))
    assert {slab.rows.dtype for slab in slabs} == {np.dtype(np.int8)}
    scores, found = sharded.nearest_rows(queries, slabs, 5, mesh, by_maxima=by_maxima)
    products = queries @ (levels * scales[:, None]).T
    np.testing.assert_array_equal(np.sort(found), np.sort(np.argsort(-products)[:, :5]))
    np.testing.assert_allclose(np.sort(scores), np.sort(products)[:, -5:], rtol=1e-5)
    assert (np.sort(np.argsort(-(queries @ levels.T))[:, :5]) != np.sort(found)).any()

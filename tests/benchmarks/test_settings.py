import pytest

from rdcd_jax.benchmarks.settings import candidate_count, needs_training
from rdcd_jax.core.errors import UserError


def test_only_projections_and_normalisations_need_training():
    assert not needs_training(["Flat", "L2norm,Flat"], [None])
    assert needs_training(["Flat", "PCA8,L2norm,Flat"])
    assert needs_training(["Flat"], [None, "1.0[0,2]"])


def test_candidates():
    assert candidate_count(None, 100, 5000) == 100
    assert candidate_count(None, 100, 20) == 20
    assert candidate_count(7, 100, 7) == 7
    with pytest.raises(UserError, match="k is 8, but queries are compared with 7 images only"):
        candidate_count(8, 100, 7)

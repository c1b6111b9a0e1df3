import pytest

from rdcd_jax.benchmarks.settings import Settings, candidate_count
from rdcd_jax.core.errors import UserError


def test_only_projections_and_normalisations_need_training():
    assert not Settings(["Flat", "L2norm,Flat"], [None]).needs_training
    assert Settings(["Flat", "PCA8,L2norm,Flat"]).needs_training
    assert Settings(["Flat"], [None, "1.0[0,2]"]).needs_training


def test_candidates():
    assert candidate_count(None, 100, 5000) == 100
    assert candidate_count(None, 100, 20) == 20
    assert candidate_count(7, 100, 7) == 7
    with pytest.raises(UserError, match="k is 8, but queries are compared with 7 images only"):
        candidate_count(8, 100, 7)


def test_as_a_user_writes_them():
    found = Settings.written(True, codecs="Flat; PCAW8,L2norm,Flat")
    assert found.codecs == ["Flat", "PCAW8,L2norm,Flat"] and found.score_norms == [None, "1.0[0,2]"]
    assert Settings.written(False).score_norms == [None]
    with pytest.raises(UserError, match=r"'1.0\[0,2\]' is fitted on a training set"):
        Settings.written(False, score_norm="1.0[0,2]")

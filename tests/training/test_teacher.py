"""The teacher of a run, live and cached, on toys."""

import ml_collections
import numpy as np
import pytest
from toy import describe, make_export, make_features, make_pictures, relational_kl_of, toy_config

from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.descriptors import read_descriptors
from rdcd_jax.images.sources import find_images
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.pipeline import make_batches
from rdcd_jax.training.teacher import cached_features
from rdcd_jax.weights.library import load_model


def test_batch_norm_of_a_live_teacher(toys, pictures, tmp_path):
    teacher = make_export(tmp_path / "teacher", dim=None, seed=3)
    folded = make_export(tmp_path / "folded", dim=None, seed=3, folded=True)
    found = {}
    for bn in ("running", "batch"):
        changes = {"teacher.model": str(teacher), "teacher.bn": bn, "schedule.max_steps": 2}
        found[bn] = relational_kl_of(toy_config(pictures, **changes), tmp_path / bn)
    assert abs(found["running"][0] - found["batch"][0]) > 1e-4
    config = toy_config(pictures, **{"teacher.model": str(folded), "teacher.bn": "batch"})
    with pytest.raises(UserError, match=r"config\.teacher\.bn is 'batch', .*folded"):
        train_and_evaluate(config, tmp_path / "refused")


def test_a_cached_teacher_is_asked_once(toys, pictures, tmp_path):
    teacher = make_export(tmp_path / "teacher", dim=None, seed=3)
    changes = {"teacher.features": "cached", "teacher.model": str(teacher)}
    config = toy_config(pictures, **changes, **{"schedule.max_steps": 1})
    state = train_and_evaluate(config, tmp_path / "run")
    kept = read_descriptors(tmp_path / "run" / "teacher_features.npz")
    model = load_model(str(teacher))
    np.testing.assert_allclose(kept.descriptors, describe(model, pictures), atol=1e-6)
    # Each view came with its own picture's descriptor.
    batches = make_batches(
        find_images(pictures), policy="STRONG_BLUR", image_size=32, batch_size=8, seed=0
    )
    with batches:
        shown = next(batches)["index"]
    np.testing.assert_array_equal(state.bank[:8], kept.descriptors[shown])
    # The next start reads the file.
    for path in teacher.iterdir():
        path.unlink()
    config.schedule.max_steps = 2
    train_and_evaluate(config, tmp_path / "run")


def test_a_descriptor_file_of_other_pictures_is_refused(toys, pictures, features, tmp_path):
    others = make_pictures(tmp_path / "others", 30, prefix="T1")
    images = find_images(others)
    config = ml_collections.ConfigDict({"features": str(features), "model": "sscd"})
    with pytest.raises(UserError, match="descriptors of only 0 of the 30 training pictures"):
        train_and_evaluate(toy_config(others, features), tmp_path / "run")
    some = make_features(tmp_path / "some.npz", make_pictures(tmp_path / "some", 20, prefix="T1"))
    config.features = str(some)
    kept, rows = cached_features(config, images, tmp_path)
    assert len(kept) == len(rows) == 20

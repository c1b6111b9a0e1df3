"""The teacher of a run, live and cached, on toys."""

import dataclasses
import json

import jax
import ml_collections
import numpy as np
import pytest
from toy import embed, make_export, make_features, make_images, relational_kl_of, toy_config

from rdcd_jax.augment.policies import make_view
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.descriptors import read_descriptors, write_descriptors
from rdcd_jax.images.sources import find_images
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.pipeline import Views, make_batches
from rdcd_jax.training.teacher import cached_teacher, live_teacher
from rdcd_jax.weights.library import load_model


def test_batch_norm_of_a_live_teacher(toys, images, tmp_path):
    teacher = make_export(tmp_path / "teacher", dim=None, seed=3)
    folded = make_export(tmp_path / "folded", dim=None, seed=3, folded=True)
    found = {}
    for bn in ("running", "batch"):
        changes = {"teacher.model": str(teacher), "teacher.bn": bn, "schedule.max_steps": 2}
        found[bn] = relational_kl_of(toy_config(images, **changes), tmp_path / bn)
    assert abs(found["running"][0] - found["batch"][0]) > 1e-4
    config = toy_config(images, **{"teacher.model": str(folded), "teacher.bn": "batch"})
    with pytest.raises(UserError, match=r"config\.teacher\.bn is 'batch', .*folded"):
        train_and_evaluate(config, tmp_path / "refused")


def test_a_live_teacher_in_bfloat16(images):
    model = load_model("random:resnet50")
    views = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
    found = {}
    for dtype in ("float32", "bfloat16"):
        teacher = live_teacher(model, "running", find_images(images), dtype)
        assert {leaf.dtype for leaf in jax.tree.leaves(teacher.arrays)} == {np.dtype("float32")}
        found[dtype] = np.asarray(teacher.embed(teacher.arrays, views))
        assert found[dtype].dtype == np.float32
    cosine = (found["float32"] * found["bfloat16"]).sum(axis=1)
    assert (cosine > 0.999).all() and (found["float32"] != found["bfloat16"]).any()


def test_a_cached_teacher_is_asked_once(toys, images, tmp_path):
    teacher = make_export(tmp_path / "teacher", dim=None, seed=3)
    changes = {"teacher.features": "cached", "teacher.model": str(teacher)}
    config = toy_config(images, **changes, **{"schedule.max_steps": 1})
    state = train_and_evaluate(config, tmp_path / "run")
    kept = read_descriptors(tmp_path / "run" / "teacher_features.npz")
    model = load_model(str(teacher))
    np.testing.assert_allclose(kept.descriptors, embed(model, images), atol=1e-6)
    # Each view came with its own image's descriptor.
    views = Views(make_view("STRONG_BLUR", 32))
    batches = make_batches(find_images(images), views, batch_size=8, seed=0)
    with batches:
        shown = next(batches)["index"]
    np.testing.assert_array_equal(state.bank[:8], kept.descriptors[shown])
    # The next start reads the file, if the teacher is the same.
    written = (tmp_path / "run" / "teacher_features.npz").stat().st_mtime_ns
    config.schedule.max_steps = 2
    train_and_evaluate(config, tmp_path / "run")
    assert (tmp_path / "run" / "teacher_features.npz").stat().st_mtime_ns == written
    make_export(teacher, dim=None, seed=4)
    config.schedule.max_steps = 3
    with pytest.raises(UserError, match="they are of another teacher than"):
        train_and_evaluate(config, tmp_path / "run")


def test_an_export_says_what_it_is_made_of_and_whose_that_is(toys, images, tmp_path):
    models = {}
    for name, dim in (("teacher", None), ("init_from", 4)):
        models[name] = make_export(tmp_path / name / "export", dim=dim)
        path = models[name] / "model.json"
        licences = [f"of the {name}", "of both"]
        path.write_text(json.dumps({**json.loads(path.read_text()), "licences": licences}))
    changes = {"teacher.model": str(models["teacher"]), "init_from": str(models["init_from"])}
    for features in ("live", "cached"):
        config = toy_config(
            images, **changes, **{"teacher.features": features, "schedule.max_steps": 1}
        )
        train_and_evaluate(config, tmp_path / features)
        card = json.loads((tmp_path / features / "export" / "model.json").read_text())
        assert card["licences"] == ["of the init_from", "of both", "of the teacher"]
        assert card["trained"] == {
            "steps": 1,
            "images": 40,
            "teacher": "teacher/export",
            "started from": "init_from/export",
        }


def test_features_of_another_program_are_brought_to_unit_length(toys, images, features, tmp_path):
    found = read_descriptors(features)
    lengths = np.linspace(0.1, 30, len(found.ids), dtype=np.float32)[:, None]
    longer = dataclasses.replace(found, descriptors=lengths * found.descriptors)
    write_descriptors(tmp_path / "longer.npz", longer)
    losses = [
        relational_kl_of(toy_config(images, path, **{"schedule.max_steps": 2}), tmp_path / name)
        for name, path in (("as they were", features), ("longer", tmp_path / "longer.npz"))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_cached_teacher_is_of_these_very_images(toys, tmp_path, caplog):
    images = make_images(tmp_path / "images", 8)
    (images / "T00003.jpg").write_bytes(b"no image")
    model = make_export(tmp_path / "teacher", dim=None)
    config = ml_collections.ConfigDict({"features": "cached", "model": str(model)})
    assert len(cached_teacher(config, find_images(images), tmp_path).images) == 7
    assert (tmp_path / "unreadable.txt").read_text() == f"{images / 'T00003.jpg'}\n"
    assert "1 of the 8 training images are left out, since they cannot be read" in caplog.text
    make_images(images, 8, seed=1)
    with pytest.raises(UserError, match="files of .*images have other sizes"):
        cached_teacher(config, find_images(images), tmp_path)


@pytest.mark.parametrize("name", ["teacher", "init_from"])
def test_a_run_goes_on_with_the_weights_that_it_began_with(name, toys, images, tmp_path):
    models = {
        each: make_export(tmp_path / each, dim=4, seed=3) for each in ("teacher", "init_from")
    }
    changes = {"teacher.model": str(models["teacher"]), "init_from": str(models["init_from"])}
    config = toy_config(images, **changes, **{"schedule.max_steps": 2})
    train_and_evaluate(config, tmp_path / "run")
    make_export(models[name], dim=4, seed=4)
    config.schedule.max_steps = 3
    with pytest.raises(UserError, match=rf"holds a run whose config\.{name} had other weights"):
        train_and_evaluate(config, tmp_path / "run")


def test_a_descriptor_file_of_other_images_is_refused(toys, images, features, tmp_path, caplog):
    others = make_images(tmp_path / "others", 30, prefix="T1")
    found = find_images(others)
    config = ml_collections.ConfigDict({"features": str(features), "model": "sscd"})
    with pytest.raises(UserError, match="descriptors of only 0 of the 30 training images"):
        train_and_evaluate(toy_config(others, features), tmp_path / "run")
    some = make_features(tmp_path / "some.npz", make_images(tmp_path / "some", 20, prefix="T1"))
    config.features = str(some)
    teacher = cached_teacher(config, found, tmp_path)
    assert len(teacher.images) == 20
    assert "has descriptors of 20 of the 30 training images; the others" in caplog.text
    assert "left out (the first: T100020)" in caplog.text

"""Training on a frozen trunk: features of views computed once, and a projector that learns on them."""

import errno
import json
import os
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import (
    CONFIGS,
    FEATURE,
    changed,
    make_export,
    make_features,
    make_images,
    metrics_of,
)

from rdcd_jax.augment.policies import make_view
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.locks import held
from rdcd_jax.embedding.descriptors import read_descriptors
from rdcd_jax.images.sources import find_images
from rdcd_jax.method import losses
from rdcd_jax.method.objective import Objective
from rdcd_jax.method.state import split
from rdcd_jax.models.descriptor import normalize_images
from rdcd_jax.search.calibration import read_calibration
from rdcd_jax.training import frozen
from rdcd_jax.training.check import check_config
from rdcd_jax.training.config import load_config
from rdcd_jax.training.fitting import trunk_of
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.pipeline import Views, make_batches
from rdcd_jax.weights.library import load_model

# Compiles in a fraction of the time that a published policy takes.
POLICY = "hflip 0.5; resized_crop 1 scale=0.3,1 ratio=0.75,1.33; grey 0.2"


@pytest.fixture
def start(toys, tmp_path):
    return make_export(tmp_path / "start", dim=8)


def config_of(images, start, **changes):
    """The smoke config of the descriptor's recipe for the toy; `changes` by dotted names."""
    config = load_config(
        f"{CONFIGS / 'descriptor.py'}:smoke,dim=4,views=2,init_from={start},data={images}", []
    )
    config.student.network = "toy"
    config.evaluate.image_size = 32
    config.data.policy = POLICY
    config.queue.size = 8
    # optax's AdamW does not know strict promotion.
    config.optimizer.name = "sgd"
    return changed(config, changes)


def exported(workdir):
    return load_model(str(workdir / "export")).module


def assert_equal_trees(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# The paper's terms within the batch, and against a queue.
WITHIN = {}
QUEUE = {"objective.moco_lambda": 1.0, "objective.sscd_lambda": 0.0}


@pytest.mark.parametrize(
    ("form", "terms"),
    [(WITHIN, ("sscd_info_nce", "entropy")), (QUEUE, ("info_nce", "hard_negative"))],
)
def test_the_projector_learns_and_the_trunk_stays(images, start, tmp_path, form, terms):
    config = config_of(images, start, **{"objective.nested_dims": (2, 4)}, **form)
    state = train_and_evaluate(config, tmp_path / "run")
    assert set(state.params) == {"projector"}
    before, after = load_model(str(start)).module, exported(tmp_path / "run")
    for ours, theirs in zip(split(after.backbone)[1:], split(before.backbone)[1:], strict=True):
        assert_equal_trees(ours, theirs)
    assert_equal_trees(split(after.projector)[1], state.params["projector"])
    for row in metrics_of(tmp_path / "run"):
        assert np.isfinite(row["loss"]) and row["gradient_norm"] > 0
        assert row["loss"] == pytest.approx(sum(row[term] for term in terms), rel=1e-5)


def test_it_starts_as_whitening_or_as_the_start_s_own(images, start, tmp_path):
    still = {"optimizer.learning_rate": 1e-30}
    train_and_evaluate(config_of(images, start, **still), tmp_path / "white")
    features = read_descriptors(tmp_path / "white" / "unedited_features.npz").descriptors
    projector = exported(tmp_path / "white").projector
    projected = features @ np.asarray(projector.kernel) + np.asarray(projector.bias)
    np.testing.assert_allclose(projected.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(projected.T, bias=True), np.eye(4), atol=1e-3)

    config = config_of(images, start, **still, **{"student.dim": 8})
    train_and_evaluate(config, tmp_path / "own")
    own = split(load_model(str(start)).module.projector)[1]
    assert_equal_trees(split(exported(tmp_path / "own").projector)[1], own)


def test_the_features_are_those_of_the_feed_s_views(images, start, tmp_path):
    config = config_of(images, start)
    train_and_evaluate(config, tmp_path / "run")
    found = find_images(images)
    backbone = load_model(str(start)).module.backbone
    padded = found.subset([*range(40), *range(24)])
    batches = make_batches(padded, Views(make_view(POLICY, 32)), batch_size=64, seed=0)
    with batches:
        batch = next(batches)
    edited = np.load(tmp_path / "run" / "view_features.npy")
    assert edited.shape == (2, 40, FEATURE) and edited.dtype == np.float16
    for view, name in enumerate(("query", "key")):
        expected = np.zeros((40, FEATURE), np.float32)
        expected[batch["index"] % 40] = backbone(normalize_images(jnp.asarray(batch[name])))
        np.testing.assert_allclose(edited[view], expected, atol=5e-3)


@pytest.mark.parametrize("views", ["host", "device"])
def test_a_killed_caching_goes_on(images, start, tmp_path, monkeypatch, views):
    monkeypatch.setattr(frozen, "_BATCH", 8)
    monkeypatch.setattr(frozen, "_KEPT_EVERY", 2)
    config = config_of(images, start, **{"data.cached_views": 4, "data.views": views})
    train_and_evaluate(config, tmp_path / "whole")

    class Killed(Exception):
        pass

    def killed_at_7(path, content, real=frozen.write_json):
        if content["done"] > 6:
            raise Killed
        real(path, content)

    with monkeypatch.context() as dying:
        dying.setattr(frozen, "write_json", killed_at_7)
        with pytest.raises(Killed):
            train_and_evaluate(config, tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / "view_features.json").read_text())["done"] == 6
    # What no record vouches for is computed again.
    rows = np.load(tmp_path / "parts" / "view_features.npy", mmap_mode="r+")
    whole = np.load(tmp_path / "whole" / "view_features.npy")
    late = (whole[2:] != 0).any(axis=-1) & (np.asarray(rows[2:]) != 0).any(axis=-1)
    assert 8 <= late.sum() < late.size
    train_and_evaluate(config, tmp_path / "parts")
    np.testing.assert_array_equal(np.load(tmp_path / "parts" / "view_features.npy"), whole)


def test_features_that_have_no_room_are_told_of_at_once(images, start, tmp_path, monkeypatch):
    def full(handle, offset, size):
        assert size == os.fstat(handle).st_size > 2 * 40 * FEATURE * 2
        raise OSError(errno.ENOSPC, "No space left on device")

    model, folder = load_model(str(start)), tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(OSError, match=r"No space left on device: .*view_features\.npy"):
            frozen.view_features(config_of(images, start), find_images(images), model, folder)
    # What is made of it needs the room.
    assert not (folder / "view_features.npy").exists()
    frozen.view_features(config_of(images, start), find_images(images), model, folder)
    assert (np.load(folder / "view_features.npy") != 0).any(axis=-1).all()


def test_what_is_done_counts_on_any_number_of_devices(images, start, tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    computed = []

    def makes_views_on(count):
        with monkeypatch.context() as patch:
            patch.setattr(jax, "local_devices", lambda: jax.devices()[:count])
            patch.setattr(
                frozen, "trunk_of", lambda model: computed.append(count) or trunk_of(model)
            )
            model = load_model(str(start))
            frozen.view_features(config_of(images, start), find_images(images), model, folder)
        return np.load(folder / "view_features.npy")

    three = makes_views_on(3)
    assert (three != 0).any(axis=-1).all()
    np.testing.assert_array_equal(makes_views_on(8), three)
    # The second found all done.
    assert computed == [3]


def test_a_file_of_one_s_own_stays(images, start, tmp_path):
    make_features(tmp_path / "run" / "features.npz", images)
    before = (tmp_path / "run" / "features.npz").read_bytes()
    train_and_evaluate(config_of(images, start), tmp_path / "run")
    assert (tmp_path / "run" / "features.npz").read_bytes() == before


def test_too_few_images_to_whiten_are_reported_before_anything_is_computed(images, tmp_path, toys):
    start = make_export(tmp_path / "start", dim=8, feature_dim=64)
    with pytest.raises(UserError, match=r"40 images are too few to whiten 64 dim.*dim = 4\."):
        train_and_evaluate(config_of(images, start), tmp_path / "run")
    config = config_of(images, start, **{"schedule.epochs": 1, "schedule.warmup_epochs": 1})
    with pytest.raises(UserError, match=r"schedule\.warmup_epochs is 1"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run" / "view_features.json").exists()


def test_the_trunk_s_teacher_is_its_start():
    config = load_config(f"{CONFIGS / 'descriptor.py'}:trainable=all", ["--config.init_from=x"])
    assert config.teacher.model == "x"
    other = load_config(
        f"{CONFIGS / 'descriptor.py'}:trainable=all,init_from=x", ["--config.teacher.model=y"]
    )
    assert (other.init_from, other.teacher.model) == ("x", "y")


def test_epochs_may_be_set_whatever_learns():
    for trainable, usual in (("projector", 50), ("all", 4)):
        for given, epochs, warmup in (("", usual, 1), (",epochs=7", 7, 1), (",epochs=1", 1, 0)):
            name = f"{CONFIGS / 'descriptor.py'}:trainable={trainable}{given}"
            schedule = load_config(name, []).schedule
            assert (schedule.epochs, schedule.warmup_epochs) == (epochs, warmup)


def test_a_background_too_small_to_normalise_by_is_left_out(start, tmp_path):
    two = make_images(tmp_path / "two", 2)
    config = config_of(two, start, **{"batch_size": 2, "student.dim": 8})
    train_and_evaluate(config, tmp_path / "run")
    assert load_model(str(tmp_path / "run" / "export")).background is None


def test_a_resumed_run_equals_an_undisturbed_one(images, start, tmp_path):
    config = config_of(images, start, **QUEUE)
    whole = train_and_evaluate(config, tmp_path / "whole")
    for steps in (2, 4):
        config.schedule.max_steps = steps
        parts = train_and_evaluate(config, tmp_path / "parts")
    assert_equal_trees(parts.params, whole.params)
    assert_equal_trees(parts.queue, whole.queue)


def test_runs_share_a_cache_that_refuses_other_views(images, start, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shared = {"data.cache": "~/cache"}
    train_and_evaluate(config_of(images, start, **shared), tmp_path / "first")
    assert not (tmp_path / "first" / "view_features.npy").exists()
    assert (tmp_path / "cache" / "view_features.npy").exists()
    with monkeypatch.context() as nothing:
        nothing.setattr(frozen, "trunk_of", None)
        nothing.setattr(frozen, "embed_to_file", None)
        second = config_of(images, start, **shared, seed=1)
        second.student.dim = 8
        train_and_evaluate(second, tmp_path / "second")
    for changes, what in (
        ({"data.policy": "SIMCLR"}, "another data"),
        ({"data.cached_views": 4}, "another data.cached_views"),
        ({"evaluate.image_size": 40}, "another evaluate.image_size"),
        ({"student.dtype": "bfloat16"}, "another student.dtype"),
        ({"init_from": str(make_export(tmp_path / "other", seed=5))}, "another trunk"),
    ):
        config = config_of(images, start, **shared, **changes)
        with pytest.raises(UserError, match=rf"view_features\.json: its features are of {what}"):
            train_and_evaluate(config, tmp_path / "third")


def test_a_cache_is_of_these_very_images(start, tmp_path):
    model, cache = load_model(str(start)), tmp_path / "cache"

    def cached(folder):
        return frozen.view_features(config_of(folder, start), find_images(folder), model, cache)

    first = make_images(tmp_path / "first", 40)
    expected = cached(first).unedited
    # Where they lie is of no account.
    shutil.copytree(first, tmp_path / "copy")
    np.testing.assert_array_equal(cached(tmp_path / "copy").unedited, expected)
    other = make_images(tmp_path / "other", 40, seed=1)
    with pytest.raises(UserError, match=r"of another set of images than data\.train's .*; give"):
        cached(other)
    # A record of before this was noted is taken as it was.
    record = json.loads((cache / frozen.PROGRESS).read_text())
    del record["files"]
    (cache / frozen.PROGRESS).write_text(json.dumps(record))
    np.testing.assert_array_equal(cached(other).unedited, expected)


def test_of_runs_that_share_a_cache_one_computes_it(images, start, tmp_path):
    config = config_of(images, start, **{"data.cache": str(tmp_path / "cache")})
    second = threading.Thread(target=train_and_evaluate, args=(config, tmp_path / "run"))
    with held(tmp_path / "cache" / frozen.LOCK, None):
        second.start()
        second.join(3)
        assert second.is_alive() and not (tmp_path / "cache" / frozen.PROGRESS).exists()
    second.join()
    assert (tmp_path / "run" / "export").exists()


def test_too_few_images_are_reported_before_anything_is_computed(images, start, tmp_path):
    config = config_of(images, start, batch_size=48)
    with pytest.raises(UserError, match="40 images do not fill one batch of 48"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run" / "unedited_features.npz").exists()


def test_unreadable_images_are_left_out(start, tmp_path, caplog):
    folder = make_images(tmp_path / "pictures", 40)
    (folder / "T00007.jpg").write_bytes(b"no picture")
    shared = {"data.cache": str(tmp_path / "cache")}
    # Also by those who find the features there.
    for name, changes in (("run", {}), ("first", shared), ("second", shared)):
        train_and_evaluate(config_of(folder, start, **changes), tmp_path / name)
        stored = (tmp_path / name / "unreadable.txt").read_text()
        assert stored.splitlines() == [str(folder / "T00007.jpg")]
        card = json.loads((tmp_path / name / "export" / "model.json").read_text())
        assert card["trained"]["images"] == 39
        said = f"1 of the 40 training images are left out, since they cannot be read; {tmp_path}"
        assert f"{said}/{name}/unreadable.txt" in caplog.text


def test_an_export_knows_what_its_scores_mean(start, tmp_path, caplog):
    many = make_images(tmp_path / "many", 160)
    config = config_of(many, start, **{"student.background": 50})
    train_and_evaluate(config, tmp_path / "run")
    card = load_model(str(tmp_path / "run" / "export")).card
    for normalised in (False, True):
        calibration = read_calibration(card["calibration"], normalised=normalised)
        assert calibration.measured_on == "edited views of 160 training images"
    plain = changed(config, {"student.background": 0})
    train_and_evaluate(plain, tmp_path / "plain")
    assert "normalised" not in load_model(str(tmp_path / "plain" / "export")).card["calibration"]
    # One sentence where there are too few to tell.
    few = make_images(tmp_path / "few", 40)
    train_and_evaluate(config_of(few, start), tmp_path / "other")
    assert "calibration" not in load_model(str(tmp_path / "other" / "export")).card
    assert (
        "does not know what its scores mean: a calibration on views takes 128 images" in caplog.text
    )


def test_views_are_found_by_number_and_image(start, tmp_path):
    images = make_images(tmp_path / "images", 20)
    (images / "T00007.jpg").write_bytes(b"no image")
    config = config_of(images, start)
    config.data.cached_views = 4
    views = frozen.view_features(
        config, find_images(images), load_model(str(start)), tmp_path / "cache"
    )
    assert len(views.images) == 19
    numbers, positions = np.asarray([0, 3, 2]), np.asarray([6, 7, 18])
    expected = np.load(tmp_path / "cache" / "view_features.npy")[numbers, [6, 8, 19]]
    np.testing.assert_array_equal(views.edited_views(numbers, positions), expected)


def test_a_teacher_s_relations_reach_the_descriptor(images, start, tmp_path):
    teacher = make_features(tmp_path / "teacher.npz", images, dim=6)
    changes = {
        "objective.compress_lambda": 1.0,
        "bank.size": 8,
        "teacher.features": str(teacher),
    }
    train_and_evaluate(config_of(images, start, **changes), tmp_path / "run")
    rows = metrics_of(tmp_path / "run")
    assert all(row["compress_kl"] > 0 for row in rows)


def test_a_damaged_record_of_the_features_is_refused(images, start, tmp_path):
    config = config_of(images, start)
    train_and_evaluate(config, tmp_path / "run")
    (tmp_path / "run" / "view_features.json").write_text("{")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match=r"view_features\.json is damaged .*; delete it to compute"):
        train_and_evaluate(config, tmp_path / "run")


def test_nested_losses_are_the_sum_over_unit_prefixes():
    random = np.random.default_rng(0)
    query, key, queue = (random.standard_normal((n, 6)).astype(np.float32) for n in (4, 4, 9))

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    found = [
        losses.info_nce_queue(*parts, temperature=0.07)
        for parts in Objective(nested_dims=(2, 6)).nested(*map(jnp.asarray, (query, key, queue)))
    ]
    expected = [
        losses.info_nce_queue(
            *(jnp.asarray(unit(x[:, :d])) for x in (query, key, queue)), temperature=0.07
        )
        for d in (2, 6)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    (whole,) = Objective().nested(query)
    assert whole[0] is query


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"init_from": ""}, r"init_from is empty; name the model whose trunk"),
        ({"student.projector": "whitened"}, r"projector is 'whitened'"),
        ({"objective.kld_lambda": 1.0}, r"kld_lambda 1\.0 .* set both to 0"),
        ({"objective.regress_lambda": 1.0}, r"regress_lambda 1\.0 are on the feature"),
        ({"objective.compress_lambda": 1.0, "bank.size": 8}, r"teacher\.features to 'cached'"),
        ({"student.background": 2}, r"background is 2; .* must be 3 or more, or 0 for none"),
        ({"student.recalibrate": 64}, r"student\.recalibrate is 64, which would change"),
        ({"data.cached_views": 3}, r"cached_views is 3; views are made in twos"),
        ({"data.cached_views": 0}, r"cached_views is 0; it must be above 0"),
        ({"student.trainable": "head"}, r"trainable is 'head'; use one of all, projector"),
        ({"objective.nested_dims": (4, 2)}, r"nested_dims is \(4, 2\); give ascending sizes"),
        ({"objective.nested_dims": (2, 3)}, r"the last of which is config\.student\.dim = 4"),
        ({"objective.nested_dims": (0, 4)}, r"nested_dims is \(0, 4\)"),
    ],
)
def test_what_cannot_be_is_refused(changes, match):
    check_config(config_of("x", "start"))
    with pytest.raises(UserError, match=match):
        check_config(config_of("x", "start", **changes))

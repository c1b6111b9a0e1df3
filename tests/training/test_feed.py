"""Views made inside the step: whole runs of a toy, and what a config may not ask for."""

import importlib.util

import jax
import numpy as np
import pytest
from toy import metrics_of, toy_config

from rdcd_jax.core.errors import UserError
from rdcd_jax.images.sources import ImageSet, find_images
from rdcd_jax.training import feed
from rdcd_jax.training.check import check_config
from rdcd_jax.training.kept import keep_images
from rdcd_jax.training.loop import train_and_evaluate

# Compiles in a fraction of the time that a published policy takes.
POLICY = "hflip 0.5; resized_crop 1 scale=0.3,1 ratio=0.75,1.33; grey 0.2"
DEVICE = {"data.views": "device", "data.policy": POLICY, "schedule.max_steps": 4}
# SSCD's objective alone.
SSCD = {
    "objective.moco_lambda": 0.0,
    "objective.kld_lambda": 0.0,
    "objective.sscd_lambda": 1.0,
}


def assert_equal_params(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual.params, expected.params)


def test_images_kept_or_read_each_time_give_one_run(toys, images, features, tmp_path):
    runs = {}
    for keep in ("", "host", "device"):
        config = toy_config(images, features, **DEVICE, **{"data.keep": keep})
        runs[keep] = train_and_evaluate(config, tmp_path / f"run-{keep}")
    for keep in ("host", "device"):
        assert_equal_params(runs[keep], runs[""])


def test_a_resumed_run_makes_the_views_of_an_undisturbed_one(toys, images, features, tmp_path):
    config = toy_config(images, features, **DEVICE)
    whole = train_and_evaluate(config, tmp_path / "whole")
    for steps, keep in ((2, ""), (4, "device")):
        config.schedule.max_steps, config.data.keep = steps, keep
        parts = train_and_evaluate(config, tmp_path / "parts")
    assert_equal_params(parts, whole)


def test_eight_devices_make_the_run_of_one(toys, images, features, tmp_path):
    # Steps of 0.03 in all, so that rounding does not grow from one to the next.
    changes = DEVICE | {"data.keep": "device", "optimizer.learning_rate": 1e-2}
    runs = [
        train_and_evaluate(
            toy_config(images, features, **changes, devices=devices), tmp_path / str(devices)
        )
        for devices in (1, 8)
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), runs[0].params, runs[1].params
    )


@pytest.mark.skipif(not importlib.util.find_spec("augly"), reason="needs AugLy's fonts and emoji")
def test_a_run_with_overlays(toys, images, features, tmp_path):
    config = toy_config(images, features, **DEVICE | {"data.policy": "ADVANCED"})
    train_and_evaluate(config, tmp_path / "run")
    assert len(metrics_of(tmp_path / "run")) == 4


@pytest.mark.parametrize("views", ["host", "device"])
def test_mixed_views_train_with_sscd_s_objective(toys, images, features, tmp_path, views):
    changes = DEVICE | SSCD | {"data.views": views}
    losses = {}
    for mixup, cutmix in ((0.0, 0.0), (0.5, 0.5)):
        config = toy_config(
            images, features, **changes, **{"data.mixup": mixup, "data.cutmix": cutmix}
        )
        train_and_evaluate(config, tmp_path / f"{mixup}")
        losses[mixup] = [row["sscd_info_nce"] for row in metrics_of(tmp_path / f"{mixup}")]
    assert all(np.isfinite(losses[0.5]))
    assert losses[0.0] != losses[0.5]


def test_mixed_batches_carry_their_targets(images, features):
    config = toy_config(
        images, features, **SSCD, **{"data.mixup": 0.5, "data.cutmix": 0.5, "image_size": 16}
    )
    views = np.random.default_rng(0).integers(0, 256, (2, 8, 16, 16, 3), dtype=np.uint8)
    batch = feed.make_views(config)({"query": views[0], "key": views[1]}, np.int32(0))
    assert batch["query"].shape == batch["key"].shape == (8, 16, 16, 3)
    assert batch["targets"].shape == (16, 8)
    np.testing.assert_allclose(batch["targets"].sum(1), 1, atol=1e-6)
    again = feed.make_views(config)({"query": views[0], "key": views[1]}, np.int32(1))
    assert (batch["targets"] != again["targets"]).any()


def test_what_cannot_be_read_is_stood_in_for_by_the_next(images, tmp_path):
    found = find_images(images)
    broken = tmp_path / "T00000.jpg"
    broken.write_bytes(b"nothing")
    found = ImageSet(found.source, found.ids, (str(broken), *found.paths[1:-1], str(broken)))
    kept = keep_images(found, 8, on_device=False)
    np.testing.assert_array_equal(kept.pixels[0], kept.pixels[1])
    # The last image's next is the first that can be read.
    assert list(kept.shown[:3]) == [1, 1, 2]
    assert kept.shown[-1] == 1
    assert kept(0)["unreadable"] == 0
    assert kept(1)["unreadable"] == -1


def test_a_set_too_large_for_the_device_is_refused(images, monkeypatch):
    class Small:
        device_kind = "small"

        def memory_stats(self):
            return {"bytes_limit": 300_000, "bytes_in_use": 100_000}

    monkeypatch.setattr(jax, "local_devices", lambda: [Small()])
    config = toy_config(images, **{"data.keep": "device", "data.views": "device"})
    with pytest.raises(UserError, match="40 images of 64 x 64 take 0.0 GB, and the device small"):
        feed.kept_images(config, find_images(images))


def test_a_set_too_large_for_memory_is_refused(images):
    with pytest.raises(UserError, match="40 images of 60000 x 60000 take 432.0 GB.*source_size"):
        keep_images(find_images(images), 60_000, on_device=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.views": "gpu"}, "data.views"),
        ({"data.keep": "host"}, "data.keep is 'host' with views made on the host"),
        ({"data.mixup": 0.1}, "need SSCD's objective alone"),
        (SSCD | {"data.mixup": 0.6, "data.cutmix": 0.6}, "exclude each other"),
    ],
)
def test_refused(toys, images, features, changes, message):
    with pytest.raises(UserError, match=message):
        check_config(toy_config(images, features, **changes))

"""Calibration and whitening at the end of a run, on toys."""

import jax
import numpy as np
import pytest
from flax import nnx
from toy import embed, make_features, make_images, toy_config

from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.stream import Embedder, embed_images
from rdcd_jax.images.decode import decode_rgb, resize_square
from rdcd_jax.images.sources import find_images
from rdcd_jax.method.state import split
from rdcd_jax.models.descriptor import normalize_images
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.weights.library import load_model


def test_a_calibrated_export(toys, images, features, tmp_path):
    config = toy_config(images, features, **{"schedule.max_steps": 1, "student.recalibrate": 32})
    state = train_and_evaluate(config, tmp_path)
    model = load_model(str(tmp_path / "export"))
    params, batch_stats = split(model.module)[1:]
    jax.tree.map(np.testing.assert_array_equal, params, state.params)
    bn = batch_stats["backbone"]["bn"]
    assert np.all(bn["mean"] != state.batch_stats["backbone"]["bn"]["mean"])
    # By hand: the first layer's outputs over the same 32 found.
    found = find_images(images)
    positions = np.linspace(0, 39, 32).round().astype(int)
    batch = [np.asarray(resize_square(decode_rgb(found.paths[i]), 32)) for i in positions]
    outputs = model.module.backbone.conv(normalize_images(jax.numpy.asarray(np.stack(batch))))
    outputs = np.asarray(outputs).reshape(-1, 8)
    np.testing.assert_allclose(bn["mean"], outputs.mean(0), atol=1e-4)
    np.testing.assert_allclose(bn["var"], outputs.var(0, ddof=1), rtol=1e-3)


def test_calibration_passes_over_unreadable_images(toys, tmp_path):
    images = make_images(tmp_path / "train", 12)
    features = make_features(tmp_path / "features.npz", images)
    (images / "T00003.jpg").write_bytes(b"no picture")
    changes = {"schedule.max_steps": 1, "student.recalibrate": 12}
    train_and_evaluate(toy_config(images, features, **changes), tmp_path / "run")
    assert (tmp_path / "run" / "export" / "model.json").is_file()


def test_a_whitened_export(toys, images, features, tmp_path):
    changes = {"student.projector": "whitened", "objective.moco_lambda": 0.0}
    config = toy_config(images, features, **changes, **{"schedule.max_steps": 1})
    train_and_evaluate(config, tmp_path)
    model = load_model(str(tmp_path / "export"))
    assert embed(model, images).shape == (40, 4)
    # Before its normalisation the descriptor is the white one.
    white = Embedder(
        lambda batch: model.module.projector(
            model.module.backbone(normalize_images(jax.numpy.asarray(batch)))
        ),
        32,
    )
    found, _ = embed_images(white, find_images(images), batch_size=40)
    covariance = np.cov(found.descriptors.T)
    np.testing.assert_allclose(covariance / covariance[0, 0], np.eye(4), atol=0.02)
    deviation = np.sqrt(covariance[0, 0])
    np.testing.assert_allclose(found.descriptors.mean(axis=0) / deviation, 0, atol=0.02)


def test_a_projector_kept_from_the_start(toys, images, features, tmp_path):
    train_and_evaluate(toy_config(images, features), tmp_path / "start")
    start = tmp_path / "start" / "export"
    changes = {"student.projector": "start", "objective.moco_lambda": 0.0}
    with pytest.raises(
        UserError, match="init_from = '' has no projector to config.student.dim = 4"
    ):
        train_and_evaluate(toy_config(images, features, **changes), tmp_path / "fresh")
    config = toy_config(images, features, **changes, init_from=str(start))
    config.optimizer.weight_decay = 0.5
    train_and_evaluate(config, tmp_path / "run")
    before, after = (load_model(str(x)).module for x in (start, tmp_path / "run" / "export"))
    jax.tree.map(
        np.testing.assert_array_equal, nnx.state(before.projector), nnx.state(after.projector)
    )
    trunks = (jax.tree.leaves(nnx.state(x.backbone, nnx.Param)) for x in (before, after))
    assert any((a != b).any() for a, b in zip(*trunks, strict=True)), "nothing was trained"


def test_whitening_needs_enough_images(toys, tmp_path):
    images = make_images(tmp_path / "train", 12)
    features = make_features(tmp_path / "features.npz", images)
    changes = {"student.projector": "whitened", "objective.moco_lambda": 0.0}
    with pytest.raises(UserError, match="12"):
        train_and_evaluate(toy_config(images, features, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists(), "reported only after the training"

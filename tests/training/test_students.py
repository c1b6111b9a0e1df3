"""The students that test_loop has not, each in a whole run: one step, calibration, export, description."""

import json

import jax
import numpy as np
import pytest
from toy import CONFIGS, embed, make_features, metrics_of

from rdcd_jax.method.state import split
from rdcd_jax.models import fastvit, mobilenet, registry
from rdcd_jax.training.config import load_config
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.student import make_student
from rdcd_jax.weights import tables
from rdcd_jax.weights.library import load_model

# Of each kind of layer one, so that a step compiles in seconds.
SHORT = {
    "fastvit_t12": {
        fastvit: {
            "STAGES": ((8, 1), (16, 1)),
            "LAST_CHANNELS": 32,
            "WIDE_KERNEL": 3,
            # At the published 1e-5 one step's change of what it scales is lost in rounding.
            "LAYER_SCALE": 0.1,
        }
    },
    "mobilenet_v3_large": {
        mobilenet: {
            "BLOCKS": ((3, 16, 8, 0, False, 1), (5, 24, 8, 8, True, 2), (3, 16, 8, 8, True, 1)),
            "LAST_CHANNELS": 24,
            "HIDDEN_CHANNELS": 16,
        }
    },
}


@pytest.fixture
def short(request, monkeypatch):
    """Registers a short form of a student, and gives its name."""
    name = request.param
    for module, changes in SHORT[name].items():
        for attribute, value in changes.items():
            monkeypatch.setattr(module, attribute, value)
    row = registry.Network(registry.NETWORKS[name].backbone, 512)
    monkeypatch.setitem(registry.NETWORKS, f"short_{name}", row)
    monkeypatch.setitem(tables.LAYERS, f"short_{name}", tables.LAYERS[name])
    return f"short_{name}"


@pytest.mark.slow
@pytest.mark.parametrize("short", SHORT, indirect=True)
def test_a_run_of_one_step(short, images, tmp_path):
    features = make_features(tmp_path / "wide.npz", images, dim=24)
    config = load_config(
        f"{CONFIGS / 'rdcd.py'}:student={short},dim=8,smoke,data={images}",
        [
            f"--config.teacher.features={features}",
            "--config.evaluate.image_size=32",
            "--config.schedule.max_steps=1",
            "--config.student.recalibrate=8",
        ],
    )
    state = train_and_evaluate(config, tmp_path / "run")
    (row,) = metrics_of(tmp_path / "run")
    assert np.isfinite(row["loss"]) and row["gradient_norm"] > 0
    model = load_model(str(tmp_path / "run" / "export"))
    assert (model.network, model.feature_dim, model.dim) == (short, 24, 8)
    params, batch_stats = split(model.module)[1:]
    jax.tree.map(np.testing.assert_array_equal, params, state.params)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), batch_stats, state.batch_stats)
    assert all(jax.tree.leaves(moved)), "calibration left a layer out"
    # Everything learns; what has no gradient but rounding moves by that.
    fresh = split(make_student(config, 24).module)[1]
    same = jax.tree.map(lambda a, b: bool(np.all(a == b)), params, fresh)
    assert not any(jax.tree.leaves(same)), same
    rows = embed(model, images)
    assert rows.shape == (40, 8)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert json.loads((tmp_path / "run" / "export" / "model.json").read_text())["network"] == short

"""configs/sscd.py: SSCD's recipe, its networks, and a student whose feature is its descriptor."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toy import CONFIGS, embed, make_export, metrics_of, toy_config

from rdcd_jax import models
from rdcd_jax.core.errors import UserError
from rdcd_jax.method.state import split
from rdcd_jax.models import efficientnet, registry, resnet
from rdcd_jax.training.config import load_config
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.student import make_student
from rdcd_jax.weights import tables
from rdcd_jax.weights.library import export_model, load_model
from rdcd_jax.weights.model import Model, evaluation_mode

SSCD = str(CONFIGS / "sscd.py")
ALONE = {"objective.moco_lambda": 0.0, "objective.kld_lambda": 0.0, "objective.sscd_lambda": 1.0}
BARE = {"student.projector": "none", "student.dim": 6}
# The real networks' blocks, few and narrow enough to compile in seconds.
STAGES = ((1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2))


def test_the_published_recipe():
    config = load_config(f"{SSCD}:data=x", [])
    assert (config.student.network, config.student.dim) == ("resnet50", 512)
    assert (config.batch_size, config.image_size, config.data.policy) == (4096, 224, "ADVANCED")
    assert (config.data.mixup, config.data.cutmix, config.data.mix_alpha) == (0.025, 0.025, 2.0)
    objective = config.objective
    assert (objective.sscd_lambda, objective.sscd_temperature) == (1.0, 0.05)
    assert objective.entropy_lambda == 30.0
    assert objective.moco_lambda == objective.kld_lambda == objective.regress_lambda == 0.0
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.learning_rate) == ("lars", 0.3)
    assert (optimizer.weight_decay, optimizer.momentum) == (1e-6, 0.9)
    assert (config.schedule.epochs, config.schedule.warmup_epochs) == (100, 5)
    other = load_config(f"{SSCD}:student=efficientnet_b0,dim=128,entropy=10,data=x", [])
    assert (other.student.network, other.student.dim) == ("efficientnet_b0", 128)
    assert other.objective.entropy_lambda == 10.0


@pytest.fixture
def short_networks(monkeypatch):
    """Registers `short_resnet50` and `short_efficientnet_b0`."""
    monkeypatch.setattr(resnet, "BLOCKS", (1, 1, 1, 1))
    monkeypatch.setattr(resnet, "WIDTHS", (8, 8, 8, 8))
    monkeypatch.setattr(efficientnet, "STAGES", STAGES)
    for name in ("resnet50", "efficientnet_b0"):
        row = registry.Network(registry.NETWORKS[name].backbone, 512)
        monkeypatch.setitem(registry.NETWORKS, f"short_{name}", row)
        monkeypatch.setitem(tables.LAYERS, f"short_{name}", tables.LAYERS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0"])
def test_smoke_runs_of_both_networks(short_networks, images, tmp_path, name):
    arg = f"student=short_{name},dim=23,smoke,data={images}"
    config = load_config(f"{SSCD}:{arg}", ["--config.schedule.max_steps=2"])
    state = train_and_evaluate(config, tmp_path)
    rows = metrics_of(tmp_path)
    assert len(rows) == 2
    for row in rows:
        assert row["loss"] == pytest.approx(row["sscd_info_nce"] + row["entropy"], abs=1e-4)
    model = load_model(str(tmp_path / "export"))
    assert (model.feature_dim, model.dim) == (23, 23)
    params, batch_stats = split(model.module)[1:]
    for ours, theirs in [(params, state.params), (batch_stats, state.batch_stats)]:
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    # Everything learns, the scales that start at 0 too.
    fresh = split(make_student(config, 23).module)[1]
    same = jax.tree.map(lambda a, b: bool(np.all(a == b)), params, fresh)
    assert not any(jax.tree.leaves(same)), same


def test_a_resnet_with_a_projector_is_exported_and_loaded(short_networks, tmp_path):
    module = models.build("short_resnet50", dim=5, feature_dim=23, rngs=nnx.Rngs(0))
    export_model(tmp_path, Model("small", "short_resnet50", evaluation_mode(module), 32))
    model = load_model(str(tmp_path))
    assert (model.feature_dim, model.dim) == (23, 5)
    jax.tree.map(np.testing.assert_array_equal, split(model.module)[1], split(module)[1])


def test_residual_branches_of_a_fresh_resnet_start_at_zero(short_networks):
    fresh = models.build("short_resnet50", dim=None, feature_dim=23, rngs=nnx.Rngs(0))
    tensors = nnx.to_flat_state(nnx.state(fresh, nnx.Param))
    scales = {path: np.asarray(leaf[...]) for path, leaf in tensors if path[-1] == "scale"}
    # 1 before the blocks, 3 in each of 4, and 4 shortcuts.
    assert len(scales) == 17
    zero = {path for path, scale in scales.items() if np.all(scale == 0)}
    assert zero == {path for path in scales if path[-2] == "bn3"}
    assert len(zero) == 4
    assert all(np.all(scale == 1) for path, scale in scales.items() if path not in zero)
    # The block is then its shortcut alone.
    block = resnet.Bottleneck(32, 8, stride=1, dtype=None, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 32)), jnp.float32)
    np.testing.assert_array_equal(block(x), jax.nn.relu(x))


def test_a_student_without_projector_resumes_and_loads(toys, images, tmp_path):
    changes = {**ALONE, **BARE, "data.mixup": 0.5, "optimizer.name": "lars", "schedule.epochs": 2}
    config = toy_config(images, **changes, **{"schedule.max_steps": 6})
    whole = train_and_evaluate(config, tmp_path / "whole")
    assert whole.params["backbone"]["fc"]["kernel"].shape == (8, 6)
    for steps in (3, 6):
        config.schedule.max_steps = steps
        parts = train_and_evaluate(config, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    card = json.loads((tmp_path / "parts" / "export" / "model.json").read_text())
    assert (card["dim"], card["feature_dim"]) == (None, 6)
    model = load_model(str(tmp_path / "parts" / "export"))
    rows = embed(model, images)
    assert rows.shape == (40, 6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    # And on from there.
    config.init_from = str(tmp_path / "parts" / "export")
    again = split(make_student(config, 6).module)[1]
    jax.tree.map(np.testing.assert_array_equal, again, split(model.module)[1])


def test_a_teacher_teaches_the_descriptor_itself(toys, images, features, tmp_path):
    changes = {"objective.moco_lambda": 0.0, "student.projector": "none", "student.dim": 16}
    config = toy_config(images, features, **changes, **{"schedule.max_steps": 1})
    train_and_evaluate(config, tmp_path)
    assert load_model(str(tmp_path / "export")).dim == 16


@pytest.mark.parametrize("term", ["kld_lambda", "regress_lambda"])
def test_a_teacher_of_another_size_is_refused(toys, images, features, tmp_path, term):
    changes = {**ALONE, **BARE, f"objective.{term}": 1.0}
    with pytest.raises(
        UserError, match=r"projector is 'none'.*16 dimensions.*student\.dim is 6; set dim to 16"
    ):
        train_and_evaluate(toy_config(images, features, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_start_of_another_size_is_refused(toys, tmp_path):
    start = make_export(tmp_path / "start")
    config = toy_config(tmp_path, init_from=str(start), **ALONE, **BARE)
    with pytest.raises(
        UserError, match=r"has not the feature of 6 dimensions that config\.student\.dim needs"
    ):
        make_student(config, 6)

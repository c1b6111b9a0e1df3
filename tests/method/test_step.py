"""The train step against nine steps of the reference's own training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rdcd_jax.core.options import option, options_of
from rdcd_jax.method.objective import TERMS, Objective, Term
from rdcd_jax.method.state import init_state, split
from rdcd_jax.method.step import make_train_step
from rdcd_jax.models.descriptor import DescriptorNet
from rdcd_jax.models.layers import BatchNorm, conv, gem_pool
from rdcd_jax.training.optim import learning_rate_schedule, make_optimizer


class ToyBackbone(nnx.Module):
    """The backbone that the reference's trajectory was made with."""

    def __init__(self, rngs):
        self.conv1 = conv(3, 6, 3, stride=2, rngs=rngs)
        self.bn1 = BatchNorm(6, rngs=rngs)
        self.conv2 = conv(6, 6, 3, groups=6, rngs=rngs)
        self.bn2 = BatchNorm(6, rngs=rngs)
        self.fc = nnx.Linear(6, 7, rngs=rngs)

    def __call__(self, images, rngs=None):
        x = jax.nn.silu(self.bn1(self.conv1(images)))
        x = jax.nn.silu(self.bn2(self.conv2(x)))
        return self.fc(gem_pool(x))


LEAVES = {
    "weight": {4: "kernel", 2: "kernel", 1: "scale"},
    "running_mean": {1: "mean"},
    "running_var": {1: "var"},
    "bias": {1: "bias"},
}


def from_torch(tensors):
    """Torch names and layouts to {path: array} in ours."""
    result = {}
    for key, value in tensors.items():
        *path, leaf = key.split(".")
        if leaf == "num_batches_tracked":
            continue
        value = np.asarray(value)
        name = LEAVES[leaf][value.ndim]
        axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[value.ndim]
        result[(*path, name)] = value.transpose(axes)
    return result


def by_path(tree):
    return {
        tuple(str(getattr(k, "key", getattr(k, "name", k))) for k in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def fill(tree, values):
    def pick(path, leaf):
        key = tuple(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
        return jnp.asarray(values[key], leaf.dtype)

    return jax.tree_util.tree_map_with_path(pick, tree)


def toy_run(data, dtype, **changes):
    hp = dict(zip(data["hp_names"].tolist(), data["hp_values"].tolist(), strict=True))
    module = DescriptorNet(ToyBackbone(nnx.Rngs(0)), nnx.Linear(7, 5, rngs=nnx.Rngs(1)))
    graph, params, batch_stats = split(module)
    cast = lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree)  # noqa: E731
    start = from_torch({k[5:]: v for k, v in data.items() if k.startswith("init/")})
    params, batch_stats = fill(cast(params), start), fill(cast(batch_stats), start)
    schedule = learning_rate_schedule(hp["lr"], 1, int(hp["max_steps"]), int(hp["warmup_steps"]))
    optimizer = make_optimizer(
        "sgd", schedule, weight_decay=hp["weight_decay"], momentum=hp["momentum"]
    )
    state = init_state(
        module, optimizer, queue_size=12, bank_size=10, dim=5, feature_dim=7, rng=jax.random.key(0)
    ).replace(
        params=params,
        batch_stats=batch_stats,
        key_params=params,
        key_batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        queue=jnp.asarray(data["queue0"].T, dtype),
        bank=jnp.asarray(data["bank0"], dtype),
    )
    objective = Objective(
        **{
            "moco_lambda": hp["moco_lambda"],
            "hn_lambda": hp["hn_lambda"],
            "temperature": hp["T"],
            "kld_lambda": hp["kld_lambda"],
            "kld_temperature": hp["T_kld"],
            "key_momentum": hp["m"],
        }
        | changes
    )
    step = jax.jit(make_train_step(graph, optimizer, objective, None))
    return state, step, schedule


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def toy_batch(data, s, dtype):
    image = lambda name: jnp.asarray(data[name][s].transpose(0, 2, 3, 1), dtype)  # noqa: E731
    teacher = jnp.asarray(unit(data["teacher_raw"][s]), dtype)
    return {"query": image("im_q"), "key": image("im_k"), "teacher": teacher}


def gradients_between(before, after, weight_decay):
    """The gradient that an SGD step took, from its momentum buffers: buf' = 0.9 buf + g + wd p."""
    trace = lambda state: by_path(state.opt_state[1].trace)  # noqa: E731
    old, new, params = trace(before), trace(after), by_path(before.params)
    return {k: new[k] - 0.9 * old[k] - weight_decay * params[k] for k in new}


LOGS = {
    "Moco_loss": "info_nce",
    "Hardneg_loss": "hard_negative",
    "kld_loss": "relational_kl",
    "total_loss": "loss",
    "positive_sim": "positive_similarity",
    "negative_sim": "negative_similarity",
    "nearest_negative_sim": "nearest_negative_similarity",
    "center_l2_norm": "center_norm",
}


def test_nine_steps_in_float64(vectors):
    data = vectors("e_trajectory")

    def close(actual, expected, scale=1.0):
        np.testing.assert_allclose(actual, expected, rtol=1e-8, atol=1e-9 * scale)

    with jax.enable_x64(True):
        state, step, schedule = toy_run(data, jnp.float64)
        for s in range(9):
            before = state
            state, metrics = step(state, None, toy_batch(data, s, jnp.float64), jax.random.key(0))
            group = lambda name, s=s: {  # noqa: E731
                k.removeprefix(f"s{s}/{name}/"): v
                for k, v in data.items()
                if k.startswith(f"s{s}/{name}/")
            }
            close(schedule(s), data[f"s{s}/lr"])
            for theirs, ours in LOGS.items():
                close(metrics[ours], data[f"s{s}/log/{theirs}"])
            gradients = gradients_between(before, state, 1e-2)
            for path, expected in from_torch(group("grad")).items():
                close(gradients[path], expected, np.abs(expected).max())
            for name, trees in {
                "q_after": (state.params, state.batch_stats),
                "k_after": (state.key_params, state.key_batch_stats),
            }.items():
                actual = by_path(trees[0]) | by_path(trees[1])
                expected = from_torch(group(name))
                assert actual.keys() == expected.keys()
                for path in expected:
                    close(actual[path], expected[path])
            close(state.queue.T, data[f"s{s}/queue_after"])
            close(state.bank, data[f"s{s}/bank_after"])
            assert int(state.queue_position) == int(data[f"s{s}/ptr_after"].item())
            assert int(state.bank_position) == int(data[f"s{s}/bank_index_after"])
            assert int(state.step) == s + 1


def test_nine_steps_in_float32(vectors):
    data = vectors("e_trajectory")
    state, step, _ = toy_run(data, jnp.float32)
    for s in range(9):
        state, metrics = step(state, None, toy_batch(data, s, jnp.float32), jax.random.key(0))
        np.testing.assert_allclose(metrics["loss"], data[f"s{s}/total"], rtol=1e-4)


def test_terms_without_weight_are_left_out(vectors):
    data = vectors("e_trajectory")
    batch = toy_batch(data, 0, jnp.float32)
    state, step, _ = toy_run(data, jnp.float32, moco_lambda=0.0)
    after, metrics = step(
        state, None, {k: batch[k] for k in ("query", "teacher")}, jax.random.key(0)
    )
    assert "info_nce" not in metrics
    np.testing.assert_allclose(metrics["loss"], metrics["relational_kl"], rtol=1e-6)
    np.testing.assert_array_equal(after.queue, state.queue)

    state, step, _ = toy_run(data, jnp.float32, kld_lambda=0.0)
    after, metrics = step(state, None, {k: batch[k] for k in ("query", "key")}, jax.random.key(0))
    assert "relational_kl" not in metrics
    np.testing.assert_array_equal(after.bank, state.bank)


def test_bank_may_include_the_batch(vectors):
    data = vectors("e_trajectory")
    batch = toy_batch(data, 0, jnp.float32)
    losses = []
    for include in (False, True):
        state, step, _ = toy_run(data, jnp.float32, bank_includes_batch=include)
        losses.append(float(step(state, None, batch, jax.random.key(0))[1]["relational_kl"]))
    assert losses[1] != pytest.approx(losses[0], rel=1e-3)


def test_the_teacher_may_have_a_temperature_of_its_own(vectors):
    data = vectors("e_trajectory")
    batch = toy_batch(data, 0, jnp.float32)
    found = []
    for temperature in (0.0, 0.5, 1.0):
        changes = {"kld_temperature": 0.5, "kld_teacher_temperature": temperature}
        state, step, _ = toy_run(data, jnp.float32, **changes)
        found.append(float(step(state, None, batch, jax.random.key(0))[1]["relational_kl"]))
    assert found[0] == found[1] != pytest.approx(found[2], rel=1e-3)


def test_compress_compares_rows_of_the_same_images(vectors):
    data = vectors("e_trajectory")
    changes = {"moco_lambda": 0.0, "kld_lambda": 0.0, "compress_lambda": 2.0}
    state, step, _ = toy_run(data, jnp.float32, **changes)
    state = state.replace(bank=jnp.concatenate([state.bank, state.bank[:2]]))
    batch = toy_batch(data, 0, jnp.float32)
    after, metrics = step(state, None, batch, jax.random.key(0))
    assert not metrics.keys() & {"info_nce", "relational_kl"}
    assert float(metrics["compress_kl"]) > 0
    np.testing.assert_allclose(metrics["loss"], metrics["compress_kl"], rtol=1e-6)
    size = len(batch["teacher"])
    np.testing.assert_array_equal(after.bank[:size], batch["teacher"])
    # The very keys that MoCo would have put there.
    _, contrast, _ = toy_run(data, jnp.float32, kld_lambda=0.0)
    keys = contrast(state, None, batch, jax.random.key(0))[0].queue
    np.testing.assert_allclose(after.queue, keys, atol=1e-6)
    np.testing.assert_array_equal(after.queue[size:], state.queue[size:])
    assert int(after.queue_position) == int(after.bank_position) == size


def test_a_loss_is_added_by_a_function_and_a_field(vectors, monkeypatch):
    """As docs/train.md shows."""

    @dataclasses.dataclass(frozen=True)
    class Longer(Objective):
        spread_lambda: float = option(
            0.0, "Weight of the spread of the batch's descriptors.", at_least=0
        )

    def spread(objective, seen):
        centre = jnp.mean(seen.descriptor, axis=0)
        return {"spread": jnp.sum(centre**2)}

    term = Term("spread_lambda", spread, frozenset())
    monkeypatch.setattr("rdcd_jax.method.objective.TERMS", (*TERMS, term))
    monkeypatch.setattr("test_step.Objective", Longer)
    data = vectors("e_trajectory")
    state, step, _ = toy_run(data, jnp.float32, spread_lambda=2.0)
    _, metrics = step(state, None, toy_batch(data, 0, jnp.float32), jax.random.key(0))
    shares = ("info_nce", "hard_negative", "relational_kl", "spread")
    assert 0 < metrics["spread"] <= 2
    np.testing.assert_allclose(metrics["loss"], sum(metrics[name] for name in shares), rtol=1e-6)
    assert "spread_lambda" in dict(options_of(Longer))

"""Schedule and optimisers against the reference's numbers and live torch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rdcd_jax.core.errors import UserError
from rdcd_jax.training.optim import learning_rate_schedule, make_optimizer


def after_each_step(optimizer, parameters, gradients):
    """Yields the parameters after each step."""
    state = optimizer.init(parameters)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        yield parameters


def schedule_case(data, case):
    base, *counts = data[f"c{case}_params_baselr_stepsperepoch_epochs_warmupepochs"].tolist()
    return learning_rate_schedule(base, *map(int, counts)), data[f"c{case}_lr"]


@pytest.mark.parametrize("case", [0, 1, 3, 4])
def test_schedule_is_the_reference_s(vectors, case):
    data = vectors("i_schedule_lars")
    with jax.enable_x64(True):
        schedule, expected = schedule_case(data, case)
        rates = schedule(np.arange(len(expected)))
        np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-12 * expected.max())
    schedule, expected = schedule_case(data, case)
    rates = schedule(np.arange(len(expected)))
    assert rates.dtype == jnp.float32
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-6 * expected.max())
    # One at a time, as the optimiser asks, traced or not.
    assert float(schedule(3)) == pytest.approx(expected[3], abs=1e-6)
    assert float(jax.jit(schedule)(jnp.int32(3))) == pytest.approx(expected[3], abs=1e-6)


def test_without_warmup_the_cosine_starts_at_the_base():
    with jax.enable_x64(True):
        rates = np.asarray(learning_rate_schedule(2.0, 3, 10, 0)(np.arange(33)))
    expected = 1 + np.cos(np.pi * np.minimum(np.arange(33), 30) / 30)
    np.testing.assert_allclose(rates, expected, atol=1e-12)
    assert rates[0] == 2 and np.all(rates[30:] == 0)


@pytest.mark.parametrize("warmup", [-1, 10, 11])
def test_impossible_warmup_is_refused(warmup):
    with pytest.raises(UserError, match=rf"schedule\.warmup_epochs is {warmup}.*epochs = 10"):
        learning_rate_schedule(1.0, 3, 10, warmup)


def test_three_steps_of_lars(vectors):
    data = vectors("i_schedule_lars")
    with jax.enable_x64(True):
        start = {j: jnp.asarray(data[f"lars/p{j}_0"]) for j in range(4)}
        gradients = [{j: jnp.asarray(data[f"lars/g{j}_{s}"]) for j in start} for s in range(3)]
        optimizer = make_optimizer(
            "lars", lambda step: jnp.asarray(0.5), weight_decay=1e-2, momentum=0.9
        )
        for s, parameters in enumerate(after_each_step(optimizer, start, gradients)):
            for j, actual in parameters.items():
                assert actual.dtype == jnp.float64
                np.testing.assert_allclose(actual, data[f"lars/p{j}_{s + 1}"], atol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_against_torch(name):
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    start = random.standard_normal((5, 3))
    gradients = random.standard_normal((6, 5, 3))
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    make = {
        "sgd": lambda: torch.optim.SGD([theirs], lr=1.0, weight_decay=0.05, momentum=0.8),
        "adamw": lambda: torch.optim.AdamW([theirs], lr=1.0, weight_decay=0.05),
    }
    optimizer = make[name]()
    # Optax's own AdamW raises a float to an integer power.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        schedule = learning_rate_schedule(0.3, 1, 6, 2)
        ours = make_optimizer(name, schedule, weight_decay=0.05, momentum=0.8)
        steps = after_each_step(ours, jnp.asarray(start), jnp.asarray(gradients))
        for s, parameters in enumerate(steps):
            optimizer.param_groups[0]["lr"] = float(schedule(s))
            theirs.grad = torch.from_numpy(gradients[s].copy())
            optimizer.step()
            np.testing.assert_allclose(parameters, theirs.detach().numpy(), atol=1e-10)


def test_unknown_optimizer_is_refused():
    with pytest.raises(UserError, match="optimizer.name is 'adam'; use sgd, adamw or lars"):
        make_optimizer("adam", optax.constant_schedule(1.0), weight_decay=0.0)

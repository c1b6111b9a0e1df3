"""Losses against the reference's own numbers, values and gradients, in both precisions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdcd_jax.core.errors import UserError
from rdcd_jax.method import losses
from rdcd_jax.method.queue import enqueue, init_bank, init_queue
from rdcd_jax.models.layers import gem_pool, l2_normalize

# Values are compared with the reference's float64 run in either precision: its own float32 run has lost digits where
# a loss is nearly zero (0.1 % at 2e-4), and ours has not.
PRECISIONS = {"f64": (np.float64, 1e-9, 1e-9), "f32": (np.float32, 2e-5, 1e-4)}


@pytest.fixture(params=sorted(PRECISIONS))
def precision(request):
    """Name, dtype, tolerance of losses (relative), tolerance of gradients (relative to the largest entry)."""
    with jax.enable_x64(request.param == "f64"):
        yield (request.param, *PRECISIONS[request.param])


def gradients(loss, raw):
    """Of a loss of unit vectors, by these and by the raw ones [N, D] that they are made from."""
    by_unit = jax.grad(loss)(l2_normalize(raw))
    return by_unit, jax.grad(lambda raw: loss(l2_normalize(raw)))(raw)


def assert_gradient(actual, expected, tolerance):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("p", ["3", "1", "4.5"])
def test_gem(vectors, precision, p):
    name, dtype, rtol, gtol = precision
    data = vectors("a_gem")
    x = jnp.asarray(data["x"].transpose(0, 2, 3, 1), dtype)

    @jax.jit
    def pooled(x):
        y, back = jax.vjp(lambda x: gem_pool(x, float(p)), x)
        return y, *back(jnp.asarray(data["w"], dtype))

    y, dx = pooled(x)
    np.testing.assert_allclose(y, data[f"y_p{p}_{name}"], rtol=rtol)
    assert_gradient(dx.transpose(0, 3, 1, 2), data[f"dx_p{p}_{name}"], gtol)


@pytest.mark.parametrize("case", range(6))
def test_moco(vectors, precision, case):
    name, dtype, rtol, gtol = precision
    data = {k[3:]: v for k, v in vectors("b_moco").items() if k.startswith(f"c{case}_")}
    temperature, weight, position = (float(v) for v in data["params"][3:])
    raw, keys, queue = (jnp.asarray(data[k], dtype) for k in ("q_raw", "k_raw", "queue"))
    queue, keys = queue.T, l2_normalize(keys)

    def terms(query):
        return (
            losses.info_nce_queue(query, keys, queue, temperature=temperature),
            weight * losses.hard_negative(query, queue),
        )

    @jax.jit
    def measured(raw):
        return terms(l2_normalize(raw)), *gradients(lambda query: sum(terms(query)), raw)

    (infonce, hard), by_unit, by_raw = measured(raw)
    np.testing.assert_allclose(infonce, data["f64_infonce"], rtol=rtol)
    np.testing.assert_allclose(hard, data["f64_hn"], rtol=rtol, atol=1e-12)
    assert_gradient(by_unit, data[f"{name}_dq_norm"], gtol)
    assert_gradient(by_raw, data[f"{name}_dq_raw"], gtol)

    after, pointer = enqueue(queue, keys, int(position))
    assert int(pointer) == int(data[f"{name}_ptr_after"].item())
    if f"{name}_queue_after" in data:
        np.testing.assert_allclose(after.T, data[f"{name}_queue_after"], rtol=0, atol=rtol)


@pytest.mark.parametrize("case", range(5))
def test_relational_kl(vectors, precision, case):
    name, dtype, rtol, gtol = precision
    data = {k[3:]: v for k, v in vectors("c_kld").items() if k.startswith(f"c{case}_")}
    temperature, steps = float(data["params"][3]), int(data["params"][4])
    bank, position = jnp.asarray(data["bank"], dtype), 0

    def loss(raw, teacher, bank):
        student = l2_normalize(raw)
        return losses.relational_kl(student, teacher, bank, temperature=temperature)

    gradient, follow = jax.jit(jax.grad(loss)), jax.jit(enqueue)
    for step in range(steps):
        teacher = l2_normalize(jnp.asarray(data["teacher_raw"][step], dtype))
        raw = jnp.asarray(data["student_raw"][step], dtype)
        # Not compiled: equal sides then round alike, and cancel.
        value = loss(raw, teacher, bank)
        # A sum of differences of log-probabilities around 10: float32 cannot hold more than 1e-7 of it.
        atol = 1e-7 if name == "f32" else 1e-12
        np.testing.assert_allclose(value, data["f64_loss"][step], rtol=rtol, atol=atol)
        by_raw = gradient(raw, teacher, bank)
        assert_gradient(by_raw, data[f"{name}_dstudent_raw"][step], gtol)
        bank, position = follow(bank, teacher, position)
        assert int(position) == int(data[f"{name}_index_after"][step])
        if f"{name}_bank_after" in data:
            expected = data[f"{name}_bank_after"][step]
            np.testing.assert_allclose(bank, expected, rtol=0, atol=rtol)


def test_relational_kl_with_a_bank_and_a_temperature_for_each_side():
    # Dyadic numbers, so that float32 holds the inputs exactly.
    student = np.array([[0.5, -0.25], [1.0, 0.75], [-0.5, 0.5]])
    own = np.array([[1.0, 0.0], [0.25, -1.0], [0.5, 0.5], [-0.75, 0.125]])
    teacher = np.array([[0.5, 0.0, 1.0], [-1.0, 0.25, 0.5], [0.125, 0.75, -0.5]])
    bank = np.array([[0.0, 1.0, 0.5], [0.5, 0.5, 0.0], [-0.5, 0.0, 1.0], [1.0, -1.0, 0.25]])

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(1, keepdims=True)

    p, q = softmax(teacher @ bank.T / 0.5), softmax(student @ own.T / 0.25)
    golden = np.mean(np.sum(p * np.log(p / q), axis=1))

    def loss(student, teacher, bank, own):
        return losses.relational_kl(
            student, teacher, bank, temperature=0.25, teacher_temperature=0.5, student_bank=own
        )

    arrays = [jnp.asarray(x, jnp.float32) for x in (student, teacher, bank, own)]
    np.testing.assert_allclose(loss(*arrays), golden, rtol=1e-6)
    gradient, *others = jax.grad(loss, argnums=(0, 1, 2, 3))(*arrays)
    np.testing.assert_allclose(gradient, (q - p) @ own / 0.25 / 3, rtol=1e-5)
    for each in others:
        np.testing.assert_array_equal(each, 0)


def test_quantization():
    x = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    signs = np.sign(x) / 8**0.5
    value, gradient = jax.value_and_grad(losses.quantization)(x)
    np.testing.assert_allclose(value, np.mean(1 - np.sum(x * signs, axis=1)), rtol=1e-5)
    np.testing.assert_allclose(gradient, -signs / 5, rtol=1e-5)
    assert abs(losses.quantization(jnp.asarray(signs))) < 1e-6


@functools.partial(jax.jit, static_argnums=(2, 3))
def sscd(raw, targets, temperature, weight):
    """InfoNCE and the weighted entropy, then the gradients of their sum by unit and by raw vectors."""

    def terms(unit):
        contrast = losses.sscd_info_nce(unit, targets, temperature=temperature)
        return contrast, weight * losses.differential_entropy(unit, targets)

    return terms(l2_normalize(raw)), *gradients(lambda unit: sum(terms(unit)), raw)


@pytest.mark.parametrize("case", range(4))
def test_sscd(vectors, precision, case):
    name, dtype, rtol, gtol = precision
    data = {k[3:]: v for k, v in vectors("d_sscd").items() if k.startswith(f"c{case}_")}
    temperature, weight = (float(v) for v in data["params"][2:])
    labels = jnp.asarray(data["labels"])
    raw = jnp.asarray(data["raw"], dtype)

    (contrast, entropy), by_unit, by_raw = sscd(raw, labels, temperature, weight)
    np.testing.assert_allclose(contrast, data["f64_InfoNCE"], rtol=rtol)
    if "f64_entropy" in data:
        np.testing.assert_allclose(entropy, data["f64_entropy"], rtol=rtol)
    np.testing.assert_allclose(contrast + entropy, data["f64_loss"], rtol=rtol)
    expected_unit, expected_raw = data[f"{name}_demb_norm"], data[f"{name}_demb_raw"]
    if case == 2:
        # Views 0 and 1 are one point up to the last bit, which alone decides which of them is "nearest" to a third:
        # only what the two receive together is determined.
        by_unit, expected_unit = (
            np.vstack([np.asarray(g[:2]).sum(0), g[2:]]) for g in (by_unit, expected_unit)
        )
        by_raw, expected_raw = by_raw[2:], expected_raw[2:]
    assert_gradient(by_unit, expected_unit, gtol)
    assert_gradient(by_raw, expected_raw, gtol)


@pytest.mark.parametrize("case", range(3))
def test_sscd_of_mixed_views(vectors, precision, case):
    name, dtype, rtol, gtol = precision
    data = {k[3:]: v for k, v in vectors("d_sscd").items() if k.startswith(f"m{case}_")}
    temperature, weight = (float(v) for v in data["params"][2:])
    targets = jnp.asarray(data["targets"], dtype)
    raw = jnp.asarray(data["raw"], dtype)

    (contrast, entropy), by_unit, by_raw = sscd(raw, targets, temperature, weight)
    np.testing.assert_allclose(contrast, data["f64_InfoNCE"], rtol=rtol)
    np.testing.assert_allclose(contrast + entropy, data["f64_loss"], rtol=rtol)
    assert_gradient(by_unit, data[f"{name}_demb_norm"], gtol)
    assert_gradient(by_raw, data[f"{name}_demb_raw"], gtol)


def test_whole_targets_are_labels(vectors):
    data = vectors("d_sscd")
    labels = jnp.asarray(data["c1_labels"])
    unit = l2_normalize(jnp.asarray(data["c1_raw"], jnp.float32))
    targets = jax.nn.one_hot(labels, int(labels.max()) + 1)
    for term in (
        lambda labels: losses.sscd_info_nce(unit, labels, temperature=0.05),
        lambda labels: losses.differential_entropy(unit, labels),
    ):
        np.testing.assert_allclose(term(targets), term(labels), rtol=1e-6)


def test_sscd_on_two_processes_is_the_joint_batch(vectors):
    with jax.enable_x64(True):
        data = vectors("d_sscd")
        temperature, weight = (float(v) for v in data["w2_params"][2:])
        labels = jnp.asarray(data["w2_labels"].reshape(-1))
        raw = jnp.asarray(data["w2_raw"].reshape(len(labels), -1))

        terms, _, gradient = sscd(raw, labels, temperature, weight)
        np.testing.assert_allclose(sum(terms), data["w2_loss"].mean(), rtol=1e-9)
        expected = data["w2_demb_raw"].reshape(gradient.shape) / 2
        assert_gradient(gradient, expected, 1e-9)


def test_a_view_without_other_images_stays_finite():
    unit = l2_normalize(jnp.asarray(np.random.default_rng(0).normal(size=(2, 4)), jnp.float32))
    labels = jnp.zeros(2, jnp.int32)
    assert jnp.isfinite(losses.sscd_info_nce(unit, labels, temperature=0.05))
    assert jnp.isfinite(losses.differential_entropy(unit, labels))


def test_enqueue_wraps_anywhere(vectors):
    data = vectors("e_queue_ema")
    queue, position = jnp.asarray(data["queue0"].T), 0
    for rows, after, pointer in zip(
        data["keys"], data["queue_after"], data["ptr_after"], strict=True
    ):
        queue, position = enqueue(queue, jnp.asarray(rows), position)
        np.testing.assert_array_equal(queue.T, after)
        assert int(position) == int(pointer)

    queue, position = enqueue(jnp.zeros((5, 1)), jnp.arange(1.0, 4)[:, None], 3)
    np.testing.assert_array_equal(queue[:, 0], [3, 0, 0, 1, 2])
    assert int(position) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("position", range(5))
def test_enqueue_writes_these_rows_alone(count, position):
    before = np.arange(10.0, dtype=np.float32).reshape(5, 2)
    rows = 100 + np.arange(2.0 * count, dtype=np.float32).reshape(count, 2)
    expected = before.copy()
    expected[(position + np.arange(count)) % 5] = rows
    after, following = jax.jit(enqueue)(before, rows, position)
    np.testing.assert_array_equal(after, expected)
    assert int(following) == (position + count) % 5


def test_a_batch_larger_than_the_queue_is_refused():
    with pytest.raises(UserError, match="batch of 4 does not fit a queue of 3"):
        enqueue(jnp.zeros((3, 2)), jnp.zeros((4, 2)), 0)


def test_start_values():
    queue = init_queue(jax.random.key(0), 50, 16)
    np.testing.assert_allclose(jnp.linalg.norm(queue, axis=-1), 1, atol=1e-6)
    bank = init_bank(jax.random.key(0), 4000, 48)
    assert float(jnp.abs(bank).max()) <= 0.25
    np.testing.assert_allclose(jnp.mean(jnp.sum(bank**2, -1)), 1, atol=0.02)

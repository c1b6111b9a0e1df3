"""Networks against the reference's own outputs, and against live torchvision where torch is installed."""

import functools
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from torch_support import published_network

from rdcd_jax import models
from rdcd_jax.core.errors import UserError
from rdcd_jax.method.state import split
from rdcd_jax.models.convolution import convolution, depthwise, pointwise
from rdcd_jax.weights import convert
from rdcd_jax.weights.model import evaluation_mode

DATA = pathlib.Path(__file__).parents[1] / "data"
NETWORKS = {
    "efficientnet_b0": 64,
    "fastvit_t12": 64,
    "mobilenet_v3_large": 64,
    "resnet50": None,
}


def reference_tensor(key, shape):
    """The weights that k_models.npz was made with: a function of the state dict's key."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    leaf = key.rpartition(".")[2]
    if leaf in ("cls_token", "pos_embed"):
        return 0.02 * rng.standard_normal(shape)
    if leaf == "running_mean" or leaf == "bias":
        return 0.1 * rng.standard_normal(shape)
    if leaf == "running_var":
        return 0.5 + rng.random(shape)
    if leaf == "gamma":
        return 0.5 * rng.random(shape)
    if len(shape) == 1:
        return 0.5 + rng.random(shape)
    gain = 2 if len(shape) == 4 else 1
    fan_in = np.prod(shape[1:])
    return rng.standard_normal(shape) * np.sqrt(gain / fan_in)


def abstract(name, dim):
    return nnx.eval_shape(lambda: models.build(name, dim=dim, rngs=nnx.Rngs(0)))


def reference_module(name, dtype):
    module = abstract(name, NETWORKS[name])
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), nnx.state(module))
    nnx.update(module, state)
    keys = (DATA / f"keys_{name}.tsv").read_text().splitlines()[1:]
    tensors = {}
    for key, shape in (line.split("\t") for line in keys):
        if not key.endswith("num_batches_tracked"):
            tensors[key] = reference_tensor(key, tuple(map(int, shape.split("x"))))
    if name == "efficientnet_b0":
        first = tensors["projector.weight"][0, :3]
        np.testing.assert_allclose(first, [-0.05249161, 0.02355165, -0.00156064], atol=1e-8)
    convert.load_into(module, tensors, name)
    return module


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def reference_network(request):
    return request.param, reference_module(request.param, jnp.float32)


def images(seed, shape, dtype=jnp.float32):
    rng = np.random.Generator(np.random.PCG64(seed))
    return jnp.asarray(rng.standard_normal(shape).transpose(0, 2, 3, 1), dtype)


def outputs(module, pixels):
    return dict(zip(("feat", "emb"), nnx.jit(evaluation_mode(module))(pixels), strict=True))


def test_evaluation_outputs(vectors, reference_network):
    name, module = reference_network
    data = vectors("k_models")
    # Another size takes another program; that of one network is enough.
    for size in (64, 96) if name == "efficientnet_b0" else (64,):
        found = outputs(module, images(size, (2, 3, size, size)))
        if not NETWORKS[name]:
            assert (found.pop("emb") == found["feat"]).all()
        exact = {output: data[f"{name}/eval{size}_f64_{output}"] for output in found}
        # MobileNetV3 under these weights is ill-conditioned.
        rounding = rounding_of(name, size, exact) if name == "mobilenet_v3_large" else {}
        for output, ours in found.items():
            atol = max(5e-6, rounding.get(output, 0))
            np.testing.assert_allclose(ours, exact[output], rtol=0, atol=atol)


def rounding_of(name, size, exact):
    """What a unit in the last place of each weight and pixel changes of the outputs, four times over.

    A network that is right in float64 may differ by this much in float32, whatever order the compiler sums in.
    """
    with jax.enable_x64(True):
        module = reference_module(name, jnp.float64)
        pixels = images(size, (2, 3, size, size), jnp.float64)
        for output, ours in outputs(module, pixels).items():
            np.testing.assert_allclose(ours, exact[output], rtol=0, atol=1e-12)
        rng = np.random.default_rng(0)
        unit = np.finfo(np.float32).eps

        def moved(x):
            return x * (1 + unit * rng.uniform(-1, 1, x.shape))

        nnx.update(module, jax.tree.map(moved, nnx.state(module)))
        return {
            output: 4 * np.abs(ours - exact[output]).max()
            for output, ours in outputs(module, moved(pixels)).items()
        }


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_training_mode(vectors, name):
    """Gradients and running statistics of one step in float64, with dropout off."""
    data = {
        k.removeprefix(f"{name}/train_"): v
        for k, v in vectors("k_models").items()
        if k.startswith(f"{name}/train_")
    }
    with jax.enable_x64(True):
        module = reference_module(name, jnp.float64)
        module = nnx.view(module, deterministic=True, raise_if_not_found=False)
        graph, params, batch_stats = split(module)
        probes = [
            jnp.asarray(np.random.Generator(np.random.PCG64(7000 + j)).standard_normal((4, width)))
            for j, width in enumerate([512, NETWORKS[name] or 512])
        ]

        def loss(params):
            network = nnx.merge(graph, params, batch_stats)
            feature, descriptor = network(images(4064, (4, 3, 64, 64), jnp.float64))
            total = jnp.sum(feature * probes[0])
            if NETWORKS[name]:
                total += jnp.sum(descriptor * probes[1])
            return total, split(network)[2]

        gradients, stats = jax.jit(jax.grad(loss, has_aux=True))(params)
        nnx.update(module, gradients, stats)
        tensors = convert.to_torch(module, name)

    names = data["param_names"].tolist()
    largest = data["grad_norm"].max()
    for key, norm, dot in zip(names, data["grad_norm"], data["grad_dot"], strict=True):
        gradient = tensors[key]
        probe = np.random.Generator(np.random.PCG64(len(key) + gradient.size))
        ours = np.sum(gradient * probe.standard_normal(gradient.shape))
        # PyTorch's gradient of the hard sigmoid has 1/6 in float32 only (3e-8 off), also among float64.
        rtol = 4e-8 if name == "mobilenet_v3_large" else 1e-8
        # A bias before a BatchNorm has no gradient but rounding.
        atol = rtol * norm + 1e-12 * largest
        np.testing.assert_allclose(np.linalg.norm(gradient), norm, rtol=0, atol=atol, err_msg=key)
        np.testing.assert_allclose(ours, dot, rtol=0, atol=10 * atol, err_msg=key)
    for key, expected in zip(data["buffer_names"].tolist(), data["buffer_sums"], strict=True):
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_allclose(
                tensors[key].sum(), expected, rtol=1e-9, atol=1e-9, err_msg=key
            )
    for key, expected in data.items():
        if key.startswith("buffer_after/") and not key.endswith("num_batches_tracked"):
            np.testing.assert_allclose(
                tensors[key.removeprefix("buffer_after/")], expected, rtol=1e-9
            )


def test_parameter_counts():
    def count(name, dim):
        return sum(x.size for x in jax.tree.leaves(nnx.state(abstract(name, dim), nnx.Param)))

    assert count("resnet50", None) == 24_557_120
    assert [count("efficientnet_b0", dim) for dim in (64, 128, 256, 512)] == [
        4_696_252,
        4_729_084,
        4_794_748,
        4_926_076,
    ]
    assert [count("mobilenet_v3_large", dim) for dim in (64, 512)] == [4_890_736, 5_120_560]
    assert [count("fastvit_t12", dim) for dim in (64, 512)] == [7_086_336, 7_316_160]


@pytest.mark.parametrize(
    ("dim", "message"), [(0, "dim is 0"), (513, "between 1 and feature_dim = 512")]
)
def test_impossible_sizes_are_refused(dim, message):
    with pytest.raises(UserError, match=message):
        models.build("efficientnet_b0", dim=dim, rngs=nnx.Rngs(0))


def test_an_unknown_network_is_refused():
    with pytest.raises(UserError, match="no network 'resnet51'.*resnet50"):
        models.build("resnet51", dim=None, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "filters"),
    [(3, 1, 8, 1), (3, 2, 9, 1), (5, 2, 8, 1), (5, 1, 7, 1), (3, 1, 7, 2), (7, 2, 8, 2)],
)
def test_depthwise_forms_agree(kernel, stride, size, filters):
    """The CPU's shifted sums against XLA's grouped convolution, values and both gradients."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, size, size, 6)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(kernel, kernel, 1, 6 * filters)), jnp.float32)
    strides, padding = (stride, stride), ((kernel // 2,) * 2,) * 2

    def grouped(x, w):
        return jax.lax.conv_general_dilated(
            x,
            w,
            strides,
            padding,
            feature_group_count=6,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_gradients(form, x, w, g):
        value, pull = jax.vjp(form, x, w)
        return value, pull(g)

    g = jnp.asarray(rng.normal(size=jax.eval_shape(grouped, x, w).shape), jnp.float32)
    ours, found = value_and_gradients(lambda x, w: depthwise(x, w, strides, padding), x, w, g)
    theirs, expected = value_and_gradients(grouped, x, w, g)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_dense_convolution_is_exported_for_any_batch():
    x, w = jnp.ones((3, 16, 16, 32)), jnp.ones((3, 3, 32, 32))
    form = jax.jit(lambda x: convolution(x, w, (1, 1), [(1, 1), (1, 1)]))
    (batch,) = jax.export.symbolic_shape("batch")
    exported = jax.export.export(form)(jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype))
    np.testing.assert_allclose(exported.call(x), form(x), rtol=1e-6)


def test_pointwise_convolution_is_a_convolution():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 7, 7, 5)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(1, 1, 5, 4)), jnp.float32)
    expected = jax.lax.conv_general_dilated(
        x, w, (2, 2), ((0, 0), (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(convolution(x, w, (2, 2), [(0, 0), (0, 0)]), expected, atol=1e-5)


@pytest.mark.parametrize("channels", [(3, 8), (8, 3)])
def test_pointwise_gradients_are_the_products(channels):
    """The written-out gradient, with either operand the narrower, against JAX's own of the plain product."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 4, channels[0])), jnp.float32)
    w = jnp.asarray(rng.normal(size=channels), jnp.float32)
    ours, pull = jax.vjp(pointwise, x, w)
    theirs, expected = jax.vjp(jnp.matmul, x, w)
    np.testing.assert_array_equal(ours, theirs)
    g = jnp.asarray(rng.normal(size=ours.shape), jnp.float32)
    for a, b in zip(pull(g), expected(g), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_live_torch(name):
    """In training mode: outputs and running statistics of all, gradients of one; of all k_models.npz has them."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    torch.set_num_threads(2)
    theirs = published_network(name, 512)
    for key, value in theirs.named_parameters():
        if key.endswith(".gamma"):
            # At the initial 1e-5 no layer before it would count.
            torch.nn.init.uniform_(value, 0, 0.5)
    for layer in theirs.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
        if type(layer).__name__ == "StochasticDepth":
            layer.p = 0.0
    module = nnx.view(abstract(name, None), deterministic=True, raise_if_not_found=False)
    state = {f"backbone.{k}": v.detach().numpy() for k, v in theirs.state_dict().items()}
    convert.load_into(module, state, name)
    graph, params, batch_stats = split(module)

    x = np.random.default_rng(0).normal(size=(4, 3, 64, 64)).astype(np.float32)
    w = np.random.default_rng(1).normal(size=(4, 512)).astype(np.float32)
    theirs.train()
    features = torch.nn.functional.normalize(theirs(torch.from_numpy(x)))

    def loss(params):
        network = nnx.merge(graph, params, batch_stats)
        feature, _ = network(jnp.asarray(x.transpose(0, 2, 3, 1)))
        return jnp.sum(feature * w), (feature, split(network)[2])

    if name == "efficientnet_b0":
        gradients, (feature, stats) = jax.jit(jax.grad(loss, has_aux=True))(params)
        nnx.update(module, gradients)
        ours = convert.to_torch(module, name)
        (features * torch.from_numpy(w)).sum().backward()
        slopes = {f"backbone.{k}": p.grad.numpy() for k, p in theirs.named_parameters()}
        largest = max(np.linalg.norm(slope) for slope in slopes.values())
        for key, expected in slopes.items():
            error = np.linalg.norm(ours[key] - expected)
            assert error <= 1e-2 * np.linalg.norm(expected) + 1e-5 * largest, key
    else:
        _, (feature, stats) = jax.jit(loss)(params)
    np.testing.assert_allclose(feature, features.detach().numpy(), rtol=0, atol=1e-4)
    nnx.update(module, stats)
    ours = convert.to_torch(module, name)
    for key, expected in theirs.named_buffers():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_allclose(ours[f"backbone.{key}"], expected, rtol=1e-3, atol=1e-4)

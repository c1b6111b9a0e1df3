"""ResNeXt-101 and the ViTs: against the reference's own outputs, against live timm, and as anyone's teachers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_models import images, reference_tensor
from torch_support import import_timm
from toy import CONFIGS, keys, metrics_of

from rdcd_jax import models
from rdcd_jax.core.errors import UserError
from rdcd_jax.images.sources import find_images
from rdcd_jax.method.objective import Objective
from rdcd_jax.models import registry, resnet, vit
from rdcd_jax.models.convolution import convolution, grouped
from rdcd_jax.training.check import check_config
from rdcd_jax.training.config import load_config
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.student import make_student
from rdcd_jax.training.teacher import make_teacher
from rdcd_jax.weights import convert, tables
from rdcd_jax.weights.library import load_model
from rdcd_jax.weights.model import Model, evaluation_mode

# Each network's name in k_models.npz, and the table from its names to ours where they differ.
REFERENCES = {
    "resnext101_32x4d": ("resnext101_32x4d_classy", tables.classy_resnext101_32x4d()),
    "vit_b8": ("vit_base_patch8", None),
    "vit_b16": ("vit_base_patch16", None),
}


@functools.cache
def _abstract(name):
    return nnx.eval_shape(lambda: models.build(name, dim=None, rngs=nnx.Rngs(0)))


def filled(name, tensors):
    module = nnx.clone(_abstract(name))
    convert.load_into(module, tensors, name)
    return evaluation_mode(module)


@pytest.mark.parametrize("name", REFERENCES)
def test_evaluation_outputs(vectors, name):
    data = vectors("k_models")
    reference, renamed = REFERENCES[name]
    # The weights are drawn by the reference's names.
    shapes = keys(reference) if renamed else convert.torch_shapes(_abstract(name), name)
    tensors = {
        key: reference_tensor(key, shape).astype(np.float32) for key, shape in shapes.items()
    }
    # Not jitted: blocks of one shape are then compiled once.
    network = filled(name, convert.torch_names(tensors, renamed))
    size, count = (64, 2) if renamed else (224, 1)
    feature, descriptor = network(images(size, (count, 3, size, size)))
    np.testing.assert_allclose(feature, data[f"{reference}/eval{size}_f64_feat"], rtol=0, atol=5e-6)
    assert (descriptor == feature).all()


@pytest.mark.parametrize(
    ("strides", "channels"), [((1, 1), (2, 2)), ((2, 2), (4, 2)), ((2, 1), (16, 16))]
)
def test_grouped_forms_agree(strides, channels):
    """The CPU's dense blocks against XLA's grouped convolution, values and both gradients."""
    groups, (cin, cout) = 6, channels
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 7, 8, groups * cin)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(3, 3, cin, groups * cout)), jnp.float32)
    padding = ((1, 1), (1, 1))

    def plain(x, w):
        return jax.lax.conv_general_dilated(
            x,
            w,
            strides,
            padding,
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    ours, pull = jax.vjp(lambda x, w: grouped(x, w, strides, padding, groups), x, w)
    theirs, expected = jax.vjp(plain, x, w)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    g = jnp.asarray(rng.normal(size=ours.shape), jnp.float32)
    for a, b in zip(pull(g), expected(g), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "padding"), [((4, 8, 8), ((1, 1), (1, 1))), ((4, 9, 7), ((0, 1), (2, 0)))]
)
def test_dense_forms_agree(shape, padding):
    """The CPU's products of tiles against XLA's convolution, values and both gradients, also where tiles overhang."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(*shape, 32)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(3, 3, 32, 40)), jnp.float32)

    def plain(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def here(x, w):
        return convolution(x, w, (1, 1), padding)

    if jax.default_backend() == "cpu":
        assert "stablehlo.convolution" not in jax.jit(here).lower(x, w).as_text()
    ours, pull = jax.vjp(here, x, w)
    theirs, expected = jax.vjp(plain, x, w)
    # Sums of 288 products.
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    g = jnp.asarray(rng.normal(size=ours.shape), jnp.float32)
    for a, b in zip(pull(g), expected(g), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("shape", "kernel", "strides"),
    [
        ((4, 8, 8, 32), (3, 3, 32, 40), (2, 2)),
        ((4, 8, 8, 32), (5, 5, 32, 40), (1, 1)),
        ((4, 8, 8, 16), (3, 3, 16, 40), (1, 1)),
        ((1, 8, 8, 32), (3, 3, 32, 40), (1, 1)),
    ],
)
def test_other_convolutions_stay_xlas(shape, kernel, strides):
    x, w = jnp.zeros(shape), jnp.zeros(kernel)
    lowered = jax.jit(lambda x, w: convolution(x, w, strides, ((1, 1), (1, 1)))).lower(x, w)
    assert "stablehlo.convolution" in lowered.as_text()


@pytest.fixture
def short_networks(monkeypatch):
    """Registers `short_NAME` of each teacher, with few blocks."""
    monkeypatch.setattr(vit, "DEPTH", 2)
    monkeypatch.setattr(resnet, "BLOCKS_101", (1, 1, 2, 1))
    for name in REFERENCES:
        row = registry.NETWORKS[name]
        # A function of its own: what jit traced of the whole network is not to be met again.
        row = dataclasses.replace(row, backbone=functools.partial(row.backbone))
        monkeypatch.setitem(registry.NETWORKS, f"short_{name}", row)
        monkeypatch.setitem(tables.LAYERS, f"short_{name}", tables.LAYERS[name])


def timm_network(name):
    """timm's own network, with as few blocks, random weights and the feature that embeds."""
    torch = pytest.importorskip("torch")
    timm = import_timm()
    torch.manual_seed(0)

    def gem(x, axes):
        return x.clamp(min=1e-6).pow(3).mean(axes).pow(1 / 3)

    if name == "resnext101_32x4d":
        blocks = {"block": timm.models.resnet.Bottleneck, "layers": resnet.BLOCKS_101}
        net = timm.models.ResNet(**blocks, cardinality=32, base_width=4, num_classes=1024).eval()
        return net, lambda x: net.fc(gem(net.forward_features(x), (2, 3)))
    name = f"vit_base_patch{name[5:]}_224.dino"
    net = timm.create_model(name, pretrained=False, depth=vit.DEPTH, dynamic_img_size=True).eval()

    def embed(x):
        tokens = net.forward_features(x)
        return torch.cat([tokens[:, 0], gem(tokens[:, 1:], 1)], 1)

    return net, embed


@pytest.mark.parametrize("name", REFERENCES)
def test_live_timm(short_networks, name):
    """At a size that the ViTs' positions are not learned for."""
    net, embed = timm_network(name)
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(3, 3, 48, 96)).astype(np.float32)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(embed(torch.from_numpy(x))).numpy()
    state = {key: value.numpy() for key, value in net.state_dict().items()}
    feature, _ = filled(f"short_{name}", state)(jnp.asarray(x.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(feature, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [(2, 3), (14, 14), (20, 16)])
def test_positions_are_resized_as_timm_does(grid):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(1, 1 + 14 * 14, 8)).astype(np.float32)
    square = torch.from_numpy(positions[:, 1:].reshape(1, 14, 14, 8)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(square, grid, mode="bicubic", antialias=True)
    found = np.asarray(vit.resized_positions(jnp.asarray(positions), grid))
    np.testing.assert_array_equal(found[:, 0], positions[:, 0])
    expected = expected.permute(0, 2, 3, 1).reshape(1, -1, 8)
    np.testing.assert_allclose(found[:, 1:], expected, atol=1e-5)


def feature_of(module, height, width):
    """Shape and type of the feature of images, without computing it."""
    return nnx.eval_shape(lambda m, x: m(x)[0], module, jnp.zeros((2, height, width, 3)))


def test_sizes_that_patches_do_not_fill_are_refused():
    with pytest.raises(UserError, match=r"multiples of 16, not 100x32; .* 96 is the nearest"):
        feature_of(_abstract("vit_b16"), 100, 32)
    with pytest.raises(UserError, match=r"multiples of 16, not 225x225; .* 224 is the nearest"):
        Model("a", "vit_b16", None, 224).at_size(225)
    config = load_config(f"{CONFIGS / 'rdcd.py'}:student=vit_b16,data=x", [])
    config.evaluate.image_size = 300
    with pytest.raises(UserError, match=r"config\.evaluate\.image_size is 300: A ViT .* of 16"):
        check_config(config)
    with pytest.raises(UserError, match="feature_dim is 512, .* 1536"):
        models.build("vit_b8", dim=None, feature_dim=512, rngs=nnx.Rngs(0))


def test_parameter_counts():
    counts = {}
    for name in REFERENCES:
        parameters = nnx.state(_abstract(name), nnx.Param)
        counts[name] = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    assert counts == {"resnext101_32x4d": 44_226_880, "vit_b8": 85_807_872, "vit_b16": 85_798_656}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCES)
def test_bfloat16_stays_near_float32(short_networks, name):
    full = models.build(f"short_{name}", dim=None, rngs=nnx.Rngs(0))
    half = nnx.eval_shape(
        lambda: models.build(f"short_{name}", dim=None, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    )
    nnx.update(half, nnx.state(full))
    pixels = images(1, (2, 3, 32, 32))
    found, near = (evaluation_mode(module)(pixels)[0] for module in (full, half))
    assert near.dtype == jnp.float32
    assert near.shape == (2, registry.NETWORKS[name].feature_dim)
    assert jnp.sum(found * near, axis=1).min() >= 0.999


@pytest.fixture
def small_teachers(monkeypatch):
    """The teachers under their own names, but with few blocks, and the ViTs narrow."""
    monkeypatch.setattr(vit, "DEPTH", 1)
    monkeypatch.setattr(vit, "WIDTH", 24)
    monkeypatch.setattr(resnet, "BLOCKS_101", (1, 1, 1, 1))
    for name in REFERENCES:
        row = registry.NETWORKS[name]
        width = 48 if name.startswith("vit") else 1024
        backbone = functools.partial(row.backbone)
        row = dataclasses.replace(row, backbone=backbone, feature_dim=width)
        monkeypatch.setitem(registry.NETWORKS, name, row)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width"), [("resnext101_32x4d", 1024), ("vit_b8", 48), ("vit_b16", 48)]
)
def test_a_student_follows_any_teacher(toys, small_teachers, images, tmp_path, name, width):
    config = load_config(f"{CONFIGS / 'rdcd.py'}:smoke,teacher={name},dim=4,data={images}", [])
    config.student.network = "toy"
    config.schedule.max_steps = 1
    state = train_and_evaluate(config, tmp_path / "run")
    assert state.bank.shape == (64, width)
    assert metrics_of(tmp_path / "run")[0]["relational_kl"] > 0
    export = str(tmp_path / "run" / "export")
    assert (load_model(export).feature_dim, load_model(export).dim) == (width, 4)
    # Without a teacher the feature is that of the start; another teacher's size is refused.
    config.init_from = export
    assert make_student(config, None).module.projector.in_features == width
    with pytest.raises(
        UserError,
        match=f"has not the feature of 16 dimensions that this teacher needs, but one of {width}",
    ):
        make_student(config, 16)


def test_a_teacher_that_cannot_take_the_views_is_refused(small_teachers, images, tmp_path):
    config = load_config(f"{CONFIGS / 'rdcd.py'}:smoke,teacher=vit_b16,data={images}", [])
    config.image_size = 33
    with pytest.raises(UserError, match=r"config\.image_size is 33: A ViT .* 32 is the nearest"):
        make_teacher(config, Objective(), find_images(images), tmp_path)


def test_imported_weights_are_the_teachers_of_whole_runs():
    config = load_config(f"{CONFIGS / 'rdcd.py'}:teacher=vit_b8,data=x", [])
    assert config.teacher.model == "vit_b8"
    config = load_config(f"{CONFIGS / 'rdcd.py'}:teacher=dino:/a/b.pth,data=x", [])
    assert config.teacher.model == "dino:/a/b.pth"

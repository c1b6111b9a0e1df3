"""Exported files, run by what they are for, agree with the model they were written from."""

import pathlib
import sys

import jax
import numpy as np
import onnx
import pytest
import safetensors.numpy
from flax import nnx
from torch_support import import_torchvision
from toy import keys, make_images

from rdcd_jax import models
from rdcd_jax.cli.main import main
from rdcd_jax.core.errors import UserError
from rdcd_jax.images.decode import resize_square
from rdcd_jax.images.sources import find_images
from rdcd_jax.models.descriptor import normalize_images
from rdcd_jax.weights import convert
from rdcd_jax.weights.export import export_weights
from rdcd_jax.weights.library import load_model
from rdcd_jax.weights.model import Model, evaluation_mode
from rdcd_jax.weights.torch_files import read_torch_file
from rdcd_jax.weights.torch_writer import write_torch_file

SIZE = 64


@pytest.fixture(scope="module")
def student():
    return load_model("rdcd-effb0-128").at_size(SIZE)


@pytest.fixture(scope="module", params=["resnet50", "mobilenet_v3_large", "fastvit_t12"])
def network(request):
    """A network with random weights, its norms and factors included."""
    name, shapes = request.param, keys(request.param)
    dim = next((shape[0] for key, shape in shapes.items() if key.startswith("projector.")), None)
    module = nnx.eval_shape(lambda: models.build(name, dim=dim, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)
    tensors = {}
    for key, shape in shapes.items():
        if key.endswith("gamma"):
            tensors[key] = random.uniform(0.1, 0.2, shape)
        elif key.endswith(("weight", "var")) and len(shape) == 1:
            tensors[key] = random.uniform(0.5, 1, shape)
        elif len(shape) > 1:
            fan_in = np.prod(shape[1:])
            tensors[key] = random.standard_normal(shape, np.float32) * (2 / fan_in) ** 0.5
        else:
            tensors[key] = random.normal(0, 0.1, shape)
    convert.load_into(module, tensors, name)
    return Model(name, name, evaluation_mode(module), SIZE)


@pytest.fixture(scope="module")
def images():
    images = find_images("sample:references")
    return np.stack([np.asarray(resize_square(images.decode(i), SIZE)) for i in range(5)])


@pytest.fixture(scope="module")
def embedded(student, images):
    return student.embed_batch(images)


def exported(model, kind, folder, **options):
    path = folder / f"model.{kind}"
    export_weights(model, kind, path, **options)
    return path


def run_onnx(path, images):
    pytest.importorskip("onnxruntime")
    onnx.checker.check_model(path, full_check=True)
    session = load_model(f"onnxruntime:{path}").session
    return session.run(None, {"pictures": images})[0]


def torch_student(torch):
    """The reference's student: torchvision's network with GeM, and a projector of its own."""

    class GeM(torch.nn.Module):
        def forward(self, x):
            return x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = import_torchvision().models.efficientnet_b0(num_classes=512)
            self.backbone.avgpool = GeM()
            self.projector = torch.nn.Linear(512, 128)

        def forward(self, x):
            return torch.nn.functional.normalize(self.projector(self.backbone(x)), dim=1)

    with torch.device("meta"):
        return Encoder().eval()


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_the_reference_loads_it_strictly_and_agrees(kind, student, images, embedded, tmp_path):
    torch = pytest.importorskip("torch")
    path = exported(student, kind, tmp_path)
    if kind == "torch":
        state = torch.load(path, weights_only=True)
    else:
        state = {k: torch.tensor(v) for k, v in safetensors.numpy.load_file(path).items()}
    encoder = torch_student(torch)
    encoder.load_state_dict(state, strict=True, assign=True)
    with torch.inference_mode():
        inputs = torch.tensor(np.asarray(normalize_images(jax.numpy.asarray(images))))
        found = encoder(inputs.permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(found, embedded, atol=1e-5)


def test_the_torch_file_is_torch_s_state_dict(student, tmp_path):
    state = read_torch_file(exported(student, "torch", tmp_path))
    weights = convert.to_torch(student.module, student.network)
    counters = {name: state.pop(name) for name in list(state) if name not in weights}
    assert {name.rpartition(".")[2] for name in counters} == {"num_batches_tracked"}
    # EfficientNet-B0 has 49 batch norms.
    assert len(counters) == 49
    assert all(each.dtype == np.int64 and each.shape == () for each in counters.values())
    assert state.keys() == weights.keys()
    assert all((state[name] == weights[name]).all() for name in weights)


def test_torch_s_types_and_shapes_survive(tmp_path):
    torch = pytest.importorskip("torch")
    arrays = {
        "scalar": np.array(-3, np.int64),
        "empty": np.zeros((0, 2), np.float32),
        "turned": np.arange(6, dtype=np.float64).reshape(2, 3).T,
        "half ü": np.ones((1, 2, 1), np.float16),
    }
    write_torch_file(tmp_path / "a.pt", arrays)
    for options in ({}, {"mmap": True}):
        state = torch.load(tmp_path / "a.pt", weights_only=True, **options)
        assert list(state) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(state[name].numpy(), array)
            assert state[name].numpy().dtype == array.dtype


def test_the_safetensors_file_is_a_model_here(student, tmp_path):
    path = exported(student, "safetensors", tmp_path)
    model = load_model(path)
    assert model.card.get("calibration") == student.card.get("calibration")
    assert model.licences == student.licences and "Meta" in student.licences[0]
    assert (model.name, model.dim, model.image_size) == ("rdcd-effb0-128", 128, SIZE)
    found, expected = (convert.to_torch(each.module, each.network) for each in (model, student))
    assert found.keys() == expected.keys()
    assert all((found[key] == expected[key]).all() for key in expected)
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(tensors, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match=r"bare\.safetensors does not say what network"):
        load_model(str(tmp_path / "bare.safetensors"))


def test_onnx_agrees_at_any_batch(student, images, embedded, tmp_path):
    path = exported(student, "onnx", tmp_path)
    for batch in (5, 1):
        found = run_onnx(path, images[:batch])
        np.testing.assert_allclose(found, embedded[:batch], atol=1e-5)
    assert load_model(f"onnxruntime:{path}").image_size == SIZE


def test_other_networks_as_onnx_agree_at_any_size(network, tmp_path):
    wide = np.random.default_rng(0).integers(0, 256, (2, 45, 70, 3), np.uint8)
    wide[1] //= 3
    found = run_onnx(exported(network, "onnx", tmp_path), wide)
    np.testing.assert_allclose(found, network.embed_batch(wide), atol=1e-5)
    # Unlike images, unlike descriptors: otherwise any network would agree.
    assert found[0] @ found[1] < 0.999


def test_float16_is_half_the_size_and_near(student, images, embedded, tmp_path):
    whole, half = (exported(student, kind, tmp_path) for kind in ("onnx", "onnx-float16"))
    assert half.stat().st_size < 0.53 * whole.stat().st_size
    assert np.sum(run_onnx(half, images) * embedded, axis=1).min() > 0.9999


def test_int8_is_near_and_its_operators_are_integers(student, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    # Small images are sensitive: as large as the student was trained with.
    student = student.at_size(224)
    source = find_images("sample:references")
    images = np.stack([np.asarray(resize_square(source.decode(i), 224)) for i in range(5)])
    path = exported(student, "onnx-int8", tmp_path, range_images="sample:references")
    assert path.stat().st_size < 9e6
    assert load_model(f"onnxruntime:{path}").image_size == 224
    assert np.sum(run_onnx(path, images) * student.embed_batch(images), axis=1).mean() > 0.98
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node]
    # All of the 81 convolutions but the stem's and the first block's four.
    assert (ops.count("QLinearConv"), ops.count("QuantizeLinear")) == (76, 1)


# The weights are random; FastViT adds up the rounding of twelve blocks' residuals.
INT8_COSINE = {"mobilenet_v3_large": 0.98, "fastvit_t12": 0.93}


@pytest.mark.parametrize("network", INT8_COSINE, indirect=True)
def test_other_students_in_int8_are_near(network, images, tmp_path):
    path = exported(network, "onnx-int8", tmp_path, range_images="sample:references")
    found, embedded = run_onnx(path, images), network.embed_batch(images)
    assert np.sum(found * embedded, axis=1).mean() > INT8_COSINE[network.network]
    assert ((found @ embedded.T).argmax(1) == range(5)).all()


def test_stablehlo_agrees_and_is_for_every_platform(student, images, embedded, tmp_path):
    path = exported(student, "stablehlo", tmp_path)
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert [str(each.shape) for each in program.in_avals] == ["(batch, 64, 64, 3)"]
    np.testing.assert_allclose(program.call(images), embedded, atol=1e-5)
    # Nor does it tell where it was made.
    assert str(pathlib.Path(jax.__file__).parent).encode() not in path.read_bytes()
    assert b".py" not in path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet50"], indirect=True)
def test_stablehlo_of_a_teachers_network_is_for_any_batch(network, images, tmp_path):
    path = exported(network, "stablehlo", tmp_path)
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    for count in (1, 3):
        expected = network.embed_batch(images[:count])
        np.testing.assert_allclose(program.call(images[:count]), expected, atol=1e-5)


def test_ranges_are_measured_on_what_can_be_read(student, tmp_path, caplog):
    pytest.importorskip("onnxruntime")
    images = make_images(tmp_path / "images", 3)
    (images / "T00001.jpg").write_bytes(b"no image")
    exported(student, "onnx-int8", tmp_path, range_images=str(images))
    assert "T00001.jpg: not an image" in caplog.text
    for path in images.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"no image to measure ranges on can be read"):
        exported(student, "onnx-int8", tmp_path, range_images=str(images))


def test_what_cannot_be_exported_is_reported(student, tmp_path):
    out = tmp_path / "x"
    with pytest.raises(UserError, match=r"no format 'tflite'; use one of torch, safetensors, onnx"):
        export_weights(student, "tflite", out)
    with pytest.raises(UserError, match=r"range_images is for onnx-int8 alone"):
        export_weights(student, "onnx", out, range_images="sample:train")
    with pytest.raises(UserError, match=r"is a folder"):
        export_weights(student, "onnx", tmp_path)
    other = Model("toy", "toy", student.module, SIZE)
    with pytest.raises(UserError, match=r"'toy' has no ONNX form"):
        export_weights(other, "onnx", out)
    assert not out.exists()


def test_int8_without_onnxruntime_is_reported(student, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnx-int8 needs onnxruntime; run `pip install"):
        export_weights(student, "onnx-int8", tmp_path / "x")


def test_an_onnx_file_is_no_model_to_export(student, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    path = exported(student, "onnx", tmp_path)
    spec = f"onnxruntime:{path}"
    words = ["weights", "export", f"--model={spec}", "--format=torch", f"--out={tmp_path / 'y'}"]
    assert main(words) == 1
    assert "is an ONNX file already" in capsys.readouterr().err


def test_command(tmp_path, capsys):
    out = tmp_path / "made" / "x.pt"
    words = ["weights", "export", "--model=rdcd-effb0-64", "--format=torch", f"--out={out}"]
    assert main(words) == 0
    assert str(out) in capsys.readouterr().out
    assert read_torch_file(out)["projector.weight"].shape == (64, 512)

"""The valid files that cases start from, all made here, and a network small enough to compile at once."""

import dataclasses
import io
import json
import pathlib
import pickle
import struct
import zipfile

import h5py
import jax
import numpy as np
import onnx
import safetensors.numpy
from flax import nnx
from onnx import helper, numpy_helper
from PIL import Image

from rdcd_jax import models
from rdcd_jax.images.sources import find_images
from rdcd_jax.index import Index
from rdcd_jax.models import registry
from rdcd_jax.models.layers import BatchNorm, conv, gem_pool, torch_linear
from rdcd_jax.weights import onnx_reader, store, tables
from rdcd_jax.weights.library import WEIGHTS_SHA256, export_model
from rdcd_jax.weights.model import Model, evaluation_mode

FEATURE, DIM, SIZE = 16, 8, 32
INDEXES = {"index": {"dtype": "int8"}, "bits": {"dtype": "binary", "parts": True}}
IDS = {"q": 5, "r": 8, "t": 20}


class TinyBackbone(nnx.Module):
    """One convolution, its batch norm, GeM and the head."""

    def __init__(self, *, feature_dim, rngs, dtype=None):
        self.conv = conv(3, 8, 3, stride=2, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(8, dtype=dtype, rngs=rngs)
        self.fc = torch_linear(8, feature_dim, rngs=rngs)

    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Maps images [B, H, W, 3] to features [B, F]."""
        return self.fc(gem_pool(jax.nn.silu(self.bn(self.conv(images)))))


def shrink_networks() -> None:
    """Registers the network `tiny`, which foreign files then fill too, and shortens the ONNX reader's ResNet.

    What is tested is what reads, checks and tells; the size of the networks would only cost time.
    """
    registry.NETWORKS["tiny"] = registry.Network(TinyBackbone, FEATURE)
    layers = {f"backbone.{name}": f"backbone.{name}" for name in ("conv", "bn", "fc")}
    tables.LAYERS["tiny"] = lambda: layers
    for kind, row in store.KINDS.items():
        if row.fresh is None:
            store.KINDS[kind] = dataclasses.replace(row, networks=(("tiny", None),))
    onnx_reader.BLOCKS, onnx_reader.WIDTHS = (1,), (8,)


def make_seeds(folder: pathlib.Path) -> None:
    """Writes the seeds below `folder`; runs JAX, so not in the process that forks."""
    model = models.build("tiny", dim=DIM, feature_dim=FEATURE, rngs=nnx.Rngs(0))
    export_model(folder / "export", Model("fuzzed", "tiny", evaluation_mode(model), SIZE))
    # Any other weights are refused by their digest alone, and what comes behind that is to be tried too.
    known = {name: value for name, value in card(folder).items() if name != WEIGHTS_SHA256}
    (folder / "export" / "model.json").write_text(json.dumps(known))
    teacher = models.build("tiny", dim=None, rngs=nnx.Rngs(1))
    export_model(folder / "teacher", Model("teacher", "tiny", evaluation_mode(teacher), SIZE))
    _write_images(folder / "pictures")
    (folder / "training").mkdir()
    sample = find_images("sample:train").paths
    for image_id, path in zip(ids("t"), sample, strict=False):
        Image.open(path).resize((48, 48)).save(folder / "training" / f"{image_id}.jpg")
    model = str(folder / "export")
    for name, options in INDEXES.items():
        Index.build(folder / name, folder / "training", model=model, **options)
    for name, data in descriptor_files().items():
        (folder / name).write_bytes(data)
    (folder / "sscd.onnx").write_bytes(_onnx().SerializeToString())
    tensors = teacher_tensors(folder)
    (folder / "zip.pt").write_bytes(zipped(state_pickle(tensors), tensors))
    (folder / "legacy.pt").write_bytes(legacy(state_pickle(tensors), tensors))


def teacher_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The weights that a foreign file holds."""
    return safetensors.numpy.load_file(folder / "teacher" / "weights.safetensors")


def ids(prefix: str) -> list[str]:
    """The ids of a descriptor set."""
    return [f"{prefix.upper()}{i:05d}" for i in range(IDS[prefix])]


def ground_truth() -> str:
    """The pairs that belong to the descriptor files."""
    lines = [f"Q{i:05d},R{i:05d}\n" for i in range(4)]
    return "query_id,reference_id\n" + "".join(lines) + "Q00004,\n"


def descriptor_arrays(prefix: str) -> dict[str, np.ndarray]:
    """What a descriptor file holds."""
    rows = np.random.default_rng(3).standard_normal((20, FEATURE))[: IDS[prefix]]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    model = np.str_("made up")
    return {"ids": np.asarray(ids(prefix)), "descriptors": rows.astype(np.float32), "model": model}


def descriptor_files() -> dict[str, bytes]:
    """Descriptor files by name, of each kind of file and set."""
    files = {}
    for prefix in IDS:
        arrays = descriptor_arrays(prefix)
        stream = io.BytesIO()
        np.savez(stream, **arrays)
        files[f"{prefix}.npz"] = stream.getvalue()
        stream = io.BytesIO()
        with h5py.File(stream, "w") as file:
            file["vectors"] = arrays["descriptors"]
            file.create_dataset(
                "image_names", data=arrays["ids"].astype(object), dtype=h5py.string_dtype()
            )
            file.attrs["model"] = "made up"
        files[f"{prefix}.h5"] = stream.getvalue()
    return files


def state_pickle(tensors: dict[str, np.ndarray], **lies) -> bytes:
    """The pickle of a state dict as torch writes it.

    Args:
        tensors: float32 arrays by name.
        **lies: `name`, `key`, `numel`, `offset`, `shape` or `strides` of the first tensor instead of its own.
    """
    parts = [b"\x80\x02}("]
    for i, (name, array) in enumerate(tensors.items()):
        steps = [step // array.itemsize for step in array.strides]
        stored = {"name": name, "key": str(i), "numel": array.size, "offset": 0}
        stored |= {"shape": array.shape, "strides": tuple(steps)} | (lies if i == 0 else {})
        storage = b"((" + _op("storage") + b"ctorch\nFloatStorage\n" + _op(stored["key"])
        storage += _op("cpu") + _op(stored["numel"]) + b"tQ"
        rest = b"".join(_op(stored[each]) for each in ("offset", "shape", "strides"))
        hooks = b"\x89ccollections\nOrderedDict\n)R"
        parts += [_op(stored["name"]), b"ctorch._utils\n_rebuild_tensor_v2\n", storage, rest]
        parts += [hooks, b"tR"]
    return b"".join(parts) + b"u."


def _op(value) -> bytes:
    """The opcodes of a plain value, without protocol and STOP."""
    return pickle.dumps(value, 2)[2:-1]


def zipped(pickled: bytes, tensors: dict[str, np.ndarray], folder: str = "archive") -> bytes:
    """A checkpoint in torch's zip format."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", pickled)
        archive.writestr(f"{folder}/byteorder", "little")
        for i, array in enumerate(tensors.values()):
            archive.writestr(f"{folder}/data/{i}", array.tobytes())
    return stream.getvalue()


def legacy(pickled: bytes, tensors: dict[str, np.ndarray], keys: object = None) -> bytes:
    """A checkpoint in the format before torch 1.6."""
    keys = [str(i) for i in range(len(tensors))] if keys is None else keys
    system = {"protocol_version": 1001, "little_endian": True}
    head = [pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, system)]
    data = [struct.pack("<q", array.size) + array.tobytes() for array in tensors.values()]
    return b"".join([*head, pickled, pickle.dumps(keys, 2), *data])


def _write_images(folder: pathlib.Path) -> None:
    """Small images in every format and mode that is likely to be met."""
    folder.mkdir(parents=True)
    photograph = Image.open(find_images("sample:train").paths[0]).convert("RGB").resize((72, 56))
    deep = Image.fromarray(np.arange(72 * 56, dtype=np.uint16).reshape(56, 72) * 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = photograph.quantize(16)
    for name, image, options in (
        ("plain.jpg", photograph, {}),
        ("progressive.jpg", photograph, {"progressive": True, "exif": exif}),
        ("cmyk.jpg", photograph.convert("CMYK"), {}),
        ("rgba.png", photograph.convert("RGBA"), {}),
        ("palette.png", palette, {"transparency": bytes(range(0, 160, 10))}),
        ("deep.png", deep, {}),
        ("bits.png", photograph.convert("1"), {}),
        ("frames.gif", palette, {"save_all": True, "append_images": [palette.rotate(90)]}),
        ("plain.webp", photograph, {}),
        ("plain.bmp", photograph, {}),
        ("packed.tif", photograph, {"compression": "tiff_lzw"}),
        ("jpeg.tif", photograph, {"compression": "jpeg"}),
        ("float.tif", deep.convert("F"), {}),
        ("plain.ppm", photograph, {}),
        ("plain.jp2", photograph, {}),
        ("plain.avif", photograph, {}),
        ("pixel.png", photograph.resize((1, 1)), {}),
        ("thin.jpg", photograph.resize((2000, 1)), {}),
    ):
        if Image.registered_extensions().get(f".{name.rpartition('.')[2]}") in Image.SAVE:
            image.save(folder / name, **options)


def _onnx() -> onnx.ModelProto:
    """The shortened ResNet's graph in the form that `onnx_reader` knows, one convolution quantised."""
    nodes, constants = [], []

    def add(operator, *inputs, **attributes):
        name = f"v{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(value, dtype=np.float32):
        name = f"c{len(constants)}"
        constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def convolved(x, cout, cin, kernel, stride):
        scales, zeros = constant(np.ones(cout)), constant(np.zeros(cout), np.int8)
        weight = constant(np.ones((cout, cin, kernel, kernel)), np.int8)
        weight = add("DequantizeLinear", weight, scales, zeros, axis=0)
        sizes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        return add("Conv", x, weight, constant(np.zeros(cout)), **sizes)

    x = add("Cast", "image", to=1)
    x = add("Div", add("Sub", x, constant(onnx_reader.MEAN)), constant(onnx_reader.STD))
    x = add("Transpose", x, perm=[0, 3, 1, 2])
    x = add("Relu", convolved(x, 64, 3, 7, 2))
    x = add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    y = add("Relu", convolved(x, 8, 64, 1, 1))
    y = add("Relu", convolved(y, 8, 8, 3, 1))
    x = add("Relu", add("Add", convolved(y, 32, 8, 1, 1), convolved(x, 32, 64, 1, 1)))
    step = constant(0.1), constant(0, np.uint8)
    x = add("DequantizeLinear", add("QuantizeLinear", x, *step), *step)
    x = add("Clip", add("Reshape", x, constant([0, 0, -1], np.int64)), constant(1e-6), "")
    x = add("ReduceMean", add("Pow", x, constant(3.0)), axes=[2], keepdims=0)
    x = add("Pow", x, constant(1 / 3))
    x = add("Gemm", x, constant(np.zeros((512, 2048))), constant(np.zeros(512)), transB=1)
    length = add("ReduceL2", x, axes=[1], keepdims=1)
    length = add("Clip", length, constant(1e-12), "")
    x = add("Div", x, add("Expand", length, add("Shape", x, start=0)))
    value = helper.make_tensor_value_info
    image = value("image", onnx.TensorProto.UINT8, [None, None, None, 3])
    graph = helper.make_graph(
        nodes, "sscd", [image], [value(x, onnx.TensorProto.FLOAT, None)], constants
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def card(folder: pathlib.Path) -> dict:
    """The export's `model.json`."""
    return json.loads((folder / "export" / "model.json").read_text())

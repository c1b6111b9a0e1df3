"""Mutated weight files for `weights import`, and mutated export folders for `embed --model`."""

import functools
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib

import numpy as np
import onnx
import safetensors.numpy

from experiments.fuzz.damage import (
    NUMBERS,
    TEXTS,
    Case,
    Place,
    chosen,
    damaged,
    hostile_json,
    short,
)
from experiments.fuzz.seeds import legacy, state_pickle, teacher_tensors, zipped
from rdcd_jax.weights.kinds import KINDS
from rdcd_jax.weights.onnx_reader import OPERATORS


def torch_case(position: Place, random: np.random.Generator) -> Case:
    """A torch checkpoint, damaged or made to do harm, to import."""
    ways = _whole_file, _pickle_damage, _pickle_damage, _program, _program, _opcodes, _lying_tensor
    way = chosen(random, [*ways, _lying_tensor, _structure, _structure, _zip_trick, _zip_trick])
    data, what = way(position, random)
    # The suffix decides which reader gets the file.
    path = position.written(chosen(random, ["weights.pt"] * 5 + ["weights.safetensors"]), data)
    kind = chosen(random, ["sscd-torchvision"] * len(KINDS) + [*KINDS])
    return Case(["weights", "import", kind, str(path)], f"{way.__name__[1:]}: {what}", (str(path),))


def _whole_file(position, random):
    name = chosen(random, ("zip.pt", "legacy.pt", "sscd.onnx", "export/weights.safetensors"))
    data, what = damaged((position.seeds / name).read_bytes(), random)
    return data, f"{name}: {what}"


def _packed(position, pickled, random, what):
    """A pickle in either format, with the weights it may name."""
    pack = chosen(random, (zipped, legacy))
    return pack(pickled, teacher_tensors(position.seeds)), f"{what} ({pack.__name__})"


def _pickle_damage(position, random):
    pickled, what = damaged(state_pickle(teacher_tensors(position.seeds)), random)
    return _packed(position, pickled, random, what)


class _Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self._reduced = function, arguments

    def __reduce__(self):
        return self._reduced


def _program(position, random):
    """A pickle that would make the marker if it were run."""
    mark = str(position.marker)
    calls = {
        "os.system": _Call(os.system, f"touch {mark}"),
        "eval": _Call(eval, f"open({mark!r}, 'w')"),
        "exec": _Call(exec, f"open({mark!r}, 'w').close()"),
        "open": _Call(open, mark, "w"),
        "os.mkdir": _Call(os.mkdir, mark),
        "getattr": _Call(getattr, _Call(__import__, "os"), "system"),
        "state": {"state_dict": {"w": _Call(os.system, f"touch {mark}")}},
    }
    name, value = chosen(random, calls)
    protocol = int(random.integers(6))
    pickled = pickle.dumps(value, protocol)
    if random.random() < 0.2:
        raw = f"(S'touch {mark}'\nios\nsystem\n.".encode()
        name, pickled = "INST os.system", raw
    if random.random() < 0.2:
        return pickled, f"{name}, protocol {protocol}, bare"
    return _packed(position, pickled, random, f"{name}, protocol {protocol}")


def _opcodes(position, random):
    """Opcodes that an interpreter must survive in any order."""
    words = [b"(", b"}", b"]", b")", b"u", b"s", b"e", b"a", b"t", b"\x85", b"\x86", b"\x87", b"R"]
    words += [b"b", b"Q", b"q\x00", b"h\x00", b"N", b"\x88", b"K\x07", b"\x8f", b"\x90", b"\x94"]
    words += [b"X\x01\x00\x00\x00w", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n"]
    words += [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nSize\n", b"\x8a\x09" + b"\x7f" * 9]
    words += [b"0", b"1", b"2", b"\x93", b"\x81", b"o", b"\x8b\xff\xff\xff\x7f", b"I1\n", b"L9L\n"]
    count = int(random.integers(1, 60))
    middle = b"".join(chosen(random, words) for _ in range(count))
    return _packed(position, b"\x80\x02" + middle + b".", random, f"{count} opcodes")


def _lying_tensor(position, random):
    odd = (*NUMBERS, True, None, "x", (2**40,) * 9, (0, 2**62), ((((),),),), (10**5000,))
    field = chosen(random, ("name", "key", "numel", "offset", "shape", "strides"))
    if field in ("shape", "strides"):
        lie = [chosen(random, NUMBERS) for _ in range(int(random.integers(6)))]
        lie = chosen(random, (tuple(lie), chosen(random, odd)))
    else:
        lie = chosen(random, (*odd, *TEXTS, "../1", "1/../1", "module." * 30_000))
    pickled = state_pickle(teacher_tensors(position.seeds), **{field: lie})
    return _packed(position, pickled, random, f"{field} is {short(lie)}")


def _structure(position, random):
    """Pickles of plain values that grow, nest or are none."""
    values = {
        "deep tuples": b"N" + b"\x85" * 200_000,
        "deep lists": b"]" * 100_000 + b"a" * 99_999,
        "deep dict": b"}" * 50_000 + b"".join([b"K\x01", b"s"]) * 10,
        "deep key": b"}(N" + b"\x85" * 200_000 + b"Nu",
        "doubling lists": b"]q\x00(h\x00h\x00e" + b"(h\x00h\x00h\x00h\x00e" * 100,
        "doubling by reference": b"]q\x00" + b"0]q\x01(h\x00h\x00eq\x002" * 500,
        "long key": b"}" + pickle.dumps(10**6000, 2)[2:-1] + b"Ns",
        "many wrappers": b"".join(pickle.dumps("model", 2)[2:-1] for _ in range(3)),
        "no dict": pickle.dumps([1, 2], 2)[2:-1],
        "number": pickle.dumps(7, 2)[2:-1],
        "empty": b"}",
        "wrapped nothing": pickle.dumps({"state_dict": {"model": None}}, 2)[2:-1],
        "text keys": pickle.dumps(dict.fromkeys(TEXTS, 1), 2)[2:-1],
    }
    name, body = chosen(random, values)
    pickled = b"\x80\x02" + body + b"."
    if random.random() < 0.3:
        tensors = teacher_tensors(position.seeds)
        keys = chosen(random, [[["0"]], [{}], "0", 7, [None], ["0"] * 1000, [10**5000]])
        return legacy(state_pickle(tensors), tensors, keys), f"storages {short(keys)}"
    return _packed(position, pickled, random, name)


def _zip_trick(position, random):
    tensors = teacher_tensors(position.seeds)
    good, pickled = zipped(state_pickle(tensors), tensors), state_pickle(tensors)
    trick = chosen(
        random, ("escape", "absolute", "bomb", "central", "twice", "overlap", "script", "empty")
    )
    stream = io.BytesIO(good if trick != "empty" else b"")
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        if trick in ("escape", "absolute"):
            name = (
                "../" * 12 + str(position.marker)[1:] if trick == "escape" else str(position.marker)
            )
            archive.writestr(name, b"x")
            good = zipped(state_pickle(tensors, key=f"../{name}"), tensors)
        elif trick == "bomb":
            archive.writestr("archive/data/9", bytes(300_000_000))
        elif trick == "script":
            archive.writestr("archive/constants.pkl", b"x")
    if trick in ("escape", "absolute"):
        return chosen(random, (stream.getvalue(), good)), f"a member outside ({trick})"
    if trick == "bomb":
        return _bombed(tensors), "a deflated storage of 300 MB"
    if trick == "central":
        data = bytearray(good)
        at = data.index(b"PK\x01\x02") + int(random.choice([6, 8, 10, 16, 20, 24, 28, 30, 38, 42]))
        data[at : at + 4] = random.bytes(4)
        return bytes(data), f"the directory lies at {at}"
    if trick == "twice":
        return zipped(pickled, tensors, f"a/{chosen(random, ('..', 'b', ''))}"), "an odd folder"
    if trick == "overlap":
        return _overlapping(), "300 storages that share 10 MB of the file"
    return stream.getvalue(), trick


def _bombed(tensors):
    count, (name, array) = 75_000_000, next(iter(tensors.items()))
    lies = {"numel": count, "shape": (count,), "strides": (1,)}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", state_pickle({name: array}, **lies))
        archive.writestr("archive/data/0", bytes(4 * count), zipfile.ZIP_DEFLATED)
    return stream.getvalue()


@functools.cache
def _overlapping(count: int = 300, shared: int = 10 * 2**20) -> bytes:
    """A zip file each of whose members holds all the following ones: read in full, it grows `count` times."""
    tensors = {f"w{i}": np.zeros(1, np.float32) for i in range(count)}
    pickled = state_pickle(tensors)
    body, entries = bytes(shared), []
    for name, own in [
        *((f"data/{i}", None) for i in reversed(range(count))),
        ("data.pkl", pickled),
    ]:
        data = body if own is None else own
        stored = f"archive/{name}".encode()
        sizes = zlib.crc32(data), len(data), len(data), len(stored), 0
        head = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 0, 0, 33, *sizes) + stored
        body = head + (own or b"") + body
        entries.append((stored, sizes, len(body)))
    directory = b""
    for stored, sizes, before_end in entries:
        fields = 20, 20, 0, 0, 0, 33, *sizes, 0, 0, 0, 0, len(body) - before_end
        directory += struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", *fields) + stored
    counts = 0, 0, len(entries), len(entries), len(directory), len(body), 0
    return body + directory + struct.pack("<4sHHHHIIH", b"PK\5\6", *counts)


def onnx_case(position: Place, random: np.random.Generator) -> Case:
    """A damaged ONNX file to import."""
    data = (position.seeds / "sscd.onnx").read_bytes()
    if random.random() < 0.3:
        # Most of the file is the head's zeros; the graph lies in its first kilobytes.
        head, what = damaged(data[:6000], random)
        data = head + data[6000:]
    else:
        model = onnx.ModelProto.FromString(data)
        done = [
            chosen(random, GRAPH_DAMAGE)(model.graph, random) for _ in range(random.integers(1, 4))
        ]
        data, what = model.SerializeToString(), "; ".join(done)
    name = "sscd" + chosen(random, [".onnx"] * 8 + [".json", ".onnxtxt", ".pt", ""])
    path = position.written(name, data)
    return Case(["weights", "import", "sscd-onnx", str(path)], f"{name}: {what}", (str(path),))


def _node_inputs(graph, random):
    node = chosen(random, graph.node)
    names = [n.output[0] for n in graph.node if n.output] + ["", "nothing", "two\nlines"]
    keep = int(random.integers(len(node.input) + 1))
    del node.input[keep:]
    if random.random() < 0.5:
        node.input.append(chosen(random, names))
    return f"{node.op_type} reads {list(node.input)}"


def _node_outputs(graph, random):
    node = chosen(random, graph.node)
    del node.output[:]
    if random.random() < 0.5:
        node.output.append(chosen(random, ["image", "v3", "", "v1\n"]))
    return f"{node.op_type} writes {list(node.output)}"


def _node_kind(graph, random):
    node = chosen(random, graph.node)
    before = node.op_type
    node.op_type = chosen(random, [*sorted(OPERATORS), "Loop", "", "Evil\n" * 50])
    return f"{before} became {short(node.op_type)}"


def _node_attribute(graph, random):
    node = chosen(random, [node for node in graph.node if node.attribute])
    attribute = chosen(random, node.attribute)
    attribute.type = int(random.integers(14))
    if random.random() < 0.5:
        del attribute.ints[:]
        attribute.i = chosen(random, [0, -1, 2**62])
    return f"{node.op_type}'s {attribute.name} is of type {attribute.type}"


def _node_order(graph, random):
    i, j = random.integers(len(graph.node), size=2).tolist()
    moved = onnx.NodeProto()
    moved.CopyFrom(graph.node[i])
    if random.random() < 0.5:
        del graph.node[i]
    graph.node.insert(j, moved)
    return f"node {i} at {j}"


def _constant(graph, random):
    tensor = chosen(random, graph.initializer)
    way = int(random.integers(6))
    if way == 0:
        del tensor.dims[:]
        tensor.dims.extend(
            chosen(random, [0, -1, 1, 7, 2**40, 2**62]) for _ in range(random.integers(5))
        )
    elif way == 1:
        tensor.data_type = int(random.integers(30))
    elif way == 2:
        tensor.raw_data = damaged(tensor.raw_data[:64], random)[0]
    elif way == 3:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../../etc/passwd")
    elif way == 4:
        tensor.string_data.append(b"x")
        tensor.data_type = onnx.TensorProto.STRING
    else:
        other = np.asarray(chosen(random, [np.nan, 0.0, [[1.0]], np.zeros((0,))]), np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(other, tensor.name))
    return f"constant {tensor.name}: damage {way}"


def _ends(graph, random):
    del (graph.input if random.random() < 0.5 else graph.output)[:]
    return "no input or no output"


GRAPH_DAMAGE = (
    *(_node_inputs, _node_inputs, _node_outputs, _node_kind, _node_attribute, _node_attribute),
    *(_node_order, _constant, _constant, _constant, _ends),
)


def export_case(position: Place, random: np.random.Generator) -> Case:
    """A damaged export folder for `embed`."""
    folder = position.inside / "export"
    shutil.copytree(position.seeds / "export", folder)
    image = position.written(
        "images/a.jpg", (position.seeds / "pictures" / "plain.jpg").read_bytes()
    )
    way = chosen(
        random, [_card_field] * 5 + [_card_bytes, _header, _header, _header, _tensors, _file]
    )
    what = way(folder, random)
    argv = [f"--model={folder}", f"--images={image.parent}", f"--out={position.out}.npz"]
    # Weights that give NaN show only when an image is embedded.
    return Case(["embed", *argv, "--batch-size=2"], what, (str(folder), "the model fuzzed"))


def _card_field(folder, random):
    path = folder / "model.json"
    fields = json.loads(path.read_text())
    name = chosen(random, ("name", "network", "dim", "feature_dim", "image_size", "extra"))
    text = hostile_json(random)
    if random.random() < 0.1:
        fields.pop(name, None)
        path.write_text(json.dumps(fields))
        return f"model.json lacks {name}"
    rest = json.dumps({key: value for key, value in fields.items() if key != name})
    path.write_text(f'{rest[:-1]}, "{name}": {text}}}')
    return f"model.json's {name} is {short(text)}"


def _card_bytes(folder, random):
    path = folder / "model.json"
    whole = hostile_json(random).encode(), path.read_text().encode("utf-16"), b"\xff\xfe", b""
    if random.random() < 0.5:
        data, what = damaged(path.read_bytes(), random)
    else:
        data = chosen(random, whole)
        what = f"all of it {short(data)}"
    path.write_bytes(data)
    return f"model.json: {what}"


def _header(folder, random):
    """Safetensors' header, its length right or wrong."""
    path = folder / "weights.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    name = chosen(random, [key for key in header if key != "__metadata__"])
    lies = {
        "dtype": [*("F16", "F64", "BF16", "I8", "U64", "BOOL", "F8_E5M2", "C64", "F4", "x"), 7],
        "shape": [[], [0], [2**63], [-1], [2**32, 2**32], [1.5], "x", [1] * 100],
        "data_offsets": [[0, 2**63], [8, 0], [0], [-1, 4], [0, 10**30], None],
    }
    field, values = chosen(random, lies)
    header[name][field] = chosen(random, values)
    stored = json.dumps(header).encode()
    if random.random() < 0.2:
        stored = hostile_json(random).encode()
    length = chosen(random, [len(stored)] * 6 + [0, 2**40, 2**64 - 1])
    path.write_bytes(struct.pack("<Q", length) + stored + rest)
    return f"weights.safetensors: {name}.{field} {short(header[name][field])}, length {length}"


def _tensors(folder, random):
    path = folder / "weights.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = chosen(random, list(tensors))
    way = chosen(
        random, ("NaN", "infinity", "int64", "float64", "renamed", "dropped", "huge", "empty")
    )
    array = tensors[name].copy()
    if way in ("NaN", "infinity", "huge"):
        array.flat[0] = {"NaN": np.nan, "infinity": np.inf, "huge": 3e38}[way]
    array = array.astype(way) if way in ("int64", "float64") else array
    array = array[:0] if way == "empty" else array
    tensors[name] = array
    if way in ("renamed", "dropped"):
        del tensors[name]
    if way == "renamed":
        tensors[chosen(random, TEXTS[:-4])] = array
    safetensors.numpy.save_file(tensors, path)
    return f"weights.safetensors: {name} {way}"


def _file(folder, random):
    path = folder / chosen(random, ("model.json", "weights.safetensors"))
    data = path.read_bytes()
    path.unlink()
    kind = chosen(random, ("missing", "folder", "fifo", "loop", "device", "damaged", "damaged"))
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind in ("loop", "device"):
        path.symlink_to(path.name if kind == "loop" else "/dev/zero")
    elif kind == "damaged":
        data, kind = damaged(data, random)
        path.write_bytes(data)
    return f"{path.name}: {kind}"

import argparse
import collections
import io
import os
import pathlib
import pickle
import struct
import warnings
import zipfile

import numpy as np
import pytest

from rdcd_jax.core.errors import UserError
from rdcd_jax.weights.torch_files import read_torch_file

LEGACY = {"_use_new_zipfile_serialization": False}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("options", [{}, LEGACY, {"pickle_protocol": 4}])
def test_state_dict_comes_back(torch, tmp_path, options):
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5))
    torch.save(layer.state_dict(), tmp_path / "a.pt", **options)
    found = read_torch_file(tmp_path / "a.pt")
    assert list(found) == list(layer.state_dict())
    for name, tensor in layer.state_dict().items():
        np.testing.assert_array_equal(found[name], tensor.numpy())
        assert found[name].dtype == tensor.numpy().dtype


def test_tensors_beside_a_state_dict_are_none_of_it(torch, tmp_path):
    inner = torch.nn.Linear(2, 3).state_dict()
    for content in (
        {"best_acc1": torch.tensor(71.2), "epoch": 3, "state_dict": inner},
        {"rng": torch.get_rng_state(), "model": inner},
        {"rng": torch.get_rng_state(), "classy_state_dict": {"base_model": {"model": inner}}},
    ):
        torch.save(content, tmp_path / "a.pt")
        assert list(read_torch_file(tmp_path / "a.pt")) == list(inner)


@pytest.mark.parametrize("options", [{}, LEGACY])
def test_kinds_of_tensors(torch, tmp_path, options):
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    tensors = {
        "parameter": torch.nn.Parameter(torch.tensor([1.5, -2.0])),
        "view": base.permute(2, 0, 1),
        "strided": base[:, 1:, ::2],
        "shared": base,
        "half": torch.tensor([1.0, 0.1], dtype=torch.float16),
        "bfloat16": torch.tensor([[1.0, 0.1], [-3.0, 1e30]], dtype=torch.bfloat16),
        "double": torch.tensor([0.1], dtype=torch.float64),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "bytes": torch.tensor([200, 3], dtype=torch.uint8),
        "empty": torch.zeros(0, 4),
        "note": "not a tensor",
    }
    torch.save(tensors, tmp_path / "a.pt", **options)
    found = read_torch_file(tmp_path / "a.pt")
    assert found.keys() == tensors.keys() - {"note"}
    for name, array in found.items():
        wanted = tensors[name].detach()
        wanted = wanted.float() if name == "bfloat16" else wanted
        np.testing.assert_array_equal(array, wanted.numpy())
        assert array.dtype == wanted.numpy().dtype, name
    assert np.shares_memory(found["shared"], found["view"])


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda s: {"epoch": 3, "state_dict": s},
        lambda s: {"model": s, "rates": [0.1, (2, None)]},
        lambda s: {"classy_state_dict": {"base_model": {"model": {"trunk": s, "heads": {}}}}},
    ],
)
def test_wrapped_state_dict(torch, tmp_path, wrapped):
    torch.save(wrapped({"w": torch.ones(2)}), tmp_path / "a.pt")
    np.testing.assert_array_equal(read_torch_file(tmp_path / "a.pt")["w"], [1, 1])


class Reduce:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def zipped(path, pickled, **members):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return path


def legacy(path, pickled):
    with open(path, "wb") as file:
        pickle.dump(0x1950A86A20F9469CFC6C, file, protocol=2)
        pickle.dump(1001, file, protocol=2)
        pickle.dump({"little_endian": True}, file, protocol=2)
        file.write(pickled)
        pickle.dump([], file, protocol=2)
    return path


HOSTILE = {
    "system": (Reduce(os.system, "touch MARK"), f"{os.system.__module__}.system"),
    "eval": ({"state_dict": [(Reduce(eval, "open('MARK', 'w')"),)]}, "builtins.eval"),
    "getattr": ({"w": Reduce(getattr, "x", "upper")}, "builtins.getattr"),
    "codecs": (Reduce(__import__("codecs").lookup, "latin1"), "_codecs.lookup"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("protocol", [2, 4])  # GLOBAL, and STACK_GLOBAL
@pytest.mark.parametrize("write", [zipped, legacy])
def test_hostile_globals_are_named_and_not_run(tmp_path, monkeypatch, case, protocol, write):
    monkeypatch.chdir(tmp_path)
    value, named = HOSTILE[case]
    pickled = pickle.dumps(value, protocol).replace(b"__builtin__", b"builtins")
    path = write(tmp_path / "bad.pt", pickled)
    with pytest.raises(UserError, match=rf"bad\.pt.*'{named}'"):
        read_torch_file(path)
    assert not (tmp_path / "MARK").exists()


@pytest.mark.parametrize(
    "name",
    ["torch.load", "torch._utils._rebuild_wrapper_subclass", "torch.storage._load_from_bytes"],
)
def test_other_globals_of_torch_are_refused(tmp_path, name):
    module, _, attribute = name.rpartition(".")
    pickled = b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b"(U\x01xtR."
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        read_torch_file(zipped(tmp_path / "bad.pt", pickled))


@pytest.mark.parametrize(
    "body",
    {
        "instance of a class": b"(icollections\nOrderedDict\n.",
        "extension registry": b"\x82\x01.",
        "new object": b"ctorch\nSize\n)\x81.",
        "call of a container": b"})R.",
        "call of text": b"U\x01x)R.",
        "persistent id of its own": b"(U\x07storageU\x01xU\x010U\x03cpuK\x01tQ.",
        "attributes of a number": b"K\x01}b.",
        "memo unset": b"h\x05.",
        "stack underflow": b"\x85.",
        "unhashable key": b"}}K\x01s.",
        "nested tuples as a key": b"})" + b"\x85" * 100_000 + b"K\x01s.",
        "argument cut short": b"X\xff\xff\xff\x7fabc",
        "no stop": b"}",
        "absurd length": b"\x8d" + b"\xff" * 7 + b"\x7fabc.",
        "huge byte array": b"\x96" + b"\x00" * 5 + b"\x01\x00\x00.",
        "arguments to OrderedDict": b"ccollections\nOrderedDict\n(]tR.",
    }.items(),
    ids=lambda item: item[0],
)
def test_broken_and_unusual_pickles(tmp_path, body):
    with pytest.raises(UserError, match=r"bad\.pt"):
        read_torch_file(zipped(tmp_path / "bad.pt", b"\x80\x02" + body[1]))


def tensor_pickle(shape, strides, offset=0, numel=6, copies=1):
    """The pickle of a dict of float tensors over storage `0`, whatever they claim."""

    def number(n):
        return b"\x8a\x09" + n.to_bytes(9, "little", signed=True)

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu" + number(numel) + b"tQ"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n("
    rebuilt += storage + number(offset) + numbers(shape) + numbers(strides) + b"\x89}tR"
    items = b"".join(b"X\x04\x00\x00\x00%04d" % i + rebuilt for i in range(copies))
    return b"\x80\x02}(" + items + b"u."


STORED = {"a__data__0": np.arange(6, dtype="<f4").tobytes()}


def test_crafted_tensor_is_read(tmp_path):
    path = zipped(tmp_path / "a.pt", tensor_pickle((2, 3), (3, 1)), **STORED)
    np.testing.assert_array_equal(read_torch_file(path)["0000"], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(
    "claim",
    [
        {"shape": (2, 4), "strides": (3, 1)},
        {"shape": (2, 3), "strides": (4, 1)},
        {"shape": (6,), "strides": (1,), "offset": 1},
        {"shape": (2,), "strides": (-1,), "offset": 3},
        {"shape": (2,), "strides": (1,), "offset": -1},
        {"shape": (-2,), "strides": (1,)},
        {"shape": (10**9, 10**9), "strides": (0, 0)},
        {"shape": (2**62,), "strides": (0,)},
        {"shape": (2, 3), "strides": (1,)},
        {"shape": (1,) * 40, "strides": (1,) * 40},
        {"shape": (7,), "strides": (1,), "numel": 7},
        {"shape": (5,), "strides": (1,), "numel": 5},
        {"shape": (1,), "strides": (1,), "numel": -6},
        {"shape": (1,), "strides": (1,), "numel": 2**61},
    ],
)
def test_dishonest_tensors(tmp_path, claim):
    path = zipped(tmp_path / "bad.pt", tensor_pickle(**claim), **STORED)
    with pytest.raises(UserError, match=r"bad\.pt.*'0000'.*fetch it again"):
        read_torch_file(path)


def test_tensors_may_not_claim_many_times_the_file(tmp_path):
    data = np.zeros(100_000, "<f4").tobytes()
    pickled = tensor_pickle((100_000,), (1,), numel=100_000, copies=20)
    with pytest.raises(UserError, match="times the file's size"):
        read_torch_file(zipped(tmp_path / "bad.pt", pickled, a__data__0=data))


def test_size_lies_of_the_zip(tmp_path):
    path = zipped(tmp_path / "a.pt", tensor_pickle((6,), (1,)), **STORED)
    honest = path.read_bytes()
    directory = honest.rindex(b"PK\x01\x02")
    for size in (
        12,
        2**31,
    ):  # compressed and real size of the last member, less and more than there is
        lie = bytearray(honest)
        struct.pack_into("<II", lie, directory + 20, size, size)
        path.write_bytes(lie)
        with pytest.raises(UserError, match=r"a\.pt"):
            read_torch_file(path)


def test_compressed_members_are_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"N" * 10_000_000 + b".")
    with pytest.raises(UserError, match="as torch never packs it"):
        read_torch_file(path)


def test_names_that_lead_outside_are_inert(tmp_path):
    (tmp_path / "inside").mkdir()
    path = tmp_path / "inside" / "a.pt"
    zipped(path, tensor_pickle((6,), (1,)), **STORED, **{"..__..__evil": b"x", "__evil": b"x"})
    assert read_torch_file(path)["0000"].shape == (6,)
    assert [p.name for p in tmp_path.rglob("*")] == ["inside", "a.pt"]
    outside = tensor_pickle((6,), (1,)).replace(b"U\x010", b"U\x0b/etc/passwd")
    with pytest.raises(UserError, match=r"data//etc/passwd' is missing"):
        read_torch_file(zipped(path, outside, **STORED))


@pytest.mark.parametrize("options", [{}, LEGACY])
def test_every_truncation_is_a_clear_error(torch, tmp_path, options):
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(20), "b": torch.zeros(3)}, buffer, **options)
    whole, path = buffer.getvalue(), tmp_path / "cut.pt"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.pt"):
            read_torch_file(path)


@pytest.mark.parametrize("options", [{}, LEGACY])
def test_flipped_bytes_never_crash(torch, tmp_path, options):
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(4), "b": torch.zeros(3)}, buffer, **options)
    whole, path, random = buffer.getvalue(), tmp_path / "flip.pt", np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for at in random.integers(len(data), size=3):
            data[at] = random.integers(256)
        path.write_bytes(data)
        try:
            read_torch_file(path)
        except UserError as error:
            assert "flip.pt" in str(error)


def test_other_files(torch, tmp_path):
    for name, data in {"text": b"hello", "png": b"\x89PNG\r\n", "empty": b"", "zip": None}.items():
        path = tmp_path / name
        if data is None:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("readme", "x")
        else:
            path.write_bytes(data)
        with pytest.raises(UserError, match=str(path)):
            read_torch_file(path)
    with pytest.raises(UserError, match="no such file"):
        read_torch_file(tmp_path / "absent")
    torch.save({"optimizer": {"lr": 1}}, tmp_path / "o.pt")
    with pytest.raises(UserError, match=r"no state dict.*optimizer"):
        read_torch_file(tmp_path / "o.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pt")
    with pytest.raises(UserError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_torch_file(tmp_path / "m.pt")


@pytest.mark.parametrize("way", ["trace", "script"])
def test_torchscript_archives(torch, tmp_path, way):
    inner = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5))
    module = torch.nn.Sequential(inner, torch.nn.Flatten(), torch.nn.Linear(5 * 36, 2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.trace(module, torch.ones(1, 3, 8, 8))
        made = made if way == "trace" else torch.jit.script(module)
        torch.jit.save(made, tmp_path / "a.pt")
    found = read_torch_file(tmp_path / "a.pt")
    assert found.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(found[name], tensor.numpy())
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "b.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"b\.pt: a damaged or truncated zip file"):
        read_torch_file(tmp_path / "b.pt")


def test_modules_that_hold_each_other(tmp_path):
    # Two TorchScript modules, each an attribute of the other.
    kind = b"c__torch__\nModule\n)\x81"
    pickled = b"\x80\x02" + kind + b"q\x00}X\x01\0\0\0a" + kind + b"q\x01}X\x01\0\0\0bh\x00sbsb."
    with pytest.raises(UserError, match="no state dict in it"):
        read_torch_file(zipped(tmp_path / "s.pt", pickled))


def test_what_training_leaves_beside_the_weights_is_stepped_over(torch, tmp_path):
    beside = {
        "args": argparse.Namespace(arch="vit_base", folder=pathlib.Path("/x")),
        "rates": collections.defaultdict(list, {"a": [np.float64(0.5)]}),
        "teacher": {"backbone.w": torch.ones(2)},
        "student": {"module.backbone.w": torch.zeros(2)},
    }
    torch.save(beside, tmp_path / "a.pth")
    found = read_torch_file(tmp_path / "a.pth")
    assert {name: array.tolist() for name, array in found.items()} == {"backbone.w": [1, 1]}


def test_numbers_too_long_to_be_printed(tmp_path):
    # As a key, and as what a tensor claims; the message must not try to print them.
    long = pickle.dumps(10**5000, 2)[2:-1]
    claims = tensor_pickle((6,), (1,)).replace(b"\x8a\x09" + (6).to_bytes(9, "little"), long, 1)
    for pickled in (b"\x80\x02}" + long + b"Ns.", claims):
        with pytest.raises(UserError, match=r"bad\.pt: not a complete torch checkpoint"):
            read_torch_file(zipped(tmp_path / "bad.pt", pickled, **STORED))


@pytest.mark.parametrize("keys", [[["0"]], [{}], [7], "0"])
def test_a_damaged_list_of_storages(tmp_path, keys):
    path = legacy(tmp_path / "bad.pt", tensor_pickle((6,), (1,)))
    whole = path.read_bytes().removesuffix(pickle.dumps([], 2))
    path.write_bytes(whole + pickle.dumps(keys, 2) + STORED["a__data__0"])
    with pytest.raises(UserError, match="list of storages is damaged"):
        read_torch_file(path)


def test_storages_may_not_share_the_file_s_bytes(tmp_path):
    """One member holds the next one whole: read both, and a file grows as often as it has members."""
    inner = np.zeros(1000, "<f4").tobytes()
    nested = io.BytesIO()
    with zipfile.ZipFile(nested, "w") as archive:
        archive.writestr("a/data/1", inner)
    # The inner member's header and data, of a multiple of 4 bytes for the storage around it.
    held = nested.getvalue()[: 30 + len("a/data/1") + len(inner)] + b"\0\0"
    sizes = {"0": len(held) // 4, "1": len(inner) // 4}
    whole = [tensor_pickle((n,), (1,), numel=n) for n in sizes.values()]
    one, other = (p.removeprefix(b"\x80\x02}(").removesuffix(b"u.") for p in whole)
    other = other.replace(b"0000", b"0001", 1).replace(b"U\x010", b"U\x011", 1)
    pickled = b"\x80\x02}(" + one + other + b"u."
    path = zipped(tmp_path / "a.pt", pickled, a__data__0=held, a__data__1=inner)
    assert len(read_torch_file(path)) == 2
    data = path.read_bytes()
    start = data.index(held)
    with zipfile.ZipFile(path) as archive:
        second = archive.getinfo("a/data/1").header_offset
        end = archive.start_dir
    # The second member's entry now points into the first one; its own bytes go.
    cut = bytearray(data[:second] + data[end:])
    entry = cut.rindex(b"PK\x01\x02")
    struct.pack_into("<I", cut, entry + 42, start)
    ending = cut.rindex(b"PK\x05\x06")
    struct.pack_into("<I", cut, ending + 16, second)
    path.write_bytes(cut)
    # From Python 3.13 on zipfile itself refuses members that overlap.
    with pytest.raises(UserError, match="share bytes of the file|is damaged; fetch the file again"):
        read_torch_file(path)

"""State dicts as files that `torch.load(FILE, weights_only=True)` reads, written without torch."""

import pathlib
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

# numpy's type, the class that torch's pickles name for it.
STORAGES = {
    "<f4": "FloatStorage",
    "<f2": "HalfStorage",
    "<f8": "DoubleStorage",
    "<i8": "LongStorage",
}
FOLDER = "archive"
# torch aligns its storages so that they can be mapped; zip's extra field holds the padding, as torch's own does.
ALIGNMENT = 64
_LOCAL_HEADER, _EXTRA_HEADER, _EXTRA_ID = 30, 4, 0x4246


def write_torch_file(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict as `torch.save` does.

    Args:
        path: the file.
        tensors: arrays by name, of the types in `STORAGES`.
    """
    arrays = {name: np.ascontiguousarray(a).reshape(np.shape(a)) for name, a in tensors.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", _pickled(arrays))
        _add(archive, "byteorder", b"little")
        for number, array in enumerate(arrays.values()):
            _add(archive, f"data/{number}", array.tobytes())
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(f"{FOLDER}/{name}")
    begin = archive.fp.tell() + _LOCAL_HEADER + len(info.filename) + _EXTRA_HEADER
    gap = -begin % ALIGNMENT
    info.extra = struct.pack("<HH", _EXTRA_ID, gap) + b"Z" * gap
    archive.writestr(info, content)


def _pickled(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of a dict of tensors. A pickler would need torch's classes to name them; the opcodes do not."""
    entries = (
        _text(name) + _tensor(number, array) for number, (name, array) in enumerate(arrays.items())
    )
    # PROTO 2, EMPTY_DICT, MARK, names and tensors, SETITEMS, STOP
    return b"\x80\x02}(" + b"".join(entries) + b"u."


def _tensor(number: int, array: np.ndarray) -> bytes:
    """torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)."""
    kind = STORAGES[array.dtype.newbyteorder("<").str]
    identity = (
        _text("storage")
        + _global("torch", kind)
        + _text(str(number))
        + _text("cpu")
        + _int(array.size)
    )
    # MARK and TUPLE around what names the storage, BINPERSID
    storage = b"(" + identity + b"tQ"
    strides = tuple(step // array.itemsize for step in array.strides)
    # NEWFALSE; the hooks: collections.OrderedDict(); REDUCE
    rest = b"\x89" + _global("collections", "OrderedDict") + b")R"
    arguments = b"(" + storage + _int(0) + _ints(array.shape) + _ints(strides) + rest + b"t"
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _int(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


def _ints(numbers: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_int, numbers)) + b"t"

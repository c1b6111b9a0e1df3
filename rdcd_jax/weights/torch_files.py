"""Tensors of torch's checkpoint files (zip and older) and TorchScript archives, as numpy arrays and without torch."""

import contextlib
import math
import mmap
import os
import pathlib
import struct
import zipfile
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.weights.pickles import Attributes, Storage, TensorView, read_pickle

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
WRAPPERS = (
    *("state_dict", "model_state_dict", "classy_state_dict", "base_model"),
    *("model", "module", "trunk"),
    # DINO's full checkpoints hold the student too; its own programs take the teacher.
    "teacher",
)
DIMENSIONS = 8
MOST_EMPTY = 2**31
# Tied weights let a file name some numbers twice; far more than the file holds is an attack on
# memory.
CLAIM = 4
DAMAGE = (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, struct.error)


def read_torch_file(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the state dict of a torch checkpoint.

    Args:
        path: a file of `torch.save`, in the zip format or the one before torch 1.6; the state dict
            may lie under the usual wrappers (`state_dict`, `model`,
            `classy_state_dict.base_model.model.trunk` and the like). Or one of `torch.jit.save`, whose modules'
            attributes are the names; tensors that its code names as constants are not read.

    Returns:
        The file's names and arrays, in the file's types; bfloat16 comes as float32. Entries that
        are not tensors are left out. Arrays that share memory in the file share it here.

    Raises:
        UserError: for anything but tensors and their containers, and for damaged or dishonest
            files.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give the path of a torch checkpoint.")
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path}: the file is empty; fetch it again.")
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        if file.read(4) == b"PK\x03\x04":
            content, stored = _read_zip(stack.enter_context(_opened_zip(file, path)), size, path)
        else:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            content, stored = _read_legacy(stack.enter_context(mapped), path)
        arrays = _Arrays(stored, size, path)
        return {name: arrays.array(v, name) for name, v in _state_dict(content, path).items()}


def _opened_zip(file: BinaryIO, path: pathlib.Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (*DAMAGE, NotImplementedError) as error:
        raise UserError(f"{path}: a damaged or truncated zip file; fetch it again.") from error


def _read_zip(
    archive: zipfile.ZipFile, size: int, path: pathlib.Path
) -> tuple[object, Callable[[Storage], bytes]]:
    members = {info.filename: info for info in archive.infolist()}
    folders = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
    folders = [folder for folder in folders if "/" not in folder]
    if len(folders) != 1:
        raise UserError(
            f"{path}: a zip file, but not a torch checkpoint (it holds {len(folders)} data.pkl); "
            "give a file that torch.save wrote."
        )
    folder = folders[0]

    def member(name: str) -> bytes:
        info = members.get(f"{folder}/{name}")
        if info is None:
            raise UserError(f"{path}: '{folder}/{name}' is missing; fetch the file again.")
        # torch never compresses; a compressed member could unpack to any size.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
            raise UserError(
                f"{path}: '{info.filename}' is packed as torch never packs it; "
                "fetch the file again."
            )
        try:
            return archive.read(info)
        except DAMAGE as error:
            raise UserError(
                f"{path}: '{info.filename}' is damaged; fetch the file again."
            ) from error

    if f"{folder}/byteorder" in members and member("byteorder") != b"little":
        raise UserError(f"{path}: saved on a big-endian machine; save it again on a common one.")
    with _mapped(member("data.pkl")) as stream:
        content = read_pickle(stream, str(path))
    return content, lambda storage: member(f"data/{storage.key}")


def _read_legacy(mapped: mmap.mmap, path: pathlib.Path) -> tuple[object, Callable]:
    # The first byte of a pickle of protocol 2 or later; without it genops would try to read any
    # text as opcodes.
    if mapped[:1] != b"\x80" or read_pickle(mapped, str(path)) != LEGACY_MAGIC:
        raise UserError(f"{path}: not a torch checkpoint; give a file that torch.save wrote.")
    _version, system, content, keys = (read_pickle(mapped, str(path)) for _ in range(4))
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UserError(f"{path}: saved on a big-endian machine; save it again on a common one.")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise UserError(f"{path}: its list of storages is damaged; fetch the file again.")
    rest = memoryview(mapped[mapped.tell() :])
    sizes = {storage.key: storage for storage in _storages(content)}
    found, at = {}, 0
    for key in keys:
        if key not in sizes or at + 8 > len(rest):
            raise UserError(f"{path}: its storages are cut short or unnamed; fetch the file again.")
        count = int.from_bytes(rest[at : at + 8], "little", signed=True)
        end = at + 8 + count * _itemsize(sizes[key])
        if count != sizes[key].numel or count < 0 or end > len(rest):
            raise UserError(
                f"{path}: storage '{key}' has another length than it declares; "
                "fetch the file again."
            )
        found[key] = rest[at + 8 : end]
        at = end

    def stored(storage: Storage) -> bytes:
        if storage.key not in found:
            raise UserError(f"{path}: storage '{storage.key}' is missing; fetch the file again.")
        return found[storage.key]

    return content, stored


def _storages(content: object) -> list[Storage]:
    """Every storage under `content`; each container is visited once, however often it is named."""
    found, seen, todo = [], set(), [content]
    while todo:
        value = todo.pop()
        if isinstance(value, TensorView):
            found.append(value.storage)
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            todo.extend(value.values() if isinstance(value, dict) else value)
    return found


@contextlib.contextmanager
def _mapped(data: bytes):
    """A stream over `data` whose reads are bounded by its length, whatever length they ask for."""
    with mmap.mmap(-1, max(len(data), 1)) as stream:
        stream.write(data)
        stream.seek(0)
        yield stream


def _state_dict(content: object, path: pathlib.Path) -> dict[str, TensorView]:
    value = _flattened(content) if isinstance(content, Attributes) else content
    for _ in WRAPPERS:
        if not isinstance(value, dict):
            break
        # Beside a state dict a checkpoint may hold tensors of other kinds, such as the best figure so far.
        inner = (value[key] for key in WRAPPERS if isinstance(value.get(key), dict))
        if (within := next(inner, None)) is not None:
            value = within
            continue
        tensors = {key: view for key, view in value.items() if isinstance(view, TensorView)}
        if not tensors:
            break
        if not all(isinstance(key, str) for key in tensors):
            raise UserError(f"{path}: its tensors have no names; save model.state_dict().")
        return tensors
    keys = (
        ", ".join(str(key)[:40] for key in list(content)[:8]) if isinstance(content, dict) else ""
    )
    raise UserError(
        f"{path}: no state dict in it (it holds {keys or type(content).__name__}); "
        "save it again with torch.save(model.state_dict(), FILE)."
    )


def _flattened(program: Attributes) -> dict[str, TensorView]:
    """The tensors of a tree of modules under the names of its state dict; each module is visited once."""
    found, seen, todo = {}, {id(program)}, [("", program)]
    while todo:
        prefix, module = todo.pop()
        for name, value in module.items():
            if isinstance(value, TensorView):
                found[f"{prefix}{name}"] = value
            elif isinstance(value, Attributes) and id(value) not in seen:
                seen.add(id(value))
                todo.append((f"{prefix}{name}.", value))
    return found


def _itemsize(storage: Storage) -> int:
    return 2 if storage.dtype == "bfloat16" else np.dtype(storage.dtype).itemsize


class _Arrays:
    """Arrays of views, each storage read once and the sum of what they claim bounded."""

    def __init__(self, read: Callable[[Storage], bytes], size: int, path: pathlib.Path):
        budget = CLAIM * size
        self.read, self.budget, self.unread, self.path = read, budget, size, path
        self.storages: dict[str, tuple[Storage, np.ndarray]] = {}

    def array(self, view: TensorView, name: str) -> np.ndarray:
        """The array of `view`; its bounds are checked against the numbers really there."""
        storage, numbers = self._numbers(view.storage, name)
        sizes, strides = view.shape, view.strides
        empty = 0 in sizes
        honest = (
            view.storage == storage
            and len(sizes) == len(strides) <= DIMENSIONS
            and all(type(n) is int and n >= 0 for n in (*sizes, *strides, view.offset))
            # Also refuses expanded tensors, which name more numbers than there are.
            and math.prod(n or 1 for n in sizes) <= (MOST_EMPTY if empty else storage.numel)
        )
        spans = zip(sizes, strides, strict=True) if honest else ()
        end = view.offset + sum((n - 1) * step for n, step in spans) + 1
        if not honest or (not empty and end > storage.numel):
            raise UserError(
                f"{self.path}: tensor '{name}' reaches outside its {storage.numel} stored numbers; "
                "the file is damaged or dishonest, fetch it again."
            )
        self.budget -= math.prod(sizes) * numbers.itemsize
        if self.budget < 0:
            raise UserError(
                f"{self.path}: its tensors claim over {CLAIM} times the file's size; refused."
            )
        if empty:
            return np.zeros(sizes, numbers.dtype)
        # The stride of a dimension of one is never walked, and may be anything.
        steps = [
            step * numbers.itemsize if n > 1 else 0 for n, step in zip(sizes, strides, strict=True)
        ]
        return np.lib.stride_tricks.as_strided(
            numbers[view.offset :], sizes, steps, writeable=False
        )

    def _numbers(self, storage: Storage, name: str) -> tuple[Storage, np.ndarray]:
        if storage.key not in self.storages:
            data = self.read(storage)
            if len(data) != storage.numel * _itemsize(storage):
                raise UserError(
                    f"{self.path}: tensor '{name}' declares {storage.numel} numbers, but the "
                    f"file holds {len(data)} bytes for them; fetch it again."
                )
            # The members of a zip file may overlap.
            self.unread -= len(data)
            if self.unread < 0:
                raise UserError(f"{self.path}: its storages share bytes of the file; refused.")
            self.storages[storage.key] = storage, _decode(data, storage.dtype)
        return self.storages[storage.key]


def _decode(data: bytes, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (_decode(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, dtype) if len(data) else np.zeros(0, dtype)

"""Descriptors with the ids of their images, in memory and as `.npz` and `.h5` files."""

import collections
import dataclasses
import itertools
import os
import pathlib
import zipfile
from collections.abc import Iterable, Mapping, Sequence

import h5py
import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_aside
from rdcd_jax.search.exact import LARGEST, rows_not_finite

PARTS = ("query", "reference")
# What a file says of the model, beside its rows.
MADE_BY = ("model", "fingerprint")
_H5_SUFFIXES = (".h5", ".hdf5")
# Descriptors hardly compress: what unpacks to more bytes than this, and to so many times the file, is an attack on
# memory.
_MOST_UNPACKED, _MOST_TIMES = 64 * 2**20, 64
# Ids that are held as an array at a time: numpy gives each as much room as the longest.
_IDS_AT_ONCE = 65_536
# As wide as the longest, ids may take so many bytes, or so many times their characters.
_ROOMY, _WASTE = 64 * 2**20, 16
# The arrays of ids of which one is very long.
_JOINED = {"ids_utf8", "ids_ends"}


@dataclasses.dataclass(frozen=True)
class Descriptors:
    """What one model says of a set of images.

    Attributes:
        ids: [N] unicode, the images' ids, all different; see `id_array`.
        descriptors: [N, D] float32, finite.
        model: the model's name; empty where a foreign file does not tell.
        fingerprint: of the model's weights, see `Model.fingerprint`; empty where the file does not tell.
    """

    ids: np.ndarray
    descriptors: np.ndarray
    model: str = ""
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.ids)


def id_array(names: Sequence[str]) -> np.ndarray:
    """Ids as an array [N] of unicode; of objects where one long id would make all of them as wide."""
    return np.asarray(names, object if _is_wasteful(names) else np.str_)


def _is_wasteful(names: Sequence[str]) -> bool:
    fixed = 4 * len(names) * max(map(len, names), default=0)
    return fixed > max(_ROOMY, _WASTE * sum(map(len, names)))


def read_descriptors(path: str | os.PathLike, part: str | None = None) -> Descriptors:
    """Reads descriptors from a file.

    Args:
        path: `.npz` with `ids` and `descriptors`, and mostly `model` and `fingerprint`; or `.h5` with either `vectors`
            and `image_names`, or `query`, `query_ids`, `reference` and `reference_ids`.
        part: "query" or "reference": which half of an `.h5` file that holds both. Files of one set
            are read whatever the part.

    Returns:
        The descriptors, checked.

    Raises:
        UserError: a missing or damaged file, another layout, NaN, wrong shapes, duplicate ids.
    """
    path = pathlib.Path(path)
    suffix = descriptor_suffix(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such descriptor file.")
    try:
        ids, rows, made_by = _read_npz(path) if suffix == ".npz" else _read_h5(path, part)
        ids = ids if ids.dtype.kind == "U" else id_array([_text(name) for name in ids.tolist()])
    except UserError:
        raise
    except Exception as error:
        # Damaged files make zipfile, numpy and HDF5 raise nearly anything.
        raise UserError(f"{path}: cannot be read as descriptors ({error}).") from error
    rows = np.asarray(rows)
    if rows.dtype.kind == "f":
        # What is beyond single precision becomes infinite, and is reported as such.
        with np.errstate(over="ignore"):
            rows = rows.astype(np.float32, copy=False)
    _require_sound(Descriptors(ids, rows), path)
    return Descriptors(ids, rows.astype(np.float32, copy=False), **made_by)


def write_descriptors(path: str | os.PathLike, descriptors: Descriptors) -> None:
    """Writes descriptors to `.npz`, or to `.h5` in the layout of one set a file.

    Args:
        path: the file; it appears whole or not at all.
        descriptors: what to write.

    Raises:
        UserError: another suffix, NaN, wrong shapes, duplicate ids.
    """
    path = pathlib.Path(path)
    descriptor_suffix(path)
    _require_sound(descriptors, path)
    ids = [str(name) for name in np.asarray(descriptors.ids).tolist()]
    rows = np.asarray(descriptors.descriptors, np.float32)
    made_by = {name: getattr(descriptors, name) for name in MADE_BY}
    _write(path, ids, [rows], rows.shape[1], made_by)


def write_descriptor_parts(
    path: str | os.PathLike,
    ids: Sequence[str],
    parts: Iterable[np.ndarray],
    dim: int,
    made_by: Mapping[str, str],
) -> None:
    """Writes descriptors that need not all be in memory, as `write_descriptors` does.

    Args:
        path: the file; it appears whole or not at all.
        ids: of all N images, all different.
        parts: [n, D] float32 each, N in all, taken one after another.
        dim: D.
        made_by: the attributes `MADE_BY` of `Descriptors`.

    Raises:
        UserError: another suffix, NaN, wrong shapes.
    """
    path = pathlib.Path(path)
    descriptor_suffix(path)
    _write(path, ids, _sound_parts(path, ids, parts), dim, made_by)


def _sound_parts(
    path: pathlib.Path, ids: Sequence[str], parts: Iterable[np.ndarray]
) -> Iterable[np.ndarray]:
    start = 0
    for rows in parts:
        _require_sound(Descriptors(np.asarray(ids[start : start + len(rows)]), rows), path)
        yield rows
        start += len(rows)


def _write(
    path: pathlib.Path,
    ids: Sequence[str],
    parts: Iterable[np.ndarray],
    dim: int,
    made_by: Mapping[str, str],
) -> None:
    write = _write_npz if descriptor_suffix(path) == ".npz" else _write_h5
    with write_aside(path) as aside:
        write(aside, ids, parts, dim, made_by)


def _write_npz(
    path: pathlib.Path,
    ids: Sequence[str],
    parts: Iterable[np.ndarray],
    dim: int,
    made_by: Mapping[str, str],
) -> None:
    texts = {name: np.asarray(text) for name, text in made_by.items()}
    members = (
        *(_joined_members(ids) if _is_wasteful(ids) else _wide_ids(ids)),
        ("descriptors", np.dtype("<f4"), (len(ids), dim), parts),
        *((name, each.dtype, (), [each]) for name, each in texts.items()),
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, dtype, shape, arrays in members:
            embedded = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, embedded)
                for array in arrays:
                    member.write(array.tobytes())


def _wide_ids(ids: Sequence[str]) -> Iterable[tuple]:
    """The member `ids`: every id as wide as the longest, as numpy has it."""
    text = np.dtype(f"<U{max(map(len, ids)) or 1}")
    starts = range(0, len(ids), _IDS_AT_ONCE)
    names = (np.asarray(ids[start : start + _IDS_AT_ONCE], text) for start in starts)
    return [("ids", text, (len(ids),), names)]


def _joined_members(ids: Sequence[str]) -> Iterable[tuple]:
    """The members of `joined_ids`."""
    return [(name, array.dtype, array.shape, [array]) for name, array in joined_ids(ids).items()]


def joined_ids(ids: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays `ids_utf8` and `ids_ends`: all ids one after another, and where each ends, in bytes."""
    encoded = [name.encode() for name in ids]
    ends = np.cumsum([len(each) for each in encoded]).astype(np.int64)
    return {"ids_utf8": np.frombuffer(b"".join(encoded), np.uint8), "ids_ends": ends}


def _write_h5(
    path: pathlib.Path,
    ids: Sequence[str],
    parts: Iterable[np.ndarray],
    dim: int,
    made_by: Mapping[str, str],
) -> None:
    with h5py.File(path, "w") as file:
        vectors = file.create_dataset("vectors", (len(ids), dim), np.float32)
        names = file.create_dataset("image_names", (len(ids),), h5py.string_dtype("utf-8"))
        file.attrs.update(made_by)
        start = 0
        for rows in parts:
            stop = start + len(rows)
            vectors[start:stop] = rows
            names[start:stop] = np.asarray(ids[start:stop], object)
            start = stop


def descriptor_suffix(path: str | os.PathLike) -> str:
    """The suffix of a descriptor file's name, in small letters.

    Raises:
        UserError: it is neither `.npz` nor one of HDF5's.
    """
    suffix = pathlib.Path(path).suffix.lower()
    if suffix != ".npz" and suffix not in _H5_SUFFIXES:
        raise UserError(f"{path}: descriptors are kept in .npz or .h5 files; name one of those.")
    return suffix


def require_comparable(named: Mapping[str, Descriptors]) -> None:
    """Checks that sets of descriptors can be compared with each other.

    Args:
        named: the sets, by the names that an error should call them, such as their files.

    Raises:
        UserError: different models (an unknown one matches any) or numbers of dimensions.
    """
    (first_name, first), *others = named.items()
    for name, each in others:
        if each.descriptors.shape[1] != first.descriptors.shape[1]:
            raise UserError(
                f"{first_name} holds {first.descriptors.shape[1]}-d descriptors and {name} "
                f"{each.descriptors.shape[1]}-d ones; embed both with the same model."
            )
    for (name, each), (other_name, other) in itertools.combinations(named.items(), 2):
        if each.fingerprint and other.fingerprint:
            # Of one name there may be several weights, and of the same weights several names.
            differ = each.fingerprint != other.fingerprint
        else:
            differ = each.model and other.model and each.model != other.model
        if differ:
            weights = " (other weights of that name)" if each.model == other.model else ""
            raise UserError(
                f"{name} was embedded by {each.model!r} and {other_name} by {other.model!r}{weights}; "
                "embed both with the same model."
            )


def _read_npz(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    # Opened here, since numpy leaves a file open that turns out not to be an archive.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        missing = [] if "ids" in arrays or set(arrays) >= _JOINED else ["ids"]
        missing += ["descriptors"] if "descriptors" not in arrays else []
        if missing:
            raise UserError(
                f"{path}: holds no {' and no '.join(missing)}; a descriptor file has the arrays "
                "ids, descriptors and model."
            )
        _require_honest(path, sum(member.file_size for member in arrays.zip.infolist()))
        made_by = {name: _text(arrays[name].item()) for name in MADE_BY if name in arrays}
        return stored_ids(arrays), arrays["descriptors"], made_by


def stored_ids(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The ids [N] of a file's arrays: `ids` as they are, or what `joined_ids` made of them."""
    if not set(arrays) >= _JOINED:
        return arrays["ids"]
    content, ends = arrays["ids_utf8"].tobytes(), arrays["ids_ends"].tolist()
    starts = [0, *ends][:-1]
    return np.asarray([content[a:b].decode() for a, b in zip(starts, ends, strict=True)], object)


def _text(name: object) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _read_h5(path: pathlib.Path, part: str | None) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    with h5py.File(path, "r") as file:
        if "vectors" in file and "image_names" in file:
            names = "vectors", "image_names"
        elif all(each in file and f"{each}_ids" in file for each in PARTS):
            if part not in PARTS:
                raise UserError(
                    f"{path}: holds queries and references together, which cannot stand for "
                    "another set; give a file with vectors and image_names."
                )
            names = part, f"{part}_ids"
        else:
            raise UserError(
                f"{path}: has neither vectors and image_names nor query, query_ids, reference and "
                f"reference_ids; it has {', '.join(sorted(file)) or 'nothing'}."
            )
        rows, ids = (file[name] for name in names)
        _require_honest(path, rows.nbytes + ids.nbytes)
        # Files made by other programs often declare ASCII and hold UTF-8.
        ids = ids.asstr("utf-8")[()] if h5py.check_string_dtype(ids.dtype) else ids[()]
        made_by = {name: _text(file.attrs[name]) for name in MADE_BY if name in file.attrs}
        return ids, rows[()], made_by


def _require_honest(path: pathlib.Path, unpacked: int) -> None:
    """Refuses a file whose arrays would take far more memory than the file itself."""
    if unpacked > max(_MOST_UNPACKED, _MOST_TIMES * path.stat().st_size):
        raise UserError(
            f"{path}: would unpack to {unpacked / 1e6:.0f} MB, over {_MOST_TIMES} times its size; "
            "write the descriptors again without compression."
        )


def _require_sound(found: Descriptors, path: pathlib.Path) -> None:
    ids, rows = np.asarray(found.ids), np.asarray(found.descriptors)
    if rows.ndim != 2 or 0 in rows.shape or rows.dtype.kind not in "fiu":
        raise UserError(
            f"{path}: descriptors must be numbers of shape [N, D], not {rows.dtype} of shape "
            f"{rows.shape}."
        )
    if ids.shape != (len(rows),):
        raise UserError(f"{path}: {len(rows)} descriptors need as many ids, not shape {ids.shape}.")
    require_usable(ids, rows, path)
    if max(float(rows.max()), -float(rows.min())) > LARGEST:
        raise UserError(
            f"{path}: descriptors hold numbers beyond {LARGEST:g}; divide them by their length."
        )
    counts = collections.Counter(ids.tolist())
    if len(counts) < len(ids):
        repeated, times = counts.most_common(1)[0]
        raise UserError(
            f"{path}: {len(ids) - len(counts)} ids are repeated, such as {repeated} ({times} "
            "times); every image needs an id of its own."
        )


def require_usable(ids: np.ndarray, rows: np.ndarray, source: object) -> None:
    """Refuses descriptors that resemble nothing.

    Args:
        ids: [N].
        rows: [N, D] numbers.
        source: what to name: a file or a model.

    Raises:
        UserError: some hold NaN or infinity, or are zero.
    """
    bad, zero = rows_not_finite(rows), np.flatnonzero(~rows.any(axis=1))
    for positions, what in ((bad, "hold NaN or infinity"), (zero, "are zero")):
        if positions.size:
            raise UserError(
                f"{source}: {positions.size} of {len(rows)} descriptors {what}, the first for {ids[positions[0]]};"
                " compute them again."
            )


def read_sets(parts: Mapping[str, str | os.PathLike | None]) -> dict[str, Descriptors]:
    """Reads the descriptor files of a benchmark.

    Args:
        parts: files by part, such as "query"; None for a part that there is not.

    Returns:
        Descriptors by part.

    Raises:
        UserError: a broken file, or files of different models.
    """
    # Read under the files' own names, so that an error says which two do not belong together.
    read = {part: read_descriptors(path, part) for part, path in parts.items() if path is not None}
    require_comparable({f"{part} file {parts[part]}": each for part, each in read.items()})
    return read

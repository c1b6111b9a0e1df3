"""Segments: some of an index's images, in files that are never changed; see `store`."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import flush, write_aside
from rdcd_jax.embedding.descriptors import Descriptors
from rdcd_jax.index.manifest import AGAIN, BINARY, Manifest
from rdcd_jax.index.places import COLUMNS
from rdcd_jax.search import bits
from rdcd_jax.search.int8 import quantised

SEGMENTS = "segments"
# Names of segments' files, unfinished ones included.
_OWN = re.compile(r"\.?\d{6,}\.(rows|scales|files|ids)(-\w+)?\.(npy|json)")


@dataclasses.dataclass(frozen=True)
class Segment:
    """Some of an index's images.

    Attributes:
        rows: as stored, [m, D], or [m, D / 8] of bits; mapped from the file, not read.
        scales: [m] float32 of int8 and of bits, else None.
        names: gives what is known of the n images, which is only read where it is asked for.
        per_image: m / n, see `Manifest.per_image`.
    """

    rows: np.ndarray
    scales: np.ndarray | None
    names: Callable[[], "Names"]
    per_image: int = 1

    def __len__(self) -> int:
        return len(self.rows) // self.per_image

    @functools.cached_property
    def _named(self) -> "Names":
        return self.names()

    @property
    def ids(self) -> tuple[str, ...]:
        """n ids."""
        return self._named.ids

    @property
    def paths(self) -> tuple[str, ...]:
        """n paths as they are stored, see `places.whole_path`; empty texts in indexes of version 0.1."""
        return self._named.paths

    @property
    def files(self) -> np.ndarray:
        """[n, 4] int64, see `places.stamps`."""
        return self._named.files

    def levels(self, part: slice | np.ndarray = slice(None)) -> np.ndarray:
        """[m, D] numbers, or some of these: of int8 and of bits what the scales are to be multiplied by."""
        rows = self.rows[part]
        return bits.signs(rows) if rows.dtype == np.uint8 else rows

    def descriptors(self, part: slice | np.ndarray = slice(None)) -> np.ndarray:
        """[m, D] float32, or some of these; of int8 rounded to the nearest of 255 levels of each row."""
        rows = np.asarray(self.levels(part), np.float32)
        return rows if self.scales is None else rows * self.scales[part, None]

    def copy_to(self, out: np.ndarray) -> None:
        """Writes all descriptors to [m, D] float32, without another float32 copy of them."""
        if self.scales is None:
            out[:] = self.rows
        else:
            np.multiply(self.levels(), self.scales[:, None], out=out)

    def kept(self, keep: np.ndarray) -> "Segment":
        """The images where `keep` [n] is true."""
        ids, paths = (
            tuple(np.asarray(each, object)[keep].tolist()) for each in (self.ids, self.paths)
        )
        names = Names(ids, paths, self.files[keep])
        rows = np.repeat(keep, self.per_image)
        scales = None if self.scales is None else self.scales[rows]
        return dataclasses.replace(self, rows=self.rows[rows], scales=scales, names=lambda: names)


class Names(NamedTuple):
    """What is known of n images; see `Segment`."""

    ids: tuple[str, ...]
    paths: tuple[str, ...]
    files: np.ndarray


def read_segment(folder: pathlib.Path, manifest: Manifest, position: int) -> Segment:
    """Reads the segment at a place of the manifest; the rows are mapped.

    Raises:
        UserError: a file is missing, cut short, or of another shape than the manifest says.
    """
    number, count = manifest.segments[position]
    paths = files_of(folder, number)
    with _damage_named(paths["rows"], number):
        rows = np.load(paths["rows"], mmap_mode="r", allow_pickle=False)
        scales, width, dtype = None, manifest.dim, manifest.dtype
        expected = count * manifest.per_image
        if dtype == "int8":
            scales = np.load(paths["scales"], allow_pickle=False)
        elif dtype == BINARY:
            scales, width, dtype = bits.sign_scales(expected, width), width // 8, "uint8"
        if (
            rows.shape != (expected, width)
            or rows.dtype != dtype
            or (scales is not None and scales.shape != (expected,))
            or not paths["ids"].is_file()
        ):
            raise ValueError(
                f"it does not hold {expected} rows of {manifest.dim} dimensions in {manifest.dtype}, or has no ids"
            )
    names = functools.partial(_read_names, paths, number, count)
    return Segment(rows, scales, names, manifest.per_image)


def _read_names(paths: dict[str, pathlib.Path], number: int, count: int) -> Names:
    with _damage_named(paths["rows"], number):
        ids = json.loads(paths["ids"].read_text(encoding="utf-8"))
        where = [""] * len(ids)
        if isinstance(ids, dict):
            ids, where = ids["ids"], ids["paths"]
        files = np.zeros((len(ids), COLUMNS), np.int64)
        if paths["files"].exists():
            files = np.load(paths["files"], allow_pickle=False)
        if not len(ids) == len(where) == count or files.shape != (count, COLUMNS):
            raise ValueError(f"it does not name {count} images")
        return Names(tuple(map(str, ids)), tuple(map(str, where)), files)


@contextlib.contextmanager
def _damage_named(path: pathlib.Path, number: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Damaged files make numpy and json raise nearly anything.
        raise UserError(
            f"{path}: segment {number} of the index is missing or damaged ({error}); {AGAIN}."
        ) from error


def write_segment(folder: pathlib.Path, number: int, segment: Segment) -> None:
    """Writes a segment's files, whole and flushed."""
    paths = files_of(folder, number)
    with write_aside(paths["rows"]) as aside:
        np.save(aside, segment.rows)
    if segment.rows.dtype == np.int8:
        with write_aside(paths["scales"]) as aside:
            np.save(aside, segment.scales)
    with write_aside(paths["files"]) as aside:
        np.save(aside, segment.files)
    with write_aside(paths["ids"]) as aside:
        names = {"ids": segment.ids, "paths": segment.paths}
        text = json.dumps(names, ensure_ascii=False, separators=(",", ":"))
        # In a JSON text this is how bytes of a path that are no text come back as they were.
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")
    flush(*(path for path in paths.values() if path.exists()))


def own_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of all segments; whatever else lies there is not ours."""
    segments = folder / SEGMENTS
    there = segments.iterdir() if segments.is_dir() else ()
    return [path for path in there if _OWN.fullmatch(path.name)]


def files_of(folder: pathlib.Path, number: int) -> dict[str, pathlib.Path]:
    """Where a segment's rows, scales, files and ids lie."""
    stem = folder / SEGMENTS / f"{number:06d}"
    return {
        "rows": stem.with_suffix(".rows.npy"),
        "scales": stem.with_suffix(".scales.npy"),
        "files": stem.with_suffix(".files.npy"),
        "ids": stem.with_suffix(".ids.json"),
    }


def stored(
    found: Descriptors, paths: Sequence[str], files: np.ndarray | None, manifest: Manifest
) -> Segment:
    """New descriptors as a segment; see `Writer.add`."""
    if files is None:
        files = np.zeros((len(found), COLUMNS), np.int64)
    names = Names(tuple(found.ids.tolist()), tuple(paths), files)
    rows, scales = _rounded(np.asarray(found.descriptors, np.float32), manifest.dtype)
    return Segment(rows, scales, lambda: names, manifest.per_image)


def _rounded(rows: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Descriptors [n, D] as they are stored, and their scales."""
    if dtype == "int8":
        return quantised(rows)
    if dtype == BINARY:
        return bits.packed(rows), bits.sign_scales(*rows.shape)
    return rows.astype(dtype), None


def joined(first: Segment, second: Segment) -> Segment:
    """Two segments as one."""
    scales = None
    if first.scales is not None:
        scales = np.concatenate([first.scales, second.scales])
    names = Names(
        first.ids + second.ids,
        first.paths + second.paths,
        np.concatenate([first.files, second.files]),
    )
    rows = np.concatenate([first.rows, second.rows])
    return Segment(rows, scales, lambda: names, first.per_image)

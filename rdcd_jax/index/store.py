"""An index on disk: descriptors and ids in segments, and a manifest that says which segments count.

    DIR/index.json              the manifest; what it does not name does not exist
    DIR/segments/N.rows.npy     [n, D] float32, float16 or int8
    DIR/segments/N.scales.npy   [n] float32, of int8: a row is its numbers times its scale
    DIR/segments/N.ids.json     [n] ids, and [n] paths of the images, `./...` below the manifest's root
    DIR/segments/N.files.npy    [n, 4] int64: bytes, time of last change, width, height, see `places`
    DIR/background.safetensors  the model's background, of an index whose scores are normalised

A segment is never changed. Whoever adds or removes writes new segments, then the manifest by one rename, and only then
are old segments deleted: so a writer that is killed, or a power cut, loses what was not yet put into the manifest,
nothing else. A reader that misses a segment and finds another manifest begins again with that one (`consistently`).
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import NamedTuple, TypeVar

import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import flush, write_aside, write_json
from rdcd_jax.embedding.descriptors import Descriptors, require_usable
from rdcd_jax.index.places import COLUMNS
from rdcd_jax.search.background import BACKGROUND, write_background
from rdcd_jax.search.int8 import quantised

FORMAT = 6
# Format 3, of version 0.1, has no score normalisation; formats 3 and 4 have no paths, 5 nothing else of the files.
READS = (3, 4, 5, FORMAT)
MANIFEST, SEGMENTS, LOCK = "index.json", "segments", "lock"
DTYPES = ("float32", "float16", "int8")
# Rows of a full segment: what a removal writes again.
FULL = 65_536
T = TypeVar("T")
# Names of segments' files, unfinished ones included.
_OWN = re.compile(r"\.?\d{6,}\.(rows|scales|files|ids)(-\w+)?\.(npy|json)")
# The way out of damage: a build goes on with the index that it finds.
AGAIN = "delete that folder and build the index again"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What an index is and holds.

    Attributes:
        model: the model's spec, as `load_model` takes it.
        fingerprint: what tells its weights from others.
        image_size: side of the images that were embedded.
        dim: D.
        dtype: one of `DTYPES`.
        calibration: what tells what a score means, see `calibration.read_calibration`; None where there is none.
        normalised: whether scores are normalised by the background.
        root: the folder that paths below it are kept from; empty for none.
        sources: what was indexed, for `Index.update`.
        segments: (number, rows) of each, in the index's order.
        next: the number that the next segment gets; none is used twice.
    """

    model: str
    fingerprint: str
    image_size: int
    dim: int
    dtype: str
    calibration: dict | None = None
    normalised: bool = False
    root: str = ""
    sources: tuple[str, ...] = ()
    segments: tuple[tuple[int, int], ...] = ()
    next: int = 0

    def __len__(self) -> int:
        return sum(rows for _, rows in self.segments)


@dataclasses.dataclass(frozen=True)
class Segment:
    """Some of an index's images.

    Attributes:
        rows: [n, D] as stored; mapped from the file, not read.
        scales: [n] float32 of int8, else None.
        names: gives what is known of the images, which is only read where it is asked for.
    """

    rows: np.ndarray
    scales: np.ndarray | None
    names: Callable[[], "Names"]

    def __len__(self) -> int:
        return len(self.rows)

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

    def descriptors(self, part: slice | np.ndarray = slice(None)) -> np.ndarray:
        """[n, D] float32, or some of these; of int8 rounded to the nearest of 255 levels of each row."""
        rows = np.asarray(self.rows[part], np.float32)
        return rows if self.scales is None else rows * self.scales[part, None]

    def copy_to(self, out: np.ndarray) -> None:
        """Writes all descriptors to [n, D] float32, without another copy of them."""
        if self.scales is None:
            out[:] = self.rows
        else:
            np.multiply(self.rows, self.scales[:, None], out=out)

    def kept(self, keep: np.ndarray) -> "Segment":
        """The images where `keep` [n] is true."""
        ids, paths = (
            tuple(np.asarray(each, object)[keep].tolist()) for each in (self.ids, self.paths)
        )
        names = Names(ids, paths, self.files[keep])
        scales = None if self.scales is None else self.scales[keep]
        return Segment(self.rows[keep], scales, lambda: names)


class Names(NamedTuple):
    """What is known of n images; see `Segment`."""

    ids: tuple[str, ...]
    paths: tuple[str, ...]
    files: np.ndarray


def read_manifest(folder: pathlib.Path) -> Manifest:
    """Reads what an index is.

    Raises:
        UserError: there is none, a damaged one, or one of a later format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder} is not an index: it has no {MANIFEST}; make one by `rdcd-jax index build`."
        )
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        version = stored.pop("format")
        if version not in READS:
            raise UserError(
                f"{path} is of format {version}, and this version of rdcd-jax reads"
                f" {', '.join(map(str, READS))}; use the version that wrote it, or {AGAIN}."
            )
        segments = tuple((int(number), int(rows)) for number, rows in stored.pop("segments"))
        sources = stored.pop("sources", [])
        if not isinstance(sources, list) or not all(isinstance(each, str) for each in sources):
            raise ValueError("its sources are no list of texts")
        manifest = Manifest(**stored, sources=tuple(sources), segments=segments)
        texts = (manifest.model, manifest.fingerprint, manifest.root)
        sound = all(isinstance(text, str) for text in texts)
        sound = sound and isinstance(manifest.calibration, dict | None)
        sound = sound and manifest.dtype in DTYPES and manifest.dim > 0 and manifest.image_size > 0
        sound = sound and all(rows > 0 and number < manifest.next for number, rows in segments)
        if not sound:
            raise ValueError("its fields contradict each other")
    except UserError:
        raise
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise UserError(f"{path} is damaged ({error}); {AGAIN}.") from error
    return manifest


def read_segment(folder: pathlib.Path, manifest: Manifest, position: int) -> Segment:
    """Reads the segment at a place of the manifest; the rows are mapped.

    Raises:
        UserError: a file is missing, cut short, or of another shape than the manifest says.
    """
    number, count = manifest.segments[position]
    paths = _paths(folder, number)
    with _damage_named(paths["rows"], number):
        rows = np.load(paths["rows"], mmap_mode="r", allow_pickle=False)
        scales = None
        if manifest.dtype == "int8":
            scales = np.load(paths["scales"], allow_pickle=False)
        if (
            rows.shape != (count, manifest.dim)
            or rows.dtype != manifest.dtype
            or (scales is not None and scales.shape != (count,))
            or not paths["ids"].is_file()
        ):
            raise ValueError(
                f"it does not hold {count} rows of {manifest.dim} dimensions in {manifest.dtype}, or has no ids"
            )
    return Segment(rows, scales, lambda: _read_names(paths, number, count))


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


def consistently(folder: pathlib.Path, read: Callable[[Manifest], T]) -> T:
    """Reads an index that a writer may change meanwhile.

    Args:
        folder: of the index.
        read: what reads the segments that a manifest names; it is called anew where they went meanwhile.

    Raises:
        UserError: see `read_manifest` and `read_segment`.
    """
    while True:
        manifest = read_manifest(folder)
        try:
            return read(manifest)
        except UserError:
            if read_manifest(folder) == manifest:
                raise


@contextlib.contextmanager
def writer(
    folder: pathlib.Path, new: Manifest | None = None, background: np.ndarray | None = None
) -> Iterator["Writer"]:
    """Opens an index for changes; one process at a time may have it open so.

    Args:
        folder: of the index.
        new: the index to make where there is none.
        background: [T, D] float32 of the new index, where its scores are normalised.

    Raises:
        UserError: there is none and `new` is None; another process changes it; it lost its manifest; see
            `read_manifest`.
    """
    if new is not None:
        folder.mkdir(parents=True, exist_ok=True)
    elif not (folder / MANIFEST).is_file():
        read_manifest(folder)
    with open(folder / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process is changing this index; wait until it has ended."
            ) from None
        fresh = new is not None and not (folder / MANIFEST).exists()
        if fresh and any(_own_files(folder)):
            raise UserError(
                f"{folder} holds segments of an index, but no {MANIFEST}; bring that back, or {AGAIN}."
            )
        if fresh and background is not None:
            write_background(folder / BACKGROUND, background)
        yield Writer(folder, new if fresh else read_manifest(folder))


class Writer:
    """Changes an index; each call leaves a whole one. See `writer`."""

    def __init__(self, folder: pathlib.Path, manifest: Manifest):
        self.folder, self.manifest = folder, manifest
        (folder / SEGMENTS).mkdir(exist_ok=True)
        self._publish(manifest)

    def segments(self) -> Iterator[Segment]:
        """The index's segments."""
        for position in range(len(self.manifest.segments)):
            yield read_segment(self.folder, self.manifest, position)

    def add(
        self,
        found: Descriptors,
        paths: Sequence[str],
        files: np.ndarray | None = None,
        *,
        instead_of: Set[str] = frozenset(),
    ) -> None:
        """Adds images, whose ids are not in the index; the last segment is filled up first.

        Args:
            found: n descriptors.
            paths: n, where the images lie, as they are to be stored.
            files: [n, 4] int64, see `places.stamps`; None where nothing is known.
            instead_of: stored paths of images that are removed in the same moment.

        Raises:
            UserError: for descriptors of another size, NaN or zeros.
        """
        if found.descriptors.shape[1] != self.manifest.dim:
            raise UserError(
                f"{self.folder} holds descriptors of {self.manifest.dim} dimensions, and these of {found.model} have"
                f" {found.descriptors.shape[1]}; embed the images with {self.manifest.model}."
            )
        require_usable(found.ids, found.descriptors, found.model)
        fresh = _stored(found, paths, files, self.manifest.dtype)
        kept, _ = self._without(instead_of, "paths")
        segments, number = list(kept.segments), kept.next
        if segments and segments[-1][1] < FULL:
            last = read_segment(self.folder, kept, len(segments) - 1)
            segments.pop()
            fresh = _joined(last, fresh)
        for start in range(0, len(fresh), FULL):
            part = fresh.kept(np.arange(len(fresh)) // FULL == start // FULL)
            self._write(number, part)
            segments.append((number, len(part)))
            number += 1
        self._publish(dataclasses.replace(kept, segments=tuple(segments), next=number))

    def change(self, **fields: object) -> None:
        """Changes what the manifest says of the index as a whole, such as its calibration."""
        changed = dataclasses.replace(self.manifest, **fields)
        if changed != self.manifest:
            self._publish(changed)

    def remove(self, unwanted: Iterable[str], by: str = "ids") -> int:
        """Removes images by their `ids`, or by their stored `paths`; gives how many of them there were."""
        kept, removed = self._without(frozenset(unwanted), by)
        self._publish(kept)
        return removed

    def _without(self, unwanted: Set[str], by: str) -> tuple[Manifest, int]:
        """The manifest of the index without some images, which is not published yet, and how many these are."""
        if not unwanted:
            return self.manifest, 0
        removed, segments, number = 0, [], self.manifest.next
        for (old, count), segment in zip(self.manifest.segments, self.segments(), strict=True):
            keep = np.asarray([name not in unwanted for name in getattr(segment, by)])
            if keep.all():
                segments.append((old, count))
                continue
            removed += int((~keep).sum())
            if keep.any():
                self._write(number, segment.kept(keep))
                segments.append((number, int(keep.sum())))
                number += 1
        return dataclasses.replace(self.manifest, segments=tuple(segments), next=number), removed

    def _write(self, number: int, segment: Segment) -> None:
        paths = _paths(self.folder, number)
        with write_aside(paths["rows"]) as aside:
            np.save(aside, segment.rows)
        if segment.scales is not None:
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

    def _publish(self, manifest: Manifest) -> None:
        path = self.folder / MANIFEST
        flush(self.folder / SEGMENTS)
        with write_aside(path) as aside:
            write_json(aside, {"format": FORMAT, **dataclasses.asdict(manifest)})
            # A rename may reach the disk before what the file holds.
            flush(aside)
        # Before the segments that it does without are deleted.
        flush(self.folder)
        self.manifest = manifest
        named = {
            path.name
            for number, _ in manifest.segments
            for path in _paths(self.folder, number).values()
        }
        # Also what a killed writer left.
        for path in _own_files(self.folder):
            if path.name not in named:
                path.unlink()


def index_bytes(folder: pathlib.Path) -> int:
    """Bytes of all the index's files."""
    return sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file())


def _own_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of all segments; whatever else lies there is not ours."""
    segments = folder / SEGMENTS
    there = segments.iterdir() if segments.is_dir() else ()
    return [path for path in there if _OWN.fullmatch(path.name)]


def _paths(folder: pathlib.Path, number: int) -> dict[str, pathlib.Path]:
    stem = folder / SEGMENTS / f"{number:06d}"
    return {
        "rows": stem.with_suffix(".rows.npy"),
        "scales": stem.with_suffix(".scales.npy"),
        "files": stem.with_suffix(".files.npy"),
        "ids": stem.with_suffix(".ids.json"),
    }


def _stored(
    found: Descriptors, paths: Sequence[str], files: np.ndarray | None, dtype: str
) -> Segment:
    rows = np.asarray(found.descriptors, np.float32)
    if files is None:
        files = np.zeros((len(rows), COLUMNS), np.int64)
    stored, scales = quantised(rows) if dtype == "int8" else (rows.astype(dtype), None)
    names = Names(tuple(found.ids.tolist()), tuple(paths), files)
    return Segment(stored, scales, lambda: names)


def _joined(first: Segment, second: Segment) -> Segment:
    scales = None
    if first.scales is not None:
        scales = np.concatenate([first.scales, second.scales])
    names = Names(
        first.ids + second.ids,
        first.paths + second.paths,
        np.concatenate([first.files, second.files]),
    )
    return Segment(np.concatenate([first.rows, second.rows]), scales, lambda: names)

"""An index on disk: descriptors and ids in segments, and a manifest that says which segments count.

    DIR/index.json              the manifest; what it does not name does not exist
    DIR/segments/N.rows.npy     [m, D] float32, float16 or int8; [m, D / 8] uint8 of bits, the signs
    DIR/segments/N.scales.npy   [m] float32, of int8: a row is its numbers times its scale
    DIR/segments/N.ids.json     [n] ids, and [n] paths of the images, `./...` below the manifest's root
    DIR/segments/N.files.npy    [n, 4] int64: bytes, time of last change, width, height, see `places`
    DIR/background.safetensors  the model's background, of an index whose scores are normalised

There is a row for each image, m = n; or m = 6 n, where each image's own is followed by those of its five parts.

A segment is never changed. Whoever adds or removes writes new segments, then the manifest by one rename, and only then
are old segments deleted: so a writer that is killed, or a power cut, loses what was not yet put into the manifest,
nothing else. A reader that misses a segment and finds another manifest begins again with that one (`consistently`).
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import TypeVar

import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import flush, write_aside, write_json
from rdcd_jax.core.locks import held
from rdcd_jax.embedding.descriptors import Descriptors, require_usable
from rdcd_jax.index.ann import FOLDER as ANN
from rdcd_jax.index.ann import read_ann
from rdcd_jax.index.manifest import (
    AGAIN,
    FORMAT,
    MANIFEST,
    Manifest,
    binding_manifest,
    read_manifest,
)
from rdcd_jax.index.segments import (
    SEGMENTS,
    Segment,
    files_of,
    joined,
    own_files,
    read_segment,
    stored,
    write_segment,
)
from rdcd_jax.search.background import BACKGROUND, write_background

LOCK = "lock"
# Rows of a full segment: what a removal writes again.
FULL = 65_536
T = TypeVar("T")


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
        new: the index to make where there is none, or an empty one.
        background: [T, D] float32 of the new index, where its scores are normalised.

    Raises:
        UserError: there is none and `new` is None; another process changes it; it lost its manifest; see
            `read_manifest`.
    """
    if new is not None:
        folder.mkdir(parents=True, exist_ok=True)
    elif not (folder / MANIFEST).is_file():
        read_manifest(folder)
    busy = f"{folder}: another process is changing this index; wait until it has ended."
    with held(folder / LOCK, busy):
        fresh = new is not None and binding_manifest(folder) is None
        if fresh and not (folder / MANIFEST).exists() and any(own_files(folder)):
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
            found: n ids, and as many descriptors, or six times as many where the index holds parts.
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
        ids = np.repeat(found.ids, self.manifest.per_image)
        require_usable(ids, found.descriptors, found.model)
        fresh = stored(found, paths, files, self.manifest)
        kept, _ = self._without(instead_of, "paths")
        segments, number = list(kept.segments), kept.next
        if segments and segments[-1][1] < FULL:
            last = read_segment(self.folder, kept, len(segments) - 1)
            segments.pop()
            fresh = joined(last, fresh)
        for start in range(0, len(fresh), FULL):
            part = fresh.kept(np.arange(len(fresh)) // FULL == start // FULL)
            write_segment(self.folder, number, part)
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
                write_segment(self.folder, number, segment.kept(keep))
                segments.append((number, int(keep.sum())))
                number += 1
        return dataclasses.replace(self.manifest, segments=tuple(segments), next=number), removed

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
            for path in files_of(self.folder, number).values()
        }
        # Also what a killed writer left.
        for path in own_files(self.folder):
            if path.name not in named:
                path.unlink()


def index_bytes(folder: pathlib.Path) -> int:
    """Bytes of all the index's files; others may lie beside them."""
    own = [folder / MANIFEST, folder / BACKGROUND, *own_files(folder)]
    if read_ann(folder) is not None:
        own += (folder / ANN).rglob("*")
    return sum(entry.stat().st_size for entry in own if entry.is_file())

"""Descriptors of a large set on their way into a file, in parts that outlive whoever is killed.

    OUT.parts/manifest.json     what is embedded, by what, and how many images a part is of
    OUT.parts/000012.npz        of those images from position 12 * rows on: ids (or ids_utf8 and ids_ends, where one is
                                very long), descriptors [n, D] float32, unreadable [m, 2], ids and reasons, and files
                                [n + m, 2] int64, bytes and time of the last change
    OUT.parts/process-0.lock    held by the process that makes parts 0, n, 2n, ... of n processes

A part is written aside and renamed, so it is there whole or not at all. Whoever finds all parts there joins them to OUT
and removes the folder. Processes need a common file system for it, and nothing else of each other.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rdcd_jax.core.errors import UserError, one_line
from rdcd_jax.core.files import (
    remove_folder,
    write_aside,
    write_folder_aside,
    write_json,
    write_text,
)
from rdcd_jax.core.locks import held
from rdcd_jax.embedding.descriptors import (
    Descriptors,
    joined_ids,
    stored_ids,
    write_descriptor_parts,
)
from rdcd_jax.embedding.stream import (
    EmbeddingModel,
    Part,
    Progress,
    Unreadable,
    embedded_parts,
    has_fingerprint,
    none_embedded,
)
from rdcd_jax.images.links import stamp, status
from rdcd_jax.images.sources import ImageSet, changed

FORMAT = 1
MANIFEST = "manifest.json"
# Images of a part: what is lost with a process that is killed.
ROWS = 2048


@dataclasses.dataclass(frozen=True)
class Embedded:
    """What an embedding's file holds.

    Attributes:
        count: descriptors.
        dim: D.
        unreadable: images that were left out.
    """

    count: int
    dim: int
    unreadable: list[Unreadable]


@dataclasses.dataclass(frozen=True)
class Parts:
    """Parts of an embedding, opened by `open_parts`.

    Attributes:
        out: the file that they become.
        folder: they lie in.
        images: the images.
        made_by: name and fingerprint of what embeds them, see `descriptors.MADE_BY`.
        rows: images of a part.
        process: this process's number, from 0, and the number of processes.
    """

    out: pathlib.Path
    folder: pathlib.Path
    images: ImageSet
    made_by: Mapping[str, str]
    rows: int
    process: tuple[int, int]

    def positions(self, number: int) -> range:
        """Places of a part's images in the set."""
        return range(number * self.rows, min((number + 1) * self.rows, len(self.images)))

    def missing(self) -> list[int]:
        """The parts that this process has to make still, or again, since files of theirs have changed."""
        index, count = self.process
        return [number for number in self._numbers[index::count] if not self._is_done(number)]

    def make(self, model: EmbeddingModel, number: int, batch_size: int) -> None:
        """Makes one part, as a piece of a pipeline's work."""
        images = self.images.subset(self.positions(number))
        (part,) = embedded_parts(model, images, batch_size=min(batch_size, self.rows))
        self.write(number, part)

    def fill(self, model: EmbeddingModel, batch_size: int, on_progress: Progress) -> None:
        """Makes the parts that this process has to make still; a damaged one is made again.

        Args:
            model: the one that they were opened for.
            batch_size: see `embedded_parts`; a part's images at most.
            on_progress: called with images done and in all, of this process's share.
        """
        index, count = self.process
        missing = self.missing()
        positions = [position for number in missing for position in self.positions(number)]
        total = sum(len(self.positions(number)) for number in self._numbers[index::count])

        def report(done: int, _: int) -> None:
            on_progress(total - len(positions) + done, total)

        report(0, 0)
        images = self.images.subset(positions)
        # A larger batch would be filled up with black.
        batch_size = min(batch_size, self.rows)
        embedded = embedded_parts(
            model, images, rows=self.rows, batch_size=batch_size, on_progress=report
        )
        for number, part in zip(missing, embedded, strict=True):
            self.write(number, part)

    def write(self, number: int, part: Part) -> None:
        """Keeps a part."""
        found = part.found or Descriptors(np.empty(0, np.str_), np.empty((0, 0), np.float32))
        unreadable = [[each.id, each.reason] for each in part.unreadable]
        # Ids that are objects would be pickled, and no pickle is read again.
        wide = found.ids.dtype.kind == "U"
        ids = {"ids": found.ids} if wide else joined_ids(found.ids.tolist())
        with write_aside(self._path(number)) as aside:
            np.savez(
                aside,
                **ids,
                descriptors=found.descriptors,
                unreadable=np.asarray(unreadable, np.str_).reshape(-1, 2),
                files=self._files(number),
            )

    def _is_done(self, number: int) -> bool:
        arrays = self._arrays(number)
        # Parts of version 0.1 do not say of what files they are.
        return arrays is not None and (
            "files" not in arrays or np.array_equal(arrays["files"], self._files(number))
        )

    def _files(self, number: int) -> np.ndarray:
        """[n, 2] int64: bytes and time of the last change of a part's files; 0 for what lies in none of its own."""
        found = (status(self.images, position) for position in self.positions(number))
        rows = [(0, 0) if each is None else stamp(each) for each in found]
        return np.asarray(rows, np.int64).reshape(-1, 2)

    def read(self, number: int) -> Part | None:
        """A part; None where it is missing or damaged."""
        arrays = self._arrays(number)
        if arrays is None:
            return None
        ids, rows = stored_ids(arrays), arrays["descriptors"]
        found = Descriptors(ids, rows, **self.made_by) if len(ids) else None
        return Part(found, [Unreadable(*each) for each in arrays["unreadable"].tolist()])

    def _arrays(self, number: int) -> dict[str, np.ndarray] | None:
        """What a part's file holds; None where it is missing or damaged."""
        try:
            # Opened here, since numpy leaves a file open that turns out not to be an archive.
            with self._path(number).open("rb") as file, np.load(file) as stored:
                arrays = dict(stored)
            rows, left_out = arrays["descriptors"], arrays["unreadable"]
            ids = stored_ids(arrays)
            count, sound = len(ids) + len(left_out), len(ids) == len(rows)
            sound = sound and left_out.shape[1:] == (2,)
            return arrays if sound and count == len(self.positions(number)) else None
        except Exception:
            # Damaged files make zipfile and numpy raise nearly anything.
            return None

    def join(self, keep: bool = False) -> Embedded | None:
        """Writes the file and what was left out, and removes the parts.

        Args:
            keep: leaves the parts to `remove`, so that until then the same embedding need not be made again, and lists
                nothing.

        Returns:
            What the file holds; None if parts of other processes are missing still, or one of them has just joined all.

        Raises:
            UserError: not one image could be read, or a part of another process is damaged.
        """
        if not all(self._path(number).exists() for number in self._numbers):
            return None
        manifest = self.folder / MANIFEST
        try:
            file = manifest.open()
        except FileNotFoundError:
            return None
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Gone, if another process joined the parts while this one waited.
            return self._join(keep) if manifest.exists() else None

    def left_out(self) -> list[Unreadable]:
        """The images that were left out of parts that are all there."""
        return [each for number in self._numbers for each in self._whole(number).unreadable]

    @property
    def _numbers(self) -> range:
        return range(-(-len(self.images) // self.rows))

    def _join(self, keep: bool) -> Embedded:
        ids: list[str] = []
        unreadable: list[Unreadable] = []
        dim = 0
        for number in self._numbers:
            part = self._whole(number)
            unreadable += part.unreadable
            if part.found is not None:
                ids += part.found.ids.tolist()
                dim = part.found.descriptors.shape[1]
        if not ids:
            self.remove()
            raise UserError(none_embedded(self.images, self.made_by["model"], unreadable[0].reason))
        parts = (self._whole(number).found for number in self._numbers)
        rows = (found.descriptors for found in parts if found is not None)
        write_descriptor_parts(self.out, ids, rows, dim, self.made_by)
        if not keep:
            # Whoever is killed before the parts are gone joins them again.
            list_unreadable(pathlib.Path(f"{self.out}.unreadable.txt"), unreadable)
            self.remove()
        return Embedded(len(ids), dim, unreadable)

    def _whole(self, number: int) -> Part:
        part = self.read(number)
        if part is None:
            raise UserError(
                f"{self._path(number)} is damaged; delete it and run the same command again."
            )
        return part

    def remove(self) -> None:
        """Removes the parts."""
        # Half a folder would be taken for an embedding to go on with.
        remove_folder(self.folder)

    def _path(self, number: int) -> pathlib.Path:
        return self.folder / f"{number:06d}.npz"


@contextlib.contextmanager
def open_parts(
    out: str | os.PathLike, model: EmbeddingModel, images: ImageSet, process: tuple[int, int]
) -> Iterator[Parts]:
    """Opens the parts of an embedding, new ones or those that are there.

    Args:
        out: the file that they are to become.
        model: what embeds the images.
        images: the images.
        process: this process's number, from 0, and the number of processes.

    Raises:
        UserError: there are parts of other images or another model, or another process makes these parts.
    """
    index, _ = process
    out, folder = pathlib.Path(out), _folder_of(out)
    ours = _manifest(model, images)
    if not folder.exists():
        _begin(folder, ours)
    stored = _read_manifest(folder)
    if difference := _difference(stored, ours, model):
        if any(folder.glob("*.npz")):
            raise UserError(
                f"{folder} holds parts of another embedding ({difference}); finish that, name another file, or delete"
                " the folder."
            )
        write_json(folder / MANIFEST, ours)
        stored = ours
    busy = (
        f"{folder}: another process makes these parts; wait until it has ended, or give each of several processes a"
        " number of its own."
    )
    with held(folder / f"process-{index}.lock", busy):
        made_by = {"model": model.name, "fingerprint": model.fingerprint}
        yield Parts(out, folder, images, made_by, stored["rows"], process)


def drop_others(out: str | os.PathLike, model: EmbeddingModel, images: ImageSet) -> None:
    """Removes parts that `open_parts` would refuse, if there are such: those of another embedding."""
    folder = _folder_of(out)
    if folder.exists() and _difference(_read_manifest(folder), _manifest(model, images), model):
        remove_folder(folder)


def has_share(out: str | os.PathLike, count: int, process: tuple[int, int]) -> bool:
    """Whether a process has parts to make: not of a file that is whole, and a small set has fewer than there may be
    processes.

    Args:
        out: the file that they are to become.
        count: images.
        process: see `open_parts`.

    Raises:
        UserError: there is no such process.
    """
    index, processes = process
    if not 0 <= index < processes:
        raise UserError(f"There is no process {index} of {processes}; they are numbered from 0.")
    # Parts that are there may be of another size.
    return _folder_of(out).exists() or (index * ROWS < count and not os.path.exists(out))


def list_unreadable(path: pathlib.Path, unreadable: Sequence[Unreadable]) -> None:
    """Writes one sentence a line, or removes the list of an earlier run."""
    if unreadable:
        write_text(path, "".join(f"{one_line(each.reason)}\n" for each in unreadable))
    else:
        path.unlink(missing_ok=True)


def _folder_of(out: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(f"{os.fspath(out)}.parts")


def _manifest(model: EmbeddingModel, images: ImageSet) -> dict:
    """What parts say they are of."""
    return {
        "format": FORMAT,
        "rows": ROWS,
        "model": model.name,
        "fingerprint": model.fingerprint,
        "image_size": model.image_size,
        "short_edge": model.short_edge,
        "pictures": images.fingerprint(),
    }


def _begin(folder: pathlib.Path, manifest: dict) -> None:
    try:
        # Renamed with the manifest in it, so that no process sees one without.
        with write_folder_aside(folder) as aside:
            write_json(aside / MANIFEST, manifest)
    except OSError:
        # Another process has begun it meanwhile.
        if not folder.is_dir():
            raise


def _read_manifest(folder: pathlib.Path) -> dict:
    path = folder / MANIFEST
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT or type(stored["rows"]) is not int or stored["rows"] < 1:
            raise ValueError("another format")
        return stored
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); delete {folder} to begin anew, or name another file."
        ) from error


def _difference(before: dict, now: dict, model: EmbeddingModel) -> str:
    """What is another about an embedding by a model now, in words for people; nothing where it is the same."""
    words = {
        "model": f"by {before.get('model')!r}, not {now['model']!r}",
        "fingerprint": f"by other weights of {now['model']!r}",
        "image_size": f"of {before.get('image_size')} pixels, not {now['image_size']}",
        "short_edge": "of square images" if now["short_edge"] else "of images by their short edge",
    }
    if has_fingerprint(model, before.get("fingerprint")):
        # By an earlier version's way to take it.
        del words["fingerprint"]
    for name, stored in words.items():
        if before.get(name) != now[name]:
            return stored
    return changed(before.get("pictures", {}), now["pictures"])

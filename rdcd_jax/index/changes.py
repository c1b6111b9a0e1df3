"""What has become of an index's images since they were added."""

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
from collections.abc import Iterable, Sequence

import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.images.folders import PLUGINS, leads_nowhere
from rdcd_jax.images.given import IN_MEMORY, is_record, place_of
from rdcd_jax.images.links import each_once, identity, status
from rdcd_jax.images.naming import distinct, escaped
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.index.places import BYTES, CHANGED, lasting_paths, stamps, stored_path, whole_path
from rdcd_jax.index.segments import Segment

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Changes:
    """How images that are listed now differ from those of an index.

    Attributes:
        images: the images, each once.
        stored: their paths as the index keeps them.
        files: [N, 4] int64, see `places.stamps`.
        new: positions of images whose paths are not in the index.
        changed: positions of images whose files have changed since.
        present: images that are in the index and have not changed.
        known: of those images that are in the index, ids there by stored paths.
        taken: all ids of the index.
        unlisted: of images of the index that are not listed now, ids by stored paths.
        root: of the index.
    """

    images: ImageSet
    stored: list[str]
    files: np.ndarray
    new: list[int]
    changed: list[int]
    present: int
    known: dict[str, str] = dataclasses.field(repr=False)
    taken: set[str] = dataclasses.field(repr=False)
    unlisted: dict[str, str] = dataclasses.field(repr=False)
    root: str

    @functools.cached_property
    def gone(self) -> list[str]:
        """Stored paths of images of the index that are to be dropped, since they are not listed any more."""
        return [path for path in self.unlisted if not _kept(path, self.images, self.root)]

    def ids(self, positions: Sequence[int], dropped: Iterable[str] = ()) -> dict[int, str]:
        """The ids that images get in the index: of those there their own, of others what distinguishes them.

        Args:
            positions: of the images.
            dropped: stored paths of `gone` that leave the index when these come, and leave them their ids.
        """
        kept = {i: id_ for i in positions if (id_ := self._keeps(i)) is not None}
        fresh = [i for i in positions if i not in kept]
        replaced = (self.known.get(self.stored[i]) for i in fresh)
        free = {*replaced, *(self.unlisted[path] for path in dropped)}
        names = [self.images.ids[i] for i in fresh]
        places = [
            place_of(self.images, self.images.paths[i], name)
            for i, name in zip(fresh, names, strict=True)
        ]
        given = distinct(names, places, self.taken - free)
        return {**kept, **dict(zip(fresh, given, strict=True))}

    def _keeps(self, position: int) -> str | None:
        in_record = is_record(self.images, self.images.paths[position])
        return None if in_record else self.known.get(self.stored[position])


def find_changes(images: ImageSet, segments: Sequence[Segment], root: str) -> Changes:
    """Compares images with those of an index, without opening files.

    Args:
        images: what is listed now.
        segments: all of the index.
        root: of the index.
    """
    images = each_once(images)
    files = stamps(images, range(len(images)))
    images = _numbered_on(images, files, segments)
    stored = [stored_path(path, root) for path in lasting_paths(images)]
    listed, known, before, taken, unplaced, unlisted = set(stored), {}, {}, set(), set(), {}
    for segment in segments:
        taken.update(segment.ids)
        for row, path in enumerate(segment.paths):
            if path in listed:
                known[path] = segment.ids[row]
                before[path] = segment.files[row, [BYTES, CHANGED]].tolist()
            elif not path:
                # What format 4 or an older one added is known by its id alone.
                unplaced.add(segment.ids[row])
            else:
                unlisted[path] = segment.ids[row]
    new, changed, nowhere = [], [], []
    for position, (path, now) in enumerate(
        zip(stored, files[:, [BYTES, CHANGED]].tolist(), strict=True)
    ):
        if path not in known:
            if images.ids[position] not in unplaced:
                new.append(position)
        # Of what format 5 or an older one added, nothing is known.
        elif any(before[path]) and before[path] != now:
            if leads_nowhere(images.paths[position]):
                # To a drive that is missing, it may be.
                nowhere.append(images.paths[position])
            else:
                changed.append(position)
    if nowhere:
        _log.warning(
            "%d images are links that lead nowhere now (the first: %s); they stay as they were.",
            len(nowhere),
            escaped(nowhere[0]),
        )
    present = len(images) - len(new) - len(changed)
    return Changes(images, stored, files, new, changed, present, known, taken, unlisted, root)


def without_links(changes: Changes, segments: Sequence[Segment]) -> Changes:
    """The changes less new images that are, by another path, files of the index: these are present."""
    position_of = {
        identity(there): position
        for position in changes.new
        if (there := status(changes.images, position)) is not None
    }
    times = changes.files[list(position_of.values()), CHANGED]
    links = set()
    for segment in segments:
        # Few files of the index can be meant, so few are looked at.
        for row in np.flatnonzero(np.isin(segment.files[:, CHANGED], times)).tolist():
            with contextlib.suppress(OSError, ValueError):
                there = os.stat(whole_path(segment.paths[row], changes.root))
                links.add(position_of.get(identity(there), -1))
    links.discard(-1)
    if not links:
        return changes
    _log.warning(
        "%d images are links to images of the index (the first: %s), and count once.",
        len(links),
        escaped(changes.images.paths[min(links)]),
    )
    kept = [i for i in changes.new if i not in links]
    return dataclasses.replace(changes, new=kept, present=changes.present + len(links))


def require_paths(folder: os.PathLike, segments: Sequence[Segment]) -> None:
    """Refuses an index that does not know where its images lie.

    Raises:
        UserError: it is of format 3 or 4.
    """
    if any("" in segment.paths for segment in segments):
        raise UserError(
            f"{folder} was made by a version of rdcd-jax that kept no paths, so changes cannot be seen; build it again."
        )


def _numbered_on(images: ImageSet, files: np.ndarray, segments: Sequence[Segment]) -> ImageSet:
    """The images, those in memory under the names that the index has their content by, or else under its next numbers.

    They have no place of their own to be known by: a list begins with #0 each time.
    """
    if not images.in_memory:
        return images
    there = {
        tuple(segment.files[row, [BYTES, CHANGED]].tolist()): path
        for segment in segments
        for row, path in enumerate(segment.paths)
        if path.startswith(IN_MEMORY)
    }
    if not there:
        return images
    numbers = itertools.count(1 + max(int(path.removeprefix(IN_MEMORY)) for path in there.values()))
    names, in_memory = list(images.paths), {}
    for position, path in enumerate(images.paths):
        if path in images.in_memory:
            content = tuple(files[position, [BYTES, CHANGED]].tolist())
            names[position] = there.get(content) or f"{IN_MEMORY}{next(numbers)}"
            in_memory[names[position]] = images.in_memory[path]
    ids = [
        name if path in images.in_memory else id_
        for name, path, id_ in zip(names, images.paths, images.ids, strict=True)
    ]
    return dataclasses.replace(images, ids=tuple(ids), paths=tuple(names), in_memory=in_memory)


def _kept(stored: str, images: ImageSet, root: str) -> bool:
    """Whether an image that is not listed stays all the same: it was in memory, its folder cannot be
    opened now, or what reads its format is missing."""
    if stored.startswith(IN_MEMORY):
        return True
    path = whole_path(stored, root)
    if os.path.splitext(path)[1].lower() in PLUGINS and os.path.isfile(path):
        # What read it is not installed here.
        return True
    return any(path.startswith(os.path.abspath(folder) + os.sep) for folder in images.closed)

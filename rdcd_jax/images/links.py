"""What the file system tells of images: which have changed, and which are links to one file."""

import hashlib
import logging
import os
from collections.abc import Sequence

import numpy as np

from rdcd_jax.images.naming import escaped
from rdcd_jax.images.sources import ImageSet

_log = logging.getLogger(__name__)
_LATEST = 2**63 - 1


def status(images: ImageSet, position: int) -> os.stat_result | None:
    """What the file system says of an image; None where it lies in no file of its own, or the file is gone."""
    if not images.is_file(position):
        return None
    try:
        return os.stat(images.paths[position])
    except (OSError, ValueError):
        return None


def identity(found: os.stat_result) -> tuple[int, int]:
    """What all links to a file have in common."""
    return found.st_dev, found.st_ino


def stamp(found: os.stat_result) -> tuple[int, int]:
    """Bytes of a file and the time of its last change in nanoseconds, as int64 holds it: a clock may be set to 2300."""
    return found.st_size, max(-_LATEST, min(found.st_mtime_ns, _LATEST))


def sizes_sha256(images: ImageSet) -> str:
    """A hex digest of how many bytes each image's file has: another one where files of these names hold other images,
    the same where they were moved or copied, as on the next machine of a cluster."""
    found = (status(images, position) for position in range(len(images)))
    sizes = [0 if each is None else each.st_size for each in found]
    return hashlib.sha256(np.asarray(sizes, "<i8").tobytes()).hexdigest()


def each_once(images: ImageSet) -> ImageSet:
    """The set without links to files that it holds already, which are said in one warning.

    A path that is given twice stays once, and of hard and symbolic links the first that is no symbolic link.
    """
    kept: dict[object, int] = {}
    for position, path in enumerate(images.paths):
        found = status(images, position)
        key = path if found is None else identity(found)
        first = kept.setdefault(key, position)
        if first != position and os.path.islink(images.paths[first]) and not os.path.islink(path):
            kept[key] = position
    if len(kept) == len(images):
        return images
    positions = sorted(kept.values())
    _warn(images, positions)
    return images.subset(positions)


def _warn(images: ImageSet, kept: Sequence[int]) -> None:
    first = next(position for position, at in enumerate([*kept, -1]) if position != at)
    _log.warning(
        "%s: %d images are links to others of them, and count once (the first: %s).",
        escaped(images.source),
        len(images) - len(kept),
        escaped(images.paths[first]),
    )

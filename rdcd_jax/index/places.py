"""Where the images of an index lie, and by what a change of one is seen."""

import contextlib
import os
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from rdcd_jax.core.errors import UnreadableImageError
from rdcd_jax.core.files import lasting_path
from rdcd_jax.images.decode import size_of
from rdcd_jax.images.links import stamp, status
from rdcd_jax.images.lookup import held_in
from rdcd_jax.images.sources import TFDS, ImageSet

# Columns of what is kept of each image, int64; 0 where it is not known.
BYTES, CHANGED, WIDTH, HEIGHT = range(4)
COLUMNS = 4
# Before paths below the index's root.
_BELOW = "./"


def lasting_paths(images: ImageSet) -> list[str]:
    """The images' paths as they mean the same in any folder."""
    return [
        path if path in images.in_memory or path.startswith(TFDS) else lasting_path(path)
        for path in images.paths
    ]


def root_of(images: ImageSet) -> str:
    """The folder that all files of a set lie below; empty where there is none but the file system's own."""
    if not all(map(images.is_file, range(len(images)))):
        return ""
    root = os.path.commonpath([os.path.dirname(path) for path in lasting_paths(images)])
    return "" if root == os.path.dirname(root) else root


def stored_path(path: str, root: str) -> str:
    """A lasting path as an index keeps it: from its root where it lies below."""
    if root and path.startswith(root + os.sep):
        return _BELOW + path[len(root) + 1 :]
    return path


def whole_path(stored: str, root: str) -> str:
    """The path that `stored_path` shortened."""
    return os.path.join(root, stored[len(_BELOW) :]) if stored.startswith(_BELOW) else stored


def stamps(images: ImageSet, positions: Iterable[int]) -> np.ndarray:
    """[n, 4] int64: of each image bytes and the time of the last change in nanoseconds.

    What lies in an archive, in records or in memory has no time but a checksum of its content instead.
    """
    found = []
    for position in positions:
        there = status(images, position)
        if there is not None:
            found.append((*stamp(there), 0, 0))
            continue
        content = _content(images, position)
        found.append((len(content), zlib.crc32(content), 0, 0))
    return np.asarray(found, np.int64).reshape(-1, COLUMNS)


def sizes(images: ImageSet, positions: Sequence[int]) -> np.ndarray:
    """[n, 2] int64: width and height in pixels of each image as its file says; 0 where that is not known."""
    found = []
    for position in positions:
        path = images.paths[position]
        if (image := images.in_memory.get(path)) is not None:
            found.append(image.size)
        elif images.is_file(position):
            found.append(size_of(path) or (0, 0))
        else:
            found.append(size_of(_content(images, position)) or (0, 0))
    return np.asarray(found, np.int64).reshape(-1, 2)


def is_stale(path: str, size: int, changed: int = 0) -> bool:
    """Whether a file has changed or is gone since it was looked at.

    Args:
        path: whole.
        size: its bytes then; of 0 nothing is known.
        changed: the time of its last change then, in nanoseconds; 0 where that is not known.
    """
    if not size or not os.path.isabs(path):
        return False
    try:
        now_size, now_changed = stamp(os.stat(path))
    except OSError:
        # Of what lies in an archive or in records, only a checksum would tell.
        return held_in(path) is None
    return now_size != size or (changed != 0 and now_changed != changed)


def _content(images: ImageSet, position: int) -> bytes:
    if (image := images.in_memory.get(images.paths[position])) is not None:
        with contextlib.suppress(OSError):
            return f"{image.mode}{image.size}".encode() + image.tobytes()
        return b""
    try:
        return images.read(position)
    except UnreadableImageError:
        # What is wrong with it is said where it is decoded.
        return b""

"""One image by the path that an index or a result names it by, wherever it lies."""

import os

from rdcd_jax.core.files import stamp_of
from rdcd_jax.images.archives import ArchiveReader, is_archive
from rdcd_jax.images.records import ShardReader, is_shard
from rdcd_jax.images.sources import TFDS, ImageSet, listed


def held_in(path: str) -> str | None:
    """The archive or shard of a path ARCHIVE:MEMBER or SHARD:PLACE; None where no such file is there."""
    for colon in (place for place, character in enumerate(path) if character == ":"):
        holder = path[:colon]
        if (is_archive(holder) or _is_shard(holder)) and os.path.isfile(holder):
            return holder
    return None


def image_at(path: str) -> ImageSet:
    """The image at one of the paths of `ImageSet.paths`, as a set of one.

    Args:
        path: of a file, or of what lies in an archive, in records or in a data set of tensorflow-datasets.

    Raises:
        UserError: nothing lies there any more.
    """
    if path.startswith(TFDS):
        source, _, place = path.rpartition(":")
        return listed(source).subset([int(place)])
    holder = None if os.path.exists(path) else held_in(path)
    if holder is None:
        return listed(path)
    # Their checksums are of the whole set; for a single image what tells the file from another does.
    stamp = stamp_of(holder)
    is_records = _is_shard(holder)
    reader = ShardReader(str(stamp)) if is_records else ArchiveReader(holder, str(stamp), stamp)
    return ImageSet(path, (path,), (path,), reader)


def _is_shard(path: str) -> bool:
    return is_shard(os.path.basename(path))

"""Files of a folder that do not end as images do: which are images all the same, and what is said of the others."""

import collections
import dataclasses
import logging
import os

from rdcd_jax.core.errors import UserError
from rdcd_jax.images.decode import size_of
from rdcd_jax.images.folders import PLUGINS
from rdcd_jax.images.naming import escaped
from rdcd_jax.images.sources import ImageSet, called, listed, no_images

_log = logging.getLogger(__name__)
# What Pillow would open as the thumbnail in it.
_RAW = {".dng", ".nef", ".nrw", ".cr2", ".cr3", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf"}
_RAW |= {".pef", ".srw", ".raw", ".3fr", ".iiq", ".dcr", ".kdc", ".mrw", ".x3f"}
# Others that hold images, which are not read.
_DRAWN = {".psd", ".xcf", ".svg", ".svgz", ".eps", ".ai", ".exr", ".hdr", ".tga", ".ico", ".jxr"}
# Folders that are named; of more only how many there are.
_NAMED = 5


def typed(images: ImageSet) -> ImageSet:
    """The set with those of its `others` that are images by their content; each of these is opened once.

    Args:
        images: a set that `listed` gave, whose ids are names.
    """
    if images.reader is not None:
        return images
    found = [path for path in images.others if _is_image(path)]
    if not found:
        return images
    root = images.source
    named = dict(zip(images.paths, images.ids, strict=True))
    named |= {path: os.path.relpath(path, root) for path in found}
    paths = tuple(sorted(named))
    others = tuple(path for path in images.others if path not in named)
    ids = tuple(named[path] for path in paths)
    return dataclasses.replace(images, ids=ids, paths=paths, others=others)


def all_listed(source: str | os.PathLike) -> ImageSet:
    """As `listed`, and with images that only their content tells; warns of what is left out.

    Raises:
        UserError: the source cannot be listed, or holds no image.
    """
    found = typed(listed(source))
    if not len(found):
        raise UserError(" ".join([no_images(found), *left_out(found)]))
    warn_left_out(found)
    return found


def find_all_images(source: str | os.PathLike, *, ids: str = "name") -> ImageSet:
    """As `find_images`, with the images of `all_listed`.

    Raises:
        UserError: see `find_images`.
    """
    return called(all_listed(source), ids)


def left_out(images: ImageSet) -> list[str]:
    """What a folder or an archive holds besides its images, in lines for people: how many files of each kind, and the
    folders that cannot be opened, by name."""
    lines = []
    if images.others:
        # What lies in an archive is called by that one's path too.
        names = (path.removeprefix(f"{images.source}:") for path in images.others)
        kinds = collections.Counter(map(_kind, names))
        shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        plugins = sorted({PLUGINS[kind] for kind in kinds if kind in PLUGINS})
        cure = f"; `pip install {' '.join(plugins)}` reads some" if plugins else ""
        lines.append(
            f"{escaped(images.source)}: left out, since they are not read as images: {shown}{cure}."
        )
    if images.closed:
        shown = ", ".join(escaped(path) for path in images.closed[:_NAMED])
        more = len(images.closed) - _NAMED
        shown += f" and {more} more" if more > 0 else ""
        lines.append(f"{escaped(images.source)}: left out, since they cannot be opened: {shown}.")
    return lines


def lacking(images: ImageSet) -> int:
    """How many images a set surely lacks: files of formats that are not read, and folders that cannot be opened."""
    suffixes = (os.path.splitext(path)[1].lower() for path in images.others)
    known = _RAW | _DRAWN | PLUGINS.keys()
    # A link that leads nowhere may have led to a file of another kind, by its name.
    closed = [
        path for path in images.closed if not (os.path.islink(path) and _kind(path)[0] == ".")
    ]
    return sum(suffix in known for suffix in suffixes) + len(closed)


def warn_left_out(images: ImageSet) -> None:
    """Logs those lines as warnings."""
    for line in left_out(images):
        _log.warning("%s", line)


def _kind(path: str) -> str:
    return escaped(os.path.splitext(path)[1].lower()) or "without extension"


def _is_image(path: str) -> bool:
    suffix = os.path.splitext(path)[1].lower()
    return suffix not in _RAW and os.path.isfile(path) and size_of(path) is not None

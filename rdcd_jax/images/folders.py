"""What lies in a folder: images, what may be images under another name, and folders that cannot be opened."""

import dataclasses
import os
import pathlib
from collections.abc import Callable

from rdcd_jax.core.errors import UserError
from rdcd_jax.images.decode import FORMATS

_PHOTOGRAPHS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".jp2"}
_OTHERS = {".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
# Read where Pillow's plugin for them is installed: its package by extension.
_PLUGIN_OF = {"HEIF": "pillow-heif", "JXL": "pillow-jxl-plugin"}
_OF_PLUGINS = {".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF", ".jxl": "JXL"}
EXTENSIONS = {
    *_PHOTOGRAPHS,
    *_OTHERS,
    *(suffix for suffix, name in _OF_PLUGINS.items() if name in FORMATS),
}
PLUGINS = {suffix: _PLUGIN_OF[name] for suffix, name in _OF_PLUGINS.items() if name not in FORMATS}


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a folder holds, hidden files and folders left out; paths are below it, '/'-separated and sorted.

    Attributes:
        images: names that end as images' do, or that were asked for.
        others: all other files.
        closed: folders that cannot be opened, and links that lead nowhere.
    """

    images: tuple[str, ...]
    others: tuple[str, ...]
    closed: tuple[str, ...]


def is_image_name(name: str) -> bool:
    """Whether a name ends as an image's does."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def list_folder(root: pathlib.Path, wanted: Callable[[str], bool]) -> Listing:
    """Lists a folder and those below it, each real folder once; links are followed.

    Args:
        root: the folder.
        wanted: whether a file's name is that of an image.

    Raises:
        UserError: the folder itself cannot be opened.
    """
    images, others, closed = [], [], []
    seen = set()

    def refuse(error: OSError) -> None:
        if os.fspath(error.filename) == os.fspath(root):
            raise UserError(f"{root}: cannot be opened ({error.strerror}); look at its rights.")
        closed.append(_below(root, error.filename))

    for folder, subfolders, files in os.walk(root, onerror=refuse, followlinks=True):
        # A link to a folder above would otherwise be walked for ever.
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else sorted(s for s in subfolders if s[0] != ".")
        if real in seen:
            continue
        seen.add(real)
        for file in files:
            if file[0] != ".":
                path = os.path.join(folder, file)
                # A link to a folder that is not there, such as a drive's.
                kind = images if wanted(file) else closed if leads_nowhere(path) else others
                kind.append(_below(root, path))
    return Listing(*(tuple(sorted(each)) for each in (images, others, closed)))


def leads_nowhere(path: str) -> bool:
    """Whether a path is a link to what is not there."""
    return os.path.islink(path) and not os.path.exists(path)


def _below(root: pathlib.Path, path: str) -> str:
    return pathlib.PurePath(os.path.relpath(path, root)).as_posix()

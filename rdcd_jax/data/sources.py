"""Where pictures come from: a folder or a text file of paths, as a fixed list of ids and paths."""

import dataclasses
import importlib.resources
import os
import pathlib
from collections.abc import Iterator

from rdcd_jax.errors import UserError

_PHOTOGRAPHS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".jp2")
EXTENSIONS = {*_PHOTOGRAPHS, ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}

# Pictures inside the package, by these names instead of a folder's.
BUNDLED = ("sample:train", "sample:references", "sample:queries")


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Pictures in a fixed order: entry i of `ids` names the picture at entry i of `paths`.

    Attributes:
        source: what the set was made from, for messages.
        ids: N different names.
        paths: N paths of files.
    """

    source: str
    ids: tuple[str, ...]
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)


def find_images(source: str | os.PathLike, *, ids: str = "name") -> ImageSet:
    """Lists the pictures of `source` without opening them.

    Args:
        source: a folder, searched recursively for the usual image extensions (hidden files and
            folders are left out, links are followed), or a text file (UTF-8) with one path a line,
            absolute or relative to the text file's folder; or one of `BUNDLED`.
        ids: "name" makes the file name without its extension the id; "path" the path below the
            folder (or as the text file writes it), extension included.

    Returns:
        The pictures, sorted by path for a folder, in the order written for a text file.

    Raises:
        UserError: the source is missing, of another kind or empty, or two pictures share an id.
    """
    if ids not in ("name", "path"):
        raise UserError(f"ids={ids!r} is not known: use 'name' or 'path'.")
    text = os.fspath(source)
    if text in BUNDLED:
        text = str(importlib.resources.files("rdcd_jax") / "sample" / text.partition(":")[2])
    if text.startswith("tfds:") or ".array_record" in pathlib.PurePath(text).name:
        raise UserError(
            f"{text}: this kind of source cannot be read; give a folder of images or a text file "
            "of image paths."
        )
    root = pathlib.Path(text)
    if root.is_dir():
        names, folder = _names_below(root), root
    elif root.is_file():
        names, folder = _names_listed(root), root.parent
    else:
        raise UserError(f"{text}: there is no such folder or text file of image paths.")
    if not names:
        raise UserError(
            f"{text}: no images found; it should hold files such as .jpg, .png or .webp "
            "(or, as a text file, one path a line)."
        )
    return ImageSet(
        source=text,
        ids=_unique_ids(names, by_path=ids == "path"),
        paths=tuple(os.path.join(folder, name) for name in names),
    )


def _names_below(root: pathlib.Path) -> list[str]:
    """Paths below `root` with an image's extension, '/'-separated and sorted."""
    names = []
    for folder, files in _walk(root):
        below = pathlib.PurePath(os.path.relpath(folder, root))
        for file in files:
            if os.path.splitext(file)[1].lower() in EXTENSIONS:
                names.append((below / file).as_posix())
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{root}: the file name {name.encode(errors='surrogateescape')!r} is not valid "
                "UTF-8, so it cannot be written as an id; rename the file."
            ) from None
    return sorted(names)


def _walk(root: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    """Visible folders at and below `root` with their visible files, each real folder once."""
    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        # A link to a folder above would otherwise be walked for ever.
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else sorted(s for s in subfolders if s[0] != ".")
        if real not in seen:
            yield folder, [file for file in files if file[0] != "."]
        seen.add(real)


def _names_listed(path: pathlib.Path) -> list[str]:
    """The lines of the text file `path` that are not blank."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: neither a folder nor a text file (UTF-8) of image paths, one a line."
        ) from None
    names = [line.strip() for line in lines if line.strip()]
    # Only the first: a wrong base folder shows at once, and a million look-ups on a network disk
    # would take minutes. A file missing further down counts as unreadable when its turn comes.
    if names and not os.path.isfile(path.parent / names[0]):
        raise UserError(
            f"{path}: its first path, {names[0]}, is not a file; paths are taken relative to "
            f"{path.parent}."
        )
    return names


def _unique_ids(names: list[str], *, by_path: bool) -> tuple[str, ...]:
    owner: dict[str, str] = {}
    for name in names:
        id_ = name if by_path else os.path.splitext(os.path.basename(name))[0]
        if id_ in owner:
            cure = "remove one" if by_path or owner[id_] == name else "rename one or use --ids=path"
            raise UserError(f"Two images have the id {id_!r}: {owner[id_]} and {name}; {cure}.")
        owner[id_] = name
    return tuple(owner)

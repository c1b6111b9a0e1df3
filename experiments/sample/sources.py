"""Free images inside extracted Debian packages: where they lie, by whom, how licensed.

A folder of extracted packages holds one folder per package, named as the package, made by
`dpkg -x PACKAGE.deb FOLDER/PACKAGE` with the version in a file `FOLDER/PACKAGE/VERSION`.
"""

import functools
import io
import pathlib
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image, ImageOps

# Package: (path below the package's folder, path in its sources, kind) per group of images. The
# copyright file names paths of the sources, so the bracketed end of the first follows the second.
GROUPS: dict[str, list[tuple[str, str, str]]] = {
    "gcompris-qt-data": [
        (r".*/(?:categorization|details|explore_.*)\.rcc!gcompris/src/(.*)", "src/", "photo"),
        (r".*\.rcc!gcompris/src/(.*)", "src/", "art"),
    ],
    "endless-sky-data": [
        (r".*/endless-sky/(images/land/.*)", "", "photo"),
        (r".*/endless-sky/(images/(?:scene|planet|_menu)/.*)", "", "art"),
    ],
    "supertuxkart-data": [
        (r".*/supertuxkart/(data/.*(?:sshot|screen).*)", "", "screenshot"),
        (r".*/supertuxkart/(data/.*)", "", "texture"),
    ],
    "redeclipse-data": [
        (r".*/redeclipse/(data/maps/.*)", "", "screenshot"),
        (r".*/redeclipse/(data/.*)", "", "texture"),
    ],
    "budgie-backgrounds": [(r"usr/share/backgrounds/(.*)", "", "photo")],
    "ukui-wallpapers": [(r"usr/share/backgrounds/(.*)", "", "photo")],
    "lomiri-wallpapers-16.04": [(r"usr/share/backgrounds/(.*)", "16.04/", "photo")],
    "lomiri-wallpapers-20.04": [(r"usr/share/backgrounds/(.*)", "20.04/", "photo")],
    "mate-backgrounds": [(r"usr/share/backgrounds/mate/(desktop/.*)", "", "art")],
    "sway-backgrounds": [(r"usr/share/backgrounds/sway/(.*)", "", "art")],
    "libjxl-testdata": [(r"usr/share/libjxl-testdata/(external/.*)", "", "photo")],
    "mypaint-data-extras": [(r"usr/share/mypaint/(backgrounds/.*)", "", "texture")],
    "xplanet-images": [(r"usr/share/(xplanet/images/.*)", "", "photo")],
    "raincat-data": [(r".*/raincat/(data/.*)", "", "art")],
    "scratch": [
        (r"usr/share/scratch/(Media/Backgrounds/.*\.jpg)", "", "photo"),
        (r"usr/share/scratch/(Media/.*)", "", "art"),
    ],
    "megaglest-data": [
        (r".*/megaglest/(.*(?:screens|preview).*)", "", "screenshot"),
        (r".*/megaglest/(tilesets/.*)", "", "texture"),
        (r".*/megaglest/(.*)", "", "art"),
    ],
    "0ad-data": [
        (r".*/public.zip!(art/textures/terrain/types/.*)", "", "texture"),
        (
            r".*/public.zip!(art/textures/ui/(?:tips|pregame|loading|session/portraits)/.*)",
            "",
            "art",
        ),
    ],
    "unknown-horizons": [(r".*/unknown-horizons/(content/gui/.*)", "", "art")],
    "freeorion-data": [(r".*/freeorion/(default/data/art/.*)", "", "art")],
    "flare-game": [(r".*/flare/(mods/.*)", "", "art")],
    "wesnoth-1.18-data": [(r".*/wesnoth/1.18/(data/.*)", "", "art")],
    "trigger-rally-data": [(r".*/data.zip!(textures/.*)", "data/data.zip/", "texture")],
    "renpy-demo": [(r".*/renpy/(demo/.*)", "", "art")],
    "renpy-thequestion": [(r".*/renpy/(the_question/.*)", "", "art")],
    "debian-handbook": [(r"usr/share/doc/debian-handbook/html/(.*)", "", "screenshot")],
    "freedombox-doc-en": [
        (r"usr/share/freedombox/(manual/en/images/.*)", "doc/", "screenshot"),
    ],
    "gnome-user-docs": [(r"usr/share/help/(C/.*)", "", "screenshot")],
    "openclipart-png": [(r"usr/share/openclipart/png/(.*)", "", "clip art")],
}
# Its copyright file is older than the machine-readable form; it dedicates every image.
WHOLE_PACKAGE = {"openclipart-png": ("public-domain", "Open Clip Art Library contributors")}
FREE = re.compile(
    r"public-domain|CC0(-1(\.0)?)?|CC-BY(-SA)?-[1-4](\.[05])?\+?(-AU)?|Expat|MIT"
    r"|NASA-not-copyrighted",
    re.IGNORECASE,
)
# Surface maps of games that lie beside the images: normals, gloss, masks.
NO_IMAGE = re.compile(r"[_-](n|s|h|norm|normal|nm|spec|gloss|mask|ao|disp|height)\.", re.IGNORECASE)
# Pixels; beyond it lie sheets of sprites.
LARGEST = 60_000_000
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".dds", ".tga", ".bmp")


class Candidate(NamedTuple):
    """One free image: `path` is below the package's folder, with `!member` inside an archive."""

    package: str
    version: str
    path: str
    kind: str
    licence: str
    author: str


def candidates(packages: pathlib.Path) -> Iterator[Candidate]:
    """Gives every image of the known packages whose own copyright entry is a free licence.

    Args:
        packages: folder of extracted packages (see the module's docstring).
    """
    for package, groups in GROUPS.items():
        root = packages / package
        stanzas = [] if package in WHOLE_PACKAGE else _stanzas(root, package)
        version = (root / "VERSION").read_text().strip()
        for path in _images(root):
            # The most telling pattern comes first.
            matches = ((re.fullmatch(pattern, path), *rest) for pattern, *rest in groups)
            match, folder, kind = next((m for m in matches if m[0]), (None, "", ""))
            if match is None:
                continue
            source = folder + match[1]
            entry = WHOLE_PACKAGE.get(package) or _entry(stanzas, source)
            licence = entry and free_licence(entry[0])
            if licence:
                yield Candidate(package, version, path, kind, licence, entry[1])


def free_licence(text: str) -> str | None:
    """Gives the free part of a copyright entry's licence ("GPL-2+ or CC-BY-4.0"), or None."""
    for choice in re.split(r" or ", text):
        if all(FREE.fullmatch(part.strip()) for part in choice.split(" and ")):
            return choice.strip()
    return None


def open_image(root: pathlib.Path, path: str) -> Image.Image:
    """Decodes an image to RGB, transparent parts on white.

    Args:
        root: the package's folder.
        path: a candidate's path.

    Raises:
        ValueError: the image has more than 60 million pixels.
    """
    file, _, member = path.partition("!")
    data = (root / file).read_bytes() if not member else _member(root / file, member)
    image = Image.open(io.BytesIO(data))
    if image.width * image.height > LARGEST:
        raise ValueError(f"{path} has {image.width} x {image.height} pixels")
    image = ImageOps.exif_transpose(image)
    if path.endswith(".dds"):  # a game texture's alpha is gloss or a mask, not transparency
        return image.convert("RGBA").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _images(root: pathlib.Path) -> list[str]:
    found = []
    for file in root.rglob("*"):
        if file.is_symlink() or not file.is_file():
            continue
        path = file.relative_to(root).as_posix()
        if file.suffix.lower() in ENDINGS:
            found.append(path)
        elif file.suffix in (".zip", ".rcc"):
            names = _resources(file) if file.suffix == ".rcc" else _archive(file).namelist()
            found += [f"{path}!{name}" for name in names if name.lower().endswith(ENDINGS)]
    return sorted(path for path in found if not NO_IMAGE.search(path))


def _member(file: pathlib.Path, name: str) -> bytes:
    return _resources(file)[name] if file.suffix == ".rcc" else _archive(file).read(name)


@functools.cache
def _archive(file: pathlib.Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(file)


@functools.cache
def _resources(file: pathlib.Path) -> dict[str, bytes]:
    """Reads a Qt resource archive: name to content, entries with Zstandard compression left out.

    Source: the layout that Qt's `rcc` writes (a header, a tree of nodes, names, data).
    """
    raw = file.read_bytes()
    magic, version, tree, data, names = struct.unpack_from(">4s4I", raw)
    if magic != b"qres":
        return {}
    size = 14 if version == 1 else 22
    found: dict[str, bytes] = {}

    def walk(node: int, folder: str) -> None:
        name_at, flags = struct.unpack_from(">IH", raw, tree + node * size)
        length = struct.unpack_from(">H", raw, names + name_at)[0]
        start = names + name_at + 6
        name = raw[start : start + 2 * length].decode("utf-16-be") if node else ""
        path = f"{folder}/{name}" if folder else name
        if flags & 2:
            count, first = struct.unpack_from(">II", raw, tree + node * size + 6)
            for child in range(first, first + count):
                walk(child, path)
        elif not flags & 4:
            at = data + struct.unpack_from(">I", raw, tree + node * size + 10)[0]
            body = raw[at + 4 : at + 4 + struct.unpack_from(">I", raw, at)[0]]
            # A compressed body starts with its plain length in four bytes.
            found[path] = zlib.decompress(body[4:]) if flags & 1 else body

    walk(0, "")
    return found


def _stanzas(root: pathlib.Path, package: str) -> list[tuple[list[re.Pattern], str, str]]:
    """Reads a machine-readable copyright file: (file patterns, licence, authors) in its order."""
    text = (root / "usr/share/doc" / package / "copyright").read_text(errors="replace")
    found = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, list[str]] = {}
        name = ""
        for line in paragraph.splitlines():
            if match := re.match(r"([A-Za-z-]+):\s*(.*)", line):
                name = match[1].lower()
                fields[name] = [match[2].strip()]
            elif name and line[:1].isspace():
                fields[name].append(line.strip())
        if "files" in fields and "license" in fields:
            patterns = " ".join(fields["files"]).replace(",", " ").split()
            authors = "; ".join(part for part in fields.get("copyright", []) if part)
            found.append(([_glob(p) for p in patterns], fields["license"][0], authors))
    return found


def _glob(pattern: str) -> re.Pattern:
    """In a copyright file `*` also matches slashes, `?` any one character; no brackets."""
    parts = {"*": ".*", "?": "."}
    return re.compile("".join(parts.get(c) or re.escape(c) for c in pattern), re.DOTALL)


def _entry(stanzas: list, source: str) -> tuple[str, str] | None:
    """The last stanza that matches a file is the one that holds for it."""
    names = [source]
    if source.endswith(".webp"):
        # GCompris became smaller by storing its images anew, its copyright file kept their names.
        names += [source.removesuffix(".webp") + ending for ending in (".jpg", ".jpeg", ".png")]
    for patterns, licence, authors in reversed(stanzas):
        if any(pattern.fullmatch(name) for pattern in patterns for name in names):
            return licence, authors
    return None

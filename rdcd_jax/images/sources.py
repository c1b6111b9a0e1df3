"""Where images come from, files or records, as a fixed list of ids and paths."""

import dataclasses
import glob
import importlib.resources
import io
import os
import pathlib
import stat
from collections.abc import Iterable, Mapping
from typing import Protocol

from PIL import Image

from rdcd_jax.core.errors import UnreadableImageError, UserError
from rdcd_jax.core.files import is_address, read_lines
from rdcd_jax.images.archives import MOST_BYTES, is_archive, list_archive
from rdcd_jax.images.decode import decode_rgb, size_of, upright_rgb
from rdcd_jax.images.folders import PLUGINS, is_image_name, list_folder
from rdcd_jax.images.naming import escaped, ids_of
from rdcd_jax.images.records import ids_sha256, is_shard, list_shards, list_tfds, require_all_shards
from rdcd_jax.images.remote import fetched
from rdcd_jax.images.seen import is_blank

# Before the name of a data set of tensorflow-datasets.
TFDS = "tfds:"
# Images inside the package, by these names instead of a folder's.
BUNDLED = ("sample:train", "sample:references", "sample:queries")
# Of a list, names of which one must be a file's.
_LOOKED_UP = 20


class Reader(Protocol):
    """Gives the bytes of the image behind a path.

    Attributes:
        kind: what the images lie in, one word.
        content: hex digest of it.
    """

    kind: str
    content: str

    def __call__(self, path: str) -> bytes:
        """The bytes of the image at `path`."""


@dataclasses.dataclass(frozen=True)
class SeveralReader:
    """Reads images of several sources, some of which are archives or records.

    Attributes:
        of: what reads each path that is no file's.
        content: hex digest of theirs.
    """

    of: Mapping[str, Reader]
    content: str
    kind = "several sources"

    def __call__(self, path: str) -> bytes:
        """The bytes of the image at `path`."""
        return self.of[path](path)


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order: entry i of `ids` names the image at entry i of `paths`.

    It can be pickled, for processes that read: files and shards are opened where an image is first asked for.

    Attributes:
        source: what the set was made from, for messages.
        ids: N different names.
        paths: N paths of files; where there is a reader, names that it reads by, which tell people as much.
        reader: reads what lies in records or archives; None for files.
        in_memory: images that are there already, by their paths.
        others: paths of a folder's files that are not images by their names.
        closed: folders below a folder that cannot be opened.
        sources: what `given.images_of` was given, without what is in memory.
        by_path: whether ids are paths, not names, see `find_images`.
        as_seen: decodes what people see, not as the papers' protocols do; see `decode.decode_rgb`.
    """

    source: str
    ids: tuple[str, ...]
    paths: tuple[str, ...]
    reader: Reader | None = None
    in_memory: Mapping[str, Image.Image] = dataclasses.field(default_factory=dict)
    others: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    by_path: bool = False
    as_seen: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, position: int) -> bytes:
        """The image at a position as it is stored, not decoded; as PNG where it is in memory.

        Raises:
            UnreadableImageError: there is no such file, or its record is damaged.
            UserError: a whole shard is gone or damaged.
        """
        path = self.paths[position]
        if (held := self.in_memory.get(path)) is not None:
            buffer = io.BytesIO()
            upright_rgb(path, held, self.as_seen).save(buffer, "PNG")
            return buffer.getvalue()
        if not self.is_file(position):
            return self.reader(path)
        try:
            there = os.stat(path)
            is_file = stat.S_ISREG(there.st_mode)
            if is_file and there.st_size <= MOST_BYTES:
                return pathlib.Path(path).read_bytes()
        except FileNotFoundError:
            raise UnreadableImageError(f"{path}: there is no such image file.") from None
        except (OSError, ValueError) as error:
            raise UnreadableImageError(f"{path}: cannot be read ({error}).") from error
        if is_file:
            raise UnreadableImageError(f"{path}: is larger than {MOST_BYTES >> 20} MiB.")
        raise UnreadableImageError(f"{path}: not a file but a folder, pipe or device.")

    def decode(self, position: int, *, min_side_hint: int | None = None) -> Image.Image:
        """The image at a position, upright and RGB.

        Args:
            position: 0 to N - 1.
            min_side_hint: see `decode.decode_rgb`.

        Raises:
            UnreadableImageError: see `decode.decode_rgb` and `read`; or it is blank, of a set `as_seen`.
            UserError: a whole shard is gone or damaged.
        """
        path = self.paths[position]
        if (held := self.in_memory.get(path)) is not None:
            image = upright_rgb(path, held, self.as_seen)
        else:
            content = None if self.is_file(position) else self.read(position)
            image = decode_rgb(
                path, min_side_hint=min_side_hint, content=content, as_seen=self.as_seen
            )
        if self.as_seen and is_blank(image):
            raise UnreadableImageError(f"{path}: is of one colour, so there is nothing to compare.")
        return image

    def is_file(self, position: int) -> bool:
        """Whether an image is a file of its own, not in an archive, in records or in memory."""
        path, reader = self.paths[position], self.reader
        if isinstance(reader, SeveralReader):
            return path not in reader.of and path not in self.in_memory
        return reader is None and path not in self.in_memory

    def seen(self) -> "ImageSet":
        """The same images, decoded as people see them."""
        return dataclasses.replace(self, as_seen=True)

    def subset(self, positions: Iterable[int]) -> "ImageSet":
        """The images at some positions, in that order.

        It knows of these alone: processes get one subset after another.
        """
        positions = list(positions)
        paths = tuple(self.paths[position] for position in positions)
        reader = self.reader
        if isinstance(reader, SeveralReader):
            of = {path: reader.of[path] for path in paths if path in reader.of}
            reader = dataclasses.replace(reader, of=of)
        return dataclasses.replace(
            self,
            ids=tuple(self.ids[position] for position in positions),
            paths=paths,
            reader=reader,
            in_memory={path: self.in_memory[path] for path in paths if path in self.in_memory},
            others=(),
            closed=(),
        )

    def fingerprint(self) -> dict[str, str | int]:
        """What tells this set from another, as JSON values: kind, count, digest of the ids, digest of the records."""
        found = {"kind": "files", "pictures": len(self), "ids": ids_sha256(self.ids)}
        if self.reader is not None:
            found |= {"kind": self.reader.kind, "records": self.reader.content}
        return found


_CHANGES = {
    "kind": "they lay in {before}, and now lie in {now}",
    "pictures": "there were {before} images, and now there are {now}",
    "ids": "the {count} images have other ids, or stand in another order",
    "records": "the {count} images have the same ids, but their records ({kind}) hold other content",
}


def changed(before: dict, now: dict) -> str:
    """What is another about a set of images, in words for people.

    Args:
        before: a fingerprint that was kept.
        now: the set's `ImageSet.fingerprint`.

    Returns:
        A clause, or nothing where no field that both have differs.
    """
    for name, stored in _CHANGES.items():
        if name in before and name in now and before[name] != now[name]:
            count, kind = now.get("pictures"), now.get("kind")
            return stored.format(before=before[name], now=now[name], count=count, kind=kind)
    return ""


def find_images(source: str | os.PathLike, *, ids: str = "name") -> ImageSet:
    """Lists the images of `source` without opening them.

    Args:
        source: one of
            - a folder, searched recursively for the usual image extensions (hidden files and folders are left out,
              links are followed);
            - an image;
            - a text file (UTF-8) with one path a line, absolute or relative to the text file's folder;
            - a .zip or .tar of such images, which is read without unpacking it;
            - the folder that `rdcd-jax data pack` wrote, one of its shards, or several as a pattern with * or ?;
            - the address of such a folder in a bucket (gs://BUCKET/FOLDER, s3://...), which is copied to the cache;
            - tfds:NAME/SPLIT, a prepared data set of tensorflow-datasets, see `records.list_tfds`;
            - one of `BUNDLED`.
        ids: "name" makes the file name without its extension the id; "path" the path below the
            folder (or as the text file writes it), extension included. Records carry their ids.

    Returns:
        The images, sorted by path for a folder, in the order written for a text file or records.

    Raises:
        UserError: the source is missing, of another kind or empty, or two images share an id.
    """
    return called(listed(source), ids)


def called(found: ImageSet, ids: str) -> ImageSet:
    """A set that `listed` gave, with ids of a kind; see `find_images` for both and what is raised."""
    if ids not in ("name", "path"):
        raise UserError(f"ids={ids!r} is not known: use 'name' or 'path'.")
    if not len(found):
        raise UserError(no_images(found))
    if found.reader is not None and found.reader.kind != "archive":
        return found
    return dataclasses.replace(found, ids=ids_of(found.ids, by_path=ids == "path"))


def listed(source: str | os.PathLike) -> ImageSet:
    """As `find_images`, but ids are the paths below the folder (or as a list has them), which may repeat; those of
    records are theirs. It may hold no image."""
    text = os.fspath(source)
    if not text:
        # As a path it would be the current folder: all of it, where a script's variable was not set.
        raise UserError(
            "The source of images is empty; name one, such as . for the current folder."
        )
    if text.startswith(TFDS):
        return _record_set(text, *list_tfds(text))
    if is_address(text):
        return dataclasses.replace(_of_folder(text, fetched(text)), source=text)
    if text in BUNDLED:
        text = str(importlib.resources.files("rdcd_jax") / "sample" / text.partition(":")[2])
    root = pathlib.Path(text)
    # Unlike a path's own methods these take whatever text for the name of nothing.
    if os.path.isdir(text):
        return _of_folder(text, root)
    if ".array_record" in root.name and (found := _matching(text)):
        return _record_set(text, *list_shards(found))
    if not os.path.isfile(text):
        raise UserError(
            f"{escaped(text)}: there is no such folder or text file of image paths, nor an archive or records; the"
            f" bundled images are {', '.join(BUNDLED)}."
        )
    if is_archive(text):
        return _of_archive(text)
    # An image is known by its content, however it is called.
    is_image = is_image_name(root.name) or size_of(text) is not None
    if not is_image and (plugin := PLUGINS.get(root.suffix.lower())):
        raise UserError(f"{escaped(text)}: `pip install {plugin}` lets such images be read.")
    names = [root.name] if is_image else _names_listed(root)
    return ImageSet(text, tuple(names), tuple(os.path.join(root.parent, name) for name in names))


def no_images(found: ImageSet) -> str:
    """Says that a source holds none."""
    return (
        f"{escaped(found.source)}: no images found; it should hold files such as .jpg, .png or .webp (or, as a text"
        " file, one path a line)."
    )


def _of_folder(text: str, root: pathlib.Path) -> ImageSet:
    found = list_folder(root, lambda name: is_image_name(name) or is_shard(name))
    paths, others, closed = (
        tuple(os.path.join(root, name) for name in names)
        for names in (found.images, found.others, found.closed)
    )
    shards = [path for path in paths if is_shard(os.path.basename(path))]
    if shards and len(shards) < len(paths):
        loose = next(name for name in found.images if not is_shard(os.path.basename(name)))
        raise UserError(
            f"{text} holds shards of records ({os.path.basename(shards[0])}) and loose images ({loose}); give a"
            " folder with one of the two."
        )
    if shards:
        require_all_shards(text, shards)
        return _record_set(text, *list_shards(shards))
    return ImageSet(text, found.images, paths, others=others, closed=closed)


def _of_archive(text: str) -> ImageSet:
    members, astray, reader = list_archive(text)
    names = [name for name in members if is_image_name(name)]
    others = [name for name in members if not is_image_name(name)]
    paths, others, closed = (
        tuple(f"{text}:{name}" for name in each) for each in (names, others, astray)
    )
    # As `tar -C FOLDER .` writes them, and as they are called in the folder.
    ids = tuple(name.removeprefix("./") for name in names)
    return ImageSet(text, ids, paths, reader, others=others, closed=closed)


def _matching(text: str) -> list[str]:
    """The shard of that path, or all that the pattern matches."""
    found = [text] if os.path.isfile(text) else sorted(glob.glob(text))
    return [path for path in found if is_shard(os.path.basename(path))]


def _record_set(text: str, ids: list[str], paths: list[str], reader: Reader) -> ImageSet:
    if not ids:
        raise UserError(f"{text}: the records hold no images.")
    owner: dict[str, str] = {}
    for id_, path in zip(ids, paths, strict=True):
        if owner.setdefault(id_, path) != path:
            raise UserError(
                f"{text}: two images have the id {id_!r}: {owner[id_]} and {path}; give one of the shards only."
            )
    return ImageSet(text, tuple(ids), tuple(paths), reader)


def _names_listed(path: pathlib.Path) -> list[str]:
    """The paths in the text file `path`."""
    names = read_lines(path, "neither a folder nor a text file (UTF-8) of image paths, one a line.")
    # Only the first few: a wrong base folder shows at once, and a million look-ups on a network disk would take
    # minutes. Some of them may be gone, which count as unreadable when their turn comes, as do those further down.
    if names and not any(os.path.isfile(path.parent / name) for name in names[:_LOOKED_UP]):
        raise UserError(
            f"{path} is taken for a list of image paths, and its first, {escaped(names[0][:200])}, is not a file;"
            f" paths are taken relative to {path.parent}."
        )
    return names

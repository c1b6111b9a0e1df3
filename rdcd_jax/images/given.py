"""Images as a caller has them: paths, sources, Pillow images, arrays, or a list of any of these."""

import contextlib
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import is_address, lasting_path
from rdcd_jax.images.naming import distinct, numbered
from rdcd_jax.images.passed_over import all_listed
from rdcd_jax.images.sources import (
    BUNDLED,
    TFDS,
    ImageSet,
    Reader,
    SeveralReader,
)

# Before the number that an image in memory is called by.
IN_MEMORY = "#"
Source = str | os.PathLike
Images = Source | Image.Image | np.ndarray | ImageSet | Sequence[Source | Image.Image | np.ndarray]


def images_of(images: Images, *, ids: str = "name") -> ImageSet:
    """The images as one set; a folder's files are known by their content where their names do not tell.

    Args:
        images: a source (see `find_images`), an RGB uint8 array [H, W, 3], a Pillow image, or a list of these and of
            paths. What is in memory is called `#0`, `#1`, ... by its position in the list.
        ids: "name" or "path", what files are called by, see `find_images`; equal names are made distinct, see
            `naming.distinct`.

    Raises:
        UserError: a source that cannot be listed or holds no image, or something else than an image; the list is empty.
    """
    if isinstance(images, ImageSet):
        return images
    single = isinstance(images, str | os.PathLike | Image.Image | np.ndarray)
    several = [images] if single else list(images)
    if not several:
        raise UserError("There are no images in the list given; name at least one.")
    sets = [
        all_listed(each)
        if isinstance(each, str | os.PathLike)
        else _held(each, f"{IN_MEMORY}{position}")
        for position, each in enumerate(several)
    ]
    joined = sets[0] if len(sets) == 1 else _joined(sets)
    given = tuple(each for each in several if isinstance(each, str | os.PathLike))
    by_path = ids == "path"
    return dataclasses.replace(
        joined,
        ids=_ids(joined, by_path=by_path),
        sources=tuple(map(lasting_source, given)),
        by_path=by_path,
    )


def lasting_source(source: Source) -> str:
    """A source's text as it means the same in any folder."""
    text = os.fspath(source)
    named = text in BUNDLED or text.startswith(TFDS) or is_address(text)
    return text if named else lasting_path(text)


def _held(image: object, name: str) -> ImageSet:
    return ImageSet(name, (name,), (name,), in_memory={name: _in_memory(image, name)})


def _joined(sets: Sequence[ImageSet]) -> ImageSet:
    """The images of several sets, one set after another."""
    readers: dict[str, Reader] = {}
    in_memory: dict[str, Image.Image] = {}
    for each in sets:
        if each.reader is not None:
            readers |= dict.fromkeys(each.paths, each.reader)
        in_memory |= each.in_memory
    reader = None
    if readers:
        content = sorted(each.reader.content for each in sets if each.reader is not None)
        reader = SeveralReader(readers, hashlib.sha256("".join(content).encode()).hexdigest())
    shown = [each.source for each in sets if not each.in_memory]
    ids, paths, others, closed = (
        tuple(itertools.chain.from_iterable(getattr(each, name) for each in sets))
        for name in ("ids", "paths", "others", "closed")
    )
    source = ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "") or "the images given"
    return ImageSet(source, ids, paths, reader, in_memory, others, closed)


def _ids(images: ImageSet, *, by_path: bool) -> tuple[str, ...]:
    """Short ids, or the paths below their folders, made distinct; what is given twice is numbered."""
    shorten = {
        path: name
        if by_path or _has_own_id(images, path)
        else os.path.splitext(os.path.basename(name))[0]
        for name, path in zip(images.ids, images.paths, strict=True)
    }
    places = [place_of(images, path, id_) for path, id_ in shorten.items()]
    id_of = dict(zip(shorten, distinct(list(shorten.values()), places), strict=True))
    return numbered([id_of[path] for path in images.paths])


def place_of(images: ImageSet, path: str, id_: str) -> str:
    """What tells an image of a set from others of its name: its path; of a record, its folder and its own name."""
    return os.path.join(os.path.dirname(path), id_) if is_record(images, path) else path


def _has_own_id(images: ImageSet, path: str) -> bool:
    """Whether an image is called by something else than where it lies: it is in records or in memory."""
    return path in images.in_memory or is_record(images, path)


def is_record(images: ImageSet, path: str) -> bool:
    """Whether the image at a path of a set lies in records, at a place where another may lie the next time."""
    reader = images.reader
    if isinstance(reader, SeveralReader):
        reader = reader.of.get(path)
    return reader is not None and reader.kind != "archive"


def _in_memory(image: object, name: str) -> Image.Image:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UserError(
                f"Image {name} is an array of type {image.dtype} and shape {list(image.shape)}; give uint8 [H, W, 3]."
            )
        return Image.fromarray(image)
    if isinstance(image, Image.Image):
        if not all(image.size):
            raise UserError(f"Image {name} has no pixels: it is {image.width} x {image.height}.")
        # A copy, for whoever goes on drawing on it; what becomes of transparency is decided where it is decoded, and
        # what is wrong with a damaged one, of which Pillow raises nearly anything, is said there.
        with contextlib.suppress(Exception):
            return image.copy()
        return image
    raise UserError(
        f"Image {name} is a {type(image).__name__}; give a path, a Pillow image or a uint8 array [H, W, 3]."
    )

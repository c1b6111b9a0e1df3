"""Images as a caller has them: paths, sources, Pillow images, arrays, or a list of any of these."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from rdcd_jax.core.errors import UserError
from rdcd_jax.images.sources import ImageSet, find_images

Source = str | os.PathLike
Images = Source | Image.Image | np.ndarray | ImageSet | Sequence[Source | Image.Image | np.ndarray]


def images_of(images: Images, *, ids: str = "name") -> ImageSet:
    """The images as one set.

    Args:
        images: a source (see `find_images`), an RGB uint8 array [H, W, 3], a Pillow image, or a list of these and of
            paths. What is in memory is called `#0`, `#1`, ... by its position in the list.
        ids: what files are called by, see `find_images`; where two of a list have one name, all go by their paths.

    Raises:
        UserError: a source that cannot be listed, or something else than an image; the list is empty.
    """
    if isinstance(images, ImageSet):
        return images
    if isinstance(images, str | os.PathLike):
        return find_images(images, ids=ids)
    several = [images] if isinstance(images, Image.Image | np.ndarray) else list(images)
    if not several:
        raise UserError("There are no images in the list given; name at least one.")
    if len(several) == 1 and isinstance(several[0], str | os.PathLike):
        return find_images(several[0], ids=ids)
    in_memory: dict[str, Image.Image] = {}
    names: list[str] = []
    paths: list[str] = []
    for position, each in enumerate(several):
        if isinstance(each, str | os.PathLike):
            found = find_images(each, ids=ids)
            if found.reader is not None:
                raise UserError(f"{found.source}: is an archive or records; give it alone.")
            names += found.ids
            paths += found.paths
        else:
            name = f"#{position}"
            in_memory[name] = _in_memory(each, name)
            names.append(name)
            paths.append(name)
    return ImageSet(_named(several), distinct(names, paths), tuple(paths), in_memory=in_memory)


def distinct(names: Sequence[str], paths: Sequence[str]) -> tuple[str, ...]:
    """The names, or where two are equal the paths; what is given twice is numbered."""
    if len(set(names)) < len(names):
        names = paths
    seen: Mapping[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(result)


def _in_memory(image: object, name: str) -> Image.Image:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UserError(
                f"Image {name} is an array of type {image.dtype} and shape {list(image.shape)}; give uint8 [H, W, 3]."
            )
        return Image.fromarray(image)
    if isinstance(image, Image.Image):
        # A copy, for whoever goes on drawing on it; what becomes of transparency is decided where it is decoded.
        return image.copy()
    raise UserError(
        f"Image {name} is a {type(image).__name__}; give a path, a Pillow image or a uint8 array [H, W, 3]."
    )


def _named(several: Sequence[object]) -> str:
    sources = [os.fspath(each) for each in several if isinstance(each, str | os.PathLike)]
    return ", ".join(sources[:3]) + (", ..." if len(sources) > 3 else "") or "the images given"

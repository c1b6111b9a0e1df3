"""The images that are compared for duplicates: embedded now, or an index's."""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import cache_folder
from rdcd_jax.embedding.descriptors import read_descriptors
from rdcd_jax.embedding.parts import ROWS
from rdcd_jax.embedding.service import embed_to_file
from rdcd_jax.embedding.stream import Part, Unreadable, embed_images
from rdcd_jax.images.given import Images, images_of
from rdcd_jax.images.links import each_once
from rdcd_jax.images.lookup import image_at
from rdcd_jax.images.seen import SIDE, ink_of
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.index.places import CHANGED, HEIGHT, WIDTH, sizes, stamps
from rdcd_jax.index.search import Index, Progress
from rdcd_jax.weights.model import Model
from rdcd_jax.weights.onnx_model import OnnxModel

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Compared:
    """Embedded images, and what is known of their files.

    Attributes:
        ids: N.
        paths: N, where they lie.
        descriptors: [N, D] float32.
        unreadable: images that were left out.
        count: how many there are, these included.
        files: gives of some positions [n, 4] int64, see `places.stamps` and `places.sizes`.
        ink: gives what is drawn on the image at one of the paths, see `seen.ink_of`.
    """

    ids: Sequence[str]
    paths: Sequence[str]
    descriptors: np.ndarray
    unreadable: list[Unreadable]
    count: int
    files: Callable[[Sequence[int]], np.ndarray]
    ink: Callable[[str], np.ndarray | None]


def _positions_outside(
    paths: Sequence[str], folder: str | os.PathLike | None, name: str
) -> list[int]:
    """Where the images lie that are not in a folder, which are said to be left out."""
    if folder is None:
        return list(range(len(paths)))
    inside = tuple({os.path.abspath(folder) + os.sep, os.path.realpath(folder) + os.sep})
    kept = [i for i, path in enumerate(paths) if not os.path.abspath(path).startswith(inside)]
    if not kept and paths:
        raise UserError(
            f"All images of {name} lie in {folder}, where what is moved away belongs; name another folder for that."
        )
    if len(kept) < len(paths):
        _log.warning("%s: the %d images in %s are left out.", name, len(paths) - len(kept), folder)
    return kept


def outside(images: ImageSet, folder: str | os.PathLike | None) -> ImageSet:
    """The images that do not lie in a folder, of which the others are said to be left out; all for None.

    Raises:
        UserError: all lie in it.
    """
    kept = _positions_outside(images.paths, folder, images.source)
    return images if len(kept) == len(images) else images.subset(kept)


def of_index(index: Index, leave_out: str | os.PathLike | None) -> Compared:
    """An index's images, those in a folder left out as by `outside`.

    Raises:
        UserError: the index is empty, or see `outside`.
    """
    found = index.contents()
    if not found.ids:
        raise UserError(f"{index.folder} is empty; add images to it first.")
    kept = _positions_outside(found.paths, leave_out, str(index.folder))
    whole = len(kept) == len(found.ids)
    return Compared(
        found.ids if whole else [found.ids[i] for i in kept],
        found.paths if whole else [found.paths[i] for i in kept],
        found.rows if whole else found.rows[kept],
        [],
        len(kept),
        lambda positions: found.files[[kept[i] for i in positions]],
        # As large as of images that are given, so that the same page has the same ink.
        lambda path: _ink(lambda: image_at(path).seen().decode(0, min_side_hint=SIDE)),
    )


def of_images(
    embedder: Model | OnnxModel, images: Images, on_progress: Progress | None
) -> Compared:
    """Images that are embedded now, each once, as people see them."""
    images = each_once(images_of(images)).seen()
    found, unreadable = _embedded(embedder, images, on_progress)
    position_of = {name: position for position, name in enumerate(images.ids)}
    ids = found.ids.tolist()
    places = [position_of[name] for name in ids]

    def files(positions: Sequence[int]) -> np.ndarray:
        rows = [places[i] for i in positions]
        known = stamps(images, rows)
        known[:, [WIDTH, HEIGHT]] = sizes(images, rows)
        # What lies in no file of its own has a checksum there.
        known[[not images.is_file(row) for row in rows], CHANGED] = 0
        return known

    paths = [images.paths[i] for i in places]
    position_at = {path: position for position, path in enumerate(images.paths)}

    def ink(path: str) -> np.ndarray | None:
        return _ink(lambda: images.decode(position_at[path], min_side_hint=SIDE))

    return Compared(ids, paths, found.descriptors, unreadable, len(images), files, ink)


def _ink(decode: Callable[[], Image.Image]) -> np.ndarray | None:
    """What is drawn on an image; None where it is not to be had any more."""
    try:
        return ink_of(decode())
    except (UserError, OSError):
        return None


def _embedded(embedder: Model | OnnxModel, images: ImageSet, on_progress: Progress | None) -> Part:
    """The images' descriptors; many of them through a file in the cache folder, so that who is killed goes on."""
    if len(images) <= ROWS or images.in_memory:
        return embed_images(embedder, images, on_progress=on_progress)
    size = [embedder.image_size, embedder.short_edge, images.as_seen]
    key = json.dumps(
        [embedder.fingerprint, embedder.engine, size, images.fingerprint(), images.paths]
    )
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    path = cache_folder() / "duplicates" / f"{digest}.npz"
    # It tells of the user's images until the work is done.
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Of a call that was killed at its end.
    path.unlink(missing_ok=True)
    done = embed_to_file(
        embedder,
        images,
        path,
        on_progress=None if on_progress is None else lambda _, *count: on_progress(*count),
        process=(0, 1),
    )
    found = read_descriptors(path)
    for leftover in (path, pathlib.Path(f"{path}.unreadable.txt")):
        leftover.unlink(missing_ok=True)
    return Part(found, done.unreadable)

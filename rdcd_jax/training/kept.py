"""Images for views that are made on the device: squashed to squares of one size, and perhaps decoded only once."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable

import numpy as np
from PIL import Image

from rdcd_jax.core.errors import UnreadableImageError, UserError
from rdcd_jax.core.workers import mapped_ahead
from rdcd_jax.images.decode import resize_square
from rdcd_jax.images.sources import ImageSet

# Of the machine's memory; the rest is the training's.
_MOST_MEMORY = 0.6
# Images that are decoded ahead of the progress reported.
_AHEAD = 64


@dataclasses.dataclass(frozen=True)
class Squash:
    """Squashes an image to a square; a class so that it can be pickled.

    Attributes:
        size: side T in pixels.
    """

    size: int

    @property
    def useful_side(self) -> int:
        """Short side in pixels from which on an image need not be larger."""
        return self.size

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> dict:
        """Gives "image" [T, T, 3] uint8 and "aspect", the true width / height."""
        pixels = np.asarray(resize_square(image, self.size))
        return {"image": pixels, "aspect": np.float32(image.width / image.height)}


@dataclasses.dataclass(frozen=True)
class Kept:
    """All images of a set, decoded and squashed, in memory.

    Attributes:
        pixels: [N, T, T, 3] uint8.
        aspects: [N] float32, true width / height.
        shown: [N] int64, the position whose image stands at each: its own, or, where that cannot be read, the next that
            can.
        on_device: whether the images are to lie there, so that a batch need only say which it shows.
    """

    pixels: np.ndarray
    aspects: np.ndarray
    shown: np.ndarray
    on_device: bool

    def __call__(self, position: int, rng: np.random.Generator | None = None) -> dict:
        """What a batch holds of the image at a position, see `pipeline.make_batches`."""
        shown = self.shown[position]
        unreadable = np.int64(-1 if shown == position else position)
        found = {"index": shown, "unreadable": unreadable}
        if not self.on_device:
            found |= {"image": self.pixels[position], "aspect": self.aspects[position]}
        return found


def keep_images(
    images: ImageSet,
    size: int,
    *,
    on_device: bool,
    on_progress: Callable[[int, int], None] | None = None,
) -> Kept:
    """Decodes a whole set.

    Args:
        images: N images.
        size: side T to squash them to.
        on_device: see `Kept`.
        on_progress: called with how many are done, and of how many.

    Raises:
        UserError: they do not fit into memory, or none can be read.
    """
    needed = len(images) * size * size * 3
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > _MOST_MEMORY * there:
        raise UserError(
            f"{images.source}: {len(images)} images of {size} x {size} take {needed / 1e9:.1f} GB, too much for this"
            f" machine's {there / 1e9:.1f}; set config.data.keep to '', or config.data.source_size lower."
        )
    squash = Squash(size)
    pixels = np.zeros((len(images), size, size, 3), np.uint8)
    aspects = np.ones(len(images), np.float32)
    readable = np.ones(len(images), bool)

    def decode(position: int) -> None:
        try:
            found = squash(images.decode(position, min_side_hint=size))
        except UnreadableImageError:
            readable[position] = False
        else:
            pixels[position], aspects[position] = found["image"], found["aspect"]

    # Pillow lets other threads run while it decodes.
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    positions = range(len(images))
    for done, _ in enumerate(mapped_ahead(pool, decode, positions, _AHEAD), start=1):
        if on_progress:
            on_progress(done, len(images))
    good = np.flatnonzero(readable)
    if not len(good):
        raise UserError(f"{images.source}: none of the {len(images)} images can be read.")
    shown = good[np.searchsorted(good, np.arange(len(images))) % len(good)]
    pixels[~readable], aspects[~readable] = pixels[shown[~readable]], aspects[shown[~readable]]
    return Kept(pixels, aspects, shown, on_device)

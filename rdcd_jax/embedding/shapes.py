"""The shapes that images are embedded in, and batches of one shape each. Numpy and Pillow only."""

from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from rdcd_jax.images.decode import resize_square

# The long edge is the short one and a multiple of so many pixels; of twice as many from a short edge of 432 on, of
# three times as many from 720 on, and so forth.
STEP = 32
_OF = 288
# A longer image is squeezed to this: so there are 37 shapes at 288 pixels, and at most 53 at any size.
MOST_ASPECT = 3
# Batches' worth of images that wait for others of their shape.
_MOST_WAITING = 8


def rounded_shape(size: tuple[int, int], short: int) -> tuple[int, int]:
    """The shape that an image is resized to by its short edge.

    Args:
        size: the image's width and height.
        short: S, what the short edge becomes.

    Returns:
        Width and height: one is S; the other S and the number of whole steps that is nearest to the image's aspect,
        at most `MOST_ASPECT` times S.

    Differs: the reference's long edge is int(S * long / short), and it embeds images one by one. A network is
    compiled for every shape, so here there are few. At 288 pixels an edge is at most 5.3 % off.
    """
    step = STEP * max(1, (short + _OF // 2) // _OF)
    low, high = min(size), max(size)
    steps = (2 * short * (high - low) + low * step) // (2 * low * step)
    long = short + step * min(steps, (MOST_ASPECT - 1) * short // step)
    return (short, long) if size[0] <= size[1] else (long, short)


def resized(image: Image.Image, size: int, short_edge: bool) -> np.ndarray:
    """An image as a model takes it.

    Args:
        image: RGB.
        size: S in pixels.
        short_edge: resizes to `rounded_shape`; else to S x S, whatever the aspect.

    Returns:
        [H, W, 3] uint8.
    """
    if short_edge:
        shape = rounded_shape(image.size, size)
        return np.asarray(image.resize(shape, Image.Resampling.BILINEAR))
    return np.asarray(resize_square(image, size))


def batches(
    images: Iterable[tuple[int, np.ndarray]], batch_size: int, least: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Gathers images of one shape into batches of two sizes, so that few programs are compiled.

    Args:
        images: each with its position, in any shapes.
        batch_size: B.
        least: size of the batches that take what is left of a shape, filled up with black.

    Yields:
        The positions of n images, and [B or least, H, W, 3] uint8, of which the first n are those. Batches are full
        until the end, or until the images that wait would fill `_MOST_WAITING` batches: then those of the most
        frequent shape wait no longer.
    """
    waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    count = 0
    for position, image in images:
        shape = image.shape
        waiting.setdefault(shape, []).append((position, image))
        count += 1
        full = len(waiting[shape]) == batch_size
        if full or count == _MOST_WAITING * batch_size:
            shape = shape if full else max(waiting, key=lambda each: len(waiting[each]))
            bucket = waiting.pop(shape)
            count -= len(bucket)
            yield from _filled(bucket, batch_size, least)
    for bucket in waiting.values():
        yield from _filled(bucket, batch_size, least)


def _filled(
    bucket: list[tuple[int, np.ndarray]], batch_size: int, least: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """At most B images of one shape: as one whole batch where smaller ones would be as much work."""
    size = batch_size if len(bucket) > batch_size - least else least
    for start in range(0, len(bucket), size):
        positions, images = zip(*bucket[start : start + size], strict=True)
        batch = np.zeros((size, *images[0].shape), np.uint8)
        batch[: len(images)] = images
        yield list(positions), batch

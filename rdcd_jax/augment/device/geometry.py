"""Flips, rotations, antialiased crops and overlays' placement, each image with parameters of its own.

Images are float32 levels 0..255, [B, H, W, 3]. They may be squashed: `aspect` [B] is the true width / height, and
turns are made in true coordinates.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def hflip(images: jax.Array) -> jax.Array:
    """Mirrors left and right."""
    return images[:, :, ::-1]


def rotate(images: jax.Array, aspect: jax.Array, degrees: jax.Array) -> jax.Array:
    """Turns counter-clockwise about the centre; the frame stays, so what it gains is black.

    Args:
        images: [B, H, W, 3].
        aspect: [B].
        degrees: [B].

    Returns:
        [B, H, W, 3], bilinear, whole levels.

    Source: Pillow's `Image.rotate` without `expand`.
    """
    height, width = images.shape[1:3]
    radians = jnp.deg2rad(degrees)[:, None, None]
    cosine, sine = jnp.cos(radians), jnp.sin(radians)
    wide = aspect[:, None, None]
    # From the centre, in units of the true height.
    x = (_centres(width) / width - 0.5)[None, None, :] * wide
    y = (_centres(height) / height - 0.5)[None, :, None]
    from_x = ((cosine * x - sine * y) / wide + 0.5) * width
    from_y = (sine * x + cosine * y + 0.5) * height
    # A hair of slack: at right angles the border's pixels fall on the edge itself.
    slack = 1e-3
    inside = (
        (from_x > -slack) & (from_x < width + slack) & (from_y > -slack) & (from_y < height + slack)
    )
    return jnp.where(inside[..., None], jnp.round(_bilinear(images, from_x, from_y)), 0.0)


def _centres(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.float32) + 0.5


def _bilinear(images: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Values at [B, H, W] positions in pixels, (0.5, 0.5) being the first pixel's centre."""
    height, width = images.shape[1:3]
    x, y = x - 0.5, y - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    right_part, low_part = (x - left)[..., None], (y - top)[..., None]

    def row(at):
        def pixel(image, row, column):
            return image[row, column]

        rows = jnp.clip(at, 0, height - 1).astype(jnp.int32)
        first = jnp.clip(left, 0, width - 1).astype(jnp.int32)
        second = jnp.clip(left + 1, 0, width - 1).astype(jnp.int32)
        pick = jax.vmap(pixel)
        return (
            pick(images, rows, first) * (1 - right_part) + pick(images, rows, second) * right_part
        )

    return row(top) * (1 - low_part) + row(top + 1) * low_part


def resampling(out: int, source: int, start: jax.Array, length: jax.Array) -> jax.Array:
    """Weights of the antialiased bilinear resize of a stretch of `source` pixels onto `out` pixels.

    Args:
        out: pixels of the result.
        source: pixels there are.
        start: [B], where the stretch begins, in source pixels; may lie outside them.
        length: [B], of the stretch, above 0.

    Returns:
        [B, out, source]: rows sum to 1, or to 0 where the result's pixel falls outside the source. No pixel whose
        centre lies outside the stretch takes part.

    Source: Pillow's `resize` with BILINEAR, a triangle as wide as a result's pixel, or as a source's if that is wider.
    """
    step = (length / out)[:, None, None]
    start = start[:, None, None]
    centre = start + _centres(out)[None, :, None] * step
    pixel = _centres(source)[None, None, :]
    weights = jnp.maximum(1 - jnp.abs(pixel - centre) / jnp.maximum(step, 1.0), 0.0)
    inside = (pixel > start) & (pixel < start + length[:, None, None])
    weights = jnp.where(inside, weights, 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    # A stretch narrower than a pixel may hold no centre: then the nearest pixel is taken.
    nearest = jnp.clip(jnp.floor(centre), 0, source - 1) == jnp.floor(pixel)
    weights = jnp.where(
        total > 0, weights / jnp.where(total > 0, total, 1.0), jnp.where(nearest, 1.0, 0.0)
    )
    return jnp.where((centre > 0) & (centre < source), weights, 0.0)


def resize(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Applies `resampling` weights [B, out, H] and [B, out, W] to [B, H, W, C]: columns first, as Pillow does."""
    images = jnp.einsum("bow,bhwc->bhoc", columns, images)
    return jnp.einsum("boh,bhwc->bowc", rows, images)


def resized_crop(images: jax.Array, box: jax.Array, size: int) -> jax.Array:
    """Cuts out and resizes (bilinear, antialiased).

    Args:
        images: [B, H, W, 3].
        box: [B, 4], left, top, width and height as fractions of the image's.
        size: side of the result.

    Returns:
        [B, size, size, 3], whole levels.
    """
    height, width = images.shape[1:3]
    rows = resampling(size, height, box[:, 1] * height, box[:, 3] * height)
    columns = resampling(size, width, box[:, 0] * width, box[:, 2] * width)
    return jnp.round(resize(images, rows, columns))


def frame(images: jax.Array, box: jax.Array, colour: jax.Array) -> jax.Array:
    """Reduces each image to a box of its own frame, and fills the rest with one colour.

    Args:
        images: [B, H, W, 3].
        box: [B, 4], left, top, width and height as fractions of the image's.
        colour: [B, 3], levels.

    Returns:
        [B, H, W, 3], bilinear and antialiased, whole levels.
    """
    height, width = images.shape[1:3]
    left, top, across, down = box.T
    # The frame as seen from the box: a stretch that begins before the image and ends behind it.
    rows = resampling(height, height, -top / down * height, height / down)
    columns = resampling(width, width, -left / across * width, width / across)
    inside = (jnp.sum(rows, -1) > 0)[:, :, None] & (jnp.sum(columns, -1) > 0)[:, None, :]
    reduced = jnp.round(resize(images, rows, columns))
    return jnp.where(inside[..., None], reduced, colour[:, None, None])


def crop_box(
    key: jax.Array, aspect: jax.Array, scale: tuple[float, float], ratio: tuple[float, float]
) -> jax.Array:
    """Draws the regions of random resized crops.

    Args:
        key: one key.
        aspect: [B].
        scale: least and greatest area, as a fraction of the image's, drawn uniformly.
        ratio: least and greatest true width / height, drawn uniformly in the logarithm.

    Returns:
        [B, 4], left, top, width and height as fractions. The first of ten draws that fits; else the largest centred
        region within `ratio`.

    Source: torchvision's RandomResizedCrop.
    """
    area_key, ratio_key, position_key = jax.random.split(key, 3)
    draws = (len(aspect), 10)
    area = jax.random.uniform(area_key, draws, minval=scale[0], maxval=scale[1])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = jnp.exp(jax.random.uniform(ratio_key, draws, minval=low, maxval=high))
    wide = aspect[:, None]
    width, height = jnp.sqrt(area * shape / wide), jnp.sqrt(area * wide / shape)
    fits = (width <= 1) & (height <= 1)
    first = jnp.argmax(fits, axis=1, keepdims=True)
    width, height = (jnp.take_along_axis(x, first, axis=1)[:, 0] for x in (width, height))
    free = jax.random.uniform(position_key, (len(aspect), 2))
    left, top = free[:, 0] * (1 - width), free[:, 1] * (1 - height)
    drawn = jnp.stack([left, top, width, height], axis=1)
    width = jnp.minimum(1.0, ratio[1] / aspect)
    height = jnp.minimum(1.0, aspect / ratio[0])
    centred = jnp.stack([(1 - width) / 2, (1 - height) / 2, width, height], axis=1)
    return jnp.where(jnp.any(fits, axis=1, keepdims=True), drawn, centred)

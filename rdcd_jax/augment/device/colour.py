"""Colour changes and blur of [B, H, W, 3] float32 levels 0..255, each image with parameters of its own."""

import jax
import jax.numpy as jnp
import numpy as np

# Luma weights in 65536ths, as Pillow's conversion to grey rounds them.
_LUMA = (19595, 38470, 7471)


def grey_levels(images: jax.Array) -> jax.Array:
    """Luma of each pixel, [B, H, W, 1], rounded (ITU-R BT.601)."""
    luma = sum(images[..., i] * weight for i, weight in enumerate(_LUMA))
    return jnp.floor(luma / 65536 + 0.5)[..., None]


def grey(images: jax.Array) -> jax.Array:
    """Removes colour; the images keep three (equal) channels."""
    return jnp.broadcast_to(grey_levels(images), images.shape)


def brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies every value; factor [B]: 0 gives black, 1 the image."""
    return _blend(jnp.zeros(()), images, factor)


def contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Moves every value away from the image's mean grey; factor [B]."""
    mean = jnp.mean(grey_levels(images), axis=(1, 2, 3), keepdims=True)
    return _blend(jnp.floor(mean + 0.5), images, factor)


def saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Moves every pixel away from its own grey; factor [B]."""
    return _blend(grey_levels(images), images, factor)


def _blend(base: jax.Array, images: jax.Array, factor: jax.Array) -> jax.Array:
    factor = factor[:, None, None, None]
    # Pillow cuts fractions off.
    return jnp.floor(jnp.clip(base + factor * (images - base), 0, 255))


def hue(images: jax.Array, turn: jax.Array) -> jax.Array:
    """Shifts the hue round its circle by `turn` [B], a fraction in [-0.5, 0.5], in 256 steps, rounded towards 0.

    Source: the HSV of whole levels that Pillow converts to and back from.
    """
    red, green, blue = (images[..., i] for i in range(3))
    top, bottom = jnp.max(images, axis=-1), jnp.min(images, axis=-1)
    spread = top - bottom
    safe = jnp.where(spread > 0, spread, 1.0)
    sixth = jnp.where(
        red == top,
        (green - blue) / safe,
        jnp.where(green == top, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    angle = jnp.where(spread > 0, jnp.floor((sixth / 6 % 1.0) * 255), 0.0)
    saturated = jnp.floor(spread / jnp.maximum(top, 1.0) * 255) / 255
    angle = (angle + jnp.trunc(turn * 255)[:, None, None]) % 256

    position = angle * (6 / 255)
    sector = jnp.floor(position)
    part = position - sector
    low = jnp.round(top * (1 - saturated))
    falling = jnp.round(top * (1 - saturated * part))
    rising = jnp.round(top * (1 - saturated * (1 - part)))
    sector = sector % 6
    # Which of the values each channel takes in each of the six sectors.
    choices = (
        (top, falling, low, low, rising, top),
        (rising, top, top, falling, low, low),
        (low, low, rising, top, top, falling),
    )
    conditions = [sector == i for i in range(6)]
    return jnp.stack([jnp.select(conditions, values) for values in choices], axis=-1)


def blur(images: jax.Array, radius: jax.Array) -> jax.Array:
    """Gaussian blur of standard deviation `radius` [B] pixels, approximated by three box blurs.

    Source: Pillow's GaussianBlur, after Gwosdek et al. 2011 (extended box filters); the border's pixels go on outside.
    """
    height, width = images.shape[1:3]
    variance = radius**2 / 3
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    box = whole + part / (6 * (variance - (whole + 1) ** 2))
    for _ in range(3):
        images = jnp.einsum("bow,bhwc->bhoc", _box_weights(width, box), images)
    for _ in range(3):
        images = jnp.einsum("boh,bhwc->bowc", _box_weights(height, box), images)
    return jnp.round(images)


def _box_weights(count: int, radius: jax.Array) -> jax.Array:
    """[B, count, count]: averages over 2 * radius + 1 pixels, the outermost counting in part."""
    radius = radius[:, None, None]
    position = np.arange(count, dtype=np.float32)[None]
    distance = np.abs(position[..., None] - position[:, None])
    inside = jnp.clip(radius + 1 - distance, 0, 1)
    # What lies beyond the border counts as the border's own pixel: the sums of clip(radius + 1 - d, 0, 1) over d.
    before = _tail(position[..., None] + 1, radius)
    after = _tail(count - position[..., None], radius)
    position = position[:, None]
    edge = jnp.where(position == 0, before, 0) + jnp.where(position == count - 1, after, 0)
    return (inside + edge) / (2 * radius + 1)


def _tail(first: jax.Array, radius: jax.Array) -> jax.Array:
    """Sum over d >= first of clip(radius + 1 - d, 0, 1), for first >= 1."""
    whole = jnp.floor(radius)
    full = jnp.maximum(whole - first + 1, 0)
    return full + jnp.where(first <= whole + 1, radius - whole, 0)

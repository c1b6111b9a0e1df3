"""Mixup and cutmix of the views of a batch, with the soft targets that SSCD's loss takes."""

import jax
import jax.numpy as jnp


def mixup(images: jax.Array, weight: jax.Array) -> jax.Array:
    """Blends each view with its partner, the one as far from the batch's end as it is from the beginning.

    Args:
        images: [B, H, W, 3].
        weight: [B], of the view itself.

    Returns:
        [B, H, W, 3].

    Source: Zhang et al. 2018; pairing by reversal as SSCD does it.
    """
    weight = weight[:, None, None, None]
    return images * weight + images[::-1] * (1 - weight)


def cutmix(images: jax.Array, box: jax.Array) -> jax.Array:
    """Replaces a box of each view by the same box of its partner.

    Args:
        images: [B, H, W, 3].
        box: [B, 4] int, left, top, right, bottom in pixels.

    Source: Yun et al. 2019.
    """
    height, width = images.shape[1:3]
    left, top, right, bottom = (box[:, i, None, None] for i in range(4))
    x, y = jnp.arange(width)[None, None], jnp.arange(height)[None, :, None]
    inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)
    return jnp.where(inside[..., None], images[::-1], images)


def cut_boxes(key: jax.Array, weight: jax.Array, height: int, width: int) -> jax.Array:
    """Draws boxes that leave about `weight` [B] of an image, their centres anywhere in it; [B, 4] int pixels."""
    side = jnp.sqrt(1 - weight)[:, None]
    size = jnp.array([[width, height]])
    half = (side * size.astype(side.dtype)).astype(jnp.int32) // 2
    centre = jax.random.randint(key, (len(weight), 2), 0, size)
    corners = [jnp.clip(centre - half, 0, size), jnp.clip(centre + half, 0, size)]
    return jnp.concatenate(corners, axis=1)


def soft_targets(weight: jax.Array, images: int) -> jax.Array:
    """How much of each image each view shows.

    Args:
        weight: [N], what a view keeps of its own image; the rest is its partner's.
        images: P; the views are the first of all images, then the second of all, and so on.

    Returns:
        [N, P], rows that sum to 1.
    """
    own = jnp.tile(jnp.eye(images, dtype=weight.dtype), (len(weight) // images, 1))
    return own * weight[:, None] + own[::-1] * (1 - weight)[:, None]


def mixed(
    images: jax.Array,
    key: jax.Array,
    *,
    n_images: int,
    mixup_probability: float,
    cutmix_probability: float,
    alpha: float,
) -> tuple[jax.Array, jax.Array]:
    """Mixes some views of a batch, each by one of the two ways or by neither.

    Args:
        images: [N, H, W, 3] uint8.
        key: what to draw from.
        n_images: see `soft_targets`.
        mixup_probability: that a view is blended with its partner.
        cutmix_probability: that it gets a box of it; the two sum to at most 1.
        alpha: both parameters of the Beta distribution of the view's own weight.

    Returns:
        Views [N, H, W, 3] uint8, and soft targets [N, n_images] float32.

    Source: SSCD (2.5% each, alpha 2).
    """
    count, height, width, _ = images.shape
    way_key, weight_key, box_key = jax.random.split(key, 3)
    way = jax.random.uniform(way_key, (count,))
    blend, cut = way < mixup_probability, way >= 1 - cutmix_probability
    weight = jax.random.beta(weight_key, alpha, alpha, (count,))
    box = cut_boxes(box_key, weight, height, width)
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    blended = jnp.round(mixup(images.astype(jnp.float32), weight)).astype(images.dtype)
    views = jnp.where(blend[:, None, None, None], blended, images)
    views = jnp.where(cut[:, None, None, None], cutmix(images, box), views)
    left = 1 - area.astype(jnp.float32) / (height * width)
    weight = jnp.where(blend, weight, jnp.where(cut, left, 1.0))
    return views, soft_targets(weight, n_images)

"""The marks of JPEG compression: real quantisation tables, chroma at half size, without the lossless coding."""

import jax
import jax.numpy as jnp
import numpy as np

# ITU-T T.81, annex K, tables K.1 and K.2: luminance and chrominance at quality 50.
_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float32,
)
_CHROMINANCE = np.full((8, 8), 99, np.float32)
_CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_FREQUENCY, _PLACE = np.mgrid[:8, :8]
# Orthonormal DCT-II: its rows are the frequencies.
_DCT = np.cos((2 * _PLACE + 1) * _FREQUENCY * np.pi / 16) * np.where(_FREQUENCY, 0.5, 8**-0.5)
_DCT = _DCT.astype(np.float32)


def jpeg(images: jax.Array, quality: jax.Array) -> jax.Array:
    """Compresses and decompresses.

    Args:
        images: [B, H, W, 3] float32 levels 0..255.
        quality: [B], 0 (worst) to 100.

    Returns:
        [B, H, W, 3], whole levels.

    Source: ITU-T T.81 and T.871 (JFIF); libjpeg's scaling of the tables by quality, its 2x2 chroma and its triangular
    enlargement of that, so that Pillow's own files look the same: half a level apart on average, single values by up
    to 22 at quality 30.
    """
    height, width = images.shape[1:3]
    # A whole number of 16x16 blocks, the border's pixels going on outside.
    padded = jnp.pad(images, ((0, 0), (0, -height % 16), (0, -width % 16), (0, 0)), mode="edge")
    red, green, blue = (padded[..., i] for i in range(3))
    luma = jnp.round(0.299 * red + 0.587 * green + 0.114 * blue)
    chroma = jnp.stack(
        [
            -0.168735892 * red - 0.331264108 * green + 0.5 * blue + 128,
            0.5 * red - 0.418687589 * green - 0.081312411 * blue + 128,
        ],
        axis=1,
    )
    chroma = _halved(jnp.round(chroma))
    quality = jnp.maximum(quality, 1)
    percent = jnp.where(quality < 50, jnp.floor(5000 / quality), 200 - 2 * quality)
    luma = _quantised(luma, _table(_LUMINANCE, percent))
    chroma = _quantised(chroma, _table(_CHROMINANCE, percent)[:, None])
    # The chroma that belongs to the padding is not there in a decoder either.
    chroma = chroma[..., : -(-height // 2), : -(-width // 2)]
    chroma = _doubled(_doubled(chroma, -2), -1)[..., :height, :width] - 128
    luma = luma[:, :height, :width]
    blue_part, red_part = chroma[:, 0], chroma[:, 1]
    decoded = jnp.stack(
        [
            luma + 1.402 * red_part,
            luma - 0.344136286 * blue_part - 0.714136286 * red_part,
            luma + 1.772 * blue_part,
        ],
        axis=-1,
    )
    return jnp.clip(jnp.round(decoded), 0, 255)


def _table(table: np.ndarray, percent: jax.Array) -> jax.Array:
    """[B, 8, 8] quantisers of the baseline (1 to 255)."""
    return jnp.clip(jnp.floor((table[None] * percent[:, None, None] + 50) / 100), 1, 255)


def _quantised(planes: jax.Array, table: jax.Array) -> jax.Array:
    """Rounds the DCT of 8x8 blocks of [..., H, W] to multiples of `table` [..., 8, 8], and transforms back."""
    *lead, height, width = planes.shape
    blocks = planes.reshape(*lead, height // 8, 8, width // 8, 8) - 128
    frequencies = jnp.einsum("ui,...yixj,vj->...yxuv", _DCT, blocks, _DCT)
    table = table[..., None, None, :, :]
    frequencies = jnp.round(frequencies / table) * table
    blocks = jnp.einsum("ui,...yxuv,vj->...yixj", _DCT, frequencies, _DCT)
    return jnp.clip(jnp.round(blocks.reshape(planes.shape) + 128), 0, 255)


def _halved(planes: jax.Array) -> jax.Array:
    """Averages of 2x2 pixels of [..., H, W], rounded down and up by turns along a row, as libjpeg does."""
    *lead, height, width = planes.shape
    sums = planes.reshape(*lead, height // 2, 2, width // 2, 2).sum(axis=(-3, -1))
    bias = 1 + np.arange(width // 2, dtype=np.float32) % 2
    return jnp.floor((sums + bias.reshape((1,) * (sums.ndim - 1) + (-1,))) / 4)


def _doubled(planes: jax.Array, axis: int) -> jax.Array:
    """Twice as long an axis: three parts of the nearest pixel and one of the next."""
    count = planes.shape[axis]
    before = jnp.take(planes, np.maximum(np.arange(count) - 1, 0), axis=axis)
    after = jnp.take(planes, np.minimum(np.arange(count) + 1, count - 1), axis=axis)
    pairs = jnp.stack([(3 * planes + before) / 4, (3 * planes + after) / 4], axis=axis)
    shape = list(planes.shape)
    shape[axis] *= 2
    return pairs.reshape(shape)

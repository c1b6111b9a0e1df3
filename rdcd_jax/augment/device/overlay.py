"""Emoji and lines of text pasted on images, each from an atlas that was drawn once.

Images are float32 levels 0..255, [B, H, W, 3], perhaps squashed: `aspect` [B] is the true width / height.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from rdcd_jax.augment import assets
from rdcd_jax.augment.device.geometry import resampling, resize

# Pixels that an atlas' line is high before its font's descenders; a font of that size draws them.
FONT_PIXELS = 40
LINES = 1024
_LINE_SHAPE = (64, 832)
_CHARACTERS = 40
_EMOJI_SIDE = 72


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Atlas:
    """What overlays are taken from.

    Attributes:
        emoji: [E, 72, 72, 4] uint8, colours multiplied by their opacity, and the opacity.
        lines: [L, 64, 832] uint8, how much ink lies on each pixel of a line of text.
        rights: [L, 40] float32, where each line's first, first two, ... characters end, in pixels.
        bottoms: [L, 40] float32, how far down they reach.
    """

    emoji: jax.Array | np.ndarray
    lines: jax.Array | np.ndarray
    rights: jax.Array | np.ndarray
    bottoms: jax.Array | np.ndarray


def draw_atlas(seed: int = 0) -> Atlas:
    """Draws all emoji, and lines of random characters in random fonts.

    Raises:
        UserError: the fonts and emoji are not installed.
    """
    emoji = np.stack([_emoji(path) for path in assets.emoji_files()])
    rng = np.random.default_rng(seed)
    fonts = assets.font_files()
    drawn = []
    while len(drawn) < LINES:
        path = fonts[rng.integers(len(fonts))]
        font = assets.read_font(path, FONT_PIXELS)
        text = "".join(map(chr, rng.choice(assets.characters(path), size=_CHARACTERS)))
        try:
            drawn.append(_line(text, font))
        except OSError:
            # Some of the fonts list characters whose glyph is broken.
            continue
    return Atlas(emoji, *(np.stack(part) for part in zip(*drawn, strict=True)))


def _emoji(path) -> np.ndarray:
    side = (_EMOJI_SIDE, _EMOJI_SIDE)
    image = np.asarray(assets.read_emoji(path).resize(side, Image.Resampling.BILINEAR))
    opacity = image[..., 3:].astype(np.float32) / 255
    colours = np.round(image[..., :3] * opacity)
    return np.concatenate([colours, image[..., 3:]], axis=-1).astype(np.uint8)


def _line(text: str, font) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    height, width = _LINE_SHAPE
    # Advances add up; measuring the line's every beginning as a whole would take a minute for the atlas.
    rights = np.cumsum([font.getlength(character) for character in text])
    bottoms = np.maximum.accumulate([max(font.getbbox(character)[3], 0) for character in text])
    ink = Image.new("L", (width, height))
    ImageDraw.Draw(ink).text((0, 0), text, fill=255, font=font)
    return np.asarray(ink), np.float32(np.ceil(rights)), np.float32(np.minimum(bottoms, height))


def overlay_emoji(
    images: jax.Array,
    aspect: jax.Array,
    emoji: jax.Array,
    size: jax.Array,
    opacity: jax.Array,
    position: jax.Array,
) -> jax.Array:
    """Pastes an emoji on each image.

    Args:
        images: [B, H, W, 3].
        aspect: [B].
        emoji: [B, E, E, 4], see `Atlas`.
        size: [B], as a fraction of the largest that fits.
        opacity: [B], 0 to 1, times the emoji's own.
        position: [B, 2], x and y in [0, 1]; 0 is flush left or top, 1 flush right or bottom.

    Returns:
        [B, H, W, 3], whole levels. The twin of the host's `overlay_emoji`.
    """
    width, height = size * jnp.minimum(1, 1 / aspect), size * jnp.minimum(1, aspect)
    patch = _placed(emoji.astype(jnp.float32), images.shape[1:3], width, height, position)
    opacity = opacity[:, None, None, None]
    covered = patch[..., 3:] / 255 * opacity
    return jnp.clip(jnp.round(images * (1 - covered) + patch[..., :3] * opacity), 0, 255)


def overlay_text(
    images: jax.Array,
    aspect: jax.Array,
    line: jax.Array,
    extent: jax.Array,
    size: jax.Array,
    colour: jax.Array,
    opacity: jax.Array,
    position: jax.Array,
) -> jax.Array:
    """Writes the beginning of a line of text on each image.

    Args:
        images: [B, H, W, 3].
        aspect: [B].
        line: [B, h, w], ink 0..255.
        extent: [B, 2], how many pixels of the line to take from the left and from the top; nothing is written for 0.
        size: [B], of the font, as a fraction of the image's true short side.
        colour: [B, 3] levels.
        opacity: [B], 0 to 1.
        position: [B, 2], x and y in [0, 1]; 0 is flush left or top, 1 flush right or bottom.

    Returns:
        [B, H, W, 3], whole levels.
    """
    width, height = text_extent(aspect, extent, size)
    ink = line.astype(jnp.float32)[..., None]
    patch = _placed(ink, images.shape[1:3], width, height, position, extent)
    covered = patch / 255 * opacity[:, None, None, None]
    return jnp.round(images * (1 - covered) + colour[:, None, None] * covered)


def text_extent(
    aspect: jax.Array, extent: jax.Array, size: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Width and height of `extent` [..., 2] line pixels in a font of `size`, as fractions of the image's."""
    short_in_widths, short_in_heights = jnp.minimum(1, 1 / aspect), jnp.minimum(1, aspect)
    scale = size / FONT_PIXELS
    return extent[..., 0] * scale * short_in_widths, extent[..., 1] * scale * short_in_heights


def _placed(
    patch: jax.Array,
    shape: tuple[int, int],
    width: jax.Array,
    height: jax.Array,
    position: jax.Array,
    extent: jax.Array | None = None,
) -> jax.Array:
    """`patch` [B, h, w, C], or its `extent` only, resized to fractions of an image and laid where it belongs."""
    rows, columns = patch.shape[1:3]
    if extent is None:
        extent = jnp.tile(jnp.array([[columns, rows]], jnp.float32), (len(patch), 1))

    def weights(out, source, taken, fraction, corner):
        # The image's own stretch, in the patch's pixels: it begins before the patch and ends behind it.
        pixels = taken / jnp.maximum(fraction, 1e-6)
        start = -corner * (1 - fraction) * pixels
        found = resampling(out, source, start, pixels)
        pixel = np.arange(source, dtype=np.float32)[None, None]
        return jnp.where(pixel < taken[:, None, None], found, 0.0)

    return resize(
        patch,
        weights(shape[0], rows, extent[:, 1], height, position[:, 1]),
        weights(shape[1], columns, extent[:, 0], width, position[:, 0]),
    )

"""The operations that make an edited copy of a picture; every parameter is given by the caller.

Each takes an RGB Pillow picture and returns a new one. What is drawn at random, and how often an
operation fires, is said in `policies`; here only `random_crop_box` draws, from the generator given.
"""

import bisect
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

Box = tuple[int, int, int, int]


def hflip(image: Image.Image) -> Image.Image:
    """Mirrors left and right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    """Turns counter-clockwise about the centre; the frame stays, so what it gains is black."""
    return image.rotate(degrees, Image.Resampling.BILINEAR)


def random_crop_box(
    width: int,
    height: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """Draws the region of a random resized crop.

    Args:
        width: of the picture, at least 1.
        height: of the picture, at least 1.
        scale: least and greatest area, as a fraction of the picture's, drawn uniformly.
        ratio: least and greatest width / height, drawn uniformly in the logarithm.
        rng: where the numbers come from.

    Returns:
        left, top, right, bottom; at least one pixel each way. After ten draws that do not fit, the
        largest centred region within `ratio`.

    Source: torchvision's RandomResizedCrop.
    """
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(height - h + 1))
            left = int(rng.integers(width - w + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < ratio[0]:
        h = min(height, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = min(width, round(height * ratio[1]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def resized_crop(image: Image.Image, box: Box, size: int) -> Image.Image:
    """Cuts `box` out and resizes it to `size` x `size` pixels (bilinear, antialiased).

    Pillow could do both at once, but would then mix pixels from outside the box into the border.
    """
    return image.crop(box).resize((size, size), Image.Resampling.BILINEAR)


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Multiplies every value; 0 gives black, 1 the picture."""
    return ImageEnhance.Brightness(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Moves every value away from the mean grey; 0 gives that grey, 1 the picture."""
    return ImageEnhance.Contrast(image).enhance(factor)


def saturation(image: Image.Image, factor: float) -> Image.Image:
    """Moves every pixel away from its own grey; 0 gives a grey picture, 1 the picture."""
    return ImageEnhance.Color(image).enhance(factor)


def hue(image: Image.Image, turn: float) -> Image.Image:
    """Shifts the hue round its circle by `turn`, a fraction in [-0.5, 0.5], rounded towards 0."""
    h, s, v = image.convert("HSV").split()
    shift = int(turn * 255)
    h = h.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (h, s, v)).convert("RGB")


def grey(image: Image.Image) -> Image.Image:
    """Removes colour; the picture keeps three (equal) channels."""
    return image.convert("L").convert("RGB")


def blur(image: Image.Image, radius: float) -> Image.Image:
    """Gaussian blur of standard deviation `radius` pixels, as Pillow approximates it by boxes."""
    return image.filter(ImageFilter.GaussianBlur(radius))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Leaves the marks of JPEG compression at `quality`, 0 (worst) to 100."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    with Image.open(buffer, formats=("JPEG",)) as image:
        image.load()
        return image.copy()


def overlay_emoji(
    image: Image.Image,
    emoji: Image.Image,
    *,
    size: float,
    opacity: float,
    position: tuple[float, float],
) -> Image.Image:
    """Pastes `emoji` on the picture.

    Args:
        image: the picture.
        emoji: RGBA.
        size: of the emoji, as a fraction of the largest that fits into the picture.
        opacity: 0 to 1, times the emoji's own.
        position: x and y in [0, 1]; 0 is flush left or top, 1 flush right or bottom.

    Returns:
        A new picture; unchanged where the emoji would be smaller than a pixel.

    Differs: the reference pastes most emoji on an opaque square, since it looks for transparency
    only in files that are not palettes; here the background shows through, as AugLy itself does it.
    """
    scale = size * min(image.width / emoji.width, image.height / emoji.height)
    width, height = int(emoji.width * scale), int(emoji.height * scale)
    image = image.copy()
    if width and height:
        emoji = emoji.resize((width, height), Image.Resampling.BILINEAR)
        mask = emoji.getchannel("A").point([int(level * opacity) for level in range(256)])
        corner = _corner(image, (width, height), position)
        image.paste(emoji.convert("RGB"), corner, mask)
    return image


def overlay_text(
    image: Image.Image,
    text: str,
    font: ImageFont.FreeTypeFont,
    *,
    colour: Sequence[int],
    opacity: float,
    position: tuple[float, float],
) -> Image.Image:
    """Writes one line of text on the picture.

    Args:
        image: the picture.
        text: the line; `longest_fit` says how much of one fits.
        font: face and size.
        colour: R, G, B in 0..255.
        opacity: 0 to 1.
        position: x and y in [0, 1]; 0 is flush left or top, 1 flush right or bottom.

    Returns:
        A new picture.
    """
    width, height = _text_size(text, font)
    image = image.copy()
    if width and height:
        ink = Image.new("L", (width, height))
        ImageDraw.Draw(ink).text((0, 0), text, fill=int(255 * opacity + 0.5), font=font)
        image.paste(tuple(colour), _corner(image, (width, height), position), ink)
    return image


def longest_fit(text: str, font: ImageFont.FreeTypeFont, width: int, height: int) -> int:
    """How many of the first characters of `text` fit on one line of `width` x `height` pixels."""

    def too_large(count: int) -> bool:
        w, h = _text_size(text[:count], font)
        return w > width or h > height

    # Measuring costs as much as the text is long, so the search starts at its short end.
    high = 1
    while high < len(text) and not too_large(high):
        high *= 2
    counts = range(1, len(text) + 1)
    return bisect.bisect_left(counts, True, lo=high // 2, hi=min(high, len(text)), key=too_large)


def _text_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    """Pixels right of and below the pen's start, ascender included."""
    _, _, right, bottom = font.getbbox(text)
    return max(0, math.ceil(right)), max(0, math.ceil(bottom))


def _corner(
    image: Image.Image, size: tuple[int, int], position: tuple[float, float]
) -> tuple[int, int]:
    """Left and top of something of `size` at `position` of the room left in `image`."""
    return (
        int(position[0] * (image.width - size[0])),
        int(position[1] * (image.height - size[1])),
    )

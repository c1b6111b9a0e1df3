"""The operations that make an edited copy of an image; every parameter is given by the caller.

Each takes an RGB Pillow image and returns a new one; changes of colour are in `jitter`, blur in `blur`. What is drawn
at random is said in `operations`, and how often in `policies`; here only `random_crop_box` draws, from the generator
given.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Box = tuple[int, int, int, int]


def hflip(image: Image.Image, box: Box | None = None) -> Image.Image:
    """Mirrors left and right.

    Args:
        image: the image.
        box: the part of the mirrored image to give; None for all.

    Source: torchvision's hflip.
    """
    if box is not None:
        left, top, right, bottom = box
        image = image.crop((image.width - right, top, image.width - left, bottom))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def rotate(image: Image.Image, degrees: float, box: Box | None = None) -> Image.Image:
    """Turns counter-clockwise about the centre; the frame stays, so what it gains is black.

    Args:
        image: the image.
        degrees: any number.
        box: the part of the turned image to give, the only one that is computed; None for all.

    Returns:
        A new image of the box's size.

    Source: Pillow's `rotate` (bilinear), which torchvision uses too.
    """
    width, height = image.size
    left, top, right, bottom = box or (0, 0, width, height)
    quarters = degrees % 360 / 90
    if quarters in (1, 3) and (width - height) % 2 == 0:
        turned = image.transpose(
            Image.Transpose.ROTATE_90 if quarters == 1 else Image.Transpose.ROTATE_270
        )
        # Outside of an image, crop gives black.
        x, y = (height - width) // 2, (width - height) // 2
        return turned.crop((left + x, top + y, right + x, bottom + y))
    if quarters in (0, 2):
        return image.rotate(degrees).crop((left, top, right, bottom))
    angle = math.radians(degrees)
    # Rounded, so that a quarter turn is exact.
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    # Where the box's corner lies, seen from the centre.
    x, y = left - width / 2, top - height / 2
    return image.transform(
        (right - left, bottom - top),
        Image.Transform.AFFINE,
        (cos, -sin, cos * x - sin * y + width / 2, sin, cos, sin * x + cos * y + height / 2),
        Image.Resampling.BILINEAR,
    )


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
        width: of the image, at least 1.
        height: of the image, at least 1.
        scale: least and greatest area, as a fraction of the image's, drawn uniformly.
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
        h = min(height, max(1, round(width / ratio[0])))
    elif width / height > ratio[1]:
        w = min(width, max(1, round(height * ratio[1])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def resized_crop(image: Image.Image, box: Box, size: int) -> Image.Image:
    """Cuts `box` out and resizes it to `size` x `size` pixels (bilinear, antialiased).

    Pillow could do both at once, but would then mix pixels from outside the box into the border.

    Source: torchvision's resized_crop.
    """
    return image.crop(box).resize((size, size), Image.Resampling.BILINEAR)


def frame(image: Image.Image, box: Box, colour: Sequence[int]) -> Image.Image:
    """Reduces the image to `box` of its own frame and fills the rest with one colour, as borders and screenshots do.

    Source: AugLy's pad, which makes the frame larger instead.
    """
    left, top, right, bottom = box
    framed = Image.new("RGB", image.size, tuple(colour))
    framed.paste(image.resize((right - left, bottom - top), Image.Resampling.BILINEAR), (left, top))
    return framed


def grey(image: Image.Image) -> Image.Image:
    """Removes colour; the image keeps three (equal) channels. Source: torchvision's rgb_to_grayscale."""
    return image.convert("L").convert("RGB")


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Leaves the marks of JPEG compression at `quality`, 0 (worst) to 100. Source: AugLy's encoding_quality."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    with Image.open(buffer, formats=("JPEG",)) as image:
        image.load()
        return image


def overlay_emoji(
    image: Image.Image,
    emoji: Image.Image,
    *,
    size: float,
    opacity: float,
    position: tuple[float, float],
) -> Image.Image:
    """Pastes `emoji` on the image.

    Args:
        image: the image.
        emoji: RGBA.
        size: of the emoji, as a fraction of the largest that fits into the image.
        opacity: 0 to 1, times the emoji's own.
        position: x and y in [0, 1]; 0 is flush left or top, 1 flush right or bottom.

    Returns:
        A new image; unchanged where the emoji would be smaller than a pixel.

    Source: AugLy's overlay_emoji.

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
    """Writes one line of text on the image.

    Args:
        image: the image.
        text: the line; `longest_fit` says how much of one fits.
        font: face and size.
        colour: R, G, B in 0..255.
        opacity: 0 to 1.
        position: x and y in [0, 1]; 0 is flush left or top, 1 flush right or bottom.

    Returns:
        A new image.

    Source: AugLy's overlay_text.
    """
    width, height = _text_size(text, font)
    image = image.copy()
    if width and height:
        ink = Image.new("L", (width, height))
        ImageDraw.Draw(ink).text((0, 0), text, fill=int(255 * opacity + 0.5), font=font)
        image.paste(tuple(colour), _corner(image, (width, height), position), ink)
    return image


def longest_fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> int:
    """How many of the first characters of `text` fit on a line of `width` pixels.

    Each is measured by itself, since measuring a line costs as much as it is long; kerning and what the last one's
    shape gains beyond its advance are left out, so `fits` has the last word.
    """
    count, reached = 0, 0.0
    while count < len(text) and (reached := reached + font.getlength(text[count])) <= width:
        count += 1
    return count


def fits(text: str, font: ImageFont.FreeTypeFont, width: int, height: int) -> bool:
    """Whether the line is no larger than `width` x `height` pixels."""
    w, h = _text_size(text, font)
    return w <= width and h <= height


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

"""Brightness, contrast, saturation and hue of an image as three planes of 16-bit integers.

The formulas are Pillow's `ImageEnhance` and the hue of its HSV, as torchvision's `ColorJitter` uses them. Hue is
turned without going by way of an 8-bit HSV image, which is the slowest part there and rounds twice.

Each function takes planes [3, H, W] int16 of values 0 to 255 and returns new ones, each within one level of the exact
value. Pillow cuts where this rounds, so the two differ by up to two levels; for hue by up to 16 in few pixels, which
is Pillow's 8-bit hue and saturation.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from rdcd_jax.augment.host.planes import from_planes, to_planes


def jitter(image: Image.Image, changes: Sequence[tuple[str, float]]) -> Image.Image:
    """Changes colours, one after the other.

    Args:
        image: RGB.
        changes: names from `CHANGES`, each with its amount.

    Returns:
        A new image.

    Source: torchvision's ColorJitter, which also changes the four in random order.
    """
    planes = to_planes(image, np.int16)
    for name, amount in changes:
        planes = CHANGES[name](planes, amount)
    return from_planes(planes)


def brightness(planes: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies every value; 0 gives black, 1 the image. Source: Pillow's ImageEnhance.Brightness."""
    return _clip(_times(planes, factor))


def contrast(planes: np.ndarray, factor: float) -> np.ndarray:
    """Moves every value away from the mean grey; 0 gives that grey, 1 the image.

    Source: Pillow's ImageEnhance.Contrast.
    """
    grey = _grey(planes)
    # By integers, which is twice as fast as NumPy's mean.
    mean = grey.sum(0, dtype=np.int32).sum(dtype=np.int64) / grey.size
    return _away(planes, np.int16(mean + 0.5), factor)


def saturation(planes: np.ndarray, factor: float) -> np.ndarray:
    """Moves every pixel away from its own grey; 0 gives a grey image, 1 the image.

    Source: Pillow's ImageEnhance.Color.
    """
    return _away(planes, _grey(planes), factor)


def hue(planes: np.ndarray, turn: float) -> np.ndarray:
    """Shifts the hue round its circle by `turn`, a fraction in [-0.5, 0.5], cut to 255ths.

    Source: torchvision's adjust_hue on Pillow images, whose hue has 255 levels.
    """
    turn = int(turn * 255) / 255
    # A third of the circle swaps channels; only what is left, a sixth at most, is computed.
    thirds = round(3 * turn)
    red, green, blue = (planes[(channel - thirds) % 3] for channel in range(3))
    high = np.maximum(np.maximum(red, green), blue)
    low = np.minimum(np.minimum(red, green), blue)
    # The hue's position on a circle of 6 chroma, from -3 to 3 chroma with red at 0: no division is needed. Where red is
    # the middle channel `room` is 0; where it is the largest it lies by |green - blue| from 0, and where it is
    # the smallest by that much short of the circle's far end.
    chroma = high - low
    side = green - blue
    room = chroma - np.abs(side)
    lean = red + red
    lean -= green
    lean -= blue
    position = chroma + high
    position -= red
    position -= _give_sign(room, lean)
    _give_sign(position, side)
    position += _times(chroma, 6 * (turn - thirds / 3))
    # A channel is largest within one chroma of its own colour, smallest from two on, and falls evenly between.
    twice = chroma + chroma
    thrice = twice + chroma
    low -= chroma
    turned = np.empty_like(planes)
    for away, colour in zip(turned, (0, twice, -twice), strict=True):
        np.subtract(position, colour, out=away)
        np.abs(away, out=away)
        away -= thrice
        np.abs(away, out=away)
        np.maximum(away, chroma, out=away)
        np.minimum(away, twice, out=away)
        away += low
    return turned


CHANGES: Mapping[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
}


def _times(values: np.ndarray, factor: float) -> np.ndarray:
    """Products, rounded; exact to a level for |values| up to 255 and |factor| up to 100."""
    whole = round(factor)
    product = values * np.int16(round(256 * (factor - whole)))
    # To the nearest, halves downwards: with 128 the largest product, 255 * 128, would go beyond 16 bits.
    product += np.int16(127)
    product >>= np.int16(8)
    if whole:
        product += values if whole == 1 else values * np.int16(whole)
    return product


def _away(planes: np.ndarray, base: np.ndarray | np.int16, factor: float) -> np.ndarray:
    moved = _times(planes - base, factor)
    moved += base
    return _clip(moved)


def _clip(planes: np.ndarray) -> np.ndarray:
    return np.clip(planes, 0, 255, out=planes)


def _grey(planes: np.ndarray) -> np.ndarray:
    """0.299 red + 0.587 green + 0.114 blue, [H, W] int16."""
    # The sum stays below 2**16.
    red, green, blue = planes.view(np.uint16)
    grey = red * np.uint16(77)
    grey += green * np.uint16(150)
    grey += blue * np.uint16(29)
    grey += np.uint16(128)
    grey >>= np.uint16(8)
    return grey.view(np.int16)


def _give_sign(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Negates `values` in place where `of` is negative, and returns them."""
    sign = of >> np.int16(15)
    values ^= sign
    values -= sign
    return values

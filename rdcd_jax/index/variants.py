"""What may be done to a query before it is embedded, as well as nothing, so that copies so changed are found."""

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from rdcd_jax.images.seen import is_blank

# Rows and columns whose pixels differ by no more than this many grey levels are border: JPEG's noise is below it.
_LEVELS = 16
# Of a row's pixels so many may differ from the others, at either end of the scale.
_SHARE = 0.01
# Borders are looked for in an image reduced to this long side.
_SIDE = 512
# What is cut off must be worth it, and what is left must show something.
_LEAST_CUT, _LEAST_LEFT = 0.03, 0.02
# Border within an image, such as a clear sky, does not part it until it is this share of the side.
_GAP = 0.04
# Parts of an image: so many, of its sides so much, at the corners and in the middle.
PARTS, _PART = 5, 2 / 3
# As they overlap, the five are as often near to unrelated images as two more images would be: an image and its parts
# about three times as often as it alone (`python -m experiments.studies.parts`). The three are charged to the parts.
PARTS_CHANCES = 2
# A query as it is keeps its scores, whatever else is looked at. What is looked at beside it counts as so many times as
# many images as it is by chance: so all of that together is wrong two fifths as often as the query alone.
BESIDE = 2.5


def _turned(how: Image.Transpose) -> Callable[[Image.Image], list[Image.Image]]:
    return lambda image: [image.transpose(how)]


def trimmed(image: Image.Image) -> list[Image.Image]:
    """The image without uniform borders, and without the bars above and below one that a screenshot shows.

    Rows, then columns, are border where they have one colour. Of the rest the longest run counts, over and over, until
    nothing more can be cut off.

    Args:
        image: RGB.

    Returns:
        One image; none where there is no border, or next to nothing within.
    """
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small)
    left, top, right, bottom = 0, 0, small.width, small.height
    while True:
        box = left, top, right, bottom
        first, last = _longest_run(pixels[top:bottom, left:right])
        top, bottom = top + first, top + last
        first, last = _longest_run(pixels[top:bottom, left:right].transpose(1, 0, 2))
        left, right = left + first, left + last
        if right <= left or bottom <= top:
            return []
        if box == (left, top, right, bottom):
            break
    share = (right - left) * (bottom - top) / (small.width * small.height)
    if not _LEAST_LEFT <= share <= 1 - _LEAST_CUT:
        return []
    across, down = image.width / small.width, image.height / small.height
    cut = (left * across, top * down, right * across, bottom * down)
    return [image.crop(tuple(round(edge) for edge in cut))]


def _longest_run(pixels: np.ndarray) -> tuple[int, int]:
    """First and last + 1 of the longest run of rows of more than one colour; (0, 0) where there is none.

    Args:
        pixels: [rows, columns, 3] uint8.
    """
    count, width = pixels.shape[:2]
    if not count or not width:
        return 0, 0
    ends = min(width - 1, int(_SHARE * width))
    ordered = np.sort(pixels, axis=1).astype(np.int16)
    spread = (ordered[:, width - 1 - ends] - ordered[:, ends]).max(axis=1)
    rows = np.flatnonzero(spread > _LEVELS)
    if not rows.size:
        return 0, 0
    breaks = np.flatnonzero(np.diff(rows) > max(1, _GAP * count))
    starts = np.concatenate([[0], breaks + 1])
    ends = np.concatenate([breaks, [len(rows) - 1]])
    longest = np.argmax(rows[ends] - rows[starts])
    return int(rows[starts[longest]]), int(rows[ends[longest]]) + 1


def parts(image: Image.Image) -> list[Image.Image]:
    """Five parts of an image, each two thirds as wide and high: at its corners and in the middle.

    Args:
        image: RGB.
    """
    width, height = (max(1, round(_PART * side)) for side in image.size)
    right, bottom = image.width - width, image.height - height
    positions = [(0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2)]
    return [image.crop((x, y, x + width, y + height)) for x, y in positions]


def _parts_that_show_something(image: Image.Image) -> list[Image.Image]:
    # Those of one colour resemble each other, whatever images they are of.
    return [part for part in parts(image) if not is_blank(part)]


# Each gives the images to look for besides the query itself.
VARIANTS: Mapping[str, Callable[[Image.Image], list[Image.Image]]] = {
    "flip": _turned(Image.Transpose.FLIP_LEFT_RIGHT),
    "rotate90": _turned(Image.Transpose.ROTATE_90),
    "rotate180": _turned(Image.Transpose.ROTATE_180),
    "rotate270": _turned(Image.Transpose.ROTATE_270),
    "trim": trimmed,
    "crops": _parts_that_show_something,
}

"""What the steps of a policy can be: how each operation draws its parameters, and what it then does.

Drawing looks at the image's size alone, so that all of a view is known before any pixel is touched. The numbers are
drawn in a fixed order, which is part of what a seed means.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from rdcd_jax.augment import assets
from rdcd_jax.augment.host import edits
from rdcd_jax.augment.host.blur import blur
from rdcd_jax.augment.host.jitter import jitter

Range = tuple[float, ...]
Values = Mapping[str, object]
Size = tuple[int, int]


class Drawn(NamedTuple):
    """An operation that fires, with its parameters: what is done to one image.

    Attributes:
        operation: a name from `OPERATIONS`.
        values: the arguments of its `apply`, after the image.
    """

    operation: str
    values: Values


class Operation(NamedTuple):
    """One kind of step.

    Attributes:
        draw: (generator, (width, height) of the image, side of the view, and a range for each of the step's
            parameters) -> the arguments of `apply`, or None where nothing can be done.
        apply: (RGB image, those arguments by name) -> a new RGB image.
    """

    draw: Callable[..., Values | None]
    apply: Callable[..., Image.Image]


def _nothing(rng: np.random.Generator, frame: Size, side: int) -> Values:
    return {}


def _rotate_by_one_of(
    rng: np.random.Generator, frame: Size, side: int, *, degrees: Range
) -> Values:
    return {"degrees": degrees[rng.integers(len(degrees))]}


def _rotate(rng: np.random.Generator, frame: Size, side: int, *, degrees: Range) -> Values:
    return {"degrees": int(rng.integers(degrees[0], degrees[1], endpoint=True))}


def _overlay_text(
    rng: np.random.Generator, frame: Size, side: int, *, size: Range, opacity: Range
) -> Values | None:
    files = assets.font_files()
    path = files[rng.integers(len(files))]
    pixels = int(min(frame) * rng.uniform(*size))
    if not pixels:
        return None
    # A hundred characters fill any image but a very long one; then this much is the line.
    known = assets.characters(path)
    text = "".join(map(chr, known[rng.integers(len(known), size=100)]))
    try:
        font = assets.read_font(path, pixels)
        most = edits.longest_fit(text, font, frame[0])
        text = text[: rng.integers(most) + 1] if most else ""
        while text and not edits.fits(text, font, *frame):
            text = text[:-1]
    except OSError:
        # Some of the fonts list characters whose glyph is broken; then there is no text.
        return None
    if not text:
        return None
    return {
        "text": text,
        "font": path,
        "size": pixels,
        "colour": tuple(int(level) for level in rng.integers(256, size=3)),
        "opacity": rng.uniform(*opacity),
        "position": (rng.random(), rng.random()),
    }


def _overlay_emoji(
    rng: np.random.Generator, frame: Size, side: int, *, size: Range, opacity: Range
) -> Values:
    files = assets.emoji_files()
    return {
        "emoji": files[rng.integers(len(files))],
        "size": rng.uniform(*size),
        "opacity": rng.uniform(*opacity),
        "position": (rng.random(), rng.random()),
    }


def _resized_crop(
    rng: np.random.Generator, frame: Size, side: int, *, scale: Range, ratio: Range
) -> Values:
    return {
        "box": edits.random_crop_box(*frame, scale=scale, ratio=ratio, rng=rng),
        "size": side,
    }


def _frame(
    rng: np.random.Generator, frame: Size, side: int, *, scale: Range, ratio: Range
) -> Values:
    box = edits.random_crop_box(*frame, scale=scale, ratio=ratio, rng=rng)
    # White and black are most borders.
    levels = ((255,) * 3, (0,) * 3, tuple(int(level) for level in rng.integers(256, size=3)))
    return {"box": box, "colour": levels[rng.integers(len(levels))]}


def _jitter(
    rng: np.random.Generator,
    frame: Size,
    side: int,
    *,
    brightness: Range,
    contrast: Range,
    saturation: Range,
    hue: Range,
) -> Values:
    changes = [
        ("brightness", rng.uniform(*brightness)),
        ("contrast", rng.uniform(*contrast)),
        ("saturation", rng.uniform(*saturation)),
        ("hue", rng.uniform(*hue)),
    ]
    return {"changes": tuple(changes[i] for i in rng.permutation(len(changes)))}


def _blur(rng: np.random.Generator, frame: Size, side: int, *, radius: Range) -> Values:
    return {"radius": rng.uniform(*radius)}


def _jpeg(rng: np.random.Generator, frame: Size, side: int, *, quality: Range) -> Values:
    return {"quality": int(rng.integers(quality[0], quality[1], endpoint=True))}


def _paste_emoji(image: Image.Image, *, emoji, **values) -> Image.Image:
    return edits.overlay_emoji(image, assets.read_emoji(emoji), **values)


def _write_text(image: Image.Image, *, text, font, size, **values) -> Image.Image:
    try:
        return edits.overlay_text(image, text, assets.read_font(font, size), **values)
    except OSError:
        # A glyph that can be measured but not drawn.
        return image


OPERATIONS: Mapping[str, Operation] = {
    "hflip": Operation(_nothing, edits.hflip),
    "rotate_by_one_of": Operation(_rotate_by_one_of, edits.rotate),
    "rotate": Operation(_rotate, edits.rotate),
    "overlay_text": Operation(_overlay_text, _write_text),
    "overlay_emoji": Operation(_overlay_emoji, _paste_emoji),
    "resized_crop": Operation(_resized_crop, edits.resized_crop),
    "frame": Operation(_frame, edits.frame),
    "jitter": Operation(_jitter, jitter),
    "grey": Operation(_nothing, edits.grey),
    "blur": Operation(_blur, blur),
    "jpeg": Operation(_jpeg, edits.jpeg),
}

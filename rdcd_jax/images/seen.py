"""What people see where a file can be shown in more than one way: transparency, animations, deep values, lost ends.

The papers' protocols drop all of this (`decode.to_rgb`); whoever looks for copies means what is seen.
"""

import contextlib
import io
import itertools
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageSequence

# Below this standard deviation, in grey levels, a frame has no structure to tell it by.
FLAT = 4.0
# Below this one in every channel an image is blank; it is measured at about so many pixels' side.
_BLANK, SIDE = 2.0, 256
# From this share of its pixels on, within so many grey levels of a light one, an image is plain.
_GROUND, _ALIKE, _PAPER = 0.7, 8, 230
# Cells a side that drawings are compared by.
_INK = 96
# Pixels a side that it is measured on, and rows of a strip.
_SAMPLED = 1024
# Mean grey level of ink from which on it would be lost on white.
_LIGHT = 191
# Of an animation, frames that are looked at, and pixels of all of them.
_MOST_FRAMES, _MOST_PIXELS = 1000, 500_000_000
# Bits that deep images are made with.
_DEPTHS = (8, 10, 12, 14, 16, 24, 31)
# Share of the values that lie below white: a few hot pixels do not decide.
_BELOW_WHITE = 0.999
# Of more, evenly chosen ones decide.
_VALUES = 4_000_000
# Of the rows of a JPEG: fewer than these are no image.
_LEAST_ROWS = 0.5
_END_OF_JPEG = b"\xff\xd9"


def has_transparency(image: Image.Image) -> bool:
    """Whether an image has an alpha channel, or a colour that stands for transparent."""
    key = image.info.get("transparency")
    # An animation keeps its palette's index where its frames are RGB already.
    has_key = key is not None and (image.mode != "RGB" or isinstance(key, tuple))
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or has_key


def flattened(image: Image.Image) -> Image.Image:
    """An image laid on what tells ink from ground: on white, or on black where its ink is light.

    Args:
        image: one that `has_transparency`.

    Returns:
        An RGB image.
    """
    # Of few pixels, and then in strips, since RGBA of all would take a gigabyte of the largest images.
    shrunk = image.resize([min(side, _SAMPLED) for side in image.size], Image.Resampling.NEAREST)
    shrunk = shrunk.convert("RGBA")
    alpha = np.asarray(shrunk.getchannel("A"), np.float32)
    ink = np.asarray(shrunk.convert("RGB").convert("L"), np.float32)
    weight = alpha.sum()
    light = bool(weight) and float((ink * alpha).sum() / weight) > _LIGHT
    ground = Image.new("RGB", image.size, "black" if light else "white")
    for top in range(0, image.height, _SAMPLED):
        box = (0, top, image.width, min(image.height, top + _SAMPLED))
        strip = image.crop(box).convert("RGBA")
        ground.paste(strip, box, strip.getchannel("A"))
    return ground


def is_blank(image: Image.Image) -> bool:
    """Whether an RGB image is of one colour but for noise, so that its descriptor says nothing."""
    shrunk = image.reduce(max(1, min(image.size) // SIDE))
    return float(np.asarray(shrunk, np.float32).std(axis=(0, 1)).max()) < _BLANK


def is_plain(image: Image.Image) -> bool:
    """Whether most of an RGB image is one light colour, as of a page of text or a drawing."""
    shrunk = image.reduce(max(1, min(image.size) // SIDE)).convert("L")
    counts = np.asarray(shrunk.histogram(), float)
    near = np.convolve(counts, np.ones(2 * _ALIKE + 1), "same")
    return bool(near.argmax() >= _PAPER and near.max() >= _GROUND * counts.sum())


def ink_of(image: Image.Image) -> np.ndarray | None:
    """What is drawn on a plain image, to compare pages and drawings by: unit vector [N] float32; None of others."""
    if not is_plain(image):
        return None
    grey = np.asarray(image.convert("L").resize((_INK, _INK), Image.Resampling.BOX), np.float32)
    ink = np.abs(grey - np.median(grey)).ravel()
    length = float(np.linalg.norm(ink))
    return ink / length if length else None


def seek_structure(image: Image.Image) -> None:
    """Moves an animation to its first frame with structure; it stays at its first where none has any."""
    if not is_animated(image):
        return
    for frame in _frames(image):
        few = frame.resize([min(side, _SAMPLED) for side in frame.size], Image.Resampling.NEAREST)
        seen = flattened(few) if has_transparency(few) else few
        if np.asarray(seen.convert("L"), np.float32).std() >= FLAT:
            return
    image.seek(0)


def all_frames(image: Image.Image) -> Iterator[bytes]:
    """The pixels of an animation's frames as bytes of RGBA, one frame in memory at a time; none of a still image."""
    if is_animated(image):
        for frame in _frames(image):
            yield frame.convert("RGBA").tobytes()


def _frames(image: Image.Image) -> Iterator[Image.Image]:
    """The first frames."""
    return itertools.islice(ImageSequence.Iterator(image), _most_frames(image))


def _most_frames(image: Image.Image) -> int:
    """As many as can be decoded in seconds: a few bytes may claim any number of large ones."""
    return max(1, min(_MOST_FRAMES, _MOST_PIXELS // (image.width * image.height)))


def is_whole(image: Image.Image) -> bool:
    """Whether `all_frames` gives all of them, and not the first of too many."""
    return not is_animated(image) or image.n_frames <= _most_frames(image)


def is_animated(image: Image.Image) -> bool:
    """Whether there are several frames or pages."""
    # The second image of an MPO is another view, or a preview.
    return getattr(image, "n_frames", 1) > 1 and image.format != "MPO"


def grey_of(values: np.ndarray) -> Image.Image:
    """Grey of more than 8 bits as 8-bit grey, white being what the values themselves say.

    Args:
        values: [H, W] integers or floats. Integers are taken to have 8, 10, 12, 14, 16 or more bits, the fewest that
            hold all but a thousandth of them; floats to run to 1, or, where more than a thousandth are above, to 255
            or as integers do.
    """
    grey = np.array(values, np.float32)
    np.nan_to_num(grey, copy=False)
    some = grey.ravel()[:: max(1, grey.size // _VALUES)]
    most = float(np.quantile(some, _BELOW_WHITE))
    if values.dtype.kind == "f" and most <= 1:
        white = 1.0
    else:
        white = next((2.0**bits - 1 for bits in _DEPTHS if most <= 2.0**bits - 1), most)
    grey.clip(0, white, out=grey)
    grey *= 255 / white
    grey += 0.5
    return Image.fromarray(grey.astype(np.uint8))


def mended_jpeg(content: bytes) -> Image.Image | None:
    """A JPEG whose last bytes are lost, the rest of it grey; None where that is no image, or less than half of one."""
    with contextlib.suppress(Exception):
        image = Image.open(io.BytesIO(content + _END_OF_JPEG), formats=("JPEG", "MPO"))
        image.load()
        rows = np.asarray(image.convert("L"), np.int16).reshape(image.height, -1)
        there = np.flatnonzero((rows != rows[-1]).any(axis=1))
        if there.size and there[-1] + 1 >= _LEAST_ROWS * image.height:
            return image
    return None

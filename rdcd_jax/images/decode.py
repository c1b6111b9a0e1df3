"""Files to RGB images, and the two resizes used for evaluation."""

import contextlib
import importlib
import io
import logging
import os
import stat
import threading
import warnings
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

from rdcd_jax.core.errors import UnreadableImageError
from rdcd_jax.images import seen

_log = logging.getLogger(__name__)

# Pillow refuses to open what is larger than this, from the header and before it decodes anything.
MAX_MEGAPIXELS = 2 * Image.MAX_IMAGE_PIXELS / 1e6

# Packages that teach Pillow a format, where they are installed: what registers it, if importing does not.
_PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_jxl": None}
# Pillow would also try formats that start other programs (EPS) or cannot hold photographs.
_FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"),
    *("HEIF", "JXL"),
)


def _known_formats() -> tuple[str, ...]:
    Image.init()
    for package, register in _PLUGINS.items():
        # A plugin that does not fit this Pillow is as good as none.
        with contextlib.suppress(Exception):
            plugin = importlib.import_module(package)
            if register is not None:
                getattr(plugin, register)()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


FORMATS = _known_formats()

# What to do so that an image with this EXIF orientation stands upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _PillowIsSilent:
    """Pillow's warnings are ignored while any thread is within.

    They are of large images and broken metadata, which keep no image from being read. `catch_warnings` is not made
    for threads: whichever left first would let the others' warnings through.
    """

    def __init__(self):
        self._lock, self._within, self._filters = threading.Lock(), 0, contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._within == 0:
                self._filters.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._within += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._within -= 1
            if self._within == 0:
                self._filters.close()


_PILLOW_IS_SILENT = _PillowIsSilent()
# The largest images take over a gigabyte while they are decoded, so threads take turns with such.
_ONE_LARGE, _LARGE_PIXELS = threading.Lock(), 32e6


def decode_rgb(
    path: str | os.PathLike,
    *,
    min_side_hint: int | None = None,
    content: bytes | None = None,
    as_seen: bool = False,
) -> Image.Image:
    """Reads an image file as an upright RGB image.

    As the papers' protocols read it, alpha is dropped and the colours below it kept, also for palettes with
    transparency, as the reference does (`convert("RGB")`): their figures are only comparable so. `as_seen` gives what
    people see instead, see `seen`.

    Args:
        path: a JPEG, PNG, WebP, GIF, BMP, TIFF, PNM, JPEG 2000 or AVIF file; of several frames
            the first is taken.
        min_side_hint: an image whose short side is at least twice this many pixels is reduced by
            the largest whole factor that keeps the short side at least this long, a JPEG largely
            while it is decoded, which is several times faster. Give the side below which detail
            would be missed; None keeps every pixel.
        content: the file's bytes, where they lie elsewhere; `path` is then only the name in messages.
        as_seen: lays transparent images on a ground, takes an animation's first frame with structure, finds the white
            of grey of more than 8 bits from the values, and uses a JPEG that lacks its last bytes, with a warning.

    Returns:
        A Pillow image of mode RGB, detached from the file.

    Raises:
        UnreadableImageError: the file is missing, truncated, not an image, or has more than
            `MAX_MEGAPIXELS`; the message names it.

    Differs: the reference ignores the EXIF orientation and turns 16-bit grey into white.
    """
    try:
        # A pipe would be waited for, and a device read, for ever.
        if content is None and not stat.S_ISREG(os.stat(path).st_mode):
            raise UnreadableImageError(f"{path}: not a file but a folder, pipe or device.")
        with (
            # An open file, since Pillow maps what it knows by a path into memory, and shears turned TIFFs so.
            open(path, "rb") if content is None else io.BytesIO(content) as file,
            _PILLOW_IS_SILENT,
            Image.open(file, formats=FORMATS) as image,
        ):
            if min_side_hint is not None:
                image.draft(None, (min_side_hint, min_side_hint))
            large = image.width * image.height > _LARGE_PIXELS
            with _ONE_LARGE if large else contextlib.nullcontext():
                if as_seen:
                    seen.seek_structure(image)
                try:
                    rgb = to_rgb(image, as_seen)
                except OSError as error:
                    rgb = _mended(path, file, error) if as_seen else None
                    if rgb is None:
                        raise
            if min_side_hint is not None and min(rgb.size) >= 2 * min_side_hint:
                rgb = rgb.reduce(min(rgb.size) // min_side_hint)
            return _upright(image, rgb)
    except UnreadableImageError:
        raise
    except Image.DecompressionBombError:
        raise UnreadableImageError(
            f"{path}: has more than {MAX_MEGAPIXELS:.0f} megapixels, the most that is decoded; "
            "make a smaller copy of it."
        ) from None
    except FileNotFoundError:
        raise UnreadableImageError(f"{path}: there is no such image file.") from None
    except Image.UnidentifiedImageError:
        raise UnreadableImageError(f"{path}: not an image, or of an unknown format.") from None
    except Exception as error:
        # Broken files make Pillow's plugins raise nearly anything: OSError, SyntaxError,
        # ValueError, struct.error, IndexError, ...
        reason = str(error).rstrip(".") or type(error).__name__
        raise UnreadableImageError(f"{path}: cannot be read as an image ({reason}).") from error


def resize_square(image: Image.Image, size: int) -> Image.Image:
    """Resizes to `size` x `size` pixels (bilinear, antialiased); the aspect is not kept.

    Source: the reference's evaluation, torchvision `Resize([size, size])` on Pillow images.
    """
    return image.resize((size, size), Image.Resampling.BILINEAR)


def resize_short_edge(image: Image.Image, size: int) -> Image.Image:
    """Resizes the short edge to `size` pixels, the long one to int(size * long / short).

    Source: torchvision `Resize(size)` on Pillow images (bilinear, antialiased).
    """
    width, height = image.size
    long = int(size * max(width, height) / min(width, height))
    target = (size, long) if width <= height else (long, size)
    return image.resize(target, Image.Resampling.BILINEAR)


def to_rgb(image: Image.Image, as_seen: bool = False) -> Image.Image:
    """An image as `decode_rgb` makes it of its file, but for its orientation."""
    transparent = as_seen and seen.has_transparency(image)
    if image.mode == "RGB" and not transparent:
        # Loaded, a JPEG no longer needs its file, and a copy would cost an eighth of the decoding.
        image.load()
        return image if image.format in ("JPEG", "MPO") else image.copy()
    if _is_deep(image):
        values = np.asarray(image)
        return (seen.grey_of(values) if as_seen else _deep_grey(values)).convert("RGB")
    if transparent:
        return seen.flattened(image)
    if image.mode in ("P", "PA", "RGBa"):
        # Straight to RGB, Pillow warns about palettes whose transparency has several levels.
        image = image.convert("RGBA")
    return image.convert("RGB")


def upright_rgb(name: str, image: Image.Image, as_seen: bool = False) -> Image.Image:
    """An image in memory as `decode_rgb` makes it of its file.

    Args:
        name: what it is called by.
        image: as Pillow opened it, or made otherwise.
        as_seen: see `decode_rgb`.

    Raises:
        UnreadableImageError: what was opened is damaged.

    Differs: a turned TIFF in another mode than RGB is what Pillow makes of it.
    """
    try:
        return _upright(image, to_rgb(image, as_seen))
    except Exception as error:
        # As of files.
        reason = str(error) or "it was closed, or is damaged"
        raise UnreadableImageError(f"{name}: cannot be decoded ({reason}).") from error


def _mended(path: str | os.PathLike, file: BinaryIO, error: OSError) -> Image.Image | None:
    """What is there of a JPEG that lacks its last bytes; None of anything else."""
    file.seek(0)
    image = seen.mended_jpeg(file.read()) if "truncated" in str(error) else None
    if image is None:
        return None
    _log.warning("%s: is damaged, its last bytes are missing; what is there of it is used.", path)
    return to_rgb(image)


def _is_deep(image: Image.Image) -> bool:
    """Whether an image is grey of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def _deep_grey(values: np.ndarray) -> Image.Image:
    """Grey of more than 8 bits as 8-bit grey; Pillow alone would clip nearly all of it to white."""
    # In position and in single precision: in double the largest image allowed would take 4 GB.
    grey = np.array(values, np.float32)
    if values.dtype.kind == "f":
        # By custom floats run to 1 or to 255; which of the two, only the values tell.
        np.nan_to_num(grey, copy=False)
        white = 1.0 if grey.max() <= 1 else 255.0
    else:
        # Older Pillow hands 16-bit grey over as 32-bit integers.
        white = 65535.0
    grey.clip(0, white, out=grey)
    grey *= 255 / white
    grey += 0.5
    return Image.fromarray(grey.astype(np.uint8))


def _upright(image: Image.Image, rgb: Image.Image) -> Image.Image:
    # A broken EXIF block is no reason to lose the image.
    with contextlib.suppress(Exception):
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
        return rgb if turn is None else rgb.transpose(turn)
    return rgb


def has_several(path: str) -> bool:
    """Whether an image file has several pages or frames, of which one is looked at; not of what cannot be opened."""
    try:
        with _PILLOW_IS_SILENT, Image.open(path, formats=FORMATS) as opened:
            return seen.is_animated(opened)
    except Exception:
        # As in `size_of`.
        return False


def is_seen_otherwise(content: bytes) -> bool:
    """Whether people see another image than the papers' protocols read of a whole file's bytes, see `seen`."""
    with _PILLOW_IS_SILENT, Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if seen.is_animated(image) or _is_deep(image):
            return True
        if not seen.has_transparency(image):
            return False
        # Most screenshots have an alpha channel that hides nothing.
        return image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def size_of(image: str | bytes) -> tuple[int, int] | None:
    """Width and height in pixels as an image file's path or content says; None of what is none, or damaged."""
    try:
        file = io.BytesIO(image) if isinstance(image, bytes) else image
        with _PILLOW_IS_SILENT, Image.open(file, formats=FORMATS) as opened:
            return opened.size
    except Exception:
        # Damaged files make Pillow raise nearly anything.
        return None

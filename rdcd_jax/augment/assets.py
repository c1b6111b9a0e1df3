"""Fonts and emoji for the overlays, from the AugLy package where it is installed.

AugLy (MIT) carries Twemoji (CC-BY 4.0) and free fonts under `augly/assets`, as the reference uses.
The package is found but never imported: its code asks for libraries that are not needed here.
"""

import functools
import importlib.util
import io
import pathlib
import pickle

import numpy as np
from PIL import Image, ImageFont

from rdcd_jax.core.errors import UserError


@functools.cache
def assets_folder() -> pathlib.Path:
    """Where AugLy's fonts and emoji lie.

    Raises:
        UserError: AugLy is not installed. Nothing stands in for it: other images and fonts would
            silently change what a policy trains on.
    """
    spec = importlib.util.find_spec("augly")
    folder = pathlib.Path(spec.origin).parent / "assets" if spec and spec.origin else None
    if folder is None or not (folder / "fonts").is_dir() or not (folder / "twemojis").is_dir():
        raise UserError(
            "Text and emoji overlays need the fonts and emoji of the AugLy package: run "
            "`pip install --no-deps augly`, or choose the policy ADVANCED_NO_OVERLAY."
        )
    return folder


@functools.cache
def emoji_files() -> tuple[pathlib.Path, ...]:
    """The emoji, sorted: small PNG files with transparency."""
    return tuple(sorted(assets_folder().glob("twemojis/*/*.png")))


@functools.cache
def font_files() -> tuple[pathlib.Path, ...]:
    """The fonts, sorted: TrueType files with a list of their characters (.pkl) beside them."""
    fonts = sorted(assets_folder().glob("fonts/*.ttf"))
    return tuple(font for font in fonts if font.with_suffix(".pkl").is_file())


@functools.lru_cache(1024)
def read_emoji(path: pathlib.Path) -> Image.Image:
    """The emoji at `path`, RGBA; the same object each time, not to be changed."""
    with Image.open(path) as image:
        return image.convert("RGBA")


# A few: a line is measured when it is drawn, and written soon after; the font's own program for a size runs only once.
@functools.lru_cache(4)
def read_font(path: pathlib.Path, size: int) -> ImageFont.FreeTypeFont:
    """The font at `path`, `size` pixels high.

    Glyphs are placed one after the other without shaping, so that a line looks the same whether or
    not Pillow was built with Raqm.
    """
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(1024)
def characters(path: pathlib.Path) -> np.ndarray:
    """The code points that the font at `path` can write, [N] int64."""
    return np.array(_Plain(io.BytesIO(path.with_suffix(".pkl").read_bytes())).load(), np.int64)


class _Plain(pickle.Unpickler):
    """Reads lists and numbers and nothing that could run code."""

    def find_class(self, module: str, name: str) -> type:
        raise pickle.UnpicklingError(f"a list of characters may not hold {module}.{name}")

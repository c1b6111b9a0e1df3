"""A sheet that shows what a policy does: images, some views of each, and what was done to each view."""

import os
import pathlib
import textwrap
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

from rdcd_jax.augment import assets
from rdcd_jax.augment.host.operations import Drawn
from rdcd_jax.augment.policies import Step, make_view
from rdcd_jax.core.errors import UnreadableImageError, UserError
from rdcd_jax.core.files import require_writable, write_aside
from rdcd_jax.images.sources import ImageSet

SUFFIXES = (".png", ".jpg", ".jpeg")
_GAP, _LINE, _NARROWEST, _LARGEST = 10, 14, 190, 2**16 - 1


def write_contact_sheet(
    images: ImageSet,
    policy: str | Sequence[Step],
    image_size: int,
    out: str | os.PathLike,
    *,
    rows: int = 8,
    views: int = 5,
    seed: int = 0,
) -> None:
    """Writes an image with one row for each original: itself, then views of it with what made them under each.

    Args:
        images: where the originals come from; taken evenly from all, unreadable ones left out.
        policy: see `policies.find_policy`.
        image_size: side of the views in pixels.
        out: a .png or .jpg file.
        rows: originals, at most as many as there are.
        views: of each original.
        seed: decides the views.

    Raises:
        UserError: a file of another kind, no readable image, impossible numbers; see also `policies.make_view`.
        OSError: `out` cannot be written.
    """
    out = pathlib.Path(out)
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"{out}: a contact sheet is written as one of {', '.join(SUFFIXES)}.")
    for name, value, least in [("rows", rows, 1), ("views", views, 1), ("seed", seed, 0)]:
        if value < least:
            raise UserError(f"{name}={value} must be at least {least}.")
    require_writable(out)
    view = make_view(policy, image_size)
    width = max(image_size, _NARROWEST)
    if max(rows, views + 1) * (width + 30 * _LINE) > _LARGEST:
        raise UserError(
            f"{rows} rows of {views} views of {image_size} pixels are too large for one image; use fewer."
        )
    rng = np.random.default_rng(seed)
    cells: list[list[tuple[Image.Image, str]]] = []
    for name, image in _some_readable(images, rows):
        cells.append([(_within(image, image_size), f"{name}\n{image.width} x {image.height}")])
        for _ in range(views):
            drawn = view.draw(image.size, rng)
            made = Image.fromarray(view.apply(image, drawn))
            cells[-1].append((made, "\n".join(map(embed, drawn))))
    if not cells:
        raise UserError(f"{images.source}: none of its images can be read.")
    sheet = _laid_out(cells, width, image_size)
    with write_aside(out) as aside:
        sheet.save(aside)


def embed(drawn: Drawn) -> str:
    """One line for a person: the operation's name and its parameters, rounded."""
    words = []
    for name, value in drawn.values.items():
        if (drawn.operation, name) == ("resized_crop", "size"):
            continue  # the same for all
        if name == "changes":
            words += [f"{change} {amount:.2f}" for change, amount in value]
        elif name == "text":
            # It may be of a font that only has symbols.
            words.append(f"{len(value)} characters")
        elif isinstance(value, pathlib.Path):
            words.append(value.stem)
        elif isinstance(value, tuple):
            words.append(f"{name} {','.join(map(_short, value))}")
        else:
            words.append(f"{name} {_short(value)}")
    return f"{drawn.operation}: {', '.join(words)}" if words else drawn.operation


def _short(number: float) -> str:
    return f"{number:.2f}" if isinstance(number, float) else str(number)


def _some_readable(images: ImageSet, count: int) -> Iterator[tuple[str, Image.Image]]:
    wanted = min(count, len(images))
    # Each row's images, the first readable of which is shown.
    for positions in np.array_split(np.arange(len(images)), wanted) if wanted else ():
        for position in positions.tolist():
            try:
                image = images.decode(position)
            except UnreadableImageError:
                continue
            yield images.ids[position], image
            break


def _within(image: Image.Image, side: int) -> Image.Image:
    """The whole image, reduced to fit."""
    image = image.copy()
    image.thumbnail((side, side))
    return image


def _laid_out(
    cells: list[list[tuple[Image.Image, str]]], width: int, image_size: int
) -> Image.Image:
    import matplotlib

    path = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = assets.read_font(path, 11)
    letters = int(width / font.getlength("n"))

    def wrapped(text: str) -> list[str]:
        lines = text.splitlines()
        return [part for line in lines for part in textwrap.wrap(line, letters) or [""]]

    heights = [
        image_size + _LINE * max(len(wrapped(text)) for _, text in row) + 2 * _GAP for row in cells
    ]
    size = (len(cells[0]) * (width + _GAP) + _GAP, sum(heights) + _GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    y = _GAP
    for row, height in zip(cells, heights, strict=True):
        for column, (image, text) in enumerate(row):
            x = _GAP + column * (width + _GAP)
            sheet.paste(image, (x, y))
            for i, line in enumerate(wrapped(text)):
                pen.text((x, y + image_size + 2 + i * _LINE), line, fill="black", font=font)
        y += height
    return sheet

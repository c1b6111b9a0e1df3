"""A page of groups of images, self-contained: it asks for nothing from the network."""

import dataclasses
import os
from collections.abc import Sequence

import rdcd_jax
from rdcd_jax.core.errors import UnreadableImageError, UserError
from rdcd_jax.core.files import require_writable, write_text
from rdcd_jax.images.sources import find_images
from rdcd_jax.report.page import environment, template
from rdcd_jax.report.thumbnails import SIDE, thumbnail_uri

# Images that a page shows; more would make it too large to open.
_MOST_SHOWN = 600


@dataclasses.dataclass(frozen=True)
class GalleryGroup:
    """Images that belong together.

    Attributes:
        score: the least score that holds them together.
        images: id, path, and width and height in pixels or None, of each.
    """

    score: float
    images: list[tuple[str, str, tuple[int, int] | None]]


def write_gallery(out: str | os.PathLike, groups: Sequence[GalleryGroup], compared: int) -> None:
    """Writes the page.

    Args:
        out: the .html file.
        groups: what to show, in this order.
        compared: how many images were compared, for the heading.

    Raises:
        OSError: it cannot be written.
    """
    require_writable(out)
    shown, left = [], _MOST_SHOWN
    for group in groups:
        if left < len(group.images):
            break
        left -= len(group.images)
        shown.append((group.score, [(*each, _uri(each[1])) for each in group.images]))
    page = environment().get_template("gallery.html")
    text = page.render(
        version=rdcd_jax.__version__,
        style=template("report.css"),
        groups=shown,
        hidden=len(groups) - len(shown),
        compared=compared,
        copies=sum(len(group.images) for group in groups),
    )
    write_text(out, text)


def _uri(path: str) -> str | None:
    """The image at a path, small; None where it lies in an archive or is gone."""
    try:
        return thumbnail_uri(find_images(path).decode(0, min_side_hint=SIDE))
    except (UnreadableImageError, UserError):
        return None

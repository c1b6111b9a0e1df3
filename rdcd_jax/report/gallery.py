"""A page of images side by side, self-contained: it asks for nothing from the network."""

import dataclasses
import os
from collections.abc import Callable, Sequence

from PIL import Image

import rdcd_jax
from rdcd_jax.core.errors import UnreadableImageError, UserError
from rdcd_jax.core.files import require_writable, write_text
from rdcd_jax.images.lookup import image_at
from rdcd_jax.report.page import environment, script_digest, template
from rdcd_jax.report.thumbnails import SIDE, thumbnail_uri

# Images that a page shows; more would make it too large to open.
_MOST_SHOWN = 600
# And so many of one section, so that a large group hides no other.
_MOST_OF_ONE = 100


@dataclasses.dataclass(frozen=True)
class Figure:
    """An image with what there is to say about it.

    Attributes:
        title: its id.
        lines: said below it, one a line.
        decode: gives it; see `at`.
        is_query: whether the others of its section were found for it, or are copies of it.
        path: of its file, for the list of paths; empty for none.
    """

    title: str
    lines: Sequence[str]
    decode: Callable[[], Image.Image]
    is_query: bool = False
    path: str = ""

    def uri(self) -> str | None:
        """The image, small; None where it is gone, or its folder cannot be opened."""
        try:
            return thumbnail_uri(self.decode())
        except (UnreadableImageError, UserError, OSError):
            return None


@dataclasses.dataclass(frozen=True)
class Section:
    """Images that belong together.

    Attributes:
        heading: what they are called by.
        note: a few words beside it.
        figures: the images.
        score: by which it is filtered; None where it has none.
    """

    heading: str
    note: str
    figures: Sequence[Figure]
    score: float | None = None


def at(path: str) -> Callable[[], Image.Image]:
    """What decodes the image at a path."""
    return lambda: image_at(path).seen().decode(0, min_side_hint=SIDE)


def size_line(size: tuple[int, int] | None, count: int | None = None) -> list[str]:
    """What a figure says of its image's width and height and of its file's bytes; nothing of what is not known."""
    parts = [f"{size[0]} x {size[1]} pixels"] if size else []
    if count:
        parts.append(f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB")
    return [", ".join(parts)] if parts else []


def write_gallery(
    out: str | os.PathLike, title: str, summary: str, sections: Sequence[Section]
) -> None:
    """Writes the page.

    Args:
        out: the .html file.
        title: of the page.
        summary: a sentence below it.
        sections: what to show, in this order; as many as make a page that can be opened.

    Raises:
        OSError: it cannot be written.
    """
    require_writable(out)
    shown, left = [], _MOST_SHOWN
    for section in sections:
        figures = section.figures[:_MOST_OF_ONE]
        if left < len(figures):
            break
        left -= len(figures)
        more = len(section.figures) - len(figures)
        shown.append((section, [(figure, figure.uri()) for figure in figures], more))
    script = template("gallery.js")
    text = (
        environment()
        .get_template("gallery.html")
        .render(
            version=rdcd_jax.__version__,
            style=template("report.css"),
            script=script,
            script_digest=script_digest(script),
            has_scores=any(section.score is not None for section, *_ in shown),
            title=title,
            summary=summary,
            sections=shown,
            hidden=len(sections) - len(shown),
        )
    )
    write_text(out, text)

"""Small images inside a page."""

import base64
import io
from collections.abc import Mapping

from PIL import Image

from rdcd_jax.benchmarks.copydays import DISTRACTORS
from rdcd_jax.benchmarks.copydays_folder import find_copydays_images
from rdcd_jax.core.errors import UserError
from rdcd_jax.images.sources import ImageSet, find_images

SIDE, _QUALITY = 160, 78
# The sources that an image may lie in, by the part that it plays.
_SOURCES = {
    "queries": ("queries", "copydays"),
    "references": ("references", "copydays", "distractors"),
}


class Thumbnails:
    """Gives the images of some sources by their ids.

    Args:
        sources: of the `queries` and `references`, or of `copydays` and its `distractors`.

    Attributes:
        problem: a sentence where the sources cannot be read; empty where they can.
    """

    def __init__(self, sources: Mapping[str, str]):
        self.problem = ""
        self._images, self._positions = {}, {}
        try:
            for part, source in sources.items():
                images = self._images[part] = _found(part, source)
                start = DISTRACTORS if part == "distractors" else ""
                self._positions[part] = {
                    start + id_: position for position, id_ in enumerate(images.ids)
                }
        except (UserError, OSError) as error:
            self.problem = str(error)
            self._images.clear()

    def __bool__(self) -> bool:
        return bool(self._images)

    def uri(self, part: str, id_: str) -> str | None:
        """An image of "queries" or "references" as a data URI, at most 160 pixels high and wide.

        Returns:
            None where it cannot be read.
        """
        known = (name for name in _SOURCES[part] if id_ in self._positions.get(name, ()))
        source = next(known, None)
        if source not in self._images:
            return None
        try:
            image = self._images[source].decode(self._positions[source][id_], min_side_hint=SIDE)
        except UserError:
            return None
        return thumbnail_uri(image)


def thumbnail_uri(image: Image.Image) -> str:
    """An RGB image as a data URI, at most `SIDE` pixels high and wide."""
    image = image.copy()
    image.thumbnail((SIDE, SIDE))
    # What a camera noted in the file is nobody's business.
    image.info.clear()
    written = io.BytesIO()
    image.save(written, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"


def _found(part: str, source: str) -> ImageSet:
    if part == "copydays":
        return find_copydays_images(source)
    return find_images(source, ids="path" if part == "distractors" else "name")

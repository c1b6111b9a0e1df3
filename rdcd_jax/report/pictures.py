"""Small pictures inside a page."""

import base64
import io
from collections.abc import Mapping

from rdcd_jax.data.sources import find_images
from rdcd_jax.errors import UserError

_SIDE, _QUALITY = 160, 78


class Thumbnails:
    """Gives the pictures of some sources by their ids.

    Args:
        sources: by the part that their pictures play, such as "queries".

    Attributes:
        problem: a sentence where the sources cannot be read; empty where they can.
    """

    def __init__(self, sources: Mapping[str, str]):
        self.problem = ""
        self._images, self._places = {}, {}
        try:
            for part, source in sources.items():
                images = self._images[part] = find_images(source)
                self._places[part] = {id_: place for place, id_ in enumerate(images.ids)}
        except (UserError, OSError) as error:
            self.problem = str(error)
            self._images.clear()

    def __bool__(self) -> bool:
        return bool(self._images)

    def uri(self, part: str, id_: str) -> str | None:
        """A picture as a data URI, at most 160 pixels high and wide; None where it cannot be read."""
        place = self._places[part].get(id_) if part in self._images else None
        if place is None:
            return None
        try:
            image = self._images[part].decode(place, min_side_hint=_SIDE)
        except UserError:
            return None
        image.thumbnail((_SIDE, _SIDE))
        # What a camera noted in the file is nobody's business.
        image.info.clear()
        written = io.BytesIO()
        image.save(written, "JPEG", quality=_QUALITY, optimize=True)
        return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"

"""What an index is and holds, as its `index.json` says."""

import dataclasses
import json
import pathlib

from rdcd_jax.core.errors import MALFORMED, UserError
from rdcd_jax.index.variants import PARTS

FORMAT = 9
# Format 3, of version 0.1, has no score normalisation; formats 3 and 4 have no paths, 5 nothing else of the files, 6
# does not say by which engine it was made, 7 knows neither bits nor parts, 8 calls what `update` adds by its name.
READS = (3, 4, 5, 6, 7, 8, FORMAT)
MANIFEST = "index.json"
BINARY = "binary"
DTYPES = ("float32", "float16", "int8", BINARY)
# The way out of damage: a build goes on with the index that it finds.
# Any of these is in every index's.
_OWN = {"format", "segments", "fingerprint"}
# Never "delete that folder": photographs may lie in it.
AGAIN = "build the index again in another folder"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What an index is and holds.

    Attributes:
        model: the model's spec, as `load_model` takes it.
        fingerprint: what tells its weights from others.
        image_size: side of the images that were embedded.
        dim: D.
        dtype: one of `DTYPES`.
        engine: what computed the descriptors, see `weights.engines`; empty where an index of before does not say.
        calibration: what tells what a score means, see `calibration.read_calibration`; None where there is none.
        normalised: whether scores are normalised by the background.
        parts: whether every image has descriptors of five parts beside its own, see `variants.parts`.
        root: the folder that paths below it are kept from; empty for none.
        sources: what was indexed, for `Index.update`.
        by_path: whether that calls images by their paths, not by their names.
        segments: (number, images) of each, in the index's order.
        next: the number that the next segment gets; none is used twice.
    """

    model: str
    fingerprint: str
    image_size: int
    dim: int
    dtype: str
    engine: str = ""
    calibration: dict | None = None
    normalised: bool = False
    parts: bool = False
    root: str = ""
    sources: tuple[str, ...] = ()
    by_path: bool = False
    segments: tuple[tuple[int, int], ...] = ()
    next: int = 0

    def __len__(self) -> int:
        return sum(images for _, images in self.segments)

    @property
    def per_image(self) -> int:
        """Descriptors of an image; its own comes first."""
        return 1 + PARTS if self.parts else 1

    @property
    def rows(self) -> int:
        """Descriptors of all images."""
        return len(self) * self.per_image


def binding_manifest(folder: pathlib.Path) -> Manifest | None:
    """What a build has to go on with; None where there is no index, or an empty one.

    Such is what a build leaves that could read no image.

    Raises:
        UserError: see `read_manifest`.
    """
    if not (folder / MANIFEST).exists():
        return None
    manifest = read_manifest(folder)
    return manifest if len(manifest) else None


def read_manifest(folder: pathlib.Path) -> Manifest:
    """Reads what an index is.

    Raises:
        UserError: there is none, a damaged one, or one of a later format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder} is not an index: it has no {MANIFEST}; make one by `rdcd-jax index build`."
        )
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(stored, dict) and not _OWN & stored.keys():
            raise UserError(f"{path} is not an index's; give another folder.")
        version = stored.pop("format")
        if version not in READS:
            raise UserError(
                f"{path} is of format {version}, and this version of rdcd-jax reads"
                f" {', '.join(map(str, READS))}; use the version that wrote it, or {AGAIN}."
            )
        segments = tuple((int(number), int(images)) for number, images in stored.pop("segments"))
        sources = stored.pop("sources", [])
        if not isinstance(sources, list) or not all(isinstance(each, str) for each in sources):
            raise ValueError("its sources are no list of texts")
        manifest = Manifest(**stored, sources=tuple(sources), segments=segments)
        texts = (manifest.model, manifest.fingerprint, manifest.engine, manifest.root)
        sound = all(isinstance(text, str) for text in texts)
        sound = sound and isinstance(manifest.calibration, dict | None)
        sound = sound and manifest.dtype in DTYPES and manifest.dim > 0 and manifest.image_size > 0
        sound = sound and isinstance(manifest.parts, bool) and isinstance(manifest.by_path, bool)
        sound = sound and not (manifest.dtype == BINARY and manifest.dim % 8)
        sound = sound and all(images > 0 and number < manifest.next for number, images in segments)
        if not sound:
            raise ValueError("its fields contradict each other")
    except UserError:
        raise
    except MALFORMED as error:
        raise UserError(f"{path} is damaged ({error}); {AGAIN}.") from error
    return manifest

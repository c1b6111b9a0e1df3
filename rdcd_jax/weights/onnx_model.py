"""A descriptor network in an ONNX file, run by onnxruntime as it is: a quantised teacher is several times faster so."""

import dataclasses
import functools
import os
import pathlib
import re
from typing import TYPE_CHECKING

import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import file_sha256
from rdcd_jax.embedding.stream import Embeds

if TYPE_CHECKING:
    import onnxruntime

KIND = "onnxruntime"
IMAGE_SIZE = 288
# Larger descriptors and images than a model can be meant for.
MOST_SIZE = 8192


@dataclasses.dataclass(frozen=True)
class OnnxModel(Embeds):
    """Embeds images as `weights.library.Model` does, but has no weights that JAX knows.

    Attributes:
        name: what its descriptors are called by.
        image_size: S, the side of the square images that it is given, or their short edge.
        path: the file; its one input takes uint8 [B, H, W, 3], its first output is [B, D].
        session: what runs the file.
        short_edge: images should keep their aspect, see `embedding.shapes`.
        spec: what `load_model` loads it by, in any folder.
        engine: what computes its descriptors.
        licences: whose the weights are; nothing where that is not known.
    """

    name: str
    image_size: int
    path: pathlib.Path
    session: "onnxruntime.InferenceSession"
    short_edge: bool = False
    spec: str = ""
    engine: str = KIND
    licences: tuple[str, ...] = ()

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the file."""
        return file_sha256(self.path)

    @functools.cached_property
    def dim(self) -> int:
        """D, the size of the descriptor."""
        side = _only_side(self.session) or 64
        return self.embed_batch(np.zeros((1, side, side, 3), np.uint8)).shape[1]

    def embed_batch(self, images: np.ndarray) -> np.ndarray:
        """Maps images [B, H, W, 3] uint8 to descriptors [B, D] float32 of unit length.

        Raises:
            UserError: images of another type or shape, or of a size that the file does not take.
        """
        require_pixels(images)
        (node,) = self.session.get_inputs()
        try:
            found = self.session.run(None, {node.name: np.ascontiguousarray(images)})[0]
        except Exception as error:
            raise UserError(
                f"{self.path} does not embed images {list(images.shape)} of type uint8"
                f" ({str(error).splitlines()[0]}); give a file that takes such images."
            ) from error
        if np.ndim(found) != 2 or len(found) != len(images):
            raise UserError(
                f"{self.path} gives {list(np.shape(found))} for images {list(images.shape)}; its first output should be"
                " descriptors [B, D]."
            )
        return unit_length(np.asarray(found, np.float32))

    def at_size(self, image_size: int | None, *, short_edge: bool = False) -> "OnnxModel":
        """The same model for images of another side, or of another short edge; itself for None.

        Raises:
            UserError: the file takes images of one size alone.
        """
        if image_size is None:
            return self
        require_size(image_size, short_edge)
        only = _only_side(self.session)
        if only is not None and (image_size != only or short_edge):
            raise UserError(
                f"{self.path} takes images of {only} x {only} pixels alone; leave the image size out."
            )
        return dataclasses.replace(self, image_size=image_size, short_edge=short_edge)


def require_pixels(images: np.ndarray) -> None:
    """Refuses what are no images as files decode to: other numbers would get descriptors that mean nothing.

    Raises:
        UserError: another type than uint8, or another shape than [B, H, W, 3].
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UserError(
            f"The images are an array of type {images.dtype} and shape {list(images.shape)}; give uint8 [B, H, W, 3]."
        )


def unit_length(rows: np.ndarray) -> np.ndarray:
    """Rows [B, D] divided by their lengths; zeros stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def require_size(size: int, short_edge: bool) -> None:
    """Refuses a side that no image has.

    Raises:
        UserError: it is not from 1 to `MOST_SIZE`.
    """
    if not 1 <= size <= MOST_SIZE:
        what = "short edge" if short_edge else "image size"
        raise UserError(f"The {what} is {size}; give 1 to {MOST_SIZE} pixels.")


def load_onnx_model(name: str, path: str | os.PathLike) -> OnnxModel:
    """A file as a model.

    Args:
        name: what its descriptors are called by.
        path: the file.

    Raises:
        UserError: without onnxruntime, or for a file that it cannot run on images.
    """
    session = _session(path)
    # Our own exports say what size they are best given.
    stored = session.get_modelmeta().custom_metadata_map.get("image_size", "")
    size = int(stored) if re.fullmatch("[1-9][0-9]{0,3}", stored) else IMAGE_SIZE
    size = _only_side(session) or size
    model = OnnxModel(name, size, pathlib.Path(path), session)
    # A file that takes something else is reported before any image is read.
    _ = model.dim
    return model


def _only_side(session: "onnxruntime.InferenceSession") -> int | None:
    """The side of the square images that a file takes, where it takes no others."""
    sides = session.get_inputs()[0].shape[1:3]
    fixed = len(sides) == 2 and sides[0] == sides[1] and isinstance(sides[0], int)
    return sides[0] if fixed else None


def _session(path: str | os.PathLike):
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            f"{KIND}:{path} needs onnxruntime; run `pip install onnxruntime`."
        ) from None
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such file; give the path of an ONNX file.")
    options = onnxruntime.SessionOptions()
    # Its threads would wait for work at full speed, and take the cores from the student's step.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Without it a CPU that lacks VNNI adds pairs of 8-bit products in 16 bits, which overflow: an index that was built
    # on such a machine would find less when it is searched on another.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        # onnxruntime's errors have no common class of their own.
        raise UserError(
            f"{path}: onnxruntime cannot run it ({str(error).splitlines()[0]}); fetch it again."
        ) from error
    if len(session.get_inputs()) != 1:
        raise UserError(
            f"{path} has {len(session.get_inputs())} inputs; it should take images alone."
        )
    return session

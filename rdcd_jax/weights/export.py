"""Models as files for other programs: PyTorch, safetensors, ONNX, StableHLO."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
import onnx

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import require_writable, write_aside
from rdcd_jax.core.tensors import write_tensors
from rdcd_jax.models.descriptor import normalize_images
from rdcd_jax.weights import convert
from rdcd_jax.weights.library import model_card
from rdcd_jax.weights.model import Model
from rdcd_jax.weights.onnx_int8 import DEFAULT_IMAGES, onnx_int8
from rdcd_jax.weights.onnx_model import OnnxModel
from rdcd_jax.weights.onnx_networks import onnx_network
from rdcd_jax.weights.shipped import CARD
from rdcd_jax.weights.torch_writer import write_torch_file

INT8 = "onnx-int8"
PLATFORMS = ("cpu", "cuda", "tpu")


def export_weights(
    model: Model | OnnxModel,
    kind: str,
    path: str | os.PathLike,
    *,
    range_images: str | None = None,
) -> None:
    """Writes a model as another program takes it.

    Args:
        model: what to write.
        kind: a key of `FORMATS`.
        path: the file; one that is there is replaced when the new one is whole.
        range_images: a source of images that the ranges of `onnx-int8` are measured on; the bundled training images
            for None.

    Raises:
        UserError: for an unknown kind, a range_images that the kind has no use for, a model that is an ONNX
            file already, a network that the kind cannot say, or a package that is missing.
        OSError: the file cannot be written.
    """
    if kind not in FORMATS:
        raise UserError(f"There is no format '{kind}'; use one of {', '.join(FORMATS)}.")
    if isinstance(model, OnnxModel):
        raise UserError(
            f"{model.name} is an ONNX file already, which onnxruntime runs as it is; export the model it was made from."
        )
    if range_images is not None and kind != INT8:
        raise UserError(f"range_images is for {INT8} alone; '{kind}' needs none.")
    require_writable(path)
    with write_aside(path) as aside:
        options = {} if range_images is None else {"range_images": range_images}
        FORMATS[kind](model, aside, **options)


def write_torch(model: Model, path: pathlib.Path) -> None:
    """A state dict for `torch.load`, with the counters of torch's batch norms, which a strict load wants."""
    tensors = {}
    for name, array in convert.to_torch(model.module, model.network).items():
        tensors[name] = array
        layer, _, leaf = name.rpartition(".")
        if leaf == "running_mean":
            tensors[f"{layer}.num_batches_tracked"] = np.zeros((), np.int64)
    write_torch_file(path, tensors)


def write_safetensors(model: Model, path: pathlib.Path) -> None:
    """The same names without the counters: torch's strict load makes them up for a plain dict.

    The metadata hold the model's card, so that the file is also a model here; it has no background, so scores are not
    normalised by it.
    """
    tensors = convert.to_torch(model.module, model.network)
    card = model_card(model) | {
        name: model.card[name] for name in ("licences", "calibration") if name in model.card
    }
    write_tensors(path, tensors, {CARD: json.dumps(card)})


def write_onnx(model: Model, path: pathlib.Path) -> None:
    """uint8 images [B, H, W, 3] of any B, H, W to descriptors [B, D], in float32."""
    onnx.save(onnx_network(model), path)


def write_onnx_float16(model: Model, path: pathlib.Path) -> None:
    """The same with the trunk in float16; images and descriptors keep their types."""
    onnx.save(onnx_network(model, half=True), path)


def write_onnx_int8(model: Model, path: pathlib.Path, range_images: str = DEFAULT_IMAGES) -> None:
    """The same in 8-bit integers, their ranges measured on the images of `range_images`."""
    onnx.save(onnx_int8(model, range_images), path)


def write_stablehlo(model: Model, path: pathlib.Path) -> None:
    """A program of `jax.export`: uint8 images [B, S, S, 3] of any B and the model's S to descriptors [B, D] float32.

    `jax.export.deserialize(bytearray(FILE)).call(images)` runs it on any of `PLATFORMS`.
    """
    size = model.image_size
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8)

    @jax.jit
    def embed(images: jax.Array) -> jax.Array:
        return model.module(normalize_images(images))[1]

    with _without_locations():
        exported = jax.export.export(embed, platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())


@contextlib.contextmanager
def _without_locations() -> Iterator[None]:
    """Leaves out of a program what files of this machine its operations come from."""
    before = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


FORMATS: dict[str, Callable[..., None]] = {
    "torch": write_torch,
    "safetensors": write_safetensors,
    "onnx": write_onnx,
    "onnx-float16": write_onnx_float16,
    INT8: write_onnx_int8,
    "stablehlo": write_stablehlo,
}

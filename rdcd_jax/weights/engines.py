"""What computes descriptors: JAX, or on a CPU onnxruntime in 8-bit integers, which is several times as fast."""

import dataclasses
import importlib.util
import os
import pathlib

import jax

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import file_sha256, write_aside
from rdcd_jax.weights.library import WEIGHTS_SHA256, load_model, load_model_of
from rdcd_jax.weights.model import INT8, JAX, Model
from rdcd_jax.weights.onnx_model import OnnxModel, load_onnx_model
from rdcd_jax.weights.shipped import INT8_FILE, WEIGHTS

AUTO = "auto"
ENGINES = (AUTO, JAX, INT8)


def with_engine(model: Model | OnnxModel, engine: str) -> Model | OnnxModel:
    """The same model, computed by another engine.

    Args:
        model: the model.
        engine: one of `ENGINES`; "auto" takes 8-bit integers where the model comes with them, JAX would run on a CPU
            and onnxruntime is installed, and else what the model has. An ONNX file is run by onnxruntime as it is.

    Raises:
        UserError: an unknown engine, one that the model does not come with, or whose package is missing.

    Examples:
        >>> import rdcd_jax as rdcd
        >>> with_engine(rdcd.load_model("rdcd-effb0-64"), "jax").engine
        'jax'
    """
    if engine == AUTO:
        engine = INT8 if _is_quicker(model) else model.engine
    if engine == model.engine:
        return model
    if engine not in ENGINES:
        raise UserError(
            f"There is no engine '{engine}' to embed with; use one of {', '.join(ENGINES)}."
        )
    if isinstance(model, OnnxModel):
        raise UserError(
            f"{model.name} is an ONNX file, which onnxruntime runs as it is; leave the engine out."
        )
    if engine == JAX:
        return dataclasses.replace(model, quantised=None)
    if model.int8 is None:
        raise UserError(
            f"{model.name} does not come in 8-bit integers; use --engine=jax, or export it by `rdcd-jax weights export"
            f" --model={model.spec or model.name} --format=onnx-int8 --out=FILE.onnx` and give the file as"
            " onnxruntime:FILE.onnx."
        )
    return dataclasses.replace(model, quantised=_quantised(model, model.int8))


def load_by(
    model: str | os.PathLike | Model | OnnxModel, engine: str, fingerprint: str | None = None
) -> Model | OnnxModel:
    """A model ready to be computed by an engine.

    Args:
        model: what `load_model` takes, or gave. One that was loaded already stays by its own engine under "auto".
        engine: see `with_engine`.
        fingerprint: see `load_model_of`.

    Raises:
        UserError: see `load_model` and `with_engine`.
    """
    if isinstance(model, str | os.PathLike):
        return with_engine(load_model_of(model, fingerprint), engine)
    return model if engine == AUTO else with_engine(model, engine)


def can_run(model: Model | OnnxModel, engine: str) -> bool:
    """Whether an engine can compute a model's descriptors on this machine."""
    if isinstance(model, OnnxModel) or engine not in ENGINES:
        return engine == model.engine
    return engine == JAX or (
        model.int8 is not None and importlib.util.find_spec("onnxruntime") is not None
    )


def write_quantised(folder: pathlib.Path) -> None:
    """Gives the model of an export folder its file in 8-bit integers, their ranges measured on the bundled images.

    Raises:
        UserError: see `onnx_int8.onnx_int8`.
    """
    import onnx

    from rdcd_jax.weights.onnx_int8 import onnx_int8

    written = onnx_int8(load_model(str(folder)))
    entry = written.metadata_props.add()
    entry.key, entry.value = WEIGHTS_SHA256, file_sha256(folder / WEIGHTS)
    with write_aside(folder / INT8_FILE) as aside:
        onnx.save(written, aside)


def _is_quicker(model: Model | OnnxModel) -> bool:
    return isinstance(model, Model) and can_run(model, INT8) and jax.default_backend() == "cpu"


def _quantised(model: Model, path: pathlib.Path) -> OnnxModel:
    found = load_onnx_model(model.name, path)
    made_from = found.session.get_modelmeta().custom_metadata_map.get(WEIGHTS_SHA256)
    weights = path.with_name(WEIGHTS)
    if made_from != file_sha256(weights):
        raise UserError(
            f"{path} was made from other weights than {weights}; use --engine=jax, or delete it."
        )
    return found

"""What made an index, and what may go on with it: its model, image size and type."""

import os
import pathlib
import secrets
from collections.abc import Mapping

import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.stream import has_fingerprint
from rdcd_jax.index.manifest import BINARY, Manifest
from rdcd_jax.search import bits
from rdcd_jax.search.scoring import scoring_of
from rdcd_jax.weights.engines import AUTO, can_run, load_by, with_engine
from rdcd_jax.weights.library import load_model_of
from rdcd_jax.weights.model import Model
from rdcd_jax.weights.onnx_model import OnnxModel


def embedder_for(
    model: str | os.PathLike | Model | OnnxModel, there: Manifest | None, engine: str
) -> Model | OnnxModel:
    """The model to build by, computed by an engine of `weights.engines`.

    Of a shipped student it is the version that an index which is there was made by, and "auto" is that index's engine.
    """
    if engine == AUTO and there is not None and isinstance(model, str | os.PathLike):
        model = load_model_of(model, there.fingerprint)
        engine = there.engine or model.engine
    model = load_by(model, engine, there and there.fingerprint)
    if not model.spec:
        raise UserError(
            f"The model {model.name} lies nowhere that the index could find it again; export it, and load the export."
        )
    return model


def embedder_of(
    folder: pathlib.Path, manifest: Manifest, given: str | Model | OnnxModel | None
) -> Model | OnnxModel:
    """The model of an index that is there, by the engine that made it if this machine can run it.

    `given` where somebody says where it lies now.

    Raises:
        UserError: it cannot be loaded.
    """
    if given is not None and not isinstance(given, str):
        found = given
    else:
        try:
            found = load_model_of(given or manifest.model, manifest.fingerprint)
        except UserError as error:
            raise UserError(
                f"{folder} was made by the model {manifest.model}, which cannot be loaded: {error} If it lies elsewhere"
                " by now, say where (--model=, or Index.open(..., model=))."
            ) from error
    if manifest.engine and can_run(found, manifest.engine):
        found = with_engine(found, manifest.engine)
    return found.at_size(manifest.image_size)


def normalises(folder: pathlib.Path, there: Manifest | None, wanted: bool) -> bool:
    """Whether scores are normalised in an index to build; an index that is there stays as it is."""
    if there is None:
        return wanted
    if there.normalised and not wanted:
        raise UserError(
            f"{folder} is an index whose scores are normalised; leave normalisation out in the search, or give"
            " another folder."
        )
    return there.normalised


def manifest_of(
    embedder: Model | OnnxModel,
    dtype: str,
    calibration: Mapping | None,
    background: np.ndarray | None,
) -> Manifest:
    """The manifest of an index of nothing yet, by this model."""
    if dtype == BINARY:
        bits.require_whole_bytes(embedder.dim)
    meaning = calibration or getattr(embedder, "card", {}).get("calibration")
    scoring = scoring_of(background, meaning)  # refuses what is none
    if calibration and background is not None and scoring.calibration is None:
        raise UserError(
            "The calibration given knows nothing of normalised scores; give the calibration.json of `rdcd-jax"
            " evaluate disc --model=...`, or build the index without normalisation."
        )
    if calibration and dtype == BINARY and background is None:
        raise UserError(
            "Without score normalisation no calibration holds for bits; leave it out and search by a threshold of your"
            " own, or build the index with normalisation."
        )
    return Manifest(
        model=embedder.spec,
        fingerprint=embedder.fingerprint,
        image_size=embedder.image_size,
        dim=embedder.dim,
        dtype=dtype,
        # Who has another index open that lay here does not take this one's segments for those.
        next=secrets.randbelow(10**9),
        engine=embedder.engine,
        calibration=meaning and dict(meaning),
        normalised=background is not None,
    )


def require_like(folder: pathlib.Path, there: Manifest, new: Manifest) -> None:
    """Refuses to go on with an index that is made otherwise; where its model lies does not matter."""
    if new.parts != there.parts:
        kinds = ("without", "with") if new.parts else ("with", "without")
        raise UserError(
            f"{folder} is an index {kinds[0]} parts, and this would be one {kinds[1]}; give another folder."
        )
    names = ("image_size", "dim", "dtype", *(["engine"] if there.engine else []))
    for name in names if new.fingerprint == there.fingerprint else ("model", *names):
        ours, theirs = getattr(new, name), getattr(there, name)
        if ours != theirs:
            raise UserError(
                f"{folder} is an index with {name} {theirs}, and this would have {ours}; give another folder."
            )


def require_same_engine(folder: pathlib.Path, manifest: Manifest, embedder) -> None:
    """Refuses to add descriptors by another engine than those that are there, which nothing would tell apart."""
    if manifest.engine and manifest.engine != embedder.engine:
        raise UserError(
            f"{folder} was made by the engine {manifest.engine}, which this machine cannot run; install onnxruntime"
            " (`pip install onnxruntime`) to add to it, or build another index."
        )


def require_same_model(folder: pathlib.Path, manifest: Manifest, embedder) -> None:
    """Refuses a model other than the one that made an index."""
    if embedder.image_size != manifest.image_size:
        raise UserError(
            f"{folder} has become an index of images of {manifest.image_size} pixels, not {embedder.image_size};"
            " open it anew."
        )
    if not has_fingerprint(embedder, manifest.fingerprint):
        raise UserError(
            f"{folder} was made by other weights of {manifest.model} than {embedder.name} has, whose descriptors cannot"
            " be compared with its own; use the weights that made it, or build another index."
        )

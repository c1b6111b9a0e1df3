"""Models by name: shipped students, exported runs, imported foreign files; and writing an export."""

import dataclasses
import json
import logging
import os
import pathlib

import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import file_sha256, write_json
from rdcd_jax.core.tensors import write_tensors
from rdcd_jax.embedding.stream import has_fingerprint
from rdcd_jax.models import build
from rdcd_jax.models.descriptor import DescriptorNet
from rdcd_jax.models.registry import NETWORKS, abstract, refuse_image_size
from rdcd_jax.search.background import BACKGROUND, read_background, write_background
from rdcd_jax.weights import convert, kinds, store
from rdcd_jax.weights.model import Model, evaluation_mode
from rdcd_jax.weights.onnx_model import (
    IMAGE_SIZE,
    MOST_SIZE,
    OnnxModel,
    load_onnx_model,
)
from rdcd_jax.weights.onnx_model import KIND as ONNX_RUN
from rdcd_jax.weights.shipped import (
    CARD,
    INT8_FILE,
    SHIPPED,
    VERSION,
    WEIGHTS,
    every_shipped,
    list_models,
)
from rdcd_jax.weights.state_dicts import read_safetensors

# The card's entry of a student whose descriptor is the first dimensions of another's, in a folder beside its own.
FIRST_OF = "first_of"
# The digest of an export's weights, by which its other files know them.
WEIGHTS_SHA256 = "weights_sha256"
# A network with random weights, as `random:NETWORK`.
RANDOM = "random"
_log = logging.getLogger(__name__)


def load_network(spec: str, *, trunk: bool = False, feature_dim: int | None = None) -> Model:
    """Loads a network with weights.

    Args:
        spec: a shipped student's name, an export folder, a file of `weights export --format=safetensors`, or
            `KIND:PATH` for a foreign file (`kinds.KINDS`). `sscd-onnx` alone takes the installed package's file, `sscd`
            whichever SSCD is at hand; a network's name takes its imported weights, `random:NETWORK` random ones.
        trunk: also takes a trunk to start a student from (`efficientnet-lite0`, with or without PATH, or a file with an
            ImageNet classifier), and fills up with random weights what that lacks.
        feature_dim: F, the size of such a trunk's random wide head; None for the network's own.

    Raises:
        UserError: for anything that is none of these, or is damaged.
    """
    kind, path = _parted(spec)
    if spec == "sscd":
        return _any_sscd()
    if kind in store.KINDS:
        if store.KINDS[kind].fresh and not trunk:
            raise UserError(_trunk_only(spec))
        return _load_foreign(kind, path, trunk, feature_dim)
    if kind == RANDOM:
        module = build(path, dim=None, rngs=nnx.Rngs(0))
        return Model(spec, path, evaluation_mode(module), IMAGE_SIZE)
    if spec in NETWORKS:
        return _imported_network(spec, trunk, feature_dim)
    if spec in every_shipped():
        return _load_export(pathlib.Path(str(SHIPPED / spec)), name=spec)
    folder = pathlib.Path(spec)
    if os.path.isfile(folder / CARD):
        return _load_export(folder)
    if folder.suffix.lower() == ".safetensors" and os.path.isfile(folder):
        return _load_file(folder)
    if os.path.isdir(folder):
        raise UserError(f"{spec} has no {CARD}; give the export folder of a run (WORKDIR/export).")
    raise UserError(
        f"There is no model '{spec}'; give a shipped student ({', '.join(list_models())}), an export folder, a"
        f" .safetensors file of `weights export`, or a foreign file as KIND:PATH with KIND one of"
        f" {', '.join([*store.KINDS, ONNX_RUN])}."
    )


def load_model(spec: str | os.PathLike) -> Model | OnnxModel:
    """Loads whatever embeds images: a network as `load_network` does, or an ONNX file that onnxruntime runs.

    Args:
        spec: see `load_network`; or `onnxruntime:PATH`, and `onnxruntime` alone for the installed package's teacher.

    Returns:
        The model, at its own image size.

    Raises:
        UserError: see `load_network`; without onnxruntime, or for a file that it cannot run.

    Examples:
        >>> import rdcd_jax as rdcd
        >>> model = rdcd.load_model("rdcd-effb0-64")
        >>> model.dim, model.image_size
        (64, 288)
    """
    spec = os.fspath(spec)
    kind, path = _parted(spec)
    if kind != ONNX_RUN:
        return dataclasses.replace(load_network(spec), spec=absolute_spec(spec))
    installed = store.find_installed("sscd-onnx")
    if not path and installed is None:
        raise UserError(f"'{ONNX_RUN}' needs a file, as {ONNX_RUN}:PATH. {store.TEACHER_HELP}")
    found = load_onnx_model(spec, path or installed)
    known = (store.KINDS["sscd-onnx"].licence,) if found.path == installed else ()
    return dataclasses.replace(found, spec=absolute_spec(spec), licences=known)


def _parted(spec: str) -> tuple[str, str]:
    """What stands before a spec's first colon, and what behind; a kind of file with a colon needs a path.

    Raises:
        UserError: there is none, as of a variable of the shell that is not set.
    """
    kind, colon, path = spec.partition(":")
    if colon and not path and (kind in store.KINDS or kind == ONNX_RUN):
        raise UserError(
            f"The model '{spec}' names no file; give a path behind the colon, or leave the colon out for an installed"
            " package's file."
        )
    return kind, path


def absolute_spec(spec: str) -> str:
    """The spec as it means the same in any folder: a path in it becomes absolute, a name stays."""
    kind, _, path = spec.partition(":")
    if kind in store.KINDS or kind == ONNX_RUN:
        return f"{kind}:{os.path.abspath(path)}" if path else spec
    named = kind == RANDOM or spec in NETWORKS or spec == "sscd" or spec in every_shipped()
    return spec if named or not os.path.exists(spec) else os.path.abspath(spec)


def load_model_of(spec: str | os.PathLike, fingerprint: str | None) -> Model | OnnxModel:
    """Loads what `load_model` does; of a shipped student the version that has these weights, if one has.

    Args:
        spec: see `load_model`.
        fingerprint: a digest of weights, see `Model.fingerprint`; None for any.
    """
    spec = os.fspath(spec)
    found = load_model(spec)
    if fingerprint is not None and not has_fingerprint(found, fingerprint):
        for name in every_shipped():
            if name.startswith(spec + VERSION):
                earlier = load_model(name)
                if has_fingerprint(earlier, fingerprint):
                    return earlier
    return found


def export_model(
    folder: pathlib.Path, model: Model, *, half: bool = False, about: dict | None = None
) -> None:
    """Writes a model: `weights.safetensors`, named and laid out as torch's state dict, `model.json`, and the background
    where the model has one.

    Args:
        folder: made where missing; an export that is there is replaced.
        model: what to write.
        half: stores float16.
        about: what else `model.json` should say, for example how it was trained.
    """
    tensors = convert.to_torch(model.module, model.network)
    dtype = np.float16 if half else np.float32
    tensors = {name: np.ascontiguousarray(value, dtype) for name, value in tensors.items()}
    write_tensors(folder / WEIGHTS, tensors)
    # That of an export which stood there before would be taken for this one's.
    for other in (BACKGROUND, INT8_FILE):
        (folder / other).unlink(missing_ok=True)
    if model.background is not None:
        write_background(folder / BACKGROUND, model.background)
    # Whoever is killed in between leaves a card of other weights, which is refused.
    digest = {WEIGHTS_SHA256: file_sha256(folder / WEIGHTS)}
    write_json(folder / CARD, {**model_card(model), **(about or {}), **digest})


def model_card(model: Model) -> dict[str, str | int | None]:
    """What is needed to build a model again before its weights fill it: the least that `model.json` says."""
    return {
        "name": model.name,
        "network": model.network,
        "dim": None if model.module.projector is None else model.dim,
        "feature_dim": model.feature_dim,
        "image_size": model.image_size,
    }


def _load_export(folder: pathlib.Path, name: str | None = None) -> Model:
    path = folder / CARD
    card, module = _read_card(path, path.read_bytes())
    weights = folder.parent / card[FIRST_OF] / WEIGHTS if FIRST_OF in card else folder / WEIGHTS
    tensors = read_safetensors(weights)
    # Version 0.1 wrote none.
    if WEIGHTS_SHA256 in card and card[WEIGHTS_SHA256] != file_sha256(weights):
        raise UserError(
            f"{path} is of other weights than {weights}, since an export was ended before it was whole; export the"
            " model again."
        )
    if FIRST_OF in card:
        for key in [key for key in tensors if key.startswith("projector.")]:
            tensors[key] = tensors[key][: card["dim"]]
    model = _filled(
        name or card["name"], card["network"], module, tensors, card["image_size"], source=weights
    )
    background = weights.with_name(BACKGROUND)
    rows = read_background(background, model.dim) if background.is_file() else None
    int8 = weights.with_name(INT8_FILE)
    return dataclasses.replace(
        model, card=card, background=rows, int8=int8 if int8.is_file() else None
    )


def _load_file(path: pathlib.Path) -> Model:
    """A safetensors file with the card in its metadata."""
    tensors = read_safetensors(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    if CARD not in metadata:
        raise UserError(
            f"{path} does not say what network it is of; `rdcd-jax weights export` writes files that do."
        )
    card, module = _read_card(path, metadata[CARD])
    size = card["image_size"]
    model = _filled(card["name"], card["network"], module, tensors, size, source=path)
    return dataclasses.replace(model, card=card)


def _read_card(path: pathlib.Path, text: str | bytes) -> tuple[dict, DescriptorNet]:
    """The checked card of a model, and the network that it is of, without numbers."""
    try:
        card = json.loads(text)
        sizes = {key: _size(card, key) for key in ("dim", "feature_dim", "image_size")}
        for each in (card["name"], card["network"], card.get(FIRST_OF, "")):
            each.encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}); export the model again."
        ) from error
    del sizes["image_size"]
    try:
        refuse_image_size(card["network"], card["image_size"])
        # Every array is about to be filled; drawing fresh weights would take longer than reading these.
        return card, abstract(card["network"], **sizes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _size(card: dict, key: str) -> int | None:
    """A size of the card; `dim` may be None, of a model without projector."""
    value = card[key]
    if value is None and key == "dim":
        return None
    if type(value) is not int or not 1 <= value <= MOST_SIZE:
        raise ValueError(f"{key} must be a whole number from 1 to {MOST_SIZE}")
    return value


def _load_foreign(kind: str, path: str, trunk: bool, feature_dim: int | None) -> Model:
    path = path or store.find_installed(kind)
    if path is None:
        raise UserError(f"'{kind}' needs a file, as {kind}:PATH. {store.KINDS[kind].help}")
    return _imported(store.import_weights(kind, path), trunk, feature_dim)


def _any_sscd() -> Model:
    """The teacher that is at hand: what was imported from Meta's files, else the installed package's."""
    for kind in ("sscd-torchvision", "sscd-classy", "sscd-torchscript", "sscd-onnx"):
        for found in store.list_weights():
            if found.kind == kind and found.network == "resnet50":
                return _imported(found.path)
    if store.find_installed("sscd-onnx") is None:
        raise UserError(f"There is no SSCD teacher on this machine. {store.TEACHER_HELP}")
    return _load_foreign("sscd-onnx", "", False, None)


def _imported_network(name: str, trunk: bool, feature_dim: int | None) -> Model:
    """The network with the weights that were imported for it."""
    found = [each for each in store.list_weights() if each.network == name]
    if len(found) != 1:
        able = [kind for kind, row in store.KINDS.items() if name in dict(row.networks)]
        what = (
            f"There are {len(found)} imported weights of {name}"
            if found
            else f"There are no imported weights of {name}"
        )
        raise UserError(
            f"{what}; give a file as KIND:PATH with KIND one of {', '.join(able)}, or {RANDOM}:{name} to try things."
        )
    return _imported(found[0].path, trunk, feature_dim)


def _imported(path: pathlib.Path, trunk: bool = False, feature_dim: int | None = None) -> Model:
    tensors, metadata = store.read_imported(path)
    kind, name = metadata["kind"], metadata["network"]
    row = store.KINDS[kind]
    fresh = kinds.fresh_names(row, name, tensors)
    if fresh and not trunk:
        raise UserError(_trunk_only(f"{kind}:{metadata['source']}"))
    sizes = kinds.sizes(name, tensors)
    if head := kinds.describing_head(row, name, sizes):
        _log.warning(
            "%s:%s: the %d outputs of '%s' are taken as the descriptor; leave it out where it is a classifier.",
            *(kind, metadata["source"], sizes["feature_dim"], head),
        )
    if fresh:
        sizes["feature_dim"] = feature_dim

    module = abstract(name, **{"dim": None, **sizes})
    if fresh:

        def make():
            return build(name, **sizes, rngs=nnx.Rngs(0))

        nnx.update(module, convert.drawn_state(make, name, fresh))
    model = _filled(kind, name, module, tensors, IMAGE_SIZE, source=path, fresh=fresh)
    return dataclasses.replace(model, card={"licences": [row.licence]})


def _trunk_only(spec: str) -> str:
    return f"'{spec}' is a trunk to start a student from (config.init_from), not a model to embed with."


def _filled(
    name: str,
    network_name: str,
    module: DescriptorNet,
    tensors: dict[str, np.ndarray],
    image_size: int,
    *,
    source: object,
    fresh: str | None = None,
) -> Model:
    try:
        convert.load_into(module, tensors, network_name, fresh=fresh)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return Model(name, network_name, evaluation_mode(module), image_size)

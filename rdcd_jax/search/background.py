"""A model's background: descriptors of unrelated images, which score normalisation compares with.

How near a query is to them is taken off its scores, since what resembles many images resembles others by chance. They
belong to the descriptor and travel with its weights: a file of 8-bit integers.
"""

import os

import numpy as np
import safetensors.numpy

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.tensors import require_readable, write_tensors
from rdcd_jax.search.int8 import quantised

BACKGROUND = "background.safetensors"


def write_background(path: str | os.PathLike, descriptors: np.ndarray) -> None:
    """Writes a background.

    Args:
        path: the file.
        descriptors: [T, D] float32 of unit length.
    """
    levels, scales = quantised(descriptors)
    write_tensors(path, {"levels": levels, "scales": scales})


def read_background(path: str | os.PathLike, dim: int) -> np.ndarray:
    """Reads a background.

    Args:
        path: the file.
        dim: D; of larger descriptors, which nest, the first D dimensions are taken.

    Returns:
        [T, D] float32 of unit length.

    Raises:
        UserError: it is missing, damaged or of smaller descriptors.
    """
    require_readable(path)
    try:
        tensors = safetensors.numpy.load_file(path)
        levels, scales = tensors["levels"], tensors["scales"]
        sound = levels.dtype == np.int8 and levels.ndim == 2 and scales.shape == levels.shape[:1]
        if not sound or levels.shape[1] < dim or not np.isfinite(scales).all():
            raise ValueError(f"it holds no descriptors of {dim} dimensions")
        rows = levels[:, :dim].astype(np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not (lengths > 0).all():
            raise ValueError("a descriptor is zero")
        return rows / lengths
    except Exception as error:
        # Damaged files make safetensors raise nearly anything.
        raise UserError(
            f"{path} is no background of descriptors ({error}); export the model again."
        ) from error

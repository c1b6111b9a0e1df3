"""Safetensors files."""

import errno
import os
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from rdcd_jax.core.files import write_aside


def write_tensors(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes tensors by way of a temporary file.

    Raises:
        OSError: it cannot be written.
    """
    with write_aside(path) as aside:
        mode = aside.stat().st_mode
        try:
            safetensors.numpy.save_file(dict(tensors), aside, metadata)
        except safetensors.SafetensorError as error:
            full = os.strerror(errno.ENOSPC) in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(aside)) from error
        # Safetensors makes the file anew, and private.
        aside.chmod(mode)


def require_readable(path: str | os.PathLike) -> None:
    """Raises PermissionError for a file that may not be read, which safetensors takes for missing."""
    if os.path.exists(path) and not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

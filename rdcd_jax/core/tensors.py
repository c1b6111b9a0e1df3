"""Writing safetensors files."""

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
        try:
            safetensors.numpy.save_file(dict(tensors), aside, metadata)
        except safetensors.SafetensorError as error:
            full = os.strerror(errno.ENOSPC) in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(aside)) from error

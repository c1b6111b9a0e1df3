"""Descriptors as bits, the sign of each dimension: a row is these signs at unit length. Numpy only."""

import numpy as np

from rdcd_jax.core.errors import UserError

_BYTE = 8


def require_whole_bytes(dim: int) -> None:
    """Refuses descriptors whose bits do not fill bytes.

    Raises:
        UserError: `dim` is no multiple of 8.
    """
    if dim % _BYTE:
        raise UserError(
            f"Descriptors of {dim} dimensions cannot be kept as bits, which fill bytes of {_BYTE}; use int8."
        )


def packed(rows: np.ndarray) -> np.ndarray:
    """Keeps the sign of each dimension.

    Args:
        rows: [N, D] float32, D a multiple of 8.

    Returns:
        [N, D / 8] uint8.
    """
    return np.packbits(rows > 0, axis=1)


def signs(bits: np.ndarray) -> np.ndarray:
    """What was packed as [N, D] int8, each 1 or -1.

    Args:
        bits: [N, D / 8] uint8, see `packed`.
    """
    return np.unpackbits(bits, axis=1).astype(np.int8) * np.int8(2) - np.int8(1)


def sign_scales(count: int, dim: int) -> np.ndarray:
    """[N] float32: what signs of D dimensions are to be multiplied by for unit length."""
    return np.broadcast_to(np.float32(dim**-0.5), (count,))


def rounded(rows: np.ndarray) -> np.ndarray:
    """Descriptors as they come back from their bits.

    Args:
        rows: [N, D] float32.

    Returns:
        [N, D] float32, each dimension D^-1/2 or its negative.
    """
    scale = np.float32(rows.shape[1] ** -0.5)
    return np.where(rows > 0, scale, -scale)


def compared_with_bits(queries: np.ndarray) -> np.ndarray:
    """Scales queries, which keep their numbers, so that their inner product with bits estimates the cosine.

    Signs of a query are right or wrong by how large its numbers are, so these weigh each bit: the inner product is 1
    where all signs agree, and grows evenly with the cosine, of which it is an unbiased estimate where dimensions are
    normally distributed. Rounding both sides instead finds far less (`python -m experiments.studies.stored`).

    Args:
        queries: [N, D] float32; zeros stay zeros.

    Returns:
        [N, D] float32, of other lengths.

    Source: Dong, Charikar and Li, "Asymmetric distance estimation with sketches for similarity search in
        high-dimensional spaces", 2008, for comparing numbers with bits; the scale is ours.
    """
    sums = np.abs(queries).sum(axis=1, keepdims=True)
    return queries * (np.float32(queries.shape[1] ** 0.5) / np.where(sums > 0, sums, 1))

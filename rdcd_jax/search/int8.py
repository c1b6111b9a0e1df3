"""Descriptors in 8-bit integers, a scale for each row. Numpy only."""

import numpy as np

_LEVELS = 127


def quantised(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rounds rows to 255 levels each.

    Args:
        rows: [N, D] float32, none of them zeros.

    Returns:
        levels [N, D] int8 and scales [N] float32, of which a row is the product.
    """
    scales = np.abs(rows).max(axis=1) / _LEVELS
    levels = np.rint(rows / scales[:, None])
    # Scaled so that nothing of the rounding lies along the row itself: near queries feel that part most.
    along = np.einsum("nd,nd->n", rows, levels)
    squares = np.einsum("nd,nd->n", rows, rows)
    return levels.astype(np.int8), squares / along

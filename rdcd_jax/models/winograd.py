"""Dense 3x3 convolutions with less than half the multiplications, for CPUs.

XLA's own reach a third to two thirds of what a CPU multiplies, its matrix products nearly all of it. This turns a
convolution into 16 of them, each tile of 2x2 outputs into 16 products for every pair of channels in place of 36.
"""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

# What a tile's 4x4 pixels, a kernel's 3x3 numbers and the 4x4 products are multiplied with, from both sides.
_PIXELS = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))
_KERNEL = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_OUTPUTS = ((1, 1, 1, 0), (0, 1, -1, -1))
# With fewer channels the sums around the products cost more than the products.
_CHANNELS = 32


def pays(inputs: jax.Array, kernel: jax.Array, strides: Sequence[int]) -> bool:
    """Whether a convolution of [B, H, W, C] by [KH, KW, C, O] is faster this way on a CPU.

    With fewer tiles than channels turning the kernel costs more than it saves. The sums want float32 at least. Of a
    program for any B a single image's tiles decide.
    """
    batch, height, width, _ = inputs.shape
    *size, cin, cout = kernel.shape
    tiles = (batch if isinstance(batch, int) else 1) * -(-height // 2) * -(-width // 2)
    fits = tuple(size) == (3, 3) and tuple(strides) == (1, 1) and inputs.dtype.itemsize >= 4
    return fits and min(cin, cout) >= _CHANNELS and tiles >= max(cin, cout)


def winograd(inputs: jax.Array, kernel: jax.Array, padding: Sequence[tuple[int, int]]) -> jax.Array:
    """Convolves at stride 1.

    Args:
        inputs: [B, H, W, C].
        kernel: [3, 3, C, O].
        padding: (low, high) pairs for height and width.

    Returns:
        [B, H', W', O]; in float32 within some millionths of the largest value of what a plain sum gives.

    Source: Lavin and Gray 2015, F(2x2, 3x3).
    """
    size = [inputs.shape[1 + axis] + sum(padding[axis]) - 2 for axis in range(2)]
    # To whole tiles, of which the last may reach beyond.
    rims = [(low, high + each % 2) for (low, high), each in zip(padding, size, strict=True)]
    inputs = jnp.pad(inputs, ((0, 0), *rims, (0, 0)))
    down, across = (-(-each // 2) for each in size)
    pixels = [
        [
            inputs[:, row : row + 2 * down : 2, column : column + 2 * across : 2]
            for column in range(4)
        ]
        for row in range(4)
    ]
    taps = [[kernel[row, column] for column in range(3)] for row in range(3)]
    tiles, kernels = (
        jnp.stack([each for row in _both_sides(matrix, parts) for each in row])
        for matrix, parts in ((_PIXELS, pixels), (_KERNEL, taps))
    )
    tiles = tiles.reshape(16, -1, kernel.shape[2])
    products = lax.dot_general(tiles, kernels, (((2,), (1,)), ((0,), (0,))))
    products = products.reshape(4, 4, inputs.shape[0], down, across, -1)
    outputs = _both_sides(_OUTPUTS, [list(row) for row in products])
    whole = jnp.stack([jnp.stack(row, axis=3) for row in outputs], axis=2)
    return whole.reshape(inputs.shape[0], 2 * down, 2 * across, -1)[:, : size[0], : size[1]]


def _both_sides(
    matrix: Sequence[Sequence[float]], parts: list[list[jax.Array]]
) -> list[list[jax.Array]]:
    """matrix @ parts @ matrix.T of a square of arrays, as sums."""
    left = [_sums(matrix, column) for column in zip(*parts, strict=True)]
    return [_sums(matrix, row) for row in zip(*left, strict=True)]


def _sums(matrix: Sequence[Sequence[float]], parts: Sequence[jax.Array]) -> list[jax.Array]:
    """Of each row of the matrix the sum of the parts by its numbers."""
    return [
        functools.reduce(
            operator.add, (number * part for number, part in zip(row, parts, strict=True) if number)
        )
        for row in matrix
    ]

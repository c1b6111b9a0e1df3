"""The convolution behind every layer here, with the forms that are fast on a CPU chosen by platform.

XLA's grouped convolution is 10 to 50 times slower on a CPU than the sum of shifted products that a depthwise
convolution is, 3 to 20 times slower than dense convolutions of some groups each where groups are wider, and a 1x1
convolution is a matrix product that every backend runs at full speed as one. Dense 3x3 ones are products by way of
`winograd`.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from rdcd_jax.models.winograd import pays, winograd

# Up to 3x3, XLA's own transpose of the shifted sum is the faster gradient; at 5x5 the convolution is, 2 to 4 times.
_FEW_TAPS = 9
# Channels of a dense convolution that stands for some groups: wide enough to run at speed, with few products by zero.
_BLOCK = 32
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolution(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    feature_group_count: int = 1,
    **rest: object,
) -> jax.Array:
    """Convolves as `lax.conv_general_dilated` does; made to be an `nnx.Conv`'s `conv_general_dilated`.

    Args:
        inputs: [B, H, W, C].
        kernel: [KH, KW, C / groups, O].
        strides: the two strides.
        padding: explicit (low, high) pairs for height and width. 'SAME' is not for us: at stride 2 it pads
            (0, 1) where the published networks pad (1, 1).
        feature_group_count: groups; C = groups takes the depthwise form, wider groups that of `grouped`, and without
            groups 3x3 that of `dense`.
        **rest: what else `nnx.Conv` passes on to `lax.conv_general_dilated`.

    Returns:
        [B, H', W', O].
    """
    height, width, group_channels, _ = kernel.shape
    strides, padding = tuple(strides), tuple(map(tuple, padding))
    if (height, width) == (1, 1) and feature_group_count == 1 and padding == ((0, 0), (0, 0)):
        return pointwise(inputs[:, :: strides[0], :: strides[1]], kernel[0, 0])
    if group_channels == 1 and feature_group_count == inputs.shape[-1]:
        return depthwise(inputs, kernel, strides, padding)
    if group_channels > 1 and feature_group_count > 1:
        return grouped(inputs, kernel, strides, padding, feature_group_count)
    if pays(inputs, kernel, strides):
        return dense(inputs, kernel, padding)
    rest["dimension_numbers"] = _LAYOUT
    return lax.conv_general_dilated(
        inputs, kernel, strides, padding, feature_group_count=feature_group_count, **rest
    )


def image_by_image(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **rest: object,
) -> jax.Array:
    """`convolution` for inference: on a CPU one image after the other.

    An image stays in the cache; and XLA has to finish what is convolved before. Otherwise it sees that the middle one
    of the shifted products reads the input itself, and computes that anew there, with all residuals before it.

    Args and Returns: as of `convolution`.
    """
    whole = functools.partial(convolution, kernel=kernel, strides=strides, padding=padding, **rest)
    return lax.platform_dependent(
        inputs, cpu=lambda x: lax.map(lambda one: whole(one[None])[0], x), default=whole
    )


@jax.custom_vjp
def pointwise(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies every pixel's channels with a matrix.

    Args:
        inputs: [B, H, W, C].
        kernel: [C, O].

    Returns:
        [B, H, W, O].
    """
    return inputs @ kernel


def _pointwise_forward(inputs, kernel):
    return inputs @ kernel, (inputs, kernel)


def _pointwise_backward(saved, gradient):
    inputs, kernel = saved

    # A product over all pixels turns its first operand round in memory: on a CPU that takes longer than the product, so
    # it should be the narrower one. JAX's own gradient takes the output's always.
    def over_pixels(first, second):
        axes = (0, 1, 2)
        return lax.dot_general(first, second, ((axes, axes), ((), ())))

    if kernel.shape[0] <= kernel.shape[1]:
        kernel_gradient = over_pixels(inputs, gradient)
    else:
        kernel_gradient = over_pixels(gradient, inputs).T
    return gradient @ kernel.T, kernel_gradient


pointwise.defvjp(_pointwise_forward, _pointwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dense(
    inputs: jax.Array, kernel: jax.Array, padding: tuple[tuple[int, int], tuple[int, int]]
) -> jax.Array:
    """Convolves all channels with 3x3 filters at stride 1.

    Args:
        inputs: [B, H, W, C].
        kernel: [3, 3, C, O].
        padding: (low, high) pairs for height and width.

    Returns:
        [B, H', W', O].
    """
    return lax.platform_dependent(
        inputs,
        kernel,
        cpu=functools.partial(winograd, padding=padding),
        default=functools.partial(_grouped, strides=(1, 1), padding=padding, groups=1),
    )


def _dense_forward(inputs, kernel, padding):
    return dense(inputs, kernel, padding), (inputs, kernel)


def _dense_backward(padding, saved, gradient):
    form = functools.partial(_grouped, strides=(1, 1), padding=padding, groups=1)
    return jax.vjp(form, *saved)[1](gradient)


dense.defvjp(_dense_forward, _dense_backward)


def grouped(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    groups: int,
) -> jax.Array:
    """Convolves each group of channels with filters of its own.

    Args:
        inputs: [B, H, W, C].
        kernel: [KH, KW, C / groups, O].
        strides: the two strides.
        padding: (low, high) pairs for height and width.
        groups: how many.

    Returns:
        [B, H', W', O].
    """
    settings = {"strides": strides, "padding": padding, "groups": groups}
    return lax.platform_dependent(
        inputs,
        kernel,
        cpu=functools.partial(_in_blocks, **settings),
        default=functools.partial(_grouped, **settings),
    )


def _in_blocks(inputs, kernel, *, strides, padding, groups):
    """Some groups at a time as one dense convolution, whose kernel is zero between the groups."""
    height, width, cin, channels = kernel.shape
    cout = channels // groups
    together = math.gcd(groups, max(1, _BLOCK // cin))
    blocks = groups // together
    kernel = kernel.reshape(height, width, cin, blocks, together, cout)
    same = jnp.eye(together, dtype=kernel.dtype)
    dense = jnp.einsum("hwibgo,gk->bhwkigo", kernel, same)
    dense = dense.reshape(blocks, height, width, together * cin, together * cout)
    parts = [
        lax.conv_general_dilated(part, block, strides, padding, dimension_numbers=_LAYOUT)
        for part, block in zip(jnp.split(inputs, blocks, axis=-1), dense, strict=True)
    ]
    return jnp.concatenate(parts, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(
    inputs: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
) -> jax.Array:
    """Convolves each channel with its own filters.

    Args:
        inputs: [B, H, W, C].
        kernel: [KH, KW, 1, M * C]; output o reads input o // M.
        strides: the two strides.
        padding: (low, high) pairs for height and width.

    Returns:
        [B, H', W', M * C].
    """
    return lax.platform_dependent(
        inputs,
        kernel,
        cpu=functools.partial(_shifted_sum, strides=strides, padding=padding),
        default=functools.partial(
            _grouped, strides=strides, padding=padding, groups=inputs.shape[-1]
        ),
    )


def _depthwise_forward(inputs, kernel, strides, padding):
    return depthwise(inputs, kernel, strides, padding), (inputs, kernel)


def _depthwise_backward(strides, padding, saved, gradient):
    settings = {"strides": strides, "padding": padding}
    return lax.platform_dependent(
        *saved,
        gradient,
        cpu=functools.partial(_shifted_gradients, **settings),
        default=functools.partial(_grouped_gradients, **settings),
    )


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _grouped(inputs, kernel, *, strides, padding, groups):
    return lax.conv_general_dilated(
        inputs,
        kernel,
        strides,
        padding,
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
    )


def _grouped_gradients(inputs, kernel, gradient, *, strides, padding):
    form = functools.partial(_grouped, strides=strides, padding=padding, groups=inputs.shape[-1])
    return jax.vjp(form, inputs, kernel)[1](gradient)


def _shifts(padded, kernel_shape, strides, out_size):
    """Yields, tap by tap in row order, the part of `padded` [..., H, W, C] that the tap multiplies."""
    lead = padded.ndim - 3
    for row in range(kernel_shape[0]):
        for column in range(kernel_shape[1]):
            start = (0,) * lead + (row, column, 0)
            stop = (
                *padded.shape[:lead],
                row + (out_size[0] - 1) * strides[0] + 1,
                column + (out_size[1] - 1) * strides[1] + 1,
                padded.shape[-1],
            )
            yield lax.slice(padded, start, stop, (1,) * lead + (*strides, 1))


def _shifted_sum(inputs, kernel, *, strides, padding):
    times = kernel.shape[-1] // inputs.shape[-1]
    inputs = inputs if times == 1 else jnp.repeat(inputs, times, axis=-1)
    padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
    size = [(padded.shape[1 + axis] - kernel.shape[axis]) // strides[axis] + 1 for axis in range(2)]
    # Sums are kept in float32 also of bfloat16 images, as accelerators do.
    wide = jnp.float32 if inputs.dtype.itemsize < 4 else inputs.dtype
    taps = kernel.reshape(-1, kernel.shape[-1]).astype(wide)
    shifts = _shifts(padded, kernel.shape, strides, size)
    total = functools.reduce(
        jnp.add,
        (part.astype(wide) * tap[None, None, None] for part, tap in zip(shifts, taps, strict=True)),
    )
    return total.astype(inputs.dtype)


def _correlated(gradient, kernel, shape, strides, padding):
    """The input's gradient as a convolution of the output's, spread out by the strides, with the turned kernel."""
    spread = [(0, 0, 0)]
    for axis in range(2):
        low = kernel.shape[axis] - 1 - padding[axis][0]
        length = (gradient.shape[1 + axis] - 1) * strides[axis] + 1
        high = shape[1 + axis] + kernel.shape[axis] - 1 - length - low
        spread.append((low, high, strides[axis] - 1))
    zero = jnp.zeros((), gradient.dtype)
    gradient = lax.pad(gradient, zero, [*spread, (0, 0, 0)])
    return _shifted_sum(gradient, kernel[::-1, ::-1], strides=(1, 1), padding=((0, 0), (0, 0)))


def _shifted_gradients(inputs, kernel, gradient, *, strides, padding):
    times = kernel.shape[-1] // inputs.shape[-1]
    if times > 1:
        # One filter of each channel after the other: a sum over neighbouring channels is not vectorised.
        parts = [
            _shifted_gradients(
                inputs,
                kernel[..., start::times],
                gradient[..., start::times],
                strides=strides,
                padding=padding,
            )
            for start in range(times)
        ]
        input_gradients, kernel_gradients = zip(*parts, strict=True)
        return sum(input_gradients), jnp.stack(kernel_gradients, axis=-1).reshape(kernel.shape)
    if kernel.shape[0] * kernel.shape[1] > _FEW_TAPS:
        input_gradient = _correlated(gradient, kernel, inputs.shape, strides, padding)
    else:
        form = functools.partial(_shifted_sum, strides=strides, padding=padding)
        (input_gradient,) = jax.linear_transpose(lambda x: form(x, kernel), inputs)(gradient)

    # One image at a time: its shifted products are summed while they are still in the cache.
    def add_image(total, pixels):
        image, image_gradient = pixels
        padded = jnp.pad(image, (*padding, (0, 0)))
        shifts = _shifts(padded, kernel.shape, strides, image_gradient.shape[:2])
        sums = [jnp.sum(part * image_gradient, axis=(0, 1)) for part in shifts]
        return total + jnp.stack(sums), None

    start = jnp.zeros((kernel.shape[0] * kernel.shape[1], kernel.shape[-1]), kernel.dtype)
    total, _ = lax.scan(add_image, start, (inputs, gradient))
    return input_gradient, total.reshape(kernel.shape)

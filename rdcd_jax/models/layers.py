"""Layers that the networks share: what flax.nnx lacks, or has with other numbers than the published networks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from rdcd_jax.models.convolution import convolution


def drawn(initializer: nnx.Initializer) -> nnx.Initializer:
    """An initialiser of random weights that gives zeros where there is no key, see `registry.abstract`."""

    def drawn_or_zeros(key, shape, dtype=jnp.float32, *more):
        return jnp.zeros(shape, dtype) if key is None else initializer(key, shape, dtype, *more)

    return drawn_or_zeros


kaiming_normal = drawn(nnx.initializers.variance_scaling(2.0, "fan_out", "normal"))


def at_least_float32(x: jax.Array) -> jax.Array:
    """x itself, or in float32 where its dtype is narrower: statistics, pooling and norms need the digits."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU by erf, as torch has it; by erfc, as JAX has it, a CPU takes three times as long."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def gem_pool(x: jax.Array, p: float = 3.0, floor: float = 1e-6) -> jax.Array:
    """Generalised-mean pooling over height and width, in float32 or wider.

    Args:
        x: [B, H, W, C] float; negative values count as `floor`, and take no gradient.
        p: the exponent: 1 is the average, large values approach the maximum.
        floor: the smallest value that enters the power, so that its gradient is finite.

    Returns:
        [B, C], at least `floor`.

    Source: SSCD's GlobalGeMPool2d (Radenovic et al., "Fine-tuning CNN image retrieval with no human annotation").
    """
    x = at_least_float32(x)
    x = jnp.where(
        x < floor, floor, x
    )  # Unlike maximum, passes the whole gradient where x is the floor.
    return jnp.mean(x**p, axis=(1, 2)) ** (1.0 / p)


def l2_normalize(x: jax.Array, epsilon: float = 1e-12) -> jax.Array:
    """Scales each row to unit length: x / max(|x|, epsilon).

    Args:
        x: [..., D] float.
        epsilon: below this length a row is divided by `epsilon` instead.

    Returns:
        [..., D], same dtype. The gradient at a zero row is finite.
    """
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squared, epsilon**2))


def conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    kernel_init: nnx.Initializer = kaiming_normal,
    bias_init: nnx.Initializer = jax.nn.initializers.zeros,
    dtype: jnp.dtype | None = None,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """An `nnx.Conv` padded by kernel // 2 on every side, as all networks here are, at any stride."""
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel, kernel),
        strides=stride,
        padding=[(kernel // 2, kernel // 2)] * 2,
        feature_group_count=groups,
        use_bias=bias,
        dtype=dtype,
        kernel_init=kernel_init,
        bias_init=bias_init,
        conv_general_dilated=convolution,
        rngs=rngs,
    )


def torch_conv(
    in_channels: int, out_channels: int, kernel: int, *, groups: int = 1, **settings
) -> nnx.Conv:
    """A `conv` with torch's default initialisation; other arguments as there."""
    initial = _torch_default(kernel**2 * in_channels // groups)
    return conv(in_channels, out_channels, kernel, groups=groups, **initial, **settings)


def torch_linear(features_in: int, features_out: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer with torch's default initialisation."""
    return nnx.Linear(features_in, features_out, **_torch_default(features_in), rngs=rngs)


def _torch_default(fan_in: int) -> dict[str, nnx.Initializer]:
    """Weight and bias uniform in +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5
    return {
        "kernel_init": drawn(nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")),
        "bias_init": drawn(
            lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
        ),
    }


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation with torch's bookkeeping.

    Normalises by the biased batch variance, but averages the unbiased one into the running variance; flax's own
    averages the biased one. Under a jit over a mesh the batch is the global one, so this is synchronised.

    Differs from `nnx.BatchNorm` in nothing else; `momentum` is flax's, 1 - torch's.
    """

    def __init__(
        self,
        channels: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        scale_init: nnx.Initializer = jax.nn.initializers.ones,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            channels,
            momentum=momentum,
            epsilon=epsilon,
            scale_init=scale_init,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises x [B, H, W, C] per channel; in training mode also moves `mean` and `var`."""
        wide = at_least_float32(x)
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            # Both in one pass, and their gradients too: memory's speed is the limit. About the running mean, which
            # is near this batch's, the difference of the squares loses no digits; it loses all where they lie 1,000
            # deviations apart. With fresh weights and images of one colour they lie 50 apart in EfficientNet-B0.
            about = jax.lax.stop_gradient(self.mean[...])
            apart = wide - _per_channel(about)
            offset = jnp.mean(apart, axis=(0, 1, 2))
            var = jnp.mean(jnp.square(apart), axis=(0, 1, 2)) - jnp.square(offset)
            mean, var = about + offset, jnp.maximum(var, 0)
            count = x.size // x.shape[-1]
            unbiased = var * (count / max(count - 1, 1))
            self.mean[...] = self.momentum * self.mean[...] + (1 - self.momentum) * mean
            self.var[...] = self.momentum * self.var[...] + (1 - self.momentum) * unbiased
        scale = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        shift = self.bias[...] - mean * scale
        return (wide * _per_channel(scale) + _per_channel(shift)).astype(x.dtype)


def _per_channel(x: jax.Array) -> jax.Array:
    return x[None, None, None]


class ConvNorm(nnx.Module):
    """Convolution without bias, batch norm, and an activation where one is given.

    `conv` and `norm` make the two, where they are not the usual ones.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: Callable[[jax.Array], jax.Array] | None = None,
        conv: Callable[..., nnx.Conv] = conv,
        norm: Callable[..., BatchNorm] = BatchNorm,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        self.conv = conv(cin, cout, kernel, stride=stride, groups=groups, dtype=dtype, rngs=rngs)
        self.norm = norm(cout, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, C']."""
        x = self.norm(self.conv(x))
        return x if self.activation is None else self.activation(x)


class SqueezeExcite(nnx.Module):
    """Channel gates from the average-pooled map through two 1x1 convolutions (Hu et al., squeeze-and-excitation)."""

    def __init__(
        self,
        channels: int,
        squeezed: int,
        *,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.silu,
        gate: Callable[[jax.Array], jax.Array] = jax.nn.sigmoid,
        conv: Callable[..., nnx.Conv] = conv,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        self.reduce = conv(channels, squeezed, 1, bias=True, dtype=dtype, rngs=rngs)
        self.expand = conv(squeezed, channels, 1, bias=True, dtype=dtype, rngs=rngs)
        self.activation = activation
        self.gate = gate

    def __call__(self, x: jax.Array) -> jax.Array:
        """Gates x [B, H, W, C]."""
        pooled = jnp.mean(x, axis=(1, 2), keepdims=True)
        return x * self.gate(self.expand(self.activation(self.reduce(pooled))))


def stochastic_depth(rate: float) -> nnx.Dropout:
    """Drops a residual branch of whole images with probability `rate`, scaling the others by 1/(1 - rate)."""
    return nnx.Dropout(rate, broadcast_dims=(1, 2, 3))

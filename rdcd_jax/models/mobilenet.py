"""MobileNetV3-Large (Howard et al. 2019), torchvision's definition, with GeM instead of the average pool."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from rdcd_jax.models.layers import BatchNorm, ConvNorm, SqueezeExcite, drawn, gem_pool

# kernel, expanded channels, channels out, squeezed channels (0: no squeeze-excite), hard swish (else ReLU), stride
BLOCKS = (
    (3, 16, 16, 0, False, 1),
    (3, 64, 24, 0, False, 2),
    (3, 72, 24, 0, False, 1),
    (5, 72, 40, 24, False, 2),
    (5, 120, 40, 32, False, 1),
    (5, 120, 40, 32, False, 1),
    (3, 240, 80, 0, True, 2),
    (3, 200, 80, 0, True, 1),
    (3, 184, 80, 0, True, 1),
    (3, 184, 80, 0, True, 1),
    (3, 480, 112, 120, True, 1),
    (3, 672, 112, 168, True, 1),
    (5, 672, 160, 168, True, 2),
    (5, 960, 160, 240, True, 1),
    (5, 960, 160, 240, True, 1),
)
STEM_CHANNELS = 16
LAST_CHANNELS = 960
HIDDEN_CHANNELS = 1280
DROPOUT = 0.2
EPSILON = 1e-3

_Norm = functools.partial(BatchNorm, momentum=0.99, epsilon=EPSILON)
_ConvNorm = functools.partial(ConvNorm, norm=_Norm)
_linear_init = drawn(nnx.initializers.normal(0.01))


class InvertedResidual(nnx.Module):
    """Expand (1x1), depthwise, squeeze-excite, project (1x1), with a residual where shapes allow."""

    def __init__(self, cin, wide, cout, kernel, *, stride, squeezed, activation, dtype, rngs):
        make = functools.partial(_ConvNorm, dtype=dtype, rngs=rngs)
        self.expand = make(cin, wide, 1, activation=activation) if wide != cin else None
        self.depthwise = make(wide, wide, kernel, stride=stride, groups=wide, activation=activation)
        self.squeeze = (
            SqueezeExcite(
                wide,
                squeezed,
                activation=jax.nn.relu,
                gate=jax.nn.hard_sigmoid,
                dtype=dtype,
                rngs=rngs,
            )
            if squeezed
            else None
        )
        self.project = make(wide, cout, 1)
        self.residual = stride == 1 and cin == cout

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, C']."""
        y = self.expand(x) if self.expand is not None else x
        y = self.depthwise(y)
        y = self.squeeze(y) if self.squeeze is not None else y
        y = self.project(y)
        return x + y if self.residual else y


class MobileNetV3Large(nnx.Module):
    """The student's trunk, torchvision's hidden linear layer, and the wide linear head.

    Args:
        feature_dim: width F of the linear head, the teacher's descriptor size.
        dtype: what the trunk computes in; parameters, statistics and head stay float32.
        rngs: `params` stream, for the initialisation of torchvision.
    """

    def __init__(self, *, feature_dim: int, dtype: jnp.dtype | None = None, rngs: nnx.Rngs):
        active = functools.partial(_ConvNorm, activation=jax.nn.hard_swish, dtype=dtype, rngs=rngs)
        self.stem = active(3, STEM_CHANNELS, 3, stride=2)
        blocks, channels = [], STEM_CHANNELS
        for kernel, wide, cout, squeezed, swish, stride in BLOCKS:
            blocks.append(
                InvertedResidual(
                    channels,
                    wide,
                    cout,
                    kernel,
                    stride=stride,
                    squeezed=squeezed,
                    activation=jax.nn.hard_swish if swish else jax.nn.relu,
                    dtype=dtype,
                    rngs=rngs,
                )
            )
            channels = cout
        self.blocks = nnx.List(blocks)
        self.last = active(channels, LAST_CHANNELS, 1)
        linear = functools.partial(nnx.Linear, kernel_init=_linear_init, rngs=rngs)
        self.hidden = linear(LAST_CHANNELS, HIDDEN_CHANNELS)
        self.drop = nnx.Dropout(DROPOUT)
        self.head = linear(HIDDEN_CHANNELS, feature_dim)

    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Maps images [B, H, W, 3] float, normalised, to features [B, F] float32, not normalised.

        `rngs` needs a `dropout` stream where dropout is active (not deterministic).
        """
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        hidden = jax.nn.hard_swish(self.hidden(gem_pool(self.last(x))))
        return self.head(self.drop(hidden, rngs=rngs))

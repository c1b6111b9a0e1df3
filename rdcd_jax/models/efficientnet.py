"""EfficientNet-B0 (Tan and Le 2019), torchvision's definition, with GeM instead of the average pool."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from rdcd_jax.models.layers import ConvNorm, SqueezeExcite, drawn, gem_pool, stochastic_depth

# expansion, kernel, stride, channels in, channels out, blocks
STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)
HEAD_CHANNELS = 1280
DROPOUT = 0.2
STOCHASTIC_DEPTH = 0.2


class InvertedResidual(nnx.Module):
    """Expand (1x1), depthwise, squeeze-excite, project (1x1), with a residual where shapes allow."""

    def __init__(self, cin, cout, kernel, *, stride, expansion, drop_rate, dtype, rngs):
        wide = cin * expansion
        active = functools.partial(ConvNorm, activation=jax.nn.silu, dtype=dtype, rngs=rngs)
        self.expand = active(cin, wide, 1) if expansion != 1 else None
        self.depthwise = active(wide, wide, kernel, stride=stride, groups=wide)
        self.squeeze = SqueezeExcite(wide, max(1, cin // 4), dtype=dtype, rngs=rngs)
        self.project = ConvNorm(wide, cout, 1, dtype=dtype, rngs=rngs)
        self.drop = stochastic_depth(drop_rate) if stride == 1 and cin == cout else None

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, C']."""
        y = self.expand(x) if self.expand is not None else x
        y = self.project(self.squeeze(self.depthwise(y)))
        return x + self.drop(y, rngs=rngs) if self.drop is not None else y


class EfficientNetB0(nnx.Module):
    """The student's trunk and its wide linear head.

    Args:
        feature_dim: width F of the linear head, the teacher's descriptor size.
        dtype: what the trunk computes in; parameters, statistics and head stay float32.
        rngs: `params` stream, for the initialisation of torchvision.
    """

    def __init__(self, *, feature_dim: int, dtype: jnp.dtype | None = None, rngs: nnx.Rngs):
        active = functools.partial(ConvNorm, activation=jax.nn.silu, dtype=dtype, rngs=rngs)
        self.stem = active(3, 32, 3, stride=2)
        total = sum(stage[-1] for stage in STAGES)
        stages, index = [], 0
        for expansion, kernel, stride, cin, cout, count in STAGES:
            blocks = []
            for i in range(count):
                blocks.append(
                    InvertedResidual(
                        cin if i == 0 else cout,
                        cout,
                        kernel,
                        stride=stride if i == 0 else 1,
                        expansion=expansion,
                        drop_rate=STOCHASTIC_DEPTH * index / total,
                        dtype=dtype,
                        rngs=rngs,
                    )
                )
                index += 1
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.last = active(STAGES[-1][4], HEAD_CHANNELS, 1)
        self.drop = nnx.Dropout(DROPOUT)
        self.head = nnx.Linear(
            HEAD_CHANNELS,
            feature_dim,
            kernel_init=drawn(nnx.initializers.variance_scaling(1 / 3, "fan_out", "uniform")),
            rngs=rngs,
        )

    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Maps images [B, H, W, 3] float, normalised, to features [B, F] float32, not normalised.

        `rngs` needs a `dropout` stream where dropout is active (not deterministic).
        """
        x = self.stem(images)
        for stage in self.stages:
            for block in stage:
                x = block(x, rngs)
        return self.head(self.drop(gem_pool(self.last(x)), rngs=rngs))

"""FastViT-T12 (Vasu et al. 2023), timm's definition, with GeM instead of the average pool."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rdcd_jax.models.branches import Branches, affine, unit_kernel
from rdcd_jax.models.layers import (
    BatchNorm,
    ConvNorm,
    SqueezeExcite,
    conv,
    drawn,
    gelu,
    gem_pool,
    torch_conv,
)

# channels, blocks
STAGES = ((64, 2), (128, 2), (256, 6), (512, 2))
LAST_CHANNELS = 1024
WIDE_KERNEL = 7
MLP_RATIO = 3
SQUEEZE_RATIO = 16
LAYER_SCALE = 1e-5

_narrow_init = drawn(nnx.initializers.normal(0.02))
_mlp_conv = functools.partial(conv, kernel_init=_narrow_init)


class MobileOne(nnx.Module):
    """Branches (kernel, 1x1 where the kernel is larger, the input where shapes allow), squeeze-excite, GELU."""

    def __init__(
        self, cin, cout, kernel, *, stride=1, groups=1, squeezed: int = 0, dtype, rngs: nnx.Rngs
    ):
        self.branches = Branches(
            cin,
            cout,
            (kernel, 1) if kernel > 1 else (1,),
            stride=stride,
            groups=groups,
            identity=stride == 1 and cin == cout,
            dtype=dtype,
            rngs=rngs,
        )
        self.squeeze = (
            SqueezeExcite(
                cout, squeezed, activation=jax.nn.relu, conv=torch_conv, dtype=dtype, rngs=rngs
            )
            if squeezed
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, C']."""
        x = self.branches(x)
        return gelu(x if self.squeeze is None else self.squeeze(x))


class RepMixer(Branches):
    """Mixes neighbouring pixels, channel by channel: x + gamma * (branches(x) - norm(x))."""

    def __init__(self, channels: int, *, dtype, rngs: nnx.Rngs):
        super().__init__(
            channels, channels, (3, 1), groups=channels, identity=True, dtype=dtype, rngs=rngs
        )
        self.norm = BatchNorm(channels, dtype=dtype, rngs=rngs)
        self.scale = LayerScale(channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to the same."""
        return x + self.scale(super().__call__(x) - self.norm(x))

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """As of `Branches`, with the residual."""
        kernel, bias = super().folded()
        unit, gamma = unit_kernel(kernel.shape), np.float64(self.scale.gamma[...])
        scale, shift = affine(self.norm)
        return unit + gamma * (kernel - unit * scale), gamma * (bias - shift)


class LayerScale(nnx.Module):
    """A factor for each channel, small at first."""

    def __init__(self, channels: int):
        self.gamma = nnx.Param(jnp.full((channels,), LAYER_SCALE))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scales x [B, H, W, C]."""
        return x * self.gamma[...].astype(x.dtype)[None, None, None]


class Block(nnx.Module):
    """A RepMixer and an inverted bottleneck over wide neighbourhoods, each with its residual."""

    def __init__(self, channels: int, *, dtype, rngs: nnx.Rngs):
        self.mixer = RepMixer(channels, dtype=dtype, rngs=rngs)
        settings = {"dtype": dtype, "rngs": rngs}
        self.conv = ConvNorm(
            channels, channels, WIDE_KERNEL, groups=channels, conv=_mlp_conv, **settings
        )
        self.expand = _mlp_conv(channels, MLP_RATIO * channels, 1, bias=True, **settings)
        self.project = _mlp_conv(MLP_RATIO * channels, channels, 1, bias=True, **settings)
        self.scale = LayerScale(channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to the same."""
        x = self.mixer(x)
        return x + self.scale(self.project(gelu(self.expand(self.conv(x)))))


class Downsample(nnx.Module):
    """Halves the sides and doubles the channels: each channel becomes two, by wide windows, then they are mixed."""

    def __init__(self, cin: int, cout: int, *, dtype, rngs: nnx.Rngs):
        self.wide = Branches(
            cin,
            cout,
            (WIDE_KERNEL, 3),
            stride=2,
            groups=cin,
            identity=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.mix = MobileOne(cout, cout, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / 2, W / 2, 2 C]."""
        return self.mix(self.wide(x))


class FastViTT12(nnx.Module):
    """The student's trunk, in the form that trains, and its wide linear head.

    `branches.reparameterised` makes the form for inference.

    Args:
        feature_dim: width F of the linear head, the teacher's descriptor size.
        dtype: what the trunk computes in; parameters, statistics and head stay float32.
        rngs: `params` stream, for the initialisation of timm.
    """

    def __init__(self, *, feature_dim: int, dtype: jnp.dtype | None = None, rngs: nnx.Rngs):
        settings = {"dtype": dtype, "rngs": rngs}
        first, last = STAGES[0][0], STAGES[-1][0]
        self.stem = nnx.List(
            [
                MobileOne(3, first, 3, stride=2, **settings),
                MobileOne(first, first, 3, stride=2, groups=first, **settings),
                MobileOne(first, first, 1, **settings),
            ]
        )
        widths = [channels for channels, _ in STAGES]
        self.downsamples = nnx.List(
            [Downsample(*pair, **settings) for pair in itertools.pairwise(widths)]
        )
        self.stages = nnx.List(
            nnx.List(Block(channels, **settings) for _ in range(count))
            for channels, count in STAGES
        )
        self.last = MobileOne(
            last,
            LAST_CHANNELS,
            3,
            groups=last,
            squeezed=LAST_CHANNELS // SQUEEZE_RATIO,
            **settings,
        )
        self.head = nnx.Linear(LAST_CHANNELS, feature_dim, kernel_init=_narrow_init, rngs=rngs)

    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Maps images [B, H, W, 3] float, normalised, to features [B, F] float32, not normalised."""
        del rngs  # Nothing here is random; every trunk is called alike.
        x = images
        for layer in self.stem:
            x = layer(x)
        for number, stage in enumerate(self.stages):
            if number > 0:
                x = self.downsamples[number - 1](x)
            for block in stage:
                x = block(x)
        return self.head(gem_pool(self.last(x)))

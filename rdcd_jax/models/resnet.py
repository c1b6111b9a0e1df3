"""ResNet-50 and ResNeXt-101 32x4d (stride in the 3x3, as in torchvision), with GeM and a linear head: SSCD's networks.

Source: He et al. 2015 and Xie et al. 2016.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from rdcd_jax.models.layers import BatchNorm, conv, drawn, gem_pool

BLOCKS = (3, 4, 6, 3)
BLOCKS_101 = (3, 4, 23, 3)
WIDTHS = (64, 128, 256, 512)
EXPANSION = 4


class Bottleneck(nnx.Module):
    """1x1, 3x3 (with the stride), 1x1, and a residual, whose branch starts at 0.

    Args:
        cin: channels in.
        width: the stage's; 4 * width channels come out.
        stride: of the 3x3.
        groups: of the 3x3.
        group_width: channels of a group where `width` is 64; the 3x3 has width * groups * group_width / 64 in all.
        dtype: see `ResNet`.
        rngs: `params` stream.

    Source: Goyal et al. 2017, section 5.1, for the last BatchNorm's scale; torchvision's `zero_init_residual`.
    """

    def __init__(
        self,
        cin: int,
        width: int,
        *,
        stride: int,
        groups: int = 1,
        group_width: int = 64,
        dtype,
        rngs: nnx.Rngs,
    ):
        cout, inner = width * EXPANSION, width * groups * group_width // 64
        self.conv1 = conv(cin, inner, 1, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(inner, dtype=dtype, rngs=rngs)
        self.conv2 = conv(inner, inner, 3, stride=stride, groups=groups, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(inner, dtype=dtype, rngs=rngs)
        self.conv3 = conv(inner, cout, 1, dtype=dtype, rngs=rngs)
        self.bn3 = BatchNorm(cout, scale_init=jax.nn.initializers.zeros, dtype=dtype, rngs=rngs)
        reshape = stride != 1 or cin != cout
        self.downsample_conv = (
            conv(cin, cout, 1, stride=stride, dtype=dtype, rngs=rngs) if reshape else None
        )
        self.downsample_bn = BatchNorm(cout, dtype=dtype, rngs=rngs) if reshape else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, 4 * width]."""
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = jax.nn.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.downsample_conv is not None:
            x = self.downsample_bn(self.downsample_conv(x))
        return jax.nn.relu(x + y)


class ResNet(nnx.Module):
    """Trunk, GeM, linear head, with SSCD's initial weights (Xavier uniform in the head).

    Args:
        blocks: blocks of each of the four stages.
        groups: groups of every 3x3 convolution.
        group_width: channels of such a group in the first stage.
        feature_dim: width F of the linear head.
        dtype: what the trunk computes in; parameters, statistics and head stay float32.
        rngs: `params` stream.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        *,
        groups: int = 1,
        group_width: int = 64,
        feature_dim: int,
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        settings = {"groups": groups, "group_width": group_width, "dtype": dtype, "rngs": rngs}
        self.conv1 = conv(3, 64, 7, stride=2, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(64, dtype=dtype, rngs=rngs)
        channels, layers = 64, []
        for stage, (count, width) in enumerate(zip(blocks, WIDTHS, strict=True)):
            layer = []
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                layer.append(Bottleneck(channels, width, stride=stride, **settings))
                channels = width * EXPANSION
            layers.append(nnx.List(layer))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.fc = nnx.Linear(
            channels, feature_dim, kernel_init=drawn(nnx.initializers.xavier_uniform()), rngs=rngs
        )

    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Maps images [B, H, W, 3] float, normalised, to features [B, F] float32, not normalised."""
        del rngs  # Nothing here is random; every trunk is called alike.
        x = jax.nn.relu(self.bn1(self.conv1(images)))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = block(x)
        return self.fc(gem_pool(x))


def resnet50(**settings) -> ResNet:
    """ResNet-50: SSCD's network, with 512 dimensions; `settings` as of `ResNet`."""
    return ResNet(BLOCKS, **settings)


def resnext101_32x4d(**settings) -> ResNet:
    """ResNeXt-101 with 32 groups of 4 channels: SSCD-large, with 1024 dimensions; `settings` as of `ResNet`."""
    return ResNet(BLOCKS_101, groups=32, group_width=4, **settings)

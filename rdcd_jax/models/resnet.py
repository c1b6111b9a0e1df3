"""ResNet-50 (He et al. 2015, stride in the 3x3 as in torchvision), with GeM and a linear head: SSCD's network."""

import jax
import jax.numpy as jnp
from flax import nnx

from rdcd_jax.models.layers import BatchNorm, conv, gem_pool

BLOCKS = (3, 4, 6, 3)
WIDTHS = (64, 128, 256, 512)
EXPANSION = 4


class Bottleneck(nnx.Module):
    """1x1, 3x3 (with the stride), 1x1, and a residual, whose branch starts at 0.

    Source: Goyal et al. 2017, section 5.1, for the last BatchNorm's scale; torchvision's `zero_init_residual`.
    """

    def __init__(self, cin: int, width: int, *, stride: int, dtype, rngs: nnx.Rngs):
        cout = width * EXPANSION
        self.conv1 = conv(cin, width, 1, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(width, dtype=dtype, rngs=rngs)
        self.conv2 = conv(width, width, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNorm(width, dtype=dtype, rngs=rngs)
        self.conv3 = conv(width, cout, 1, dtype=dtype, rngs=rngs)
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


class ResNet50(nnx.Module):
    """SSCD's ResNet-50: trunk, GeM, linear head, with SSCD's initial weights (Xavier uniform in the head).

    Args:
        feature_dim: width F of the linear head (512 in SSCD).
        dtype: what the trunk computes in; parameters, statistics and head stay float32.
        rngs: `params` stream.
    """

    def __init__(self, *, feature_dim: int, dtype: jnp.dtype | None = None, rngs: nnx.Rngs):
        self.conv1 = conv(3, 64, 7, stride=2, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(64, dtype=dtype, rngs=rngs)
        channels, layers = 64, []
        for stage, (count, width) in enumerate(zip(BLOCKS, WIDTHS, strict=True)):
            blocks = []
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(Bottleneck(channels, width, stride=stride, dtype=dtype, rngs=rngs))
                channels = width * EXPANSION
            layers.append(nnx.List(blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.fc = nnx.Linear(
            channels, feature_dim, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs
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

"""Parallel convolutions that training keeps apart and inference merges into one (RepVGG, MobileOne, FastViT)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rdcd_jax.models.convolution import image_by_image
from rdcd_jax.models.layers import BatchNorm, ConvNorm, conv, torch_conv


class Branches(nnx.Module):
    """The sum of convolutions of several sizes, each with its batch norm, and of a batch norm of the input alone.

    Args:
        cin: channels in.
        cout: channels out.
        kernels: the convolutions' sizes, the largest first.
        stride: of all.
        groups: of all.
        identity: whether the batch norm of the input is one of the branches; cin = cout and stride 1 then.
        dtype: what the convolutions compute in.
        rngs: `params` stream, for torch's default initialisation.

    Source: Vasu et al. 2022, "MobileOne".
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        kernels: tuple[int, ...],
        *,
        stride: int = 1,
        groups: int = 1,
        identity: bool,
        dtype: jnp.dtype | None,
        rngs: nnx.Rngs,
    ):
        settings = {"stride": stride, "groups": groups, "dtype": dtype, "rngs": rngs}
        self.convs = nnx.List(
            [ConvNorm(cin, cout, k, conv=torch_conv, **settings) for k in kernels]
        )
        self.identity = BatchNorm(cout, dtype=dtype, rngs=rngs) if identity else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, C']."""
        total = sum(branch(x) for branch in self.convs)
        return total if self.identity is None else total + self.identity(x)

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """Kernel and bias, float64, of the one convolution that this is with batch norm's running statistics."""
        largest = self.convs[0].conv
        kernel, bias = np.zeros(largest.kernel.shape), np.zeros(largest.out_features)
        for branch in self.convs:
            scale, shift = affine(branch.norm)
            margin = (len(kernel) - branch.conv.kernel.shape[0]) // 2
            inner = slice(margin, len(kernel) - margin)
            kernel[inner, inner] += np.float64(branch.conv.kernel[...]) * scale
            bias += shift
        if self.identity is not None:
            scale, shift = affine(self.identity)
            kernel += unit_kernel(kernel.shape) * scale
            bias += shift
        return kernel, bias

    def merged(self) -> nnx.Conv:
        """The one convolution that this is in evaluation mode."""
        kernel, bias = self.folded()
        largest = self.convs[0].conv
        dtype = largest.kernel.dtype
        merged = conv(
            largest.in_features,
            largest.out_features,
            len(kernel),
            stride=largest.strides,
            groups=largest.feature_group_count,
            bias=True,
            kernel_init=lambda *_: jnp.asarray(kernel, dtype),
            bias_init=lambda *_: jnp.asarray(bias, dtype),
            dtype=largest.dtype,
            rngs=nnx.Rngs(0),
        )
        if largest.feature_group_count > 1:
            merged.conv_general_dilated = image_by_image
        return merged


def reparameterised(network: nnx.Module) -> nnx.Module:
    """The network for inference: every `Branches` in it merged into one convolution.

    Args:
        network: with concrete weights; it stays as it is.

    Returns:
        A network of the outputs that the other has in evaluation mode but for rounding (1e-6), with fewer layers; one
        without branches itself. It is not for training, and `weights.convert` has no names for it.
    """
    if not any(isinstance(module, Branches) for _, module in nnx.iter_modules(network)):
        return network
    network = nnx.clone(network)
    for _, module in list(nnx.iter_modules(network)):
        for name, child in list(vars(module).items()):
            if isinstance(child, Branches):
                setattr(module, name, child.merged())
    return network


def affine(norm: BatchNorm) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift, float64 [C], of a batch norm with its running statistics."""
    scale, bias, mean, var = (
        np.float64(x[...]) for x in (norm.scale, norm.bias, norm.mean, norm.var)
    )
    scale = scale / np.sqrt(var + norm.epsilon)
    return scale, bias - mean * scale


def unit_kernel(shape: tuple[int, int, int, int]) -> np.ndarray:
    """The kernel [K, K, C / groups, C] of the convolution that does nothing."""
    kernel = np.zeros(shape)
    group_channels, channels = shape[2:]
    outputs = np.arange(channels)
    kernel[shape[0] // 2, shape[1] // 2, outputs % group_channels, outputs] = 1
    return kernel

"""The networks by name."""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from rdcd_jax.core.errors import UserError
from rdcd_jax.models.descriptor import DescriptorNet
from rdcd_jax.models.efficientnet import EfficientNetB0
from rdcd_jax.models.fastvit import FastViTT12
from rdcd_jax.models.layers import torch_linear
from rdcd_jax.models.mobilenet import MobileNetV3Large
from rdcd_jax.models.resnet import resnet50, resnext101_32x4d
from rdcd_jax.models.vit import refuse_part_patches, vit_b8, vit_b16


@dataclasses.dataclass(frozen=True)
class Network:
    """One row of the registry.

    Attributes:
        backbone: makes the trunk of `feature_dim`, `dtype` and `rngs`.
        feature_dim: F, as published.
        role: `student` or `teacher`, as published; each can be the other.
        patch: the sides of its images are multiples of this.
    """

    backbone: Callable[..., nnx.Module]
    feature_dim: int
    role: str = "student"
    patch: int = 1


NETWORKS = {
    "efficientnet_b0": Network(EfficientNetB0, 512),
    "fastvit_t12": Network(FastViTT12, 512),
    "mobilenet_v3_large": Network(MobileNetV3Large, 512),
    "resnet50": Network(resnet50, 512, "teacher"),
    "resnext101_32x4d": Network(resnext101_32x4d, 1024, "teacher"),
    "vit_b8": Network(vit_b8, 1536, "teacher", patch=8),
    "vit_b16": Network(vit_b16, 1536, "teacher", patch=16),
}


def network(name: str) -> Network:
    """The registry's row for `name`; an unknown name is refused with the known ones."""
    if name not in NETWORKS:
        raise UserError(f"There is no network '{name}'; use one of {', '.join(sorted(NETWORKS))}.")
    return NETWORKS[name]


def refuse_image_size(name: str, image_size: int) -> None:
    """Refuses a side of images that the network cannot take, before anything runs.

    Args:
        name: a network's; one that is not in `NETWORKS` passes.
        image_size: the side.

    Raises:
        UserError: for a ViT, with the nearest side.
    """
    row = NETWORKS.get(name)
    if row is not None and row.patch > 1:
        refuse_part_patches(row.patch, image_size, image_size)


def build(
    name: str,
    *,
    dim: int | None,
    feature_dim: int | None = None,
    rngs: nnx.Rngs,
    dtype: jnp.dtype | None = None,
) -> DescriptorNet:
    """Builds a network with fresh weights.

    Args:
        name: a key of `NETWORKS`.
        dim: size D of the descriptor, at most `feature_dim`; None builds a network without projector, whose descriptor
            is its feature, as SSCD's is.
        feature_dim: size F of the relational feature; a student's must equal its teacher's. None takes the network's
            own: 512, of `resnext101_32x4d` 1024, of the ViTs 1536.
        rngs: `params` stream.
        dtype: what the trunk computes in (for example `jnp.bfloat16`); None is float32.

    Returns:
        A module that maps images [B, H, W, 3] to (feature [B, F], descriptor [B, D]), both of unit length.

    Raises:
        UserError: for an unknown name or a size that makes no sense.
    """
    row = network(name)
    feature_dim = row.feature_dim if feature_dim is None else feature_dim
    _require_sizes(dim, feature_dim)
    return _drawn(row.backbone, dim, feature_dim, dtype, rngs)


def abstract(
    name: str,
    *,
    dim: int | None,
    feature_dim: int | None = None,
    dtype: jnp.dtype | None = None,
) -> DescriptorNet:
    """A network without weights: its parameters are shapes, about to be filled from a file.

    Args:
        name: as of `build`.
        dim: as of `build`.
        feature_dim: as of `build`.
        dtype: as of `build`.
    """
    row = network(name)
    feature_dim = row.feature_dim if feature_dim is None else feature_dim
    _require_sizes(dim, feature_dim)
    # Tracing random numbers would take longer than reading all the weights.
    return nnx.eval_shape(lambda: _made(row.backbone, dim, feature_dim, dtype, _NoKeys()))


class _NoKeys:
    """In place of `nnx.Rngs`, for initialisers that need not draw."""

    def params(self) -> None:
        """No key."""


def _require_sizes(dim: int | None, feature_dim: int) -> None:
    if feature_dim < 1:
        raise UserError(f"feature_dim is {feature_dim}; a feature needs at least one number.")
    if dim is not None and not 1 <= dim <= feature_dim:
        raise UserError(
            f"dim is {dim}, but a compact descriptor has between 1 and feature_dim = {feature_dim} dimensions."
        )


@functools.partial(nnx.jit, static_argnums=(0, 1, 2, 3))
def _drawn(backbone, dim, feature_dim, dtype, rngs: nnx.Rngs) -> DescriptorNet:
    """All weights drawn by one program, which the compile cache keeps; layer by layer there are a hundred."""
    return _made(backbone, dim, feature_dim, dtype, rngs)


def _made(backbone, dim, feature_dim, dtype, rngs) -> DescriptorNet:
    trunk = backbone(feature_dim=feature_dim, dtype=dtype, rngs=rngs)
    projector = None if dim is None else torch_linear(feature_dim, dim, rngs=rngs)
    return DescriptorNet(trunk, projector)

"""What every network here is in the end: images to two unit vectors."""

import jax
import jax.numpy as jnp
from flax import nnx

from rdcd_jax.models.layers import at_least_float32, l2_normalize

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize_images(images: jax.Array) -> jax.Array:
    """What every network here takes, on the device.

    Args:
        images: [B, H, W, 3], uint8; float images are taken to be normalised already and pass.

    Returns:
        [B, H, W, 3] float32, by ImageNet's mean and deviation.
    """
    if images.dtype != jnp.uint8:
        return images
    mean, std = (jnp.asarray(x)[None, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.astype(jnp.float32) / 255 - mean) / std


class DescriptorNet(nnx.Module):
    """A backbone with its wide head, and for RDCD's student the linear projector to the compact descriptor.

    Args:
        backbone: maps images [B, H, W, 3] to features [B, F], not normalised.
        projector: maps [B, F] to [B, D], or None where the feature is the descriptor, as of SSCD.

    Source: RDCD's `get_encoder`; the projector sees the feature before its normalisation.
    """

    def __init__(self, backbone: nnx.Module, projector: nnx.Module | None):
        self.backbone = backbone
        self.projector = projector

    def __call__(
        self, images: jax.Array, rngs: nnx.Rngs | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Embeds images.

        Args:
            images: [B, H, W, 3] float, normalised by ImageNet's mean and deviation.
            rngs: with a `dropout` stream, where dropout is active.

        Returns:
            The relational feature [B, F] and the descriptor [B, D], both float32 of unit length.
        """
        return _embedded(at_least_float32(self.backbone(images, rngs)), self.projector)


class DescriptorHead(nnx.Module):
    """What a `DescriptorNet` makes of its backbone's features, for features that were computed before.

    Args:
        projector: maps [B, F] to [B, D].
    """

    def __init__(self, projector: nnx.Module):
        self.projector = projector

    def __call__(
        self, features: jax.Array, rngs: nnx.Rngs | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """As `DescriptorNet`, of its backbone's features [B, F] float32, not normalised."""
        return _embedded(features, self.projector)


def _embedded(feature: jax.Array, projector: nnx.Module | None) -> tuple[jax.Array, jax.Array]:
    unit_feature = l2_normalize(feature)
    if projector is None:
        return unit_feature, unit_feature
    return unit_feature, l2_normalize(projector(feature))

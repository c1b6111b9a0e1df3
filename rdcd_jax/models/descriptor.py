"""What every network here is in the end: pictures to two unit vectors."""

import jax
from flax import nnx

from rdcd_jax.models.layers import at_least_float32, l2_normalize


class DescriptorNet(nnx.Module):
    """A backbone with its wide head, and for a student the linear projector to the compact descriptor.

    Args:
        backbone: maps images [B, H, W, 3] to features [B, F], not normalised.
        projector: maps [B, F] to [B, D], or None for a teacher, whose descriptor is its feature.

    Source: RDCD's `get_encoder`; the projector sees the feature before its normalisation.
    """

    def __init__(self, backbone: nnx.Module, projector: nnx.Module | None):
        self.backbone = backbone
        self.projector = projector

    def __call__(
        self, images: jax.Array, rngs: nnx.Rngs | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Describes pictures.

        Args:
            images: [B, H, W, 3] float, normalised by ImageNet's mean and deviation.
            rngs: with a `dropout` stream, where dropout is active.

        Returns:
            The relational feature [B, F] and the descriptor [B, D], both float32 of unit length.
        """
        feature = at_least_float32(self.backbone(images, rngs))
        unit_feature = l2_normalize(feature)
        if self.projector is None:
            return unit_feature, unit_feature
        return unit_feature, l2_normalize(self.projector(feature))

"""Teachers and students as flax.nnx modules."""

from rdcd_jax.models import layers
from rdcd_jax.models.registry import build

__all__ = ["build", "layers"]

"""ViT-B as DINO trains it (Dosovitskiy et al. 2020, Caron et al. 2021); class token and pooled patches embed."""

import jax
import jax.numpy as jnp
from flax import nnx

from rdcd_jax.core.errors import UserError
from rdcd_jax.models.layers import at_least_float32, drawn, gelu, gem_pool

DEPTH = 12
WIDTH = 768
HEADS = 12
MLP_RATIO = 4
EPSILON = 1e-6
# The side of the images that the position embeddings are learned for.
LEARNED_SIZE = 224

_normal = drawn(nnx.initializers.truncated_normal(0.02))


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation, in float32 or wider whatever comes in."""

    def __init__(self, *, rngs: nnx.Rngs):
        # The fast variance, of squares and squared mean, loses digits.
        super().__init__(WIDTH, epsilon=EPSILON, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., WIDTH] to the same shape and type."""
        return super().__call__(at_least_float32(x)).astype(x.dtype)


class Attention(nnx.Module):
    """Self-attention; query, key and value come from one linear layer, as in torch's names."""

    def __init__(self, *, dtype, rngs: nnx.Rngs):
        self.qkv = _linear(WIDTH, 3 * WIDTH, dtype=dtype, rngs=rngs)
        self.proj = _linear(WIDTH, WIDTH, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, N, WIDTH] to the same shape."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, HEADS, WIDTH // HEADS)
        query, key, value = (qkv[:, :, i] for i in range(3))
        # Within, JAX promotes bfloat16 implicitly, which those forbid who ask for strict promotion.
        with jax.numpy_dtype_promotion("standard"):
            mixed = jax.nn.dot_product_attention(query, key, value)
        return self.proj(mixed.reshape(batch, tokens, WIDTH))


class Mlp(nnx.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, *, dtype, rngs: nnx.Rngs):
        self.fc1 = _linear(WIDTH, MLP_RATIO * WIDTH, dtype=dtype, rngs=rngs)
        self.fc2 = _linear(MLP_RATIO * WIDTH, WIDTH, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, N, WIDTH] to the same shape."""
        return self.fc2(gelu(self.fc1(x)))


class Block(nnx.Module):
    """Attention and MLP, each normalised before and added after."""

    def __init__(self, *, dtype, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(rngs=rngs)
        self.attn = Attention(dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(rngs=rngs)
        self.mlp = Mlp(dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, N, WIDTH] to the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nnx.Module):
    """One linear map of each patch of pixels."""

    def __init__(self, patch: int, *, dtype, rngs: nnx.Rngs):
        self.proj = nnx.Conv(
            3,
            WIDTH,
            (patch, patch),
            strides=patch,
            padding="VALID",
            kernel_init=_normal,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images [B, H, W, 3] to [B, H / patch, W / patch, WIDTH]."""
        return self.proj(images)


class ViT(nnx.Module):
    """ViT-B without a head.

    Args:
        patch: side of a patch in pixels.
        feature_dim: F; 1536 is all there is: 768 of the class token and 768 of the patches.
        dtype: what the blocks compute in; parameters stay float32, and so does what is pooled.
        rngs: `params` stream.

    Raises:
        UserError: for another `feature_dim`.
    """

    def __init__(
        self, patch: int, *, feature_dim: int, dtype: jnp.dtype | None = None, rngs: nnx.Rngs
    ):
        if feature_dim != 2 * WIDTH:
            raise UserError(
                f"feature_dim is {feature_dim}, but a ViT-B has no head to choose it by: its feature has {2 * WIDTH}"
                " dimensions."
            )
        self.patch = patch
        tokens = (LEARNED_SIZE // patch) ** 2
        self.cls_token = nnx.Param(_normal(rngs.params(), (1, 1, WIDTH)))
        self.pos_embed = nnx.Param(_normal(rngs.params(), (1, 1 + tokens, WIDTH)))
        self.patch_embed = PatchEmbedding(patch, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(dtype=dtype, rngs=rngs) for _ in range(DEPTH)])
        self.norm = LayerNorm(rngs=rngs)

    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Embeds images of any number and of any size that patches fill.

        Args:
            images: [B, H, W, 3] float, normalised.
            rngs: not used; every trunk is called alike.

        Returns:
            [B, 1536] float32, not normalised: the class token, then GeM of the patch tokens, both after the last
            LayerNorm.

        Raises:
            UserError: if H or W is no multiple of the patch.

        Source: RDCD's DINO teacher, which takes only 256 images of 224 pixels.
        """
        del rngs
        batch, height, width, _ = images.shape
        refuse_part_patches(self.patch, height, width)
        patches = self.patch_embed(images)
        grid = patches.shape[1:3]
        x = patches.reshape(batch, -1, WIDTH)
        first = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (batch, 1, WIDTH))
        positions = resized_positions(self.pos_embed[...], grid).astype(x.dtype)
        x = jnp.concatenate([first, x], axis=1) + positions
        for block in self.blocks:
            x = block(x)
        x = at_least_float32(self.norm(x))
        pooled = gem_pool(x[:, 1:].reshape(batch, *grid, WIDTH))
        return jnp.concatenate([x[:, 0], pooled], axis=1)


def refuse_part_patches(patch: int, height: int, width: int) -> None:
    """Refuses images that whole patches do not fill.

    Raises:
        UserError: with the nearest size.
    """
    if any(side % patch or not side for side in (height, width)):
        raise UserError(
            f"A ViT with patches of {patch} pixels takes images whose sides are multiples of {patch}, not"
            f" {height}x{width}; an image size of {max(height // patch, 1) * patch} is the nearest."
        )


def resized_positions(positions: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Position embeddings for another number of patches, by bicubic interpolation.

    Args:
        positions: [1, 1 + n * n, WIDTH], the class token's first.
        grid: patches in height and width.

    Returns:
        [1, 1 + height * width, WIDTH]; `positions` itself where the grid is the learned one.

    Source: timm, from which RDCD takes its ViT: cubic with a = -0.5, antialiased where it shrinks.
    Differs: DINO's own code takes a = -0.75, does not antialias, and shifts the samples by a tenth of a patch.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return positions
    first, patches = positions[:, :1], positions[:, 1:]
    patches = patches.reshape(1, side, side, -1)
    patches = jax.image.resize(patches, (1, *grid, patches.shape[-1]), "cubic")
    return jnp.concatenate([first, patches.reshape(1, -1, patches.shape[-1])], axis=1)


def vit_b8(**settings) -> ViT:
    """ViT-B with patches of 8 pixels; `settings` as of `ViT`."""
    return ViT(8, **settings)


def vit_b16(**settings) -> ViT:
    """ViT-B with patches of 16 pixels; `settings` as of `ViT`."""
    return ViT(16, **settings)


def _linear(features_in: int, features_out: int, *, dtype, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(features_in, features_out, kernel_init=_normal, dtype=dtype, rngs=rngs)

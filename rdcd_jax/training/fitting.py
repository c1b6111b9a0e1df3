"""What follows training: statistics and a projector fitted to unedited images, without gradients."""

import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rdcd_jax.core.errors import UnreadableImageError, UserError
from rdcd_jax.embedding.stream import Embedder, embed_images
from rdcd_jax.embedding.whitening import PCAWhitening
from rdcd_jax.images.decode import resize_square
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.method.state import Tree
from rdcd_jax.models.branches import reparameterised
from rdcd_jax.models.descriptor import normalize_images
from rdcd_jax.models.layers import BatchNorm, at_least_float32
from rdcd_jax.weights.model import Model, digest_of

BATCH = 64
# More images change the whitening little.
MOST_IMAGES = 20_000


def recalibrate_batch_norm(model: Model, images: ImageSet, count: int) -> None:
    """Replaces BatchNorm's running statistics by those of unedited images at the model's size, in place.

    Training views are crops, blurred and coloured, of another size: the statistics of what the model is to embed are
    others. Each layer gets the average of its batches' means and variances.

    Args:
        model: the network.
        images: training pixels.
        count: how many of them to use, evenly spread; whole batches of 64 are used (one of all, if there are fewer).

    Raises:
        UserError: too few pixels can be read for one batch.
    """
    positions = evenly_spread(len(images), count)
    size = min(BATCH, len(positions))
    module = nnx.view(model.module, only=BatchNorm, use_running_average=False)
    for _, node in nnx.iter_modules(module):
        if isinstance(node, BatchNorm):
            node.momentum = 0.0  # The statistics after a batch are then that batch's alone.
    graph, arrays = nnx.split(module)

    @jax.jit
    def measured(arrays, pixels):
        network = nnx.merge(graph, arrays)
        network(normalize_images(pixels))
        return nnx.as_pure(nnx.state(network, nnx.BatchStat))

    arrays, batch, found = nnx.as_pure(arrays), [], []
    for position in positions:
        with contextlib.suppress(UnreadableImageError):
            image = images.decode(int(position), min_side_hint=model.image_size)
            batch.append(np.asarray(resize_square(image, model.image_size)))
        # A last batch that unreadable images left short counts only where there is no other.
        if len(batch) == size or (position == positions[-1] and batch and not found):
            found.append(jax.device_get(measured(arrays, np.stack(batch))))
            batch = []
    if not found:
        raise UserError(f"{images.source}: too few readable images to calibrate BatchNorm on.")
    average = jax.tree.map(lambda *leaves: jnp.asarray(np.mean(leaves, axis=0)), *found)
    nnx.update(model.module, average)


def evenly_spread(count: int, most: int) -> np.ndarray:
    """Positions of so many of `count` images at most, [min(most, count)] int."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(int)


def trunk_of(model: Model) -> tuple[Callable[[Tree, jax.Array], jax.Array], Tree]:
    """A student's trunk alone.

    Returns:
        A function of (arrays, images [B, H, W, 3] uint8) to features [B, F] float32 as the projector sees them,
        before their normalisation; the arrays.
    """
    graph, arrays = nnx.split(reparameterised(model.module).backbone)

    def features(arrays: Tree, images: jax.Array) -> jax.Array:
        return at_least_float32(nnx.merge(graph, arrays)(normalize_images(images)))

    return features, nnx.as_pure(arrays)


def featured(model: Model) -> Embedder:
    """What embeds images by those features, at the model's size."""
    features, arrays = trunk_of(model)
    run = jax.jit(features)
    return Embedder(
        lambda images: np.asarray(run(arrays, images)),
        model.image_size,
        name=model.name,
        fingerprint=digest_of(model, "backbone."),
    )


def whitened_projector(model: Model, images: ImageSet) -> None:
    """Replaces a student's projector by the whitening of its features, in place.

    The descriptor is then what the codec `PCAW<dim>,L2norm,Flat` makes of the features, without a codec. It is the
    sensible projector of a student whose training had no term on the descriptor.

    Args:
        model: the student.
        images: training images; the first 20,000 are embedded.
    """
    some = images.subset(range(min(len(images), MOST_IMAGES)))
    found, _ = embed_images(featured(model), some)
    whiten(model.module.projector, found.descriptors)


def whiten(projector: nnx.Linear, features: np.ndarray) -> None:
    """Makes a projector the whitening of features [N, F], in place."""
    whitening = PCAWhitening.fit(features, projector.out_features)
    # Whitening's scale follows the number of images it was fitted to; the descriptor's length is 1 in the end, so any
    # scale serves, and this one keeps the numbers near 1.
    scale = np.sqrt(len(features))
    kernel, bias = whitening.components.T, -whitening.components @ whitening.mean
    projector.kernel.set_value(jnp.asarray(kernel * scale, jnp.float32))
    projector.bias.set_value(jnp.asarray(bias * scale, jnp.float32))

"""A projector without training: PCA whitening of the student's own features, written as its linear layer."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rdcd_jax.data.sources import ImageSet
from rdcd_jax.evaluation.embed import embed_images
from rdcd_jax.evaluation.whiten import PCAWhitening
from rdcd_jax.models.descriptor import normalize_images
from rdcd_jax.weights.library import Model

# More pictures change the fit little.
MOST_PICTURES = 20_000


def whitened_projector(model: Model, images: ImageSet) -> None:
    """Replaces a student's projector by the whitening of its features, in place.

    The descriptor is then what the codec `PCAW<dim>,L2norm,Flat` makes of the features, without a codec. It is the
    sensible projector of a student whose training had no term on the descriptor.

    Args:
        model: the student.
        images: training pictures; the first 20,000 are described.
    """
    graph, state = nnx.split(model.module.backbone)
    features = nnx.jit(lambda state, x: nnx.merge(graph, state)(normalize_images(x)))
    some = ImageSet(images.source, images.ids[:MOST_PICTURES], images.paths[:MOST_PICTURES])
    found, _ = embed_images(
        lambda x: np.asarray(features(state, x)), some, image_size=model.image_size
    )
    projector = model.module.projector
    whitening = PCAWhitening.fit(found.descriptors, projector.out_features)
    # Whitening's scale follows the number of pictures it was fitted to; the descriptor's length is 1 in the end, so
    # any scale serves, and this one keeps the numbers near 1.
    scale = np.sqrt(len(found.descriptors))
    kernel, bias = whitening.components.T, -whitening.components @ whitening.mean
    projector.kernel[...] = jnp.asarray(kernel * scale, jnp.float32)
    projector.bias[...] = jnp.asarray(bias * scale, jnp.float32)

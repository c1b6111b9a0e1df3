import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rdcd_jax.images.decode import resize_short_edge, resize_square
from rdcd_jax.models.descriptor import IMAGENET_MEAN, IMAGENET_STD, normalize_images


@pytest.mark.parametrize("i", range(3))
def test_networks_are_given_what_the_references_are(vectors, i):
    file = vectors("j_preprocess")
    np.testing.assert_allclose(IMAGENET_MEAN, file["mean"], rtol=1e-7)
    np.testing.assert_allclose(IMAGENET_STD, file["std"], rtol=1e-7)
    image = Image.fromarray(file[f"im{i}_u8"])
    for name, resize in (("skew288", resize_square), ("short288", resize_short_edge)):
        images = jnp.asarray(np.asarray(resize(image, 288))[None, ::24, ::24])
        got = np.asarray(normalize_images(images))[0].transpose(2, 0, 1)
        np.testing.assert_allclose(got, file[f"im{i}_{name}_every24"], rtol=0, atol=1e-6)


def test_float_images_are_taken_to_be_normalised():
    images = jnp.full((1, 2, 2, 3), 0.5, jnp.float32)
    assert normalize_images(images) is images

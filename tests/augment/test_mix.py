"""Mixup and cutmix against images that the reference mixed, and the distribution of what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdcd_jax.augment.device.mix import cutmix, mixed, mixup, soft_targets


@pytest.mark.parametrize("case", range(2))
def test_the_reference_s_mixed_images(vectors, case):
    """Given the weights that its targets tell, and the boxes that its images show."""
    data = vectors("d_sscd")
    before = data[f"m{case}_images_in"].transpose(0, 2, 3, 1)
    after = data[f"m{case}_images_out"].transpose(0, 2, 3, 1)
    targets = data[f"m{case}_targets"]
    images = targets.shape[1]
    weight = targets[np.arange(len(targets)), np.arange(len(targets)) % images]
    np.testing.assert_allclose(soft_targets(jnp.asarray(weight), images), targets, atol=1e-6)
    kept = (before == after).all(-1)
    boxes = np.zeros((len(targets), 4), int)
    for box, same in zip(boxes, kept, strict=True):
        if not same.all():
            rows, columns = np.nonzero(~same)
            box[:] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    cut = kept.any((1, 2))
    assert cut.any()
    assert not cut.all()
    blended = mixup(jnp.asarray(before), jnp.asarray(weight))
    pasted = cutmix(jnp.asarray(before), jnp.asarray(boxes))
    ours = np.where(cut[:, None, None, None], pasted, blended)
    np.testing.assert_allclose(ours, after, atol=1e-6)


def test_how_often_and_how_much():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2048, 16, 16, 3)), jnp.uint8)
    mix = jax.jit(
        lambda key: mixed(
            images, key, n_images=2048, mixup_probability=0.25, cutmix_probability=0.25, alpha=2.0
        )
    )
    pixels, targets = mix(jax.random.key(0))
    assert pixels.dtype == jnp.uint8
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    weight = np.diagonal(targets)
    changed = np.asarray((pixels != images).any((1, 2, 3)))
    np.testing.assert_array_equal(changed, weight < 1)
    pixels = np.asarray((pixels != images).any(-1)).mean((1, 2))
    blended = pixels > 0.99
    # Three standard deviations of a share of 2,048.
    assert abs(blended.mean() - 0.25) < 0.03
    assert abs((changed & ~blended).mean() - 0.25) < 0.03
    assert abs(weight[blended].mean() - 0.5) < 0.03
    # A pasted box shows as much of the partner as the targets say, up to pixels that are equal by chance.
    np.testing.assert_allclose(
        pixels[changed & ~blended], 1 - weight[changed & ~blended], atol=0.02
    )

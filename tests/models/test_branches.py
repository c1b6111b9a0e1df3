"""Merged branches against the branches, one by one and in a whole network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rdcd_jax import models
from rdcd_jax.models import fastvit
from rdcd_jax.models.branches import Branches, reparameterised
from rdcd_jax.models.descriptor import DescriptorNet, normalize_images
from rdcd_jax.models.fastvit import RepMixer
from rdcd_jax.models.layers import BatchNorm
from rdcd_jax.weights.model import Model


def randomised(module, seed=0):
    """In evaluation mode, with statistics and scales that a merge could get wrong."""
    random = np.random.default_rng(seed)
    for _, node in nnx.iter_modules(module):
        for name, leaf in vars(node).items():
            if isinstance(leaf, nnx.Variable):
                low = 0.5 if name in ("var", "scale", "gamma") else -0.5
                values = random.uniform(low, low + 1, leaf.shape)
                leaf.set_value(jnp.asarray(values, leaf.dtype))
    return nnx.view(module, only=BatchNorm, use_running_average=True, raise_if_not_found=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda r: Branches(6, 6, (3, 1), identity=True, dtype=None, rngs=r),
        lambda r: Branches(6, 6, (3, 1), groups=3, identity=True, dtype=None, rngs=r),
        lambda r: Branches(6, 6, (1,), identity=True, dtype=None, rngs=r),
        lambda r: Branches(6, 12, (7, 3), stride=2, groups=6, identity=False, dtype=None, rngs=r),
        lambda r: RepMixer(6, dtype=None, rngs=r),
    ],
    ids=["dense", "grouped", "pointwise", "two filters a channel", "mixer"],
)
def test_merged_branches_are_one_convolution(make):
    module = randomised(make(nnx.Rngs(0)))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 6)), jnp.float32)
    merged = module.merged()
    assert isinstance(merged, nnx.Conv)
    both = jax.jit(lambda x: (module(x), merged(x)))(x)
    assert np.abs(both[0]).max() > 1
    np.testing.assert_allclose(*both, atol=5e-6)


def count(network):
    return sum(x.size for x in jax.tree.leaves(nnx.state(network, nnx.Param)))


def test_a_merged_network_has_as_many_parameters_as_timm_s():
    network = nnx.eval_shape(lambda: models.build("fastvit_t12", dim=64, rngs=nnx.Rngs(0)))
    network = randomised(network)
    assert count(reparameterised(network)) == 7_041_472
    assert count(network) == 7_086_336


@pytest.mark.slow
def test_a_merged_network_embeds_as_before(monkeypatch):
    monkeypatch.setattr(fastvit, "STAGES", ((8, 1), (16, 1)))
    monkeypatch.setattr(fastvit, "LAST_CHANNELS", 32)
    backbone = fastvit.FastViTT12(feature_dim=24, rngs=nnx.Rngs(0))
    network = randomised(DescriptorNet(backbone, nnx.Linear(24, 8, rngs=nnx.Rngs(1))))
    merged = reparameterised(network)
    assert not any(isinstance(node, Branches) for _, node in nnx.iter_modules(merged))
    images = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), np.uint8)
    plain = nnx.jit(lambda network, x: network(normalize_images(x))[1])(network, images)
    embedded = Model("x", "fastvit_t12", network, 32).embed_batch(images)
    np.testing.assert_allclose(embedded, plain, atol=2e-6)
    assert np.abs(plain[0] - plain[1]).max() > 1e-3


def test_a_network_without_branches_is_left():
    module = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    assert reparameterised(module) is module

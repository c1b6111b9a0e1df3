import functools

import jax
import numpy as np
import pytest
from flax import nnx
from toy import keys

from rdcd_jax.core.errors import UserError
from rdcd_jax.models import build
from rdcd_jax.weights import convert, tables

NETWORKS = {
    "efficientnet_b0": 64,
    "fastvit_t12": 64,
    "mobilenet_v3_large": 64,
    "resnet50": None,
}


def random_tensors(name, seed=0):
    random = np.random.default_rng(seed)
    return {key: random.random(shape, np.float32) for key, shape in keys(name).items()}


@pytest.fixture(scope="module")
def student():
    module = abstract("efficientnet_b0")
    convert.load_into(module, random_tensors("efficientnet_b0", 2), "efficientnet_b0")
    return module


@functools.cache
def _abstract(name):
    return nnx.eval_shape(lambda: build(name, dim=NETWORKS[name], rngs=nnx.Rngs(0)))


def abstract(name):
    """A network without numbers: drawing fresh ones would take most of the test's time."""
    return nnx.clone(_abstract(name))


@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_shapes_are_the_reference_s(name):
    state = nnx.to_flat_state(nnx.state(abstract(name), (nnx.Param, nnx.BatchStat)))
    found = {
        (key := convert._torch_name(path, name)): convert._torch_shape(key, leaf.shape)
        for path, leaf in state
    }
    assert len(found) == len(state)
    assert found == keys(name)


@pytest.mark.parametrize("name", NETWORKS)
def test_tables_name_every_layer_once(name):
    table = tables.LAYERS[name]()
    assert len(set(table.values())) == len(table)
    layers = {key.rpartition(".")[0] for key in keys(name)}
    assert set(table.values()) | {"projector"} == layers | {"projector"}


def test_classy_names_are_the_reference_s():
    # ResNeXt-101 has the same blocks under the same names, only more of them in its third stage.
    reference = {
        key.rpartition(".")[0]
        for key in keys("resnext101_32x4d_classy")
        if not any(f".block2-{extra}." in key for extra in range(6, 23))
    }
    table = tables.classy_resnet50()
    assert table.keys() == reference
    assert set(table.values()) == set(tables.resnet50().values())
    assert table["backbone.blocks.2.block2-5.convolutional_block.6"] == "backbone.layer3.5.conv3"
    assert table["backbone.blocks.1.block1-0.bn"] == "backbone.layer2.0.bn3"
    assert table["backbone.blocks.3.block3-0.downsample.1"] == "backbone.layer4.0.downsample.1"


def test_lite0_is_b0_without_squeeze_excite_and_head():
    table = tables.lite0_efficientnet_b0()
    assert len(set(table.values())) == len(table)
    lacking = set(tables.efficientnet_b0().values()) - set(table.values())
    assert {name.rpartition(".")[2] for name in lacking} == {"fc1", "fc2", "1"}
    # The second block of the third stage is the fifth in all.
    assert table["backbone._blocks.4._depthwise_conv"] == "backbone.features.3.1.block.1.0"
    assert table["backbone._blocks.0._bn2"] == "backbone.features.1.0.block.2.1"


def test_fresh_names_keep_the_module_s_numbers(student):
    tensors = random_tensors("efficientnet_b0", 3)
    before = convert.to_torch(student, "efficientnet_b0")
    del tensors["projector.weight"]
    convert.load_into(student, tensors, "efficientnet_b0", fresh=r"projector\..*")
    after = convert.to_torch(student, "efficientnet_b0")
    assert (after["projector.weight"] == before["projector.weight"]).all()
    assert (after["projector.bias"] == tensors["projector.bias"]).all()
    with pytest.raises(UserError, match=r"1 missing: projector\.weight"):
        convert.to_state(student, tensors, "efficientnet_b0", fresh=r"backbone\..*")


def test_round_trip_is_exact(student):
    tensors = random_tensors("efficientnet_b0")
    convert.load_into(student, tensors, "efficientnet_b0")
    back = convert.to_torch(student, "efficientnet_b0")
    assert back.keys() == tensors.keys()
    for key, array in tensors.items():
        np.testing.assert_array_equal(back[key], array)
        assert back[key].flags.c_contiguous


def test_fastvit_s_projector_goes_by_either_name():
    module, tensors = abstract("fastvit_t12"), random_tensors("fastvit_t12")
    plain = {key.replace("projector.0.", "projector."): array for key, array in tensors.items()}
    assert plain.keys() != tensors.keys()
    convert.load_into(module, plain, "fastvit_t12")
    back = convert.to_torch(module, "fastvit_t12")
    assert back.keys() == tensors.keys()
    for key, array in tensors.items():
        np.testing.assert_array_equal(back[key], array)
    with pytest.raises(UserError, match=r"'projector\.0\.weight' twice"):
        convert.to_state(module, plain | tensors, "fastvit_t12")


def test_layouts(student):
    tensors = random_tensors("efficientnet_b0")
    state = convert.to_state(student, tensors, "efficientnet_b0")
    stem = state["backbone"]["stem"]["conv"]["kernel"][...]
    assert stem.shape == (3, 3, 3, 32)
    assert stem[0, 1, 2, 9] == tensors["backbone.features.0.0.weight"][9, 2, 0, 1]
    depthwise = state["backbone"]["stages"][0][0]["depthwise"]["conv"]["kernel"][...]
    assert depthwise.shape == (3, 3, 1, 32)
    assert depthwise[0, 1, 0, 9] == tensors["backbone.features.1.0.block.0.0.weight"][9, 0, 0, 1]
    projector = state["projector"]["kernel"][...]
    assert projector[5, 3] == tensors["projector.weight"][3, 5]


def test_to_state_leaves_the_module_and_keeps_its_types(student):
    before = convert.to_torch(student, "efficientnet_b0")
    halves = {k: v.astype(np.float16) for k, v in random_tensors("efficientnet_b0", 1).items()}
    state = convert.to_state(student, halves, "efficientnet_b0")
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype("float32")}
    after = convert.to_torch(student, "efficientnet_b0")
    assert all((after[key] == before[key]).all() for key in before)


@pytest.mark.parametrize(
    "renamed",
    [
        lambda k: k,
        lambda k: f"module.{k}",
        lambda k: f"model.{k}",
        lambda k: f"module.model.{k}",
        lambda k: k.removeprefix("backbone."),
        lambda k: f"module.{k.removeprefix('backbone.')}",
    ],
)
def test_prefixes(renamed):
    tensors = {renamed(key): np.zeros(shape) for key, shape in keys("resnet50").items()}
    tensors[renamed("backbone.bn1.num_batches_tracked")] = np.array(3)
    assert convert.torch_names(tensors).keys() == keys("resnet50").keys()


def test_a_prefix_that_not_all_share_stays():
    found = convert.torch_names({"module.fc.weight": np.zeros(1), "conv1.weight": np.zeros(1)})
    assert found.keys() == {"backbone.module.fc.weight", "backbone.conv1.weight"}


def test_all_mismatches_are_reported_together():
    tensors = {key: np.zeros(shape, np.float32) for key, shape in keys("resnet50").items()}
    del tensors["backbone.layer3.4.bn2.running_var"], tensors["backbone.fc.bias"]
    tensors["backbone.layer1.0.conv2.weight"] = np.zeros((64, 64, 5, 5))
    tensors["backbone.extra"] = tensors["head.weight"] = np.zeros(3)
    with pytest.raises(UserError) as error:
        convert.to_state(abstract("resnet50"), tensors, "resnet50")
    text = str(error.value)
    for part in (
        *("2 missing: ", "backbone.layer3.4.bn2.running_var", "backbone.fc.bias"),
        *("2 unexpected: ", "backbone.extra", "head.weight"),
        *("1 of another shape: ", "backbone.layer1.0.conv2.weight 64x64x5x5 for 64x64x3x3"),
    ):
        assert part in text
    assert "\n" not in text


def test_another_network_is_refused(student):
    with pytest.raises(
        UserError, match=r"not the weights of this efficientnet_b0: .* and \d+ more"
    ):
        convert.load_into(student, random_tensors("resnet50"), "efficientnet_b0")


def test_a_name_given_twice_is_refused():
    twice = {"embeddings.1.bias": np.zeros(1), "backbone.fc.bias": np.zeros(1)}
    with pytest.raises(UserError, match=r"'backbone\.fc\.bias' twice"):
        convert.torch_names(twice, tables.classy_resnet50())

import collections
import dataclasses
import importlib.util
import itertools
import pickle

import numpy as np
import pytest
from PIL import Image

from rdcd_jax.augment import assets, policies
from rdcd_jax.augment.host import edits
from rdcd_jax.augment.policies import POLICIES, Step, find_policy, make_view, policy_text
from rdcd_jax.core.errors import UserError

NEEDS_AUGLY = pytest.mark.skipif(
    importlib.util.find_spec("augly") is None, reason="augly is not installed"
)
EVERY_POLICY = [
    pytest.param(name, marks=NEEDS_AUGLY if name in ("ADVANCED", "MILD") else ())
    for name in POLICIES
]
CROP = Step("resized_crop", 1, {"scale": (0.5, 1), "ratio": (1, 1)})


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((80, 60))


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_views_are_uint8_squares_that_the_seed_fixes(policy, image):
    view = make_view(policy, 24)
    before = np.array(image)
    views = [view(image, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    for got in views:
        assert got.shape == (24, 24, 3) and got.dtype == np.uint8
    np.testing.assert_array_equal(views[0], views[1])
    assert (views[0] != views[2]).any()
    np.testing.assert_array_equal(np.array(image), before)
    again = pickle.loads(pickle.dumps(view))
    np.testing.assert_array_equal(again(image, np.random.default_rng(2)), views[2])


@pytest.mark.parametrize("policy", EVERY_POLICY)
@pytest.mark.parametrize("size", [(1, 1), (1, 70), (70, 1), (3, 2), (9, 9)])
def test_tiny_images_give_views_too(policy, size):
    view = make_view(policy, 8)
    rng = np.random.default_rng(0)
    for _ in range(40):
        assert view(Image.new("RGB", size, (9, 200, 100)), rng).shape == (8, 8, 3)


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_operations_fire_as_often_as_the_policy_says_and_in_its_order(policy):
    # Text is measured while it is drawn, which takes long; a test of its own looks at it.
    steps = tuple(step for step in POLICIES[policy] if step.operation != "overlay_text")
    view, rng, tries = make_view(steps, 32), np.random.default_rng(3), 4000
    drawn = [[each.operation for each in view.draw((90, 60), rng)] for _ in range(tries)]
    order = [step.operation for step in steps]
    for operations in drawn:
        assert operations == [name for name in order if name in operations]
    counts = collections.Counter(itertools.chain(*drawn))
    for step in steps:
        p = step.probability
        assert abs(counts.pop(step.operation, 0) - p * tries) <= 4 * (tries * p * (1 - p)) ** 0.5
    assert not counts
    # Independently: of any two, as often together as chance has it.
    for a, b in itertools.combinations(steps, 2):
        p = a.probability * b.probability
        both = sum(a.operation in names and b.operation in names for names in drawn)
        assert abs(both - p * tries) <= 4.5 * (tries * p * (1 - p)) ** 0.5 + 1e-9


def test_published_tables():
    table = {
        name: [(step.operation, step.probability) for step in policy]
        for name, policy in POLICIES.items()
    }
    tail = [("jitter", 0.8), ("grey", 0.2), ("blur", 0.5)]
    assert table["SIMCLR"] == table["STRONG_BLUR"] == [("resized_crop", 1), ("hflip", 0.5), *tail]
    start = [("hflip", 0.5), ("rotate_by_one_of", 0.05)]
    overlay = [("overlay_text", 0.1), ("overlay_emoji", 0.2)]
    end = [("rotate", 0.05), ("resized_crop", 1), *tail, ("jpeg", 0.2)]
    assert table["ADVANCED"] == [*start, *overlay, *end]
    assert table["ADVANCED_NO_OVERLAY"] == [*start, *end]
    radius = {name: policy[-1].ranges.get("radius") for name, policy in POLICIES.items()}
    assert radius["SIMCLR"] == (0.1, 2) and radius["STRONG_BLUR"] == (1, 5)


def certain(policy, *, without=()):
    """The policy with every operation firing."""
    steps = POLICIES[policy] if isinstance(policy, str) else policy
    return tuple(
        dataclasses.replace(step, probability=1) for step in steps if step.operation not in without
    )


def uniform(values, low, high):
    """Whether the values are uniform: none of ten equal parts of the range is off by 4.5 deviations."""
    counts, _ = np.histogram(values, bins=10, range=(low, high))
    n = len(values)
    assert counts.sum() == n, "outside of the range"
    assert (np.abs(counts - n / 10) <= 4.5 * (n * 0.1 * 0.9) ** 0.5).all(), counts


def by_operation(view, count, size=(90, 60)):
    rng = np.random.default_rng(1)
    drawn = [dict(view.draw(size, rng)) for _ in range(count)]
    return {name: [each[name] for each in drawn if name in each] for name in drawn[0]}


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_parameters_are_uniform_over_their_ranges(policy):
    ranges = {step.operation: step.ranges for step in POLICIES[policy]}
    drawn = by_operation(make_view(certain(policy, without=("overlay_text",)), 32), 3000)
    uniform([values["radius"] for values in drawn["blur"]], *ranges["blur"]["radius"])
    for name in ("brightness", "contrast", "saturation", "hue"):
        amounts = [dict(values["changes"])[name] for values in drawn["jitter"]]
        uniform(amounts, *ranges["jitter"][name])
    if "jpeg" in ranges:
        low, high = ranges["jpeg"]["quality"]
        assert {values["quality"] for values in drawn["jpeg"]} == set(range(low, high + 1))
        uniform([values["quality"] for values in drawn["jpeg"]], low - 0.5, high + 0.5)
    if "rotate" in ranges:
        degrees = [values["degrees"] for values in drawn["rotate"]]
        uniform(degrees, -0.5, 359.5)
        assert min(degrees) == 0 and max(degrees) == 359
        quarters = collections.Counter(values["degrees"] for values in drawn["rotate_by_one_of"])
        assert set(quarters) == {90, 180, 270} and min(quarters.values()) > 880
    if "overlay_emoji" in ranges:
        emoji = drawn["overlay_emoji"]
        for name in ("size", "opacity"):
            uniform([values[name] for values in emoji], *ranges["overlay_emoji"][name])
        for axis in (0, 1):
            uniform([values["position"][axis] for values in emoji], 0, 1)
        assert len({values["emoji"] for values in emoji}) > 700
    areas, boxes = [], [values["box"] for values in drawn["resized_crop"]]
    for left, top, right, bottom in boxes:
        areas.append((right - left) * (bottom - top) / (90 * 60))
    low, high = ranges["resized_crop"]["scale"]
    assert low * 0.9 < min(areas) < low + 0.05 and 0.8 < max(areas) <= high


def test_the_jitters_order_is_uniform():
    view = make_view((CROP, Step("jitter", 1, POLICIES["SIMCLR"][2].ranges)), 4)
    drawn = by_operation(view, 2400)["jitter"]
    orders = collections.Counter(tuple(name for name, _ in values["changes"]) for values in drawn)
    assert len(orders) == 24
    assert all(abs(count - 100) <= 4.5 * 98**0.5 for count in orders.values())


@NEEDS_AUGLY
def test_text_fits_and_is_drawn_from_its_ranges():
    (step,) = (step for step in POLICIES["ADVANCED"] if step.operation == "overlay_text")
    view = make_view((dataclasses.replace(step, probability=1), CROP), 32)
    rng = np.random.default_rng(0)
    drawn = [dict(view.draw((120, 80), rng)).get("overlay_text") for _ in range(300)]
    written = [values for values in drawn if values]
    # The others have a broken glyph, or one wider than the image.
    assert len(written) > 250
    for values in written:
        font = assets.read_font(values["font"], values["size"])
        assert edits.fits(values["text"], font, 120, 80)
        assert set(map(ord, values["text"])) <= set(assets.characters(values["font"]).tolist())
    sizes = [values["size"] for values in written]
    assert min(sizes) == 8 and max(sizes) in (23, 24)
    uniform([values["opacity"] for values in written], *step.ranges["opacity"])
    uniform(np.ravel([values["position"] for values in written]), 0, 1)
    uniform(np.ravel([values["colour"] for values in written]), 0, 255)
    assert len({values["font"] for values in written}) > 120
    assert len({len(values["text"]) for values in written}) > 8


@pytest.mark.parametrize(
    "moves",
    [
        "hflip 1",
        "rotate_by_one_of 1 degrees=90,180,270",
        "rotate 1 degrees=0,359",
        "hflip 1; rotate 1 degrees=0,359",
        "rotate 1 degrees=0,359; hflip 1",
    ],
)
def test_moving_only_what_is_cropped_makes_the_same_view(moves, image):
    view = make_view(f"{moves}; resized_crop 1 scale=0.08,1 ratio=0.75,1.33; grey 0.5", 24)
    for seed in range(20):
        drawn = view.draw(image.size, np.random.default_rng(seed))
        want = image
        for operation, values in drawn:
            want = policies.OPERATIONS[operation].apply(want, **values)
        # A position is computed in another order, which may round the other way.
        np.testing.assert_allclose(
            view.apply(image, drawn).astype(int), np.array(want, int), atol=1
        )


def test_a_policy_can_be_written_out():
    text = (
        " hflip 0.5; rotate_by_one_of 0.1 degrees=90,180,270;"
        " resized_crop 1 scale=0.3,1 ratio=0.75,1.33; blur 0.3 radius=0.3,1.5; "
    )
    assert find_policy(text) == (
        Step("hflip", 0.5),
        Step("rotate_by_one_of", 0.1, {"degrees": (90, 180, 270)}),
        Step("resized_crop", 1, {"scale": (0.3, 1), "ratio": (0.75, 1.33)}),
        Step("blur", 0.3, {"radius": (0.3, 1.5)}),
    )
    assert make_view(text, 8)(Image.new("RGB", (9, 9)), np.random.default_rng(0)).shape == (8, 8, 3)
    for policy in POLICIES.values():
        assert find_policy(policy_text(policy)) == policy


def test_a_config_takes_a_policy_written_out(tmp_path):
    from rdcd_jax.training.config import load_config

    config = tmp_path / "configs" / "mine.py"
    config.parent.mkdir()
    text = "resized_crop 1 scale=0.5,1 ratio=1,1; blur 0.3 radius=1,2"
    config.write_text(
        "from configs.common import base_config\n\ndef get_config(arg=None):\n"
        f"    config = base_config()\n    config.data.policy = {text!r}\n    return config\n"
    )
    assert find_policy(load_config(str(config), []).data.policy)[1].ranges == {"radius": (1, 2)}
    given = load_config(str(config), ["--config.data.policy=hflip 1; " + text]).data.policy
    assert [step.operation for step in find_policy(given)] == ["hflip", "resized_crop", "blur"]


def test_useful_side_is_where_the_smallest_crop_meets_the_view():
    for side in (64, 224):
        useful = make_view("SIMCLR", side).useful_side
        smallest = (useful * useful * 0.08 * 0.75) ** 0.5
        assert side <= smallest < side + 1


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("ADVANCE", "'ADVANCE'.*SIMCLR, STRONG_BLUR, ADVANCED"),
        ((CROP, Step("sharpen", 0.5)), "'sharpen'.*hflip"),
        ((CROP, Step("hflip", 1.5)), "hflip: probability 1.5"),
        ((CROP, Step("blur", 0.5, {"sigma": (1, 2)})), "blur needs a range for 'radius'"),
        ((CROP, Step("grey", 0.5, {"amount": (1, 2)})), "grey has no parameter 'amount'"),
        ((CROP, Step("blur", 0.5, {"radius": (5, 1)})), "blur: radius="),
        ((CROP, Step("blur", 0.5, {"radius": (5,)})), "blur: radius="),
        ((CROP, Step("rotate_by_one_of", 0.5, {"degrees": ()})), "rotate_by_one_of: degrees="),
        ((Step("hflip", 0.5),), "exactly one resized_crop"),
        ((CROP, CROP), "exactly one resized_crop"),
        (
            (Step("resized_crop", 1, {"scale": (0, 1), "ratio": (1, 1)}),),
            "scale=.*within 1e-06 to 1",
        ),
        ((CROP, Step("jpeg", 0.5, {"quality": (0, 101)})), "jpeg: quality=.*within 0 to 100"),
        ((CROP, Step("blur", 0.5, {"radius": (1, float("nan"))})), "blur: radius="),
        ((CROP, Step("jpeg", 0.5, {"quality": (0.5, 10)})), "jpeg: quality=.*whole numbers"),
        ((CROP, Step("rotate", 0.5, {"degrees": (0.5, 10)})), "rotate: degrees=.*whole numbers"),
        ("", "Unknown policy ''"),
        ("hflip 0.5; sharpen 0.5", "'sharpen'.*hflip"),
        ("hflip 0.5", "exactly one resized_crop"),
        ("hflip often", "'hflip often' should be"),
        ("blur 0.5 radius", "'blur 0.5 radius' should be"),
        ("blur 0.5 radius=1,x", "should be an operation"),
        ("blur 0.5 radius=1,2 radius=1,2", "should be an operation"),
        ("blur nan radius=1,2", "probability nan"),
    ],
)
def test_mistakes_are_refused_by_name(policy, says):
    with pytest.raises(UserError, match=says):
        find_policy(policy)


def test_a_view_without_pixels_is_refused():
    with pytest.raises(UserError, match="image_size=0"):
        make_view("SIMCLR", 0)

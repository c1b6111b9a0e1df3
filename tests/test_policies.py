import importlib.util
import pickle

import numpy as np
import pytest
from PIL import Image

from rdcd_jax.data import policies
from rdcd_jax.data.policies import POLICIES, Step, find_policy, make_view
from rdcd_jax.errors import UserError

NEEDS_AUGLY = pytest.mark.skipif(
    importlib.util.find_spec("augly") is None, reason="augly is not installed"
)
EVERY_POLICY = [
    pytest.param(name, marks=NEEDS_AUGLY if name == "ADVANCED" else ()) for name in POLICIES
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
def test_tiny_pictures_give_views_too(policy, size):
    view = make_view(policy, 8)
    rng = np.random.default_rng(0)
    for _ in range(40):
        assert view(Image.new("RGB", size, (9, 200, 100)), rng).shape == (8, 8, 3)


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_operations_fire_as_often_as_the_policy_says(policy, monkeypatch):
    counts = dict.fromkeys(policies.OPERATIONS, 0)

    def counting(name):
        def operation(image, rng, image_size, **ranges):
            counts[name] += 1
            return image.resize((2, 2)) if name == "resized_crop" else image

        return operation

    monkeypatch.setattr(policies, "OPERATIONS", {name: counting(name) for name in counts})
    view, rng, tries = make_view(policy, 2), np.random.default_rng(3), 4000
    for _ in range(tries):
        view(Image.new("RGB", (2, 2)), rng)
    for step in POLICIES[policy]:
        p = step.probability
        assert abs(counts.pop(step.operation) - p * tries) <= 4 * (tries * p * (1 - p)) ** 0.5
    assert not any(counts.values())


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


def test_parameters_are_drawn_from_their_whole_range(monkeypatch, image):
    drawn = {"rotate": [], "jpeg": [], "blur": [], "hue": [], "brightness": []}

    def spy(name):
        def operation(image, amount):
            drawn[name].append(amount)
            return image

        return operation

    for name in drawn:
        monkeypatch.setattr(policies.augment, name, spy(name))
    certain = tuple(
        Step(step.operation, 1, step.ranges)
        for step in POLICIES["ADVANCED_NO_OVERLAY"]
        if step.operation not in ("hflip", "rotate_by_one_of", "grey")
    )
    view, rng = make_view(certain, 4), np.random.default_rng(0)
    for _ in range(3000):
        view(image, rng)
    assert set(drawn["jpeg"]) == set(range(101))
    assert min(drawn["rotate"]) == 0 and max(drawn["rotate"]) == 359
    for name, (low, high) in {"blur": (1, 5), "hue": (-0.2, 0.2), "brightness": (0.2, 1.8)}.items():
        values = np.array(drawn[name])
        assert low <= values.min() < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 4 * (high - low) / (12 * 3000) ** 0.5


def test_the_jitters_order_is_random(monkeypatch, image):
    orders = set()
    current = []
    for name in ("brightness", "contrast", "saturation", "hue"):
        monkeypatch.setattr(
            policies.augment, name, lambda image, amount, name=name: current.append(name) or image
        )
    view, rng = make_view((CROP, Step("jitter", 1, POLICIES["SIMCLR"][2].ranges)), 4), None
    rng = np.random.default_rng(0)
    for _ in range(400):
        current.clear()
        view(image, rng)
        orders.add(tuple(current))
    assert len(orders) == 24


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
    ],
)
def test_mistakes_are_refused_by_name(policy, says):
    with pytest.raises(UserError, match=says):
        find_policy(policy)


def test_a_view_without_pixels_is_refused():
    with pytest.raises(UserError, match="image_size=0"):
        make_view("SIMCLR", 0)

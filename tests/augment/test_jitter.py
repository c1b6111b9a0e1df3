import itertools

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from torch_support import import_torchvision

from rdcd_jax.augment.host.jitter import CHANGES, jitter
from rdcd_jax.images.decode import decode_rgb
from rdcd_jax.images.sources import find_images

PILLOW = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def random_colours():
    values = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    values[:10] = values[:10, :, :1]  # greys, which have no hue
    values[10:12] = (0, 255, 128)
    return Image.fromarray(values)


@pytest.fixture(scope="module", params=["photograph", "random colours"])
def image(request):
    if request.param == "photograph":
        return decode_rgb(find_images("sample:train").paths[0])
    return random_colours()


def difference(a, b):
    return np.abs(np.asarray(a, int) - np.asarray(b, int))


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("factor", [0, 0.2, 0.77, 1, 1.5, 1.8, 3])
def test_colour_changes_are_pillows(image, name, factor):
    want = PILLOW[name](image).enhance(factor)
    got = jitter(image, [(name, factor)])
    assert difference(got, want).max() <= 2
    assert difference(got, want).mean() < 1
    if factor == 1:
        assert difference(got, image).max() == 0


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("factor", [0.4985, 0.5, 1.4985, 1.5, 1.5015])
def test_the_largest_values_do_not_overflow(name, factor):
    every = Image.linear_gradient("L")
    image = Image.merge("RGB", (every, every.rotate(90), every.rotate(180)))
    assert (
        difference(jitter(image, [(name, factor)]), PILLOW[name](image).enhance(factor)).max() <= 2
    )


@pytest.mark.parametrize("turn", [-0.5, -0.2, -0.001, 0, 0.05, 0.13, 0.2, 0.34, 0.5])
def test_hue_is_torchvisions(image, turn):
    want = import_torchvision().transforms.functional.adjust_hue(image, turn)
    found = difference(jitter(image, [("hue", turn)]), want)
    # Its hue and saturation are cut to 8 bits, which in strong colours is a few levels.
    assert found.mean() < 2 and found.max() <= 16


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0, 1 / 17, 0.2, 0.4, 0.5])
def test_hue_is_exact_to_a_level(turn):
    import colorsys

    image = random_colours()
    got = np.asarray(jitter(image, [("hue", turn)])).reshape(-1, 3)
    turn = int(turn * 255) / 255
    for before, after in list(zip(np.asarray(image).reshape(-1, 3), got, strict=True))[::7]:
        h, s, v = colorsys.rgb_to_hsv(*(before / 255))
        want = 255 * np.array(colorsys.hsv_to_rgb((h + turn) % 1, s, v))
        assert np.abs(after - want).max() <= 1, (before, after, want)


def test_changes_follow_one_another_in_the_order_given(image):
    amounts = {"brightness": 1.3, "contrast": 0.6, "saturation": 1.5, "hue": 0.1}
    assert set(amounts) == set(CHANGES)
    before = image.tobytes()
    seen = set()
    for order in itertools.permutations(amounts.items()):
        step_by_step = image
        for change in order:
            step_by_step = jitter(step_by_step, [change])
        got = jitter(image, order)
        assert difference(got, step_by_step).max() == 0
        seen.add(got.tobytes())
    assert len(seen) > 12
    assert image.tobytes() == before

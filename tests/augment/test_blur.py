import numpy as np
import pytest
from PIL import Image, ImageFilter

from rdcd_jax.augment.host.blur import blur
from rdcd_jax.images.decode import decode_rgb
from rdcd_jax.images.sources import find_images


@pytest.fixture(scope="module")
def photograph():
    return decode_rgb(find_images("sample:train").paths[0])


@pytest.fixture(scope="module")
def noise():
    values = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    return Image.fromarray(values)


def difference(image, radius):
    want = np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), int)
    return np.abs(np.asarray(blur(image, radius), int) - want)


@pytest.mark.parametrize("radius", [0, 0.1, 0.3, 1, 1.3, 1.9, 2, 2.7, 4, 5, 9, 13, 14, 40])
def test_blur_is_pillows(photograph, noise, radius):
    for image, most in [(photograph, 3), (noise, 4)]:
        found = difference(image, radius)
        assert found.max() <= most
        assert found.mean() < (0.6 if image is photograph else 1.1)
    assert np.asarray(blur(photograph, radius)).shape == np.asarray(photograph).shape


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (2, 3), (5, 5)])
def test_small_images(noise, size):
    image = noise.resize(size)
    before = image.tobytes()
    for radius in (0.5, 2, 5):
        assert difference(image, radius).max() <= 4
    assert image.tobytes() == before


def test_no_blur_gives_the_image(photograph):
    assert np.asarray(blur(photograph, 0)).tolist() == np.asarray(photograph).tolist()


def test_a_flat_image_stays_flat():
    for level in (0, 1, 127, 254, 255):
        image = Image.new("RGB", (40, 30), (level, level, level))
        for radius in np.linspace(0.1, 8, 23):
            assert np.asarray(blur(image, radius)).min() == level
            assert np.asarray(blur(image, radius)).max() == level


def test_an_impulse_becomes_a_gaussian_of_that_deviation():
    for radius in (1, 1.5, 2, 3, 4.5):
        image = np.zeros((81, 81, 3), np.uint8)
        image[:, 40:] = 255
        profile = np.asarray(blur(Image.fromarray(image), radius))[40, :, 0] / 255
        slope = np.diff(profile)
        positions = np.arange(len(slope)) - (slope * np.arange(len(slope))).sum()
        assert abs((slope * positions**2).sum() ** 0.5 - radius) < 0.05 * radius

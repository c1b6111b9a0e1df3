import functools
import io

import numpy as np
import pytest
from PIL import Image
from torch_support import import_torchvision

from rdcd_jax.augment import assets
from rdcd_jax.augment.host import edits
from rdcd_jax.images.decode import decode_rgb
from rdcd_jax.images.sources import find_images


@pytest.fixture(scope="module")
def image():
    """A 96 x 64 RGB image with structure of several sizes."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)).resize((96, 64))
    noise = rng.integers(-20, 20, (64, 96, 3))
    return Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photograph():
    """One of the bundled images, with its own detail, 212 x 160 or so."""
    image = decode_rgb(find_images("sample:train").paths[0])
    return image.crop((0, 0, image.width // 2 * 2, image.height // 2 * 2))


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_geometry_and_grey_equal_torchvisions(image):
    functional = import_torchvision().transforms.functional
    bilinear = import_torchvision().transforms.InterpolationMode.BILINEAR
    same(edits.hflip(image), functional.hflip(image))
    same(edits.grey(image), functional.rgb_to_grayscale(image, 3))
    for degrees in (0, 37, 90, 180, 270, 359):
        same(edits.rotate(image, degrees), functional.rotate(image, degrees, bilinear))
    left, top, right, bottom = box = (7, 11, 60, 50)
    want = functional.resized_crop(image, top, left, bottom - top, right - left, [24, 24])
    same(edits.resized_crop(image, box, 24), want)
    v2 = import_torchvision().transforms.v2.functional
    same(v2.resized_crop(image, top, left, bottom - top, right - left, [24, 24]), want)


def test_a_frame_holds_the_whole_image(image):
    framed = edits.frame(image, (10, 20, 58, 52), (255, 0, 7))
    assert framed.size == image.size
    same(framed.crop((10, 20, 58, 52)), image.resize((48, 32), Image.Resampling.BILINEAR))
    pixels = np.array(framed)
    pixels[20:52, 10:58] = (255, 0, 7)
    assert (pixels == (255, 0, 7)).all()


@pytest.mark.parametrize("size", [(96, 64), (95, 64), (64, 64), (33, 50)])
@pytest.mark.parametrize("degrees", [0, 37, 90, 180, 213.5, 270, -90, 450])
def test_a_part_of_a_rotation_is_that_part_of_the_whole(image, size, degrees):
    image = image.resize(size)
    whole = image.rotate(degrees, Image.Resampling.BILINEAR)
    same(edits.rotate(image, degrees), whole)
    box = (5, 9, 31, 44)
    part, want = edits.rotate(image, degrees, box), whole.crop(box)
    assert part.size == want.size
    # A position is computed in another order, which may round the other way.
    np.testing.assert_allclose(np.asarray(part, int), np.asarray(want, int), atol=1)


def test_a_part_of_a_flip_is_that_part_of_the_whole(image):
    for box in ((0, 0, 96, 64), (5, 9, 31, 44), (70, 0, 96, 1)):
        same(edits.hflip(image, box), edits.hflip(image).crop(box))


def crop_boxes(width, height, count, scale=(0.08, 1), ratio=(3 / 4, 4 / 3), seed=0):
    rng = np.random.default_rng(seed)
    draw = functools.partial(edits.random_crop_box, scale=scale, ratio=ratio, rng=rng)
    return np.array([draw(width, height) for _ in range(count)])


def test_crop_boxes_are_distributed_as_torchvisions():
    torchvision = import_torchvision()
    import torch

    count = 4000
    image = Image.new("RGB", (300, 200))
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    crop = torchvision.transforms.RandomResizedCrop
    want = np.array([crop.get_params(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(count)])
    torch.random.set_rng_state(generator_state)
    left, top, right, bottom = crop_boxes(300, 200, count).T
    got = np.stack([top, left, bottom - top, right - left], axis=1)
    deviation = np.sqrt(got.var(axis=0) * 2 / count)
    assert (np.abs(got.mean(axis=0) - want.mean(axis=0)) < 4 * deviation).all()
    quantiles = np.linspace(0.05, 0.95, 10)
    np.testing.assert_allclose(
        np.quantile(got, quantiles, axis=0), np.quantile(want, quantiles, axis=0), atol=12
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3), (300, 200), (5, 4000)])
def test_crop_boxes_lie_inside_and_are_never_empty(size):
    left, top, right, bottom = crop_boxes(*size, 300).T
    assert (left >= 0).all() and (top >= 0).all()
    assert (right <= size[0]).all() and (bottom <= size[1]).all()
    assert (right > left).all() and (bottom > top).all()


def test_a_crop_that_never_fits_is_the_largest_in_the_centre():
    box = crop_boxes(1000, 10, 1, scale=(1, 1), ratio=(3 / 4, 4 / 3))[0]
    np.testing.assert_array_equal(box, [493, 0, 506, 10])


def test_crop_reads_nothing_outside_its_box():
    black = np.zeros((40, 40, 3), np.uint8)
    white = np.full_like(black, 255)
    white[10:30, 10:30] = 0
    for image in (black, white):
        cut = edits.resized_crop(Image.fromarray(image), (10, 10, 30, 30), 8)
        assert np.asarray(cut).max() == 0


def test_jpeg_is_pillows(photograph):
    for quality in (0, 42, 100):
        file = io.BytesIO()
        photograph.save(file, "JPEG", quality=quality)
        same(edits.jpeg(photograph, quality), Image.open(file))


def test_jpeg_loses_more_at_lower_quality(image):
    clean = np.asarray(image).astype(int)
    loss = [
        np.abs(np.asarray(edits.jpeg(image, q)).astype(int) - clean).mean() for q in (0, 30, 100)
    ]
    assert loss[0] > 2 * loss[1] > 2 * loss[2]


def red_disc(side=72):
    y, x = np.mgrid[0:side, 0:side] - (side - 1) / 2
    disc = np.zeros((side, side, 4), np.uint8)
    disc[x**2 + y**2 < (side / 2) ** 2] = (255, 0, 0, 255)
    return Image.fromarray(disc)


@pytest.mark.parametrize("position", [(0, 0), (1, 1), (0.5, 0.25)])
def test_emoji_size_position_opacity_and_transparency(position):
    grey = Image.new("RGB", (200, 100), (100, 100, 100))
    got = np.asarray(
        edits.overlay_emoji(grey, red_disc(), size=0.5, opacity=0.8, position=position)
    ).astype(int)
    changed = np.argwhere((got != 100).any(-1))
    (top, left), (bottom, right) = changed.min(0), changed.max(0) + 1
    assert 48 <= bottom - top <= 50 and 48 <= right - left <= 50
    np.testing.assert_allclose([left, top], [position[0] * 150, position[1] * 50], atol=1)
    np.testing.assert_allclose(got[top + 25, left + 25], [224, 20, 20], atol=1)  # 0.8 over 0.2
    corner = got[top : top + 5, left : left + 5]
    np.testing.assert_array_equal(corner, np.full_like(corner, 100))
    assert np.asarray(grey).max() == 100, "the given image was changed"


def test_an_emoji_below_one_pixel_is_nothing():
    dot = Image.new("RGB", (1, 1), (5, 6, 7))
    same(edits.overlay_emoji(dot, red_disc(), size=0.5, opacity=1, position=(0, 0)), dot)


@pytest.fixture(scope="module")
def font():
    import matplotlib

    folder = matplotlib.get_data_path()
    return assets.read_font(f"{folder}/fonts/ttf/DejaVuSans.ttf", 20)


def test_text_colour_opacity_and_position(font):
    grey = Image.new("RGB", (200, 100), (100, 100, 100))
    options = {"colour": (200, 0, 100), "opacity": 0.5}
    first = np.asarray(edits.overlay_text(grey, "HHH", font, position=(0, 0), **options))
    last = np.asarray(edits.overlay_text(grey, "HHH", font, position=(1, 1), **options))
    for got in (first, last):
        strongest = got.reshape(-1, 3)[np.abs(got.reshape(-1, 3).astype(int) - 100).sum(1).argmax()]
        np.testing.assert_allclose(strongest, [150, 50, 100], atol=1)
    changed = [np.argwhere((got != 100).any(-1)) for got in (first, last)]
    assert changed[0].max(0)[1] < 60 and changed[0].min(0)[1] < 5
    assert changed[1].max(0)[0] >= 98 and changed[1].max(0)[1] >= 195
    assert len(changed[0]) == len(changed[1]) > 100


def test_the_longest_line_that_fits(font):
    text = "abcdefghij" * 10
    count = edits.longest_fit(text, font, 200)
    assert 5 < count < 40
    assert edits.fits(text[: count - 1], font, 200, 100)
    assert not edits.fits(text[: count + 2], font, 200, 100)
    for length in (0, 1, 2, 7, 63, 100):
        assert edits.longest_fit(text[:length], font, 10**6) == length
    assert edits.longest_fit(text, font, 1) == 0
    width, height = font.getbbox(text)[2:]
    assert edits.fits(text, font, width, height)
    assert not edits.fits(text, font, width - 1, height)
    assert not edits.fits(text, font, width, height - 1)

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from rdcd_jax.images.perceptual import close_pairs, near_duplicates, perceptual_hash


def image(seed, size=(320, 240)):
    """Smooth random colours, as distinct as photographs."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(9, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def distance(a, b):
    return (perceptual_hash(a)[0] ^ perceptual_hash(b)[0]).bit_count()


def saved(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def darker(image):
    return image.point(lambda value: value * 0.7)


def captioned(image):
    image = image.copy()
    ImageDraw.Draw(image).text((20, 20), "a caption", fill="white")
    return image


@pytest.mark.parametrize(
    "edit",
    [
        lambda image: saved(image, 10),
        lambda image: image.resize((100, 90)),
        lambda image: image.convert("L"),
        darker,
        captioned,
    ],
)
def test_small_edits_keep_the_hash_close(edit):
    for seed in range(20):
        assert distance(image(seed), edit(image(seed))) <= 6


def test_other_images_are_far():
    hashes = [perceptual_hash(image(seed))[0] for seed in range(40)]
    apart = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(apart) > 8 and 28 < np.mean(apart) < 36


def test_hash_and_thumbnail_by_hand():
    # One wave along each axis: only the coefficient (1, 1) counts, and its sign turns with the image.
    wave = np.cos(np.pi * (np.arange(32) + 0.5) / 32)
    grey = np.rint(128 + 100 * np.outer(wave, wave)).astype(np.uint8)
    hashed, thumbnail = perceptual_hash(Image.fromarray(grey))
    assert hashed >> 63 == 1
    means = grey.reshape(8, 4, 8, 4).mean(axis=(1, 3))
    np.testing.assert_array_equal(thumbnail.reshape(8, 8), means.astype(np.uint8))
    assert perceptual_hash(Image.fromarray(255 - grey))[0] >> 63 == 0


def test_an_image_without_structure_has_no_hash():
    assert perceptual_hash(Image.new("RGB", (50, 50), "red")) is None
    noise = np.random.default_rng(0).integers(0, 256, size=(512, 512, 3), dtype=np.uint8)
    assert perceptual_hash(Image.fromarray(noise)) is None


@pytest.mark.parametrize("max_distance", [0, 3, 7])
def test_close_pairs_are_those_of_all_pairs(max_distance):
    rng = np.random.default_rng(max_distance)
    hashes = rng.integers(0, 1 << 63, size=300, dtype=np.uint64)
    near = hashes[rng.integers(0, 300, 500)]
    for _ in range(5):
        near ^= np.uint64(1) << rng.integers(0, 64, size=500, dtype=np.uint64)
    hashes = np.unique(np.concatenate([hashes, near, hashes ^ np.uint64(1 << 63)]))
    rng.shuffle(hashes)
    expected = [
        (i, j, int(hashes[i] ^ hashes[j]).bit_count())
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if int(hashes[i] ^ hashes[j]).bit_count() <= max_distance
    ]
    found = close_pairs(hashes, max_distance)
    assert list(zip(*(each.tolist() for each in found), strict=True)) == expected
    assert len(expected) > 100 or max_distance == 0


def test_every_spread_of_seven_bits_is_found():
    """Two bits in three bands and one in the fourth is the hardest case."""
    base = np.uint64(0x0123456789ABCDEF)
    for alone in range(4):
        bits = [16 * band + bit for band in range(4) for bit in ((5,) if band == alone else (0, 9))]
        other = base ^ np.uint64(sum(1 << bit for bit in bits))
        _, _, apart = close_pairs(np.array([base, other]))
        assert apart.tolist() == [7]


def test_few_hashes_and_wrong_distances():
    for count in (0, 1):
        assert [len(each) for each in close_pairs(np.zeros(count, np.uint64))] == [0, 0, 0]
    with pytest.raises(ValueError, match="max_distance=8"):
        close_pairs(np.zeros(0, np.uint64), 8)


def test_many_candidates_are_compared_a_part_at_a_time(monkeypatch):
    hashes = np.arange(500, dtype=np.uint64) << np.uint64(40)
    whole = close_pairs(hashes)
    monkeypatch.setattr("rdcd_jax.images.perceptual._AT_ONCE", 64)
    for a, b in zip(whole, close_pairs(hashes), strict=True):
        np.testing.assert_array_equal(a, b)


def test_close_hashes_of_unlike_thumbnails_are_no_duplicates():
    hashes = np.array([1, 3, 7], np.uint64)
    thumbnails = np.random.default_rng(0).integers(0, 256, size=(3, 64), dtype=np.uint8)
    thumbnails[2] = thumbnails[0] // 2
    found = near_duplicates(hashes, thumbnails)
    assert [each.tolist() for each in found] == [[0], [2], [2]]

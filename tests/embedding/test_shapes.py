import itertools

import numpy as np
import pytest
from PIL import Image

from rdcd_jax.embedding.shapes import batches, resized, rounded_shape


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((640, 480), (384, 288)),
        ((480, 640), (288, 384)),
        ((500, 500), (288, 288)),
        # The exact long edges are 303 and 305: the middle between the first two shapes is 304.
        ((303, 288), (288, 288)),
        ((305, 288), (320, 288)),
        ((10, 7), (416, 288)),
        # Panoramas are squeezed.
        ((5000, 100), (864, 288)),
        ((1, 60000), (288, 864)),
    ],
)
def test_the_long_edge_is_rounded(size, shape):
    assert rounded_shape(size, 288) == shape
    image = resized(Image.new("RGB", size), 288, short_edge=True)
    assert (image.shape, image.dtype) == ((*shape[::-1], 3), np.uint8)


def test_shapes_are_few_and_near():
    sizes = [(low, high) for low in (97, 480, 1000) for high in range(low, 3 * low + 1)]
    for short, most in ((1, 1), (32, 5), (224, 29), (288, 37), (431, 53), (432, 27), (2000, 55)):
        found = {rounded_shape(size, short) for size in sizes}
        found |= {(high, low) for low, high in found}
        assert len(found) <= most
        assert all(min(shape) == short for shape in found)
    off = [rounded_shape(size, 288)[1] / (288 * size[1] / size[0]) - 1 for size in sizes]
    assert max(map(abs, off)) <= 0.0533


def numbered(shapes):
    """An image of each shape that holds its position."""
    return [(i, np.full((*shape, 3), i % 256, np.uint8)) for i, shape in enumerate(shapes)]


def test_batches_hold_every_image_once_in_its_shape():
    random = np.random.default_rng(0)
    sides = random.integers(1, 6, (200, 2)).tolist()
    positions = []
    for some, batch in batches(numbered(sides), 8, 2):
        assert len(batch) in (8, 2)
        assert batch.dtype == np.uint8
        for position, image in zip(some, batch, strict=False):
            assert (image == position).all()
            assert list(image.shape[:2]) == sides[position]
        assert not batch[len(some) :].any()
        positions += some
    assert sorted(positions) == list(range(200))


def test_few_images_wait():
    taken = 0

    def images():
        nonlocal taken
        for each in numbered([(1, 1 + i % 37) for i in range(3000)]):
            taken += 1
            yield each

    given = 0
    for positions, _ in itertools.islice(batches(images(), 32, 8), 300):
        assert taken - given <= 8 * 32
        given += len(positions)
    assert given > 300 * 6


def test_what_is_left_of_a_shape_is_filled_up_little():
    sizes = lambda n: [len(batch) for _, batch in batches(numbered([(1, 1)] * n), 8, 2)]  # noqa: E731
    assert [sizes(n) for n in (1, 2, 3, 6, 7, 8, 9)] == [
        [2],
        [2],
        [2, 2],
        [2, 2, 2],
        [8],
        [8],
        [8, 2],
    ]

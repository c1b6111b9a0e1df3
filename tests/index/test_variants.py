"""What is done to queries: borders and bars cut off, parts looked at, each query decoded once."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from toy import make_images

from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.stream import Embedder
from rdcd_jax.images.sources import ImageSet, find_images
from rdcd_jax.index.queries import embed_queries
from rdcd_jax.index.variants import VARIANTS, parts, trimmed


def photograph(size=(320, 240), seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def framed(colour, box, size, bar=None):
    page = Image.new("RGB", size, colour)
    if bar is not None:
        draw = ImageDraw.Draw(page)
        draw.rectangle((0, 0, size[0], 40), fill=bar)
        draw.text((20, 10), "12:40   album", fill="white")
    left, top, right, bottom = box
    page.paste(photograph((right - left, bottom - top)), (left, top))
    return page


@pytest.mark.parametrize(
    ("colour", "box", "size", "bar"),
    [
        ("white", (40, 120, 680, 600), (720, 960), None),
        ("black", (0, 100, 640, 380), (640, 480), None),
        ((24, 24, 28), (0, 300, 720, 840), (720, 1280), (50, 50, 60)),
        ((200, 30, 30), (300, 10, 390, 100), (400, 400), None),
    ],
)
@pytest.mark.parametrize("quality", [None, 30])
def test_frames_are_cut_off(colour, box, size, bar, quality, tmp_path):
    page = framed(colour, box, size, bar)
    if quality is not None:
        page.save(tmp_path / "page.jpg", quality=quality)
        page = Image.open(tmp_path / "page.jpg").convert("RGB")
    (found,) = trimmed(page)
    left, top, right, bottom = box
    # To a pixel of the reduced image, and an edge that resembles the border.
    slack = 6 * max(1, max(size) / 512)
    if quality is not None:
        # The blocks across an edge are of 16 pixels, and hold both sides of it.
        slack += 32
    assert found.width == pytest.approx(right - left, abs=slack)
    assert found.height == pytest.approx(bottom - top, abs=slack)


@pytest.mark.parametrize(
    "image",
    [
        photograph(),
        Image.new("RGB", (90, 60), "navy"),
        Image.new("RGB", (1, 1)),
        # A speck on a page is nothing to look for.
        framed("white", (200, 200, 220, 220), (400, 400)),
    ],
)
def test_without_a_frame_there_is_nothing_to_cut(image):
    assert trimmed(image) == []


def test_a_clear_sky_does_not_part_an_image():
    image = photograph((400, 300))
    # Narrower than what parts one.
    image.paste((90, 150, 240), (0, 140, 400, 148))
    assert trimmed(image) == []


def test_parts_cover_an_image():
    image = photograph((300, 200))
    found = parts(image)
    assert [each.size for each in found] == [(200, 133)] * 5
    assert np.array_equal(np.asarray(found[0]), np.asarray(image)[:133, :200])
    assert np.array_equal(np.asarray(found[3]), np.asarray(image)[67:, 100:])
    assert len(parts(Image.new("RGB", (1, 1)))) == 5


def test_turns():
    image = photograph((30, 20))
    pixels = np.asarray(image)
    for name, expected in {
        "flip": pixels[:, ::-1],
        "rotate90": np.rot90(pixels, 1),
        "rotate180": np.rot90(pixels, 2),
        "rotate270": np.rot90(pixels, 3),
    }.items():
        (found,) = VARIANTS[name](image)
        np.testing.assert_array_equal(np.asarray(found), expected)


def mean_colours(images):
    return images.reshape(len(images), -1, 3).mean(axis=1).astype(np.float32)


def test_each_look_is_embedded_and_each_query_decoded_once(tmp_path, monkeypatch):
    folder = make_images(tmp_path / "pictures", 20)
    framed("white", (40, 40, 160, 160), (200, 200)).save(folder / "T00003.png")
    (folder / "T00003.jpg").unlink()
    (folder / "T00004.jpg").write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(folder / "black.png")
    images, decoded = find_images(folder), []
    real = ImageSet.decode
    monkeypatch.setattr(
        ImageSet,
        "decode",
        lambda self, position: (decoded.append(position), real(self, position))[1],
    )
    stored = []
    looks = embed_queries(
        Embedder(mean_colours, 16),
        images,
        ["flip", "trim"],
        on_progress=lambda done, total: stored.append((done, total)),
    )
    assert sorted(decoded) == list(range(21))
    assert [each.id for each in looks.unreadable] == ["T00004", "black"]
    assert "black: the model embeds it by nothing but zeros" in looks.unreadable[1].reason
    # A query as it is counts once, whatever is looked at beside it.
    assert looks.chances[looks.query == 0].tolist() == [1, 2.5]
    assert looks.chances[looks.query == 3].tolist() == [1, 5, 5] and 4 not in looks.query
    assert stored[-1] == (21, 21)
    row = looks.query.tolist().index(3)
    assert looks.variant[row : row + 3] == ("", "flip", "trim")
    whole, flipped, cut = looks.descriptors[row : row + 3]
    np.testing.assert_allclose(whole, flipped, atol=1)
    assert (whole - cut > 30).all(), "the white border still counts"


def test_parts_of_a_query_count_as_fewer_looks_since_they_overlap(tmp_path):
    images = find_images(make_images(tmp_path / "pictures", 2))
    looks = embed_queries(Embedder(mean_colours, 16), images, ["crops"])
    assert looks.query.tolist() == [0] * 6 + [1] * 6 and looks.chances.tolist() == [1, *[5] * 5] * 2
    looks = embed_queries(Embedder(mean_colours, 16), images, ["crops", "flip"])
    assert looks.chances.tolist() == [1, *[7.5] * 6] * 2


def test_a_variant_named_twice_is_one_look(tmp_path):
    images = find_images(make_images(tmp_path / "pictures", 1))
    looks = embed_queries(Embedder(mean_colours, 16), images, ["flip", "flip"])
    assert looks.variant == ("", "flip") and looks.chances.tolist() == [1, 2.5]


def test_unknown_variants_are_refused(tmp_path):
    images = find_images(make_images(tmp_path / "pictures", 1))
    with pytest.raises(UserError, match="no variant 'mirror'; use some of flip, rotate90"):
        embed_queries(Embedder(mean_colours, 16), images, ["mirror"])

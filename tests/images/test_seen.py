"""What people see of files that can be shown in more than one way."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from toy import make_images

from rdcd_jax.core.errors import UnreadableImageError
from rdcd_jax.images import seen
from rdcd_jax.images.check_set import check_images
from rdcd_jax.images.decode import decode_rgb
from rdcd_jax.images.given import images_of
from rdcd_jax.images.sources import find_images

SIZE = (60, 40)


def photo(seed):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return small.resize(SIZE, Image.Resampling.BICUBIC)


def pixels(image):
    return np.asarray(image.convert("RGB"), np.float32)


@pytest.mark.parametrize(("ink", "ground"), [(0, 255), (120, 255), (255, 0)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_what_tells_ink_from_ground(tmp_path, ink, ground, mode):
    image = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    ImageDraw.Draw(image).line((5, 5, 50, 30), fill=(ink, ink, ink, 255), width=6)
    (image.quantize(4) if mode == "P" else image.convert(mode)).save(tmp_path / "drawing.png")
    expected = Image.new("RGB", SIZE, (ground,) * 3)
    ImageDraw.Draw(expected).line((5, 5, 50, 30), fill=(ink,) * 3, width=6)
    found = decode_rgb(tmp_path / "drawing.png", as_seen=True)
    np.testing.assert_allclose(pixels(found), pixels(expected), atol=3)
    # The papers' protocols drop alpha.
    assert pixels(decode_rgb(tmp_path / "drawing.png"))[0, 0].tolist() == [0, 0, 0]
    again = images_of([Image.open(tmp_path / "drawing.png")]).seen()
    np.testing.assert_array_equal(pixels(again.decode(0)), pixels(found))


def test_a_colour_that_stands_for_transparent_is_laid_on_a_ground(tmp_path):
    drawing = Image.new("RGB", SIZE)
    ImageDraw.Draw(drawing).line((5, 5, 50, 30), fill=(120, 0, 0), width=6)
    drawing.save(tmp_path / "drawing.png", transparency=(0, 0, 0))
    expected = Image.new("RGB", SIZE, "white")
    ImageDraw.Draw(expected).line((5, 5, 50, 30), fill=(120, 0, 0), width=6)
    found = decode_rgb(tmp_path / "drawing.png", as_seen=True)
    np.testing.assert_array_equal(pixels(found), pixels(expected))
    np.testing.assert_array_equal(pixels(decode_rgb(tmp_path / "drawing.png")), pixels(drawing))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "I;16"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_turned_tiff_is_the_same_by_path_and_by_bytes(tmp_path, mode, orientation):
    turned = {
        3: Image.Transpose.ROTATE_180,
        6: Image.Transpose.ROTATE_90,
        8: Image.Transpose.ROTATE_270,
    }
    image = upright = photo(1)
    if orientation in turned:
        image = upright.transpose(turned[orientation])
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
        upright = upright.convert("L")
    else:
        image, upright = image.convert(mode), upright.convert(mode)
    path = tmp_path / "turned.tif"
    image.save(path, tiffinfo={274: orientation})
    for as_seen in (False, True):
        by_path = pixels(decode_rgb(path, as_seen=as_seen))
        by_bytes = pixels(decode_rgb(path, content=path.read_bytes(), as_seen=as_seen))
        np.testing.assert_array_equal(by_path, by_bytes)
        np.testing.assert_allclose(by_path, pixels(upright), atol=2)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_a_frame_with_structure_stands_for_an_animation(tmp_path, suffix):
    for k in range(2):
        frames = [photo(10 * k + i) for i in range(2)]
        blank = Image.new("RGB", SIZE, "white")
        path = tmp_path / f"fade{k}.{suffix}"
        blank.save(path, save_all=True, append_images=frames, duration=100, lossless=True)
        found = pixels(decode_rgb(path, as_seen=True))
        # A GIF has 256 colours.
        assert np.abs(found - pixels(frames[0])).mean() < 12
        assert (pixels(decode_rgb(path)) == 255).all()
    blank.save(
        tmp_path / f"other.{suffix}",
        save_all=True,
        append_images=[photo(0), photo(7)],
        lossless=True,
    )
    # All frames count for the same pixels.
    assert {group.kind for group in check_images(tmp_path, workers=1).groups} <= {"near"}
    blank.save(tmp_path / "still.gif")
    assert (pixels(decode_rgb(tmp_path / "still.gif", as_seen=True)) == 255).all()


def test_of_large_frames_few_are_looked_at(tmp_path, monkeypatch):
    blank = Image.new("RGB", SIZE, "white")
    blank.save(tmp_path / "a.png", save_all=True, append_images=[blank, photo(1)])
    assert (pixels(decode_rgb(tmp_path / "a.png", as_seen=True)) != 255).any()
    monkeypatch.setattr(seen, "_MOST_PIXELS", 2 * SIZE[0] * SIZE[1])
    assert (pixels(decode_rgb(tmp_path / "a.png", as_seen=True)) == 255).all()
    with Image.open(tmp_path / "a.png") as image:
        assert len(list(seen.all_frames(image))) == 2


@pytest.mark.parametrize("scale", [4, 16, 64, 256, 65536])
def test_deep_values_equal_their_plain_copy(scale):
    grey = np.asarray(photo(2).convert("L"))
    grey = np.where(grey == grey.max(), 255, grey).astype(np.uint8)
    values = grey.astype(np.int64) * scale + scale - 1
    found = np.asarray(seen.grey_of(values), np.float32)
    np.testing.assert_allclose(found, grey, atol=1)


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_one_hot_pixel_does_not_make_floats_black(white):
    grey = np.asarray(photo(3).convert("L"))
    values = grey.astype(np.float32) / 255 * white
    values[0, 0], values[0, 1], values[1, 0] = 1.004 * white, np.nan, -1
    found = np.asarray(seen.grey_of(values), np.float32)
    np.testing.assert_allclose(found[2:], grey[2:], atol=2 if white == 1 else 1)


def test_a_jpeg_without_its_end_is_used_and_said_to_be_damaged(tmp_path, caplog):
    path = next(make_images(tmp_path / "a", 1).iterdir())
    whole, content = pixels(decode_rgb(path)), path.read_bytes()
    path.write_bytes(content[:-40])
    with pytest.raises(UnreadableImageError, match="truncated"):
        decode_rgb(path)
    found = pixels(find_images(path).seen().decode(0))
    assert found.shape == whole.shape and (found[:16] == whole[:16]).all()
    assert "is damaged, its last bytes are missing" in caplog.text
    path.write_bytes(content[: len(content) // 5])
    with pytest.raises(UnreadableImageError):
        decode_rgb(path, as_seen=True)

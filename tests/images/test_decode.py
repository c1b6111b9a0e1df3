import hashlib
import io
import os
import pickle
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from rdcd_jax.core.errors import UnreadableImageError
from rdcd_jax.images.decode import (
    _PILLOW_IS_SILENT,
    FORMATS,
    decode_rgb,
    resize_short_edge,
    resize_square,
)


@pytest.fixture
def photo():
    """A smooth 64 x 48 RGB image, no two corners alike."""
    y, x = np.mgrid[0:48, 0:64]
    return Image.fromarray(np.stack([4 * x, 5 * y, 255 - 4 * x], -1).astype(np.uint8))


def save(path, image, **options):
    image.save(path, **options)
    return path


def pixels(path, **options):
    image = decode_rgb(path, **options)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("i", range(3))
def test_resizes_agree_with_the_reference(vectors, i):
    file = vectors("j_preprocess")
    image = Image.fromarray(file[f"im{i}_u8"])
    for name, got in (
        ("skew288", resize_square(image, 288)),
        ("skew224", resize_square(image, 224)),
        ("short288", resize_short_edge(image, 288)),
    ):
        digest = hashlib.sha256(np.asarray(got).tobytes()).hexdigest()
        assert digest == file[f"im{i}_{name}_sha256"], name


def test_short_edge_rounds_the_long_one_down_as_torchvision_does():
    assert resize_short_edge(Image.new("RGB", (53, 37)), 288).size == (412, 288)
    assert resize_short_edge(Image.new("RGB", (37, 53)), 288).size == (288, 412)
    assert resize_short_edge(Image.new("RGB", (1, 1)), 288).size == (288, 288)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp", "gif", "jpg"])
def test_the_usual_formats(tmp_path, photo, suffix):
    lossless = {"lossless": True} if suffix == "webp" else {}
    got = pixels(save(tmp_path / f"a.{suffix}", photo, **lossless))
    atol = {"gif": 60, "jpg": 12}.get(suffix, 0)
    np.testing.assert_allclose(got, np.asarray(photo).astype(int), atol=atol)


def test_one_pixel(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (1, 1), (1, 2, 3)))
    np.testing.assert_array_equal(pixels(path), [[[1, 2, 3]]])


def test_cmyk(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=95)
    np.testing.assert_allclose(pixels(path)[8, 8], [255, 0, 0], atol=4)


def test_palette_with_transparency_keeps_its_colours(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 10, 200, 30])
    for transparency in (1, bytes([255, 40])):  # one clear colour; a level for each colour
        path = save(tmp_path / "a.png", image, transparency=transparency)
        np.testing.assert_array_equal(pixels(path)[0, 0], [10, 200, 30])


def test_alpha_is_dropped_and_the_colour_below_kept(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGBA", (4, 4), (10, 200, 30, 0)))
    np.testing.assert_array_equal(pixels(path)[0, 0], [10, 200, 30])
    path = save(tmp_path / "b.png", Image.new("LA", (4, 4), (77, 0)))
    np.testing.assert_array_equal(pixels(path)[0, 0], [77, 77, 77])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_levels(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(8, 0)
    got = pixels(save(tmp_path / f"a.{suffix}", Image.fromarray(ramp)))
    np.testing.assert_array_equal(got[..., 0], np.round(ramp / 257).astype(int))


@pytest.mark.parametrize(
    ("white", "dtype"), [(65535, np.int32), (1, np.float32), (255, np.float32)]
)
def test_deep_grey_keeps_its_levels(tmp_path, white, dtype):
    ramp = np.linspace(0, white, 64).astype(dtype)[None].repeat(8, 0)
    got = pixels(save(tmp_path / "a.tif", Image.fromarray(ramp)))
    np.testing.assert_allclose(got[..., 2], ramp / white * 255, atol=0.51)


def test_one_bit_and_grey(tmp_path):
    assert pixels(save(tmp_path / "a.png", Image.new("1", (3, 3), 1))).min() == 255
    assert (pixels(save(tmp_path / "b.png", Image.new("L", (3, 3), 99))) == 99).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path, photo, orientation):
    # A camera stores what it sees; the tag says how to turn it. Storing is the inverse of that.
    stored = {
        1: [],
        2: ["FLIP_LEFT_RIGHT"],
        3: ["ROTATE_180"],
        4: ["FLIP_TOP_BOTTOM"],
        5: ["TRANSPOSE"],
        6: ["ROTATE_90"],
        7: ["TRANSVERSE"],
        8: ["ROTATE_270"],
    }[orientation]
    image = photo
    for turn in stored:
        image = image.transpose(Image.Transpose[turn])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", image, exif=exif.tobytes())
    np.testing.assert_array_equal(pixels(path), np.asarray(photo))


def test_a_broken_exif_block_costs_nothing(tmp_path, photo):
    path = save(tmp_path / "a.jpg", photo, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert pixels(path).shape == (48, 64, 3)


def test_names_with_spaces_and_other_letters(tmp_path, photo):
    assert pixels(save(tmp_path / "ein Bild ü 漢.png", photo)).shape == (48, 64, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_large_images_are_reduced_but_never_below_the_hint(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (25, 38, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((608, 400), Image.Resampling.BICUBIC)
    options = {"quality": 95} if suffix == "jpg" else {}
    path = save(tmp_path / f"a.{suffix}", image, **options)
    sizes = {hint: decode_rgb(path, min_side_hint=hint).size for hint in (401, 201, 200, 100, 25)}
    whole, half, quarter = (608, 400), (304, 200), (152, 100)
    assert sizes == {401: whole, 201: whole, 200: half, 100: quarter, 25: (38, 25)}
    slow = resize_square(decode_rgb(path), 64)
    quick = resize_square(decode_rgb(path, min_side_hint=200), 64)
    difference = np.asarray(slow).astype(int) - np.asarray(quick)
    assert np.abs(difference).mean() < 2


def encoded(photo, kind):
    buffer = io.BytesIO()
    photo.save(buffer, kind)
    return buffer.getvalue()


def bomb_png(width, height):
    """A PNG of `width` x `height` pixels that consists of little more than its header."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_truncated_images_are_unreadable(tmp_path, photo, kind):
    whole = encoded(photo, kind)
    for part in (0.2, 0.6):
        (tmp_path / "a.jpg").write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(UnreadableImageError, match=r"a\.jpg"):
            decode_rgb(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not an image"),
        (b"<html>not found</html>" * 50, "not an image"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 100, "some name"),
        (bomb_png(20_000, 10_000), "more than 179 megapixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
    ids=["empty", "web page", "JPEG header", "200 megapixels", "a program"],
)
def test_what_is_no_image_is_unreadable_in_one_sentence(tmp_path, content, says):
    path = tmp_path / "some name.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=says) as error:
        decode_rgb(path)
    message = str(pickle.loads(pickle.dumps(error.value)))
    assert "some name.jpg" in message and "\n" not in message


def test_a_missing_file_is_unreadable(tmp_path):
    with pytest.raises(UnreadableImageError, match="no such image file"):
        decode_rgb(tmp_path / "gone.jpg")


def test_only_formats_of_images_are_tried():
    assert {"JPEG", "PNG", "WEBP"} <= set(FORMATS) and not {"EPS", "PSD", "FITS"} & set(FORMATS)


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices are no files elsewhere")
def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe", "device", "loop", "folder"):
        with pytest.raises(UnreadableImageError, match=rf"{name}\.jpg"):
            decode_rgb(tmp_path / f"{name}.jpg")


def test_pillow_stays_silent_while_any_thread_decodes():
    def warn():
        warnings.warn_explicit("broken EXIF", UserWarning, "x.py", 1, module="PIL.TiffImagePlugin")

    # As two threads would, one leaving before the other.
    _PILLOW_IS_SILENT.__enter__()
    _PILLOW_IS_SILENT.__enter__()
    _PILLOW_IS_SILENT.__exit__()
    warn()
    _PILLOW_IS_SILENT.__exit__()
    with pytest.raises(UserWarning, match="broken EXIF"):
        warn()


def test_deep_grey_takes_little_memory(tmp_path):
    tracemalloc = pytest.importorskip("tracemalloc")
    grey = np.linspace(0, 65535, 1000 * 1000).astype(np.uint16).reshape(1000, 1000)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    tracemalloc.start()
    found = pixels(tmp_path / "deep.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.abs(found[..., 0] - grey / 257).max() <= 0.5
    # The test's own [1000, 1000, 3] int64 takes 24 bytes a pixel, after the rest is free again.
    assert peak < 30e6

"""Images as a caller has them."""

import os
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image
from toy import make_images

from rdcd_jax.core.errors import UnreadableImageError, UserError
from rdcd_jax.images import passed_over
from rdcd_jax.images.given import images_of, lasting_source
from rdcd_jax.images.sources import find_images


def test_everything_that_stands_for_images(tmp_path):
    folder = make_images(tmp_path / "a", 3)
    paths = sorted(folder.iterdir())
    array = np.asarray(Image.open(paths[1]))
    given = [paths[0], str(paths[2]), Image.open(paths[1]), array, Image.new("L", (5, 4), 7)]
    images = images_of(given)
    assert images.ids == ("T00000", "T00002", "#2", "#3", "#4")
    for position, path in enumerate([paths[0], paths[2], paths[1], paths[1]]):
        expected = np.asarray(find_images(path).decode(0))
        np.testing.assert_array_equal(np.asarray(images.decode(position)), expected)
    assert np.asarray(images.decode(4)).tolist() == [[[7, 7, 7]] * 5] * 4
    assert images_of(folder).ids == images_of(str(folder)).ids == find_images(folder).ids
    assert images_of(array).ids == ("#0",) and images_of(images) is images
    assert images.subset([3]).decode(0).size == (48, 48)


def test_an_opened_photograph_is_seen_as_its_file_is(tmp_path):
    folder = make_images(tmp_path, 1)
    sideways = Image.open(folder / "T00000.jpg").resize((48, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways.save(folder / "sideways.jpg", exif=exif)
    sideways.save(folder / "cut.png")
    content = (folder / "cut.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    names = ("sideways.jpg", "cut.png", "T00000.jpg")
    opened = [Image.open(folder / name) for name in names]
    images = images_of(opened)
    assert images.decode(0).size == (30, 48)
    expected = np.asarray(find_images(folder / "sideways.jpg").decode(0))
    np.testing.assert_array_equal(np.asarray(images.decode(0)), expected)
    with pytest.raises(UnreadableImageError, match="#1: cannot be decoded .*truncated"):
        images.decode(1)
    assert images.decode(2).size == (48, 48)
    for image in opened:
        image.close()


def test_sources_mean_the_same_in_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for lasting in ("gs://bucket/folder", "file:///photos", "tfds:disc/train", "sample:train"):
        assert lasting_source(lasting) == lasting
    assert lasting_source("photos/../a") == str(tmp_path / "a")


def test_names_are_made_distinct(tmp_path):
    one, other = make_images(tmp_path / "a", 1), make_images(tmp_path / "b", 1)
    paths = [str(folder / "T00000.jpg") for folder in (one, other)]
    assert images_of(paths).ids == images_of([one, other]).ids == ("a/T00000", "b/T00000")
    assert images_of(tmp_path).ids == ("a/T00000", "b/T00000")
    assert images_of(tmp_path, ids="path").ids == ("a/T00000.jpg", "b/T00000.jpg")
    assert images_of([paths[0], paths[0]]).ids == ("T00000", "T00000 (2)")
    Image.open(paths[0]).save(tmp_path / "a" / "T00000.png")
    twins = images_of([paths[0], tmp_path / "a" / "T00000.png"])
    assert twins.ids == tuple(twins.paths)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ([], "no images in the list"),
        ([3], "#0 is a int; give a path"),
        (Image.new("RGB", (0, 9)), "#0 has no pixels: it is 0 x 9"),
        ([np.zeros((4, 4), np.uint8)], r"#0 is an array of type uint8 and shape \[4, 4\]"),
        ([np.zeros((4, 4, 3))], "#0 is an array of type float64"),
        (["nowhere.jpg"], "nowhere.jpg: there is no such"),
    ],
)
def test_what_is_no_image_is_refused(given, match):
    with pytest.raises(UserError, match=match):
        images_of(given)


def test_archives_and_folders_together(tmp_path):
    folder = make_images(tmp_path / "a", 3)
    archive = shutil.make_archive(str(tmp_path / "images"), "zip", folder)
    assert images_of([archive]).ids == find_images(archive).ids
    both = pickle.loads(pickle.dumps(images_of([archive, folder, Image.new("RGB", (9, 9))])))
    assert both.ids[0].endswith("images.zip:T00000") and both.ids[3:] == (
        "a/T00000",
        "a/T00001",
        "a/T00002",
        "#2",
    )
    for position in range(3):
        one, other = (np.asarray(both.decode(at)) for at in (position, position + 3))
        np.testing.assert_array_equal(one, other)
    os.unlink(both.paths[4])
    with pytest.raises(UnreadableImageError, match=r"T00001\.jpg: there is no such"):
        both.decode(4)


def test_files_are_known_by_their_content(tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(passed_over.PLUGINS, ".xyz", "pillow-xyz")
    folder = make_images(tmp_path / "a", 2)
    (folder / "T00000.jpg").rename(folder / "no_extension")
    for name in ("1.XYZ", "2.xyz", "b.dng", "notes.txt", "film.mp4"):
        (folder / name).write_bytes(b"II*\0" + bytes(300))
    with caplog.at_level("WARNING"):
        found = images_of(folder)
    assert found.ids == ("T00001", "no_extension")
    (said,) = caplog.messages
    assert "2 .xyz, 1 .dng, 1 .mp4, 1 .txt; `pip install pillow-xyz` reads some" in said
    assert images_of(folder / "no_extension").ids == ("no_extension",)
    with pytest.raises(UserError, match=r"T00000\.jpg: there is no such"):
        images_of(folder / "T00000.jpg")
    (folder / "T00001.jpg").unlink()
    (folder / "no_extension").unlink()
    with pytest.raises(UserError, match=r"no images found.*1 \.dng"):
        images_of(folder)


def test_folders_that_cannot_be_opened_are_named(tmp_path, caplog, monkeypatch):
    folder = make_images(tmp_path / "a", 2)
    make_images(folder / "private", 1)
    scan = os.scandir

    def refusing(path):
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = images_of(folder)
    assert len(found) == 2 and found.closed == (str(folder / "private"),)
    assert "cannot be opened: " in caplog.text and "private" in caplog.text
    with pytest.raises(UserError, match=r"private: cannot be opened \(Permission denied\)"):
        images_of(folder / "private")


def test_names_that_are_no_text_are_carried_through(tmp_path):
    folder = make_images(tmp_path / "a", 2)
    bad = os.fsencode(folder) + b"/caf\xe9.jpg"
    try:
        os.rename(folder / "T00000.jpg", bad)
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    found = images_of(folder)
    assert found.ids == ("T00001", "caf\\udce9") and found.decode(1).size == (48, 48)

"""Images as a caller has them."""

import shutil

import numpy as np
import pytest
from PIL import Image
from toy import make_images

from rdcd_jax.core.errors import UserError
from rdcd_jax.images.given import images_of
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


def test_names_are_made_distinct(tmp_path):
    one, other = make_images(tmp_path / "a", 1), make_images(tmp_path / "b", 1)
    paths = [str(folder / "T00000.jpg") for folder in (one, other)]
    assert images_of(paths).ids == tuple(paths)
    assert images_of([paths[0], paths[0]]).ids == (paths[0], f"{paths[0]} (2)")
    assert len(images_of([one, other])) == 2


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ([], "no images in the list"),
        ([3], "#0 is a int; give a path"),
        ([np.zeros((4, 4), np.uint8)], r"#0 is an array of type uint8 and shape \[4, 4\]"),
        ([np.zeros((4, 4, 3))], "#0 is an array of type float64"),
        (["nowhere.jpg"], "nowhere.jpg: there is no such"),
    ],
)
def test_what_is_no_image_is_refused(given, match):
    with pytest.raises(UserError, match=match):
        images_of(given)


def test_a_list_of_one_source_is_that_source(tmp_path):
    folder = make_images(tmp_path / "a", 3)
    archive = shutil.make_archive(str(tmp_path / "images"), "zip", folder)
    found = images_of([archive])
    assert found.ids == find_images(archive).ids and found.reader is not None
    with pytest.raises(UserError, match=r"images\.zip: is an archive or records; give it alone"):
        images_of([archive, folder])

"""The layouts themselves are tested in test_datasets.py, whose builder lists the same folders."""

import pytest
from toy import make_images

from rdcd_jax.benchmarks.copydays_folder import (
    block_of,
    block_order,
    find_blocks,
    find_copydays_images,
    originals_of,
)
from rdcd_jax.core.errors import UserError


@pytest.mark.parametrize(
    ("image_id", "block"),
    [
        ("original/200000", "original"),
        ("images/copydays_original/200000.jpg", "original"),
        ("strong/200001", "strong"),
        ("somewhere/else/copydays_strong/200001.jpg", "strong"),
        ("jpegqual/3/200000", "jpegqual/3"),
        ("Copydays/copydays_crop/80/200000.jpg", "crops/80"),
    ],
)
def test_parts_by_path(image_id, block):
    assert block_of(image_id, "x.npz") == block


@pytest.mark.parametrize("image_id", ["200000", "weak/200000", "3/200000", "strong", "crops/a/2"])
def test_other_paths_are_refused(image_id):
    with pytest.raises(UserError, match=f"x.npz: '{image_id}' belongs to no part of Copydays"):
        block_of(image_id, "x.npz")


def test_parts_in_order():
    blocks = ["crops/80", "jpegqual/30", "strong", "crops/9", "jpegqual/5", "original"]
    expected = ["original", "strong", "jpegqual/5", "jpegqual/30", "crops/9", "crops/80"]
    assert sorted(blocks, key=block_order) == expected


def test_images_of_a_folder(tmp_path):
    make_images(tmp_path / "original", 2, prefix="20", size=12)
    make_images(tmp_path / "copydays_jpeg" / "15", 2, prefix="20", size=12)
    assert list(find_blocks(tmp_path)) == ["original", "jpegqual/15"]
    with pytest.raises(UserError, match="holds no folder of strong attacks; it may be called stro"):
        find_copydays_images(tmp_path)
    # These two originals' names start alike.
    make_images(tmp_path / "strong", 1, prefix="20", size=12)
    with pytest.raises(UserError, match="originals 2000000 and 2000001 start with the same 4"):
        find_copydays_images(tmp_path)
    (tmp_path / "original" / "2000001.jpg").unlink()
    found = find_copydays_images(tmp_path)
    copies = ["jpegqual/15/2000000", "jpegqual/15/2000001"]
    assert list(found.ids) == ["original/2000000", "strong/2000000", *copies]
    assert found.paths[2] == str(tmp_path / "copydays_jpeg" / "15" / "2000000.jpg")
    (tmp_path / "strong" / "2000000.jpg").rename(tmp_path / "strong" / "3000.jpg")
    with pytest.raises(UserError, match=r"strong/3000\.jpg: no original's name starts with 3000"):
        find_copydays_images(tmp_path)
    with pytest.raises(UserError, match="none: there is no such folder"):
        find_copydays_images(tmp_path / "none")


def test_copies_find_their_originals():
    by_start = {"2000": "original/200000", "2001": "original/200100"}
    ids = ["strong/200102", "crops/10/200000"]
    assert originals_of(ids, ids, by_start) == ["original/200100", "original/200000"]

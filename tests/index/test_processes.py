"""An index that another process changes, or removes, while it is read or written."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from rdcd_jax.core.errors import UserError
from rdcd_jax.images.sources import find_images
from rdcd_jax.index import Index, writing

# Adds ten images at a time, and removes every second of them, until it is killed.
WRITER = """
import pathlib, sys
import numpy as np
from rdcd_jax.embedding.descriptors import Descriptors
from rdcd_jax.index import store
from rdcd_jax.index.manifest import Manifest

folder, number = pathlib.Path(sys.argv[1]), 0
new = Manifest("none", "none", 32, 8, "float32")
while True:
    ids = np.asarray([str(number + i) for i in range(10)])
    rows = np.eye(8, dtype=np.float32)[(number + np.arange(10)) % 8]
    with store.writer(folder, new) as writer:
        writer.add(Descriptors(ids, rows, "made up"), [""] * 10)
    with store.writer(folder) as writer:
        writer.remove([*ids[::2], *(str(number - i) for i in range(60, 70))])
    number += 10
    print(number, flush=True)
"""


def test_whoever_reads_during_a_write_sees_a_whole_index(tmp_path):
    folder = tmp_path / "x"
    command = [sys.executable, "-c", WRITER, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        index, seen = Index(folder), set()
        try:
            while len(seen) < 25:
                found = index.contents()
                kinds = [int(name) % 8 for name in found.ids]
                np.testing.assert_array_equal(found.rows.argmax(axis=1), kinds)
                # With ten more after an addition, five after the removal.
                assert len(found) % 5 == 0
                scores, _ = index.nearest(np.eye(8, dtype=np.float32), 1)
                assert scores.max() == 1
                seen.add(found.ids)
        finally:
            other.kill()
    # The one that was killed keeps nobody out.
    Index(folder).remove([])


def test_an_index_that_vanishes_is_named(tmp_path):
    folder = tmp_path / "x"
    command = [sys.executable, "-c", WRITER, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        other.kill()
    index = Index(folder)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="x is not an index"):
        index.contents()
    with pytest.raises(UserError, match="x is not an index"):
        index.remove(["1"])
    assert not folder.exists()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in find_images("sample:references").paths[:40]:
        shutil.copy(path, folder)
    return folder


def test_an_index_that_vanishes_during_a_build_is_named(images, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "CHUNK", 16)

    def vanish(done, total):
        if done == 32:
            shutil.rmtree(tmp_path / "x", ignore_errors=True)

    with pytest.raises((UserError, OSError), match=str(tmp_path / "x")):
        Index.build(
            tmp_path / "x", images, model="rdcd-effb0-64", image_size=32, on_progress=vanish
        )


def test_images_that_vanish_during_a_build_are_left_out(images, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "CHUNK", 16)

    def vanish(done, total):
        if done == 16:
            shutil.rmtree(images, ignore_errors=True)

    index = Index.build(
        tmp_path / "x", images, model="rdcd-effb0-64", image_size=32, on_progress=vanish
    )
    assert len(index) == index.added.added >= 16
    assert len(index) + len(index.added.unreadable) == 40
    assert str(images) in index.added.unreadable[0].reason
    # Its folder is gone, which says nothing of the images that were in it.
    with pytest.raises(UserError, match="what it was built from cannot be listed"):
        index.update()
    assert len(Index(tmp_path / "x")) == len(index)

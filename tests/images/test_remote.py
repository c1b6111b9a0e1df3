"""Shards behind an address, in fsspec's memory."""

import fsspec
import pytest
from toy import make_images

from rdcd_jax.core.errors import UserError
from rdcd_jax.images.pack import pack_images
from rdcd_jax.images.sources import find_images

ADDRESS = "memory://bucket/packed"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The file system that holds a packed set, and the folder that was put there."""
    monkeypatch.setenv("RDCD_JAX_CACHE", str(tmp_path / "cache"))
    pack_images(make_images(tmp_path / "images", 5), tmp_path / "packed", shards=2)
    system = fsspec.filesystem("memory")
    system.put(str(tmp_path / "packed"), "/bucket/packed", recursive=True)
    yield system, tmp_path / "packed"
    system.rm("/bucket", recursive=True)


def test_shards_of_a_bucket_are_those_of_the_folder(bucket):
    _, folder = bucket
    found, local = find_images(ADDRESS), find_images(folder)
    assert found.source == ADDRESS
    assert found.ids == local.ids
    assert found.fingerprint() == local.fingerprint()
    for position in range(len(local)):
        assert found.read(position) == local.read(position)


def test_what_is_there_is_not_copied_again(bucket, monkeypatch):
    system, _ = bucket
    find_images(ADDRESS)
    opened = []
    monkeypatch.setattr(type(system), "open", lambda self, path, *_, **__: opened.append(path))
    assert len(find_images(ADDRESS)) == 5
    assert not opened


def test_a_set_that_was_packed_anew_is_copied_anew(bucket, tmp_path):
    system, _ = bucket
    find_images(ADDRESS)
    pack_images(make_images(tmp_path / "more", 7, seed=3), tmp_path / "again", shards=1)
    system.rm("/bucket", recursive=True)
    system.put(str(tmp_path / "again"), "/bucket/packed", recursive=True)
    assert find_images(ADDRESS).fingerprint() == find_images(tmp_path / "again").fingerprint()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("memory://bucket/nowhere", "memory://bucket/nowhere cannot be read"),
        ("memory://bucket", "memory://bucket holds no packed shards"),
        ("nosuch://bucket/x", "nosuch://bucket/x cannot be read .*[Pp]rotocol"),
    ],
)
def test_what_cannot_be_read_is_refused(bucket, address, sentence):
    with pytest.raises(UserError, match=sentence):
        find_images(address)


def test_a_shard_that_is_cut_short_is_refused(bucket):
    system, _ = bucket
    shard = next(
        path for path in system.ls("/bucket/packed", detail=False) if path.endswith("record")
    )
    system.pipe_file(shard, system.cat_file(shard)[:100])
    for _ in range(2):
        with pytest.raises(UserError, match="is cut short: 100 bytes instead of"):
            find_images(ADDRESS)

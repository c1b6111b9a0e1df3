"""Embedding sets: shapes, devices, parts."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from toy import FEATURE, ToyBackbone, make_export, make_images

from rdcd_jax.core.errors import UnreadableImageError
from rdcd_jax.embedding.shapes import resized
from rdcd_jax.embedding.stream import Embedder, embed_images, embedded_parts, has_fingerprint
from rdcd_jax.images.sources import ImageSet, find_images
from rdcd_jax.models import registry
from rdcd_jax.weights import convert, tables
from rdcd_jax.weights.library import load_model


def means(images):
    return images.mean(axis=(1, 2), dtype=np.float32)


@pytest.fixture
def mixed(tmp_path):
    """Images of 20 aspects, one of them broken."""
    random = np.random.default_rng(0)
    for i in range(40):
        size = (30 + 3 * (i % 10), 30) if i % 2 else (30, 40 + 5 * (i % 10))
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8))
        coarse.resize(size).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "20.png").write_bytes(b"broken")
    return find_images(tmp_path)


def test_parts_are_what_the_whole_is(mixed):
    for short_edge in (False, True):
        model = Embedder(means, 32, short_edge)
        whole, left_out = embed_images(model, mixed, batch_size=4)
        assert whole.ids.tolist() == [i for i in mixed.ids if i != "20"]
        assert [each.id for each in left_out] == ["20"]
        stored = []
        parts = list(
            embedded_parts(
                model, mixed, rows=7, batch_size=4, on_progress=lambda *each: stored.append(each)
            )
        )
        assert [len(part.found) for part in parts] == [7, 7, 6, 7, 7, 5]
        rows = np.concatenate([part.found.descriptors for part in parts])
        np.testing.assert_array_equal(rows, whole.descriptors)
        for position, row in zip([*range(20), *range(21, 40)], rows, strict=True):
            alone = resized(mixed.decode(position), 32, short_edge)
            np.testing.assert_array_equal(means(alone[None])[0], row)
        assert [done for done, _ in stored] == sorted({done for done, _ in stored})
        assert stored[-1] == (40, 40)


def test_a_part_may_have_no_readable_image(mixed):
    first, second = embedded_parts(Embedder(means, 8), mixed, rows=20)
    assert first.unreadable == [] and len(second.found) == 19
    none = embedded_parts(Embedder(means, 8), mixed.subset([0, 20, 1]), rows=1)
    assert [part.found is None for part in none] == [False, True, False]


def test_compilations_are_few(mixed, toys, monkeypatch, tmp_path):
    traced = []
    call = ToyBackbone.__call__

    def counted(self, images, rngs=None):
        traced.append(images.shape)
        return call(self, images, rngs)

    model = load_model(str(make_export(tmp_path / "export")))
    monkeypatch.setattr(ToyBackbone, "__call__", counted)
    short = model.at_size(32, short_edge=True)
    parts = list(embedded_parts(short, mixed, rows=16, batch_size=8))
    for position in (0, 17, 33):
        part = parts[position // 16].found
        alone = short.embed_batch(resized(mixed.decode(position), 32, short_edge=True)[None])[0]
        row = part.descriptors[part.ids.tolist().index(mixed.ids[position])]
        np.testing.assert_allclose(row, alone, atol=1e-6)
    shapes = {shape[1:3] for shape in traced}
    assert shapes == {(32, 32), (32, 64), (64, 32), (96, 32)}
    # Each shape in batches of two sizes at most, whatever the images are; on 8 devices 2 becomes 8.
    assert len(traced) == len(shapes)
    traced.clear()
    list(embedded_parts(model, mixed, rows=16, batch_size=8))
    assert len(traced) == 1


def test_devices_share_a_batch(toys, tmp_path, monkeypatch):
    assert jax.local_device_count() == 8
    model = load_model(str(make_export(tmp_path / "export")))
    images = find_images(make_images(tmp_path / "p", 13))
    found = embed_images(model, images, batch_size=5)[0].descriptors
    shared = model._embedded(np.zeros((8, 32, 32, 3), np.uint8))
    assert [shard.data.shape for shard in shared.addressable_shards] == [(1, 4)] * 8
    one = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    alone = dataclasses.replace(model)
    np.testing.assert_allclose(
        found, embed_images(alone, images, batch_size=5)[0].descriptors, atol=1e-5
    )
    assert len(alone._embedded(np.zeros((8, 32, 32, 3), np.uint8)).addressable_shards) == 1


def test_fingerprints_follow_the_weights(toys, tmp_path):
    first, same = (load_model(str(make_export(tmp_path / name))) for name in "ab")
    other = load_model(str(make_export(tmp_path / "c", seed=1)))
    assert first.fingerprint == same.fingerprint == first.at_size(64).fingerprint
    assert first.fingerprint != other.fingerprint
    norm = same.module.backbone.bn
    norm.mean[...] = norm.mean[...] + 1
    assert dataclasses.replace(same).fingerprint != first.fingerprint
    assert len(first.fingerprint) == hashlib.sha256().digest_size * 2
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(first.module, nnx.Param))) > FEATURE


def test_fingerprints_do_not_follow_attributes(toys, tmp_path, monkeypatch):
    class Renamed(ToyBackbone):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.stem = self.conv
            del self.conv

    before = load_model(str(make_export(tmp_path / "a")))
    published_digest, attribute_digest = before.fingerprint, before.attribute_fingerprint
    monkeypatch.setitem(registry.NETWORKS, "toy", registry.Network(Renamed, FEATURE))
    names = ("backbone.stem", "backbone.bn", "backbone.fc")
    published = ("backbone.conv", *names[1:])
    monkeypatch.setitem(tables.LAYERS, "toy", lambda: dict(zip(names, published, strict=True)))
    convert._layers.cache_clear()
    after = load_model(str(tmp_path / "a"))
    assert after.attribute_fingerprint != attribute_digest
    assert after.fingerprint == published_digest
    convert._layers.cache_clear()


def test_fingerprints_of_version_0_1_are_known():
    model = load_model("rdcd-effb0-64@0.1")
    earlier = "7c6bd4a586cc1d46768b7baa8c40e633e7999389e1f87513a8ef780bc242b14c"
    assert has_fingerprint(model, earlier) and has_fingerprint(model, model.fingerprint)
    assert not has_fingerprint(model, "") and model.fingerprint != earlier


@dataclasses.dataclass(frozen=True)
class Made(ImageSet):
    """Images that are made up where they are asked for."""

    def decode(self, position, *, min_side_hint=None):
        number = int(self.ids[position])
        if number % 1000 == 7:
            raise UnreadableImageError(f"{number}: broken.")
        return Image.new("RGB", (16 + number % 23, 16), (number % 251, number % 13, 7))


def made(count):
    names = tuple(f"{i:07d}" for i in range(count))
    return Made("made up", names, names)

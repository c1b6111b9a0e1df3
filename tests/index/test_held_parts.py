"""Indexes that hold parts of their images: six descriptors an image, one match."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from toy import make_export, make_images, unit_rows

from rdcd_jax.cli.main import main
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.descriptors import Descriptors
from rdcd_jax.embedding.stream import Embedder
from rdcd_jax.images.sources import find_images
from rdcd_jax.index import Index, ann, rows, store, writing
from rdcd_jax.index.duplicates import find_duplicates
from rdcd_jax.index.manifest import Manifest
from rdcd_jax.index.queries import Looks
from rdcd_jax.search.calibration import Calibration

DIM, IMAGES = 8, 50


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Fifty images in several segments, added in two parts, some of them removed."""
    monkeypatch.setattr(store, "FULL", 20)
    new = Manifest("none", "none", 32, DIM, "float32", parts=True)
    made = unit_rows(6 * 55).reshape(55, 6, DIM)
    with store.writer(tmp_path / "x", new) as writer:
        for start, end in ((0, 25), (25, 55)):
            ids = np.asarray([f"r{i}" for i in range(start, end)])
            found = Descriptors(ids, made[start:end].reshape(-1, DIM), "made up")
            writer.add(found, [""] * len(ids))
        writer.remove([f"r{i}" for i in range(10, 15)])
    opened = Index(tmp_path / "x")
    opened.embedder = Embedder(None, 32, name="none", fingerprint="none")
    return opened


def held():
    made = unit_rows(6 * 55).reshape(55, 6, DIM)
    return np.delete(made, range(10, 15), axis=0)


@pytest.mark.parametrize("most_bytes", [0, rows.MOST_BYTES])
def test_an_image_is_found_once_by_its_best_part(index, most_bytes, monkeypatch):
    monkeypatch.setattr(rows, "MOST_BYTES", most_bytes)
    monkeypatch.setattr(rows, "BLOCK", 25)
    queries = unit_rows(9, seed=3)
    best = np.einsum("qd,npd->qnp", queries, held()).max(axis=2)
    for count in (1, 9, 9):
        scores, positions = index.nearest(queries[:count], 7)
        np.testing.assert_array_equal(positions, np.argsort(-best[:count], axis=1)[:, :7])
        np.testing.assert_allclose(scores, np.sort(best[:count], axis=1)[:, :-8:-1], rtol=1e-5)
    scores, positions = index.nearest(queries, 99)
    assert scores.shape == (9, IMAGES) and len(np.unique(positions[0])) == IMAGES


def test_an_index_with_parts_counts_images_and_gives_their_own_descriptors(index):
    assert len(index) == IMAGES and len(index.ids) == IMAGES
    np.testing.assert_array_equal(index.contents().rows, held()[:, 0])
    assert [images for _, images in index.manifest.segments] == [15, 20, 15]
    assert index.manifest.rows == 6 * IMAGES


def test_a_part_needs_a_higher_similarity_than_its_image(tmp_path):
    meaning = Calibration(0.0, 2.0, 2, "made up")
    new = Manifest(
        "none", "none", 32, DIM, "float32", calibration=dataclasses.asdict(meaning), parts=True
    )
    # By right angles nothing resembles a part but itself.
    made = np.concatenate([np.eye(DIM, dtype=np.float32)] * 2)[:12]
    with store.writer(tmp_path / "x", new) as writer:
        writer.add(Descriptors(np.asarray(["a", "b"]), made, "made up"), ["", ""])
    index = Index(tmp_path / "x")
    index.embedder = Embedder(None, 32, name="none", fingerprint="none")
    # Of length 1, and to no other as near.
    near = np.full((2, DIM), np.sqrt((1 - 0.7**2) / (DIM - 1)), np.float32)
    near[[0, 1], [0, 4]] = 0.7
    own, part = (
        max(found, key=lambda match: match.score)
        for found in (index.search_descriptors(row[None], threshold=-2.0) for row in near)
    )
    assert own.reference == "a" and own.score == own.similarity == pytest.approx(0.7)
    assert part.similarity == pytest.approx(0.7) and part.score < 0.67
    assert own.probability == pytest.approx(meaning.probability(0.7, 2))
    # As of three times as many images.
    assert part.probability == pytest.approx(meaning.probability(0.7, 6))


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_parts_are_kept_in_every_type(dtype, tmp_path):
    new = Manifest("none", "none", 32, DIM, dtype, parts=True)
    ids, made = np.asarray(["a", "b"]), unit_rows(12)
    with store.writer(tmp_path / "x", new) as writer:
        writer.add(Descriptors(ids, made, "made up"), ["", ""])
    scores, positions = Index(tmp_path / "x").nearest(made[[3, 9]], 1)
    assert positions[:, 0].tolist() == [0, 1]
    np.testing.assert_allclose(scores, 1, atol=0.01)


def test_the_approximate_search_gives_fewer_images(index, monkeypatch):
    pytest.importorskip("scann")
    index.build_ann()
    queries = unit_rows(9, seed=3)
    exact = index.search_descriptors(queries, k=3, threshold=-2.0)
    found = index.search_descriptors(queries, k=3, threshold=-2.0, engine="ann")
    same = {(m.query, m.reference) for m in exact} & {(m.query, m.reference) for m in found}
    assert len(same) > 0.9 * len(exact)
    assert len({(m.query, m.reference) for m in found}) == len(found)
    monkeypatch.setattr(ann, "CANDIDATES", 50)
    with pytest.raises(UserError, match="k is 9; the approximate search gives 8 images at most"):
        index.search_descriptors(queries, k=9, engine="ann")


def test_what_embeds_to_nothing_repeats_its_image(monkeypatch, tmp_path):
    # The second image lacks two of its parts.
    looks = Looks(
        np.repeat([0, 2], [6, 4]),
        ("", *["crops"] * 5, "", *["crops"] * 3),
        unit_rows(10),
        [],
    )
    monkeypatch.setattr(writing, "embed_queries", lambda *_, **__: looks)
    images = find_images(str(make_images(tmp_path / "images", 3)))
    model = type("Model", (), {"name": "made up"})
    part = writing._embed_with_parts(model, images, None)
    assert part.found.ids.tolist() == ["T00000", "T00002"]
    expected = unit_rows(10)[[*range(10), 6, 6]]
    np.testing.assert_array_equal(part.found.descriptors, expected)
    # Nor can parts stand in for the image.
    looks = dataclasses.replace(looks, variant=("crops", *looks.variant[1:]))
    part = writing._embed_with_parts(model, images, None)
    assert part.found.ids.tolist() == ["T00002"]
    assert [each.id for each in part.unreadable] == ["T00000"]
    assert "by nothing but zeros" in part.unreadable[0].reason


def test_parts_of_one_colour_resemble_nothing(tmp_path):
    paths = find_images("sample:references").paths[:3]
    for number, path in enumerate(paths):
        ground = Image.new("RGB", (600, 400), (20, 24, 40))
        with Image.open(path) as image:
            ground.paste(image.convert("RGB").resize((190, 120)), (0, 0))
        ground.save(tmp_path / f"{number}.png")
    model = "rdcd-effb0-64"
    index = Index.build(tmp_path / "x", str(tmp_path), model=model, parts=True)
    # Three of an image's parts show the ground alone.
    descriptors = index._rows.whole(index.manifest).reshape(3, 6, -1)
    assert (descriptors == descriptors[:, :1]).all(axis=2).sum(axis=1).tolist() == [4, 4, 4]
    matches = index.search(str(tmp_path), k=3, threshold=-1.0, variants=["crops"])
    others = [match.score for match in matches if match.query != match.reference]
    assert len(others) == 6 and max(others) < 0.9


def test_the_progress_of_a_build_with_parts_reaches_its_end(tmp_path, toys):
    model, images = str(make_export(tmp_path / "model")), make_images(tmp_path / "images", 12)
    for number in range(3):
        (images / f"Z{number}.jpg").write_bytes(b"no picture")
    seen = []
    report = lambda *done: seen.append(done)  # noqa: E731
    Index.build(tmp_path / "x", images, model=model, parts=True, on_progress=report)
    assert seen[0][0] < 12 and seen == sorted(seen) and seen[-1] == (15, 15)


def test_a_build_goes_on_only_as_it_began(tmp_path, toys):
    model, images = str(make_export(tmp_path / "model")), make_images(tmp_path / "images", 3)
    index = Index.build(tmp_path / "x", images, model=model, parts=True)
    make_images(images, 5)
    assert index.add(images).added == 2 and index.manifest.rows == 30
    with pytest.raises(UserError, match="is an index with parts, and this would be one without"):
        Index.build(tmp_path / "x", images, model=model)
    with pytest.raises(UserError, match="k is 0; ask for at least 1 image"):
        index.nearest(unit_rows(1)[:, :4], 0)
    # What counts as true is.
    assert len(Index.build(tmp_path / "x", images, model=model, parts=1)) == 5
    (images / "T00001.jpg").unlink()
    assert index.update().removed == 1 and len(index.contents().rows) == 4


def test_a_corner_is_found_where_parts_are_held(tmp_path, capsys):
    paths = find_images("sample:references").paths[:40]
    with Image.open(paths[7]) as image:
        width, height = image.size
        box = (width // 2, height // 2, width, height)
        image.convert("RGB").crop(box).save(tmp_path / "corner.png")
    found = {}
    for name, words in (("whole", []), ("parts", ["--parts", "--dtype=binary"])):
        folder = tmp_path / name
        words = ["index", "build", *paths, "--model=rdcd-effb0-128", f"--out={folder}", *words]
        assert main(words) == 0
        index = Index(folder)
        (found[name],) = index.search(str(tmp_path / "corner.png"), k=1, threshold=-1)
        # A copy of each image is no copy of another.
        assert len(find_duplicates(index)) <= 2
    assert found["parts"].path == paths[7]
    assert found["parts"].probability > 0.5 > found["whole"].probability
    assert main(["index", "info", str(tmp_path / "parts")]) == 0
    told = capsys.readouterr().out
    assert "in binary, six an image: its own and those of five parts" in told

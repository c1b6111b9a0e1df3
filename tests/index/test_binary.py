"""Indexes of bits: what they keep, what is near to it, and what it means."""

import functools

import numpy as np
import pytest
from PIL import Image
from toy import make_export, make_images
from toy import unit_rows as toy_rows

from rdcd_jax.cli.main import main
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.descriptors import Descriptors
from rdcd_jax.images.sources import find_images
from rdcd_jax.index import Index, rows, store
from rdcd_jax.index.duplicates import find_duplicates
from rdcd_jax.index.manifest import MANIFEST, Manifest
from rdcd_jax.index.rows import Rows
from rdcd_jax.search.bits import compared_with_bits, rounded
from rdcd_jax.weights.library import load_model

DIM = 64
unit_rows = functools.partial(toy_rows, dim=DIM)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Two hundred descriptors in several segments, added in two parts, of which some were removed."""
    monkeypatch.setattr(store, "FULL", 60)
    with store.writer(tmp_path / "x", Manifest("none", "none", 32, DIM, "binary")) as writer:
        for start, end in ((0, 70), (70, 210)):
            ids = np.asarray([f"r{i}" for i in range(start, end)])
            writer.add(Descriptors(ids, unit_rows(210)[start:end], "made up"), [""] * len(ids))
        writer.remove([f"r{i}" for i in range(200, 210)])
    return Index(tmp_path / "x")


def test_an_index_keeps_signs_alone(index):
    np.testing.assert_array_equal(index.contents().rows, rounded(unit_rows(210)[:200]))
    files = list((index.folder / "segments").glob("*.rows.npy"))
    # A header each, and a bit a dimension.
    assert sum(path.stat().st_size for path in files) == 128 * len(files) + 200 * DIM / 8
    assert not list((index.folder / "segments").glob("*.scales.npy"))


@pytest.mark.parametrize("most_bytes", [0, rows.MOST_BYTES])
def test_queries_keep_their_numbers(index, most_bytes, monkeypatch):
    monkeypatch.setattr(rows, "MOST_BYTES", most_bytes)
    queries = unit_rows(9, seed=3)
    products = compared_with_bits(queries) @ rounded(unit_rows(210)[:200]).T
    scores, positions = index.nearest(queries, 5)
    np.testing.assert_array_equal(positions, np.argsort(-products, axis=1)[:, :5])
    np.testing.assert_allclose(scores, np.sort(products, axis=1)[:, :-6:-1], rtol=1e-5)
    own, positions = index.nearest(unit_rows(210)[:200], 1)
    assert positions[:, 0].tolist() == list(range(200))
    np.testing.assert_allclose(own, 1, rtol=1e-5)


def test_devices_of_several_processes_get_signs_and_scales(index):
    segments = Rows(index.folder).segments(index.manifest)
    kept = rows._stored_rows(index.manifest, segments)
    levels, scales = kept.rows(50, 130), kept.scales(50, 130)
    assert levels.dtype == np.int8
    np.testing.assert_array_equal(levels * scales[:, None], index.contents().rows[50:130])


def test_damaged_bits_are_named(index):
    path = sorted((index.folder / "segments").glob("*.rows.npy"))[0]
    np.save(path, np.load(path)[:, :-1])
    with pytest.raises(UserError, match="does not hold 60 rows of 64 dimensions in binary"):
        index.contents()


def test_a_manifest_whose_dimensions_fill_no_bytes_is_damaged(index):
    path = index.folder / MANIFEST
    path.write_text(path.read_text().replace(f'"dim": {DIM}', f'"dim": {DIM + 4}'))
    with pytest.raises(UserError, match="its fields contradict each other"):
        Index(index.folder)


def test_dimensions_that_fill_no_bytes_are_refused_before_anything_is_written(tmp_path, toys):
    model, images = make_export(tmp_path / "model"), make_images(tmp_path / "images", 3)
    with pytest.raises(UserError, match="of 4 dimensions cannot be kept as bits.*use int8"):
        Index.build(tmp_path / "x", images, model=str(model), dtype="binary")
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """An index of the bundled references by a shipped student."""
    folder = tmp_path_factory.mktemp("photographs") / "x"
    paths = find_images("sample:references").paths[:120]
    return Index.build(folder, paths, model="rdcd-effb0-64", dtype="binary")


def test_copies_are_found_by_the_models_own_threshold(photographs, tmp_path, capsys):
    query = find_images("sample:references").paths[7]
    (match,) = photographs.search([query], k=1)
    assert match.path == query and match.probability > 0.95
    assert match.similarity == pytest.approx(1, abs=1e-5)
    assert photographs.threshold() == pytest.approx(0.12, abs=0.02)
    assert main(["index", "info", str(photographs.folder)]) == 0
    told = capsys.readouterr().out
    assert "descriptors of 64 dimensions in binary" in told and "90 % of matches are" in told


def test_similarities_of_bits_alone_have_no_threshold(photographs, tmp_path, capsys):
    assert photographs.scoring(normalised=False).calibration is None
    query = find_images("sample:references").paths[7]
    found = photographs.search([query], k=3, normalised=False)
    assert len(found) == 3 and {match.probability for match in found} == {None}
    words = ["search", f"--index={photographs.folder}", query]
    assert main([*words, "--score-norm=none"]) == 0
    assert "have no calibration, so the nearest images" in capsys.readouterr().err
    assert main(words) == 0
    assert "no calibration" not in capsys.readouterr().err
    calibration = load_model("rdcd-effb0-64").card["calibration"]
    with pytest.raises(UserError, match="no calibration holds for bits"):
        Index.build(
            tmp_path / "x",
            [query],
            model="rdcd-effb0-64",
            dtype="binary",
            calibration=calibration,
            normalised=False,
        )


def test_duplicates_compare_bits_with_bits(photographs, tmp_path):
    copies = find_images("sample:references").paths[5:8]
    groups = find_duplicates(photographs, against=list(copies), threshold=0.99)
    # An image is not reported as a copy of itself.
    assert not [group for group in groups if group.paths[0] in copies]
    (group,) = find_duplicates(photographs, against=make_copy(copies[0], tmp_path), threshold=0.5)
    assert group.paths[0] == copies[0]
    signs = np.float32(DIM**-0.5)
    np.testing.assert_allclose(np.abs(group.descriptors), signs, rtol=1e-6)


def make_copy(path, tmp_path):
    Image.open(path).convert("RGB").save(tmp_path / "copy.jpg", quality=60)
    return str(tmp_path / "copy.jpg")

"""Searches of an index: in memory, streamed, approximate; and what it hands to other systems."""

import csv
import importlib.util
import json
import shutil

import numpy as np
import pytest
from toy import make_images, unit_rows

from rdcd_jax.cli.main import main
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.descriptors import Descriptors, read_descriptors
from rdcd_jax.index import Index, ann, rows, store
from rdcd_jax.index.export import export_index
from rdcd_jax.search import backends

DIM = 8
needs_scann = pytest.mark.skipif(
    importlib.util.find_spec("scann") is None, reason="ScaNN has no wheel here"
)


@pytest.fixture
def index(student, tmp_path, monkeypatch):
    """An index of two hundred descriptors in several segments."""
    monkeypatch.setattr(store, "FULL", 60)
    made = Index.build(tmp_path / "x", make_images(tmp_path / "a", 3), model=str(student))
    with store.writer(tmp_path / "x") as writer:
        ids = np.asarray([f"r{i}" for i in range(197)])
        writer.add(Descriptors(ids, unit_rows(197)), [f"/r/{i}.jpg" for i in range(197)])
    return made


@pytest.mark.parametrize("most_bytes", [0, rows.MOST_BYTES])
def test_searches_are_exact_whether_rows_are_in_memory_or_not(index, most_bytes, monkeypatch):
    monkeypatch.setattr(rows, "MOST_BYTES", most_bytes)
    monkeypatch.setattr(rows, "BLOCK", 25)
    everything, queries = index.contents().rows, unit_rows(9, seed=3)
    for count in (1, 9, 1):
        expected = backends.knn(queries[:count], everything, 5, "numpy")
        found = index.nearest(queries[:count], 5)
        np.testing.assert_array_equal(found[1], expected.indices)
        np.testing.assert_allclose(found[0], expected.scores, atol=1e-6)


def test_what_is_in_memory_follows_the_index(index):
    query = unit_rows(1, seed=5)
    before = index.search_descriptors(query, k=1, threshold=-2.0)[0]
    other = Index(index.folder)
    other.remove([before.reference])
    after = index.search_descriptors(query, k=1, threshold=-2.0)[0]
    assert after.reference != before.reference and after.score <= before.score


def test_who_reads_rows_while_the_index_changes_keeps_them_to_himself(index, monkeypatch):
    """One thread reads the descriptors; before it is done, another has searched the index as it is since."""
    query = unit_rows(1, seed=5)
    best = index.search_descriptors(query, k=1, threshold=-2.0)[0]
    before, read = index.manifest, index._rows.whole
    index._rows = own = rows.Rows(index.folder)

    def slow(manifest):
        found = read(manifest)
        if manifest == before:
            Index(index.folder).remove(best.reference)
            index.search_descriptors(query, k=1, threshold=-2.0)
        return found

    monkeypatch.setattr(own, "whole", slow)
    own.nearest(before, unit_rows(9), 1)
    (after,) = index.search_descriptors(query, k=1, threshold=-2.0)
    (expected,) = Index(index.folder).search_descriptors(query, k=1, threshold=-2.0)
    assert after == expected and after.reference != best.reference


@needs_scann
def test_what_is_called_ann_and_is_none_stays(index, usage_error, fails):
    photos = make_images(index.folder / "ann", 2)
    assert "ann is there already and is no approximate search; move it" in fails(
        "index", "ann", index.folder
    )
    built = "index", "build", photos, f"--model={index.manifest.model}", "--ann"
    assert "is no approximate search" in fails(*built, f"--out={photos.parent}")
    assert len(list(photos.iterdir())) == 2
    info = store.index_bytes(index.folder)
    (photos / "T00000.jpg").unlink()
    assert store.index_bytes(index.folder) == info


@needs_scann
def test_the_approximate_search(index, tmp_path, capsys, monkeypatch):
    folder = str(index.folder)
    with pytest.raises(UserError, match="was never built; run `rdcd-jax index ann"):
        index.search_descriptors(unit_rows(1), engine="ann")
    assert main(["index", "ann", folder]) == 0
    assert "% of the ten nearest descriptors that the exact" in capsys.readouterr().out
    assert ann.read_ann(index.folder).recall > 0.9
    shutil.move(folder, tmp_path / "moved")
    moved = Index(tmp_path / "moved")
    queries = unit_rows(20, seed=4)
    exact = moved.search_descriptors(queries, k=3, threshold=-2.0)
    found = moved.search_descriptors(queries, k=3, threshold=-2.0, engine="ann")
    same = {(m.query, m.reference, round(m.score, 5)) for m in exact}
    assert len(same & {(m.query, m.reference, round(m.score, 5)) for m in found}) > 0.9 * len(exact)
    assert main(["index", "info", str(tmp_path / "moved")]) == 0
    assert "of the ten nearest descriptors\n" in capsys.readouterr().out
    moved.remove(["r5"])
    with pytest.raises(UserError, match="was built before the index changed"):
        moved.search_descriptors(queries, engine="ann")
    assert main(["index", "info", str(tmp_path / "moved")]) == 0
    assert "but the index has changed since" in capsys.readouterr().out
    with pytest.raises(UserError, match="no engine 'fast'; use one of exact, ann"):
        moved.search_descriptors(queries, engine="fast")
    Index(tmp_path / "moved").build_ann()
    monkeypatch.setattr(ann, "CANDIDATES", 50)
    with pytest.raises(UserError, match="k is 51; the approximate search gives 50 images at most"):
        moved.search_descriptors(queries, k=51, engine="ann")


@needs_scann
def test_an_approximate_search_needs_some_images(student, tmp_path):
    few = Index.build(tmp_path / "few", make_images(tmp_path / "b", 3), model=str(student))
    with pytest.raises(UserError, match="holds 3 descriptors; an approximate search needs 16"):
        few.build_ann()
    assert not [path for path in few.folder.iterdir() if "ann" in path.name]


@needs_scann
def test_damage_of_the_approximate_search_is_named(index):
    index.build_ann()
    path = index.folder / ann.FOLDER / ann.MANIFEST
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "segments": 5}))
    with pytest.raises(UserError, match=r"ann\.json is damaged"):
        index.search_descriptors(unit_rows(1), engine="ann")


def exported(index, kind, tmp_path):
    path = tmp_path / f"out.{kind}"
    words = ["index", "export", str(index.folder), f"--format={kind}", f"--out={path}"]
    assert main(words) == 0
    return path


def test_parquet(index, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(exported(index, "parquet", tmp_path))
    assert table.column_names == ["id", "path", "width", "height", "bytes", "descriptor"]
    found = np.asarray(table["descriptor"].to_pylist(), np.float32)
    np.testing.assert_array_equal(found, index.contents().rows)
    assert table["id"].to_pylist() == list(index.contents().ids)
    assert table["width"].to_pylist()[:4] == [48, 48, 48, None]
    assert table.schema.metadata[b"model"].decode() == index.manifest.model


def test_npz(index, tmp_path):
    path = exported(index, "npz", tmp_path)
    found = read_descriptors(path)
    np.testing.assert_array_equal(found.descriptors, index.contents().rows)
    assert np.load(path)["paths"].tolist() == list(index.contents().paths)


def test_faiss(index, tmp_path):
    faiss = pytest.importorskip("faiss")
    path = exported(index, "faiss", tmp_path)
    query = unit_rows(1, seed=6)
    _, nearest = faiss.read_index(str(path)).search(query, 1)
    match = index.search_descriptors(query, k=1, threshold=-2.0)[0]
    with (tmp_path / "out.faiss.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert lines[nearest[0, 0]]["id"] == match.reference and len(lines) == 200


def test_a_faiss_file_and_its_names_are_of_one_index(index, tmp_path, monkeypatch):
    faiss = pytest.importorskip("faiss")
    exported(index, "faiss", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("out*")}
    index.remove(index.ids[:1])

    def full(*_):
        raise RuntimeError("could not open for writing")

    monkeypatch.setattr(faiss, "write_index", full)
    with pytest.raises(OSError, match=r"Input.*out\.faiss"):
        export_index(index, tmp_path / "out.faiss", "faiss")
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("*out*")}


def test_formats_without_their_package_and_unknown_ones(index, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    words = ["index", "export", str(index.folder), f"--out={tmp_path / 'out'}"]
    assert main([*words, "--format=faiss"]) == 1
    assert "needs faiss; `pip install faiss-cpu`" in capsys.readouterr().err
    assert main([*words, "--format=csv"]) == 1
    assert "no format 'csv'; use one of parquet, faiss, npz" in capsys.readouterr().err
    index.remove(index.contents().ids)
    assert main([*words, "--format=npz"]) == 1
    assert "is empty" in capsys.readouterr().err and not (tmp_path / "out").exists()

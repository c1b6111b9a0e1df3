"""Indexes on disk: made, grown, cut, interrupted, searched."""

import csv
import json
import multiprocessing
import pathlib
import shutil
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image
from toy import make_export, make_images, unit_rows

from rdcd_jax.cli.main import main
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.descriptors import Descriptors
from rdcd_jax.embedding.stream import Embedder
from rdcd_jax.index import Index, rows, store
from rdcd_jax.index.duplicates import find_duplicates
from rdcd_jax.index.groups import groups_of
from rdcd_jax.index.manifest import FORMAT, MANIFEST, Manifest, read_manifest
from rdcd_jax.index.results import Added
from rdcd_jax.index.segments import SEGMENTS, read_segment
from rdcd_jax.search import backends as exact_search
from rdcd_jax.search.calibration import Calibration
from rdcd_jax.weights.library import load_model

DIM = 8


class Sized(Embedder):
    """A function as a model that indexes can be made with."""

    dim, spec, engine = DIM, "sums", "jax"

    def at_size(self, size):
        return self


def embedded(count, prefix="a", seed=0):
    ids = np.asarray([f"{prefix}{i}" for i in range(count)])
    return Descriptors(ids, unit_rows(count, seed), "made up")


def new(dtype="float32"):
    return Manifest("none", "none", 32, DIM, dtype)


def filled(folder, *parts, dtype="float32"):
    with store.writer(folder, new(dtype)) as writer:
        for part in parts:
            writer.add(part, [""] * len(part))
    return folder


def everything(folder):
    manifest = read_manifest(folder)
    segments = [read_segment(folder, manifest, i) for i in range(len(manifest.segments))]
    ids = [name for segment in segments for name in segment.ids]
    return ids, np.concatenate([segment.descriptors() for segment in segments])


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 0), ("float16", 5e-4), ("int8", 0.5 / 127)]
)
def test_rows_come_back_as_precise_as_their_dtype(dtype, tolerance, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FULL", 7)
    first, second = embedded(10), embedded(9, "b", 1)
    filled(tmp_path / "x", first, second, dtype=dtype)
    ids, rows = everything(tmp_path / "x")
    assert ids == [*first.ids, *second.ids]
    expected = np.concatenate([first.descriptors, second.descriptors])
    np.testing.assert_allclose(rows, expected, rtol=0, atol=tolerance)
    # The last segment is filled up before another begins.
    assert [rows for _, rows in read_manifest(tmp_path / "x").segments] == [7, 7, 5]


def test_removal_writes_only_what_it_must(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FULL", 5)
    folder = filled(tmp_path / "x", embedded(15))
    before = read_manifest(folder).segments
    with store.writer(folder) as writer:
        assert writer.remove(["a6", "nosuch", "a10", "a11", "a12", "a13", "a14"]) == 6
    after = read_manifest(folder).segments
    assert after[0] == before[0] and after[1] == (before[-1][0] + 1, 4) and len(after) == 2
    ids, rows = everything(folder)
    keep = [0, 1, 2, 3, 4, 5, 7, 8, 9]
    assert ids == [f"a{i}" for i in keep]
    np.testing.assert_array_equal(rows, embedded(15).descriptors[keep])
    names = {path.name.partition(".")[0] for path in (folder / SEGMENTS).iterdir()}
    assert names == {f"{number:06d}" for number, _ in after}


@pytest.mark.parametrize("when", ["rows", "manifest"])
def test_a_killed_writer_loses_only_what_was_not_in_yet(when, tmp_path, monkeypatch):
    folder = filled(tmp_path / "x", embedded(6))

    class Killed(Exception):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as broken, pytest.raises(Killed), store.writer(folder) as writer:
        broken.setattr(*{"rows": (np, "save"), "manifest": (store, "write_json")}[when], killed)
        writer.add(embedded(3, "b", 1), [""] * 3)
    ids, rows = everything(folder)
    assert ids == [f"a{i}" for i in range(6)]
    np.testing.assert_array_equal(rows, embedded(6).descriptors)
    with store.writer(folder) as writer:
        writer.add(embedded(3, "b", 1), [""] * 3)
    assert everything(folder)[0] == [*(f"a{i}" for i in range(6)), "b0", "b1", "b2"]
    files = len(list((folder / SEGMENTS).iterdir()))
    assert files == 3, "what the killed writer left is still there"


def _hold(folder, ready, done):
    with store.writer(folder):
        ready.set()
        done.wait(30)


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path):
    folder = filled(tmp_path / "x", embedded(6))
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(folder, ready, done))
    holder.start()
    try:
        assert ready.wait(60)
        with (
            pytest.raises(UserError, match="another process is changing this index"),
            store.writer(folder),
        ):
            pass
        assert len(everything(folder)[0]) == 6
    finally:
        done.set()
        holder.join()
    with store.writer(folder) as writer:
        writer.add(embedded(1, "b"), [""] * 1)


def damage(folder, how):
    manifest = folder / MANIFEST
    stored = json.loads(manifest.read_text())
    rows = next((folder / SEGMENTS).glob("*.rows.npy"))
    if how == "later":
        manifest.write_text(json.dumps({**stored, "format": FORMAT + 1}))
    elif how == "cut manifest":
        manifest.write_text(manifest.read_text()[:40])
    elif how == "cut rows":
        rows.write_bytes(rows.read_bytes()[:-8])
    elif how == "no rows":
        rows.unlink()
    elif how == "other size":
        manifest.write_text(json.dumps({**stored, "dim": 9}))
    elif how == "no index":
        manifest.unlink()
    elif how == "a gallery's":
        manifest.write_text('{"title": "Holidays"}')


@pytest.mark.parametrize(
    ("how", "stored"),
    [
        ("later", r"is of format 10, and this version of rdcd-jax reads 3, 4, 5, 6, 7, 8, 9"),
        ("cut manifest", r"index\.json is damaged"),
        ("cut rows", r"rows\.npy: segment 0 of the index is missing or damaged"),
        ("no rows", r"rows\.npy: segment 0 of the index is missing or damaged"),
        ("other size", r"does not hold 6 rows of 9 dimensions in float32"),
        ("no index", r"is not an index: it has no index\.json"),
        ("a gallery's", r"index\.json is not an index's; give another folder"),
    ],
)
def test_damage_is_named(how, stored, tmp_path):
    folder = filled(tmp_path / "x", embedded(6))
    damage(folder, how)
    with pytest.raises(UserError, match=stored):
        everything(folder)


def test_other_sizes_are_refused(tmp_path):
    folder = filled(tmp_path / "x", embedded(6))
    other = Descriptors(np.asarray(["b"]), unit_rows(1, dim=4), "other")
    with pytest.raises(
        UserError, match=r"holds descriptors of 8 dimensions, and these of other have 4"
    ):
        filled(folder, other)


def test_search_over_segments_is_exact(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FULL", 16)
    base, queries = embedded(50), unit_rows(7, seed=2)
    index = Index(filled(tmp_path / "x", base))
    scores, positions = index.nearest(queries, 20)
    expected = exact_search.knn(queries, base.descriptors, 20, "numpy")
    np.testing.assert_array_equal(scores, expected[0])
    np.testing.assert_array_equal(positions, expected[1])
    assert index.nearest(queries, 99)[0].shape == (7, 50)


def test_int8_rows_keep_their_product_with_the_row_itself(tmp_path):
    rows = unit_rows(50)
    found = Descriptors(np.asarray([f"a{i}" for i in range(50)]), rows, "made up")
    kept = everything(filled(tmp_path / "x", found, dtype="int8"))[1]
    lengths = (rows * rows).sum(axis=1)
    np.testing.assert_allclose((kept * rows).sum(axis=1), lengths, rtol=1e-6)
    assert 0 < np.abs(kept - rows).max() < 0.01


@pytest.mark.parametrize("bad, stored", [(0, "are zero"), (np.nan, "hold NaN")])
def test_rows_that_resemble_nothing_are_refused(bad, stored, tmp_path):
    rows = unit_rows(5)
    rows[3] = bad
    found = Descriptors(np.asarray(list("abcde")), rows, "made up")
    with pytest.raises(UserError, match=f"made up: 1 of 5 descriptors {stored}.*the first for d"):
        filled(tmp_path / "x", found)


def test_only_its_own_files_are_deleted(tmp_path):
    folder = filled(tmp_path / "x", embedded(6))
    (folder / SEGMENTS / "part1.ts").write_text("a film")
    (folder / SEGMENTS / "folder").mkdir()
    with store.writer(folder) as writer:
        writer.remove(["a0"])
    assert (folder / SEGMENTS / "part1.ts").exists()
    (folder / MANIFEST).unlink()
    with pytest.raises(UserError, match="holds segments of an index, but no index.json"):
        filled(folder)
    assert list((folder / SEGMENTS).glob("*.rows.npy"))


def test_a_reader_begins_again_where_a_writer_was_quicker(tmp_path, monkeypatch):
    index = Index(filled(tmp_path / "x", embedded(6)))
    read, written = read_segment, []

    def slow(*args):
        if not written:
            written.append(True)
            filled(tmp_path / "x", embedded(4, "b", 1))
        return read(*args)

    monkeypatch.setattr(rows, "read_segment", slow)
    assert index.nearest(unit_rows(2, seed=2), 99)[0].shape == (2, 10)


def test_groups_are_joined_by_their_links():
    rows = unit_rows(6, dim=64)
    chain = np.stack([rows[0], rows[0] + 0.5 * rows[1], rows[0] + rows[1]])
    rows = np.concatenate([chain / np.linalg.norm(chain, axis=1, keepdims=True), rows[2:]])
    found = groups_of([f"p{i}" for i in range(len(rows))], [""] * len(rows), rows, 0.85)
    assert [group.ids for group in found] == [("p0", "p1", "p2")]
    # The first and the last are less alike than that, and held together by the one between.
    assert rows[0] @ rows[2] < 0.85 <= found[0].score
    assert found[0].score == pytest.approx(min(rows[0] @ rows[1], rows[1] @ rows[2]))
    assert groups_of(["a", "b"], ["", ""], rows[3:5], 0.99) == []


def test_a_large_group_is_reported_as_one():
    # Twenty-five equal images and as many of their likes: the nearest of each are its equals.
    first, second = np.eye(2, DIM, dtype=np.float32)
    second = 0.95 * first + np.sqrt(1 - 0.95**2, dtype=np.float32) * second
    rows = np.concatenate([np.tile(first, (25, 1)), np.tile(second, (25, 1)), unit_rows(5)])
    ids = [f"p{i}" for i in range(len(rows))]
    (group,) = groups_of(ids, ids, rows, 0.9)
    assert group.ids == tuple(ids[:50]) and group.score == pytest.approx(0.95)


@pytest.fixture
def model(tmp_path, toys):
    return str(make_export(tmp_path / "model"))


def test_build_add_search_remove(model, tmp_path):
    images = make_images(tmp_path / "pictures", 12)
    index = Index.build(tmp_path / "x", images, model=model)
    assert (len(index), index.added) == (12, Added(12, 0, []))
    matches = index.search(images, k=3)
    first = matches[::3]
    assert [match.query for match in first] == [match.reference for match in first]
    assert all(abs(match.score - 1) < 1e-5 for match in first)
    (images / "broken.jpg").write_bytes(b"no picture")
    make_images(images, 14)
    done = index.add(images)
    assert (done.added, [each.id for each in done.unreadable], len(index)) == (2, ["broken"], 14)
    assert index.remove(["T00000"]) == 1
    assert "T00000" not in {match.reference for match in Index(tmp_path / "x").search(images)}


def test_one_id_is_not_taken_for_its_letters(model, tmp_path):
    folder = make_images(tmp_path / "a", 12)
    for i, path in enumerate(sorted(folder.iterdir()), 1):
        path.rename(folder / f"{i}.jpg")
    index = Index.build(tmp_path / "x", folder, model=model)
    assert index.remove("12") == 1
    assert {"1", "2"} < set(index.ids) and "12" not in index.ids


def test_what_an_index_cannot_do_is_said(model, tmp_path):
    folder = make_images(tmp_path / "a", 2)
    at_edge = load_model(model).at_size(64, short_edge=True)
    with pytest.raises(
        UserError, match=r"embed at a short edge, .* give it as model.at_size\(64\)"
    ):
        Index.build(tmp_path / "x", folder, model=at_edge)
    assert not (tmp_path / "x").exists()
    index = Index.build(tmp_path / "x", folder, model=model)
    with pytest.raises(UserError, match=r"variants='trim,crops' is a text; give a list"):
        index.search(folder, variants="trim,crops")
    with pytest.raises(UserError, match=r"k is 2.0; ask for at least 1 image"):
        index.search(folder, k=2.0)


def test_an_index_of_another_model_is_not_gone_on_with(model, tmp_path, toys):
    images = make_images(tmp_path / "pictures", 4)
    Index.build(tmp_path / "x", images, model=model)
    other = str(make_export(tmp_path / "other", dim=6))
    with pytest.raises(
        UserError, match=r"is an index with model .*model, and this would have .*other"
    ):
        Index.build(tmp_path / "x", images, model=other)


def test_an_index_of_other_weights_is_refused(model, tmp_path):
    images = make_images(tmp_path / "pictures", 4)
    index = Index.build(tmp_path / "x", images, model=model)
    make_export(pathlib.Path(model), seed=1)
    make_images(images, 5)
    for use in (Index(index.folder).search, Index(index.folder).add):
        with pytest.raises(UserError, match="was made by other weights of"):
            use(images)
    with pytest.raises(UserError, match="was made by other weights of"):
        Index.build(tmp_path / "x", images, model=model)


def test_an_index_that_another_took_the_position_of_is_refused(model, tmp_path):
    images = make_images(tmp_path / "pictures", 4)
    index = Index.build(tmp_path / "x", images, model=model)
    assert index.search(images)
    other = make_export(tmp_path / "other", seed=1)
    for settings, stored in (({"image_size": 16}, "of 16 pixels"), ({}, "by other weights")):
        shutil.rmtree(tmp_path / "x")
        Index.build(tmp_path / "x", images, model=str(other if not settings else model), **settings)
        for use in (index.search, index.add):
            with pytest.raises(UserError, match=stored):
                use(images)
    assert len(Index(tmp_path / "x").search(images, k=1)) == 4


def test_the_model_is_found_from_any_folder(model, tmp_path, monkeypatch):
    images = make_images(tmp_path / "pictures", 4)
    monkeypatch.chdir(pathlib.Path(model).parent)
    Index.build(tmp_path / "x", images, model=pathlib.Path(model).name)
    monkeypatch.chdir("/")
    assert len(Index(tmp_path / "x").search(images, k=1)) == 4


def test_a_calibration_given_later_counts(model, tmp_path):
    images = make_images(tmp_path / "pictures", 4)
    Index.build(tmp_path / "x", images, model=model)
    lenient, strict = Calibration(9.0, 2.0, 4, "a set"), Calibration(-9.0, 2.0, 4, "a set")
    index = Index.build(tmp_path / "x", images, model=model, calibration=asdict(lenient))
    assert index.scoring().calibration == lenient and len(index.search(images)) > 4
    index = Index.build(tmp_path / "x", images, model=model, calibration=asdict(strict))
    found = index.search(images)
    assert sorted(match.query for match in found) == sorted(match.reference for match in found)
    assert len(found) == 4 and all(match.probability > 0.9 for match in found)


def test_a_flipped_copy_is_found_where_it_is_asked_for(model, tmp_path):
    from PIL import ImageOps

    images = make_images(tmp_path / "pictures", 6)
    (tmp_path / "queries").mkdir()
    with Image.open(images / "T00002.jpg") as image:
        ImageOps.mirror(image).save(tmp_path / "queries" / "q.png")
    index = Index.build(tmp_path / "x", images, model=model)
    best, *_ = index.search(tmp_path / "queries", variants=["flip"])
    assert (best.reference, best.variant) == ("T00002", "flip") and best.score > 0.9999
    with pytest.raises(UserError, match="no variant 'mirror'; use some of flip, rotate90"):
        index.search(tmp_path / "queries", variants=["mirror"])


def test_a_framed_copy_is_found_unless_it_is_not_asked_for(model, tmp_path, capsys):
    images, queries = make_images(tmp_path / "pictures", 6), tmp_path / "queries"
    queries.mkdir()
    page = Image.new("RGB", (96, 144), "white")
    with Image.open(images / "T00002.jpg") as image:
        page.paste(image, (24, 48))
    page.save(queries / "page.png")
    index = Index.build(tmp_path / "x", images, model=model)
    best, *_ = index.search(queries)
    assert (best.reference, best.variant) == ("T00002", "trim") and best.score > 0.999
    plain, *_ = index.search(queries, variants=())
    assert plain.score < best.score
    words = ["search", f"--index={tmp_path / 'x'}", str(queries), f"--out={tmp_path / 'm.csv'}"]
    for option, variants in (([], {"trim"}), (["--variants=none"], {""})):
        assert main([*words, *option, "--k=1"]) == 0
        with (tmp_path / "m.csv").open() as file:
            assert {row["variant"] for row in csv.DictReader(file)} == variants


def test_a_look_beside_a_query_needs_a_higher_similarity(model, tmp_path):
    images = make_images(tmp_path / "pictures", 4)
    meaning = Calibration(0.0, 2.0, 4, "a set")
    index = Index.build(tmp_path / "x", images, model=model, calibration=asdict(meaning))
    assert index.threshold() == meaning.threshold(0.9, 4)

    # An image in the corner of a page, where one of the five parts shows nothing else.
    page = Image.new("RGB", (72, 72))
    with Image.open(images / "T00002.jpg") as image:
        page.paste(image, (0, 0))
    page.save(tmp_path / "page.png")

    def matches(*variants):
        found = index.search(
            tmp_path / "page.png", variants=variants, threshold=-2, normalised=False
        )
        return {match.reference: match for match in found}

    plain, parted = matches(), matches("crops")
    # What is looked at beside an image takes nothing from it.
    assert all(parted[name].score > match.score - 1e-5 for name, match in plain.items())
    # An image itself stays one.
    assert parted["T00002"].variant == "crops" and parted["T00002"].score > 0.999
    others = [match for match in parted.values() if match.variant and match.reference != "T00002"]
    assert others
    for match in others:
        assert match.probability == pytest.approx(meaning.probability(match.score, 4), rel=1e-4)
        assert match.probability == pytest.approx(
            meaning.probability(match.similarity, 5 * 4), rel=1e-4
        )
    # Of few images it would be too sure.
    index.remove(["T00000", "T00001", "T00002"])
    assert index.threshold() == meaning.threshold(0.9, 4)
    index.remove(["T00003"])
    assert index.threshold() == meaning.threshold(0.9, 4)
    with pytest.raises(UserError, match="is empty"):
        index.search(images)
    with pytest.raises(UserError, match="is empty"):
        index.nearest(np.ones((1, index.manifest.dim), np.float32), 1)


def test_a_model_is_given_as_a_path_object_too(student, tmp_path):
    folder = make_images(tmp_path / "pictures", 2)
    built = Index.build(tmp_path / "x", folder, model=student)
    Index.build(tmp_path / "x", folder, model=student)
    assert Index(tmp_path / "x", model=student).embedder.fingerprint == built.embedder.fingerprint
    assert find_duplicates(folder, model=student, threshold=0.9).images == 2


def test_an_image_of_zeros_is_left_out(tmp_path, monkeypatch):
    images = make_images(tmp_path / "pictures", 4)

    def embed(batch):
        rows = np.ones((len(batch), DIM), np.float32)
        rows[(batch[:, 0, 0] == batch[:, -1, 0]).all(axis=1)] = 0
        return rows

    Image.fromarray(np.tile(np.arange(0, 240, 30, np.uint8), (8, 1))).save(images / "stripes.png")
    Image.new("RGB", (8, 8)).save(images / "blank.png")
    monkeypatch.setattr(
        "rdcd_jax.index.made_by.load_by",
        lambda spec, engine, fingerprint: Sized(embed, 8, name="sums"),
    )
    index = Index.build(tmp_path / "x", images, model="sums")
    assert len(index) == index.added.added == 4
    reasons = {each.id: each.reason for each in index.added.unreadable}
    assert reasons.keys() == {"blank", "stripes"}
    assert "stripes: the model embeds it by nothing but zeros" in reasons["stripes"]
    assert "blank.png: is of one colour, so there is nothing to compare." in reasons["blank"]


def test_command_line(model, tmp_path, capsys):
    images, folder, out = make_images(tmp_path / "p", 5), tmp_path / "x", tmp_path / "m.csv"
    assert (
        main(["index", "build", str(images), f"--model={model}", f"--out={folder}", "--dtype=int8"])
        == 0
    )
    assert main(["index", "info", str(folder)]) == 0
    assert "5 images" in capsys.readouterr().out
    words = ["search", f"--index={folder}", f"--images={images}", "--k=2", f"--out={out}"]
    assert main(words) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 and rows[0]["query"] == rows[0]["reference"] == "T00000"
    assert main(["index", "remove", str(folder), "T00000", "nosuch"]) == 0
    assert "1 of the ids were not there" in capsys.readouterr().err
    paths = [str(images / f"T0000{i}.jpg") for i in (4, 2)]
    assert main(["search", f"--index={folder}", *paths, f"--out={out}", "--k=1"]) == 0
    with out.open() as file:
        assert [row["reference"] for row in csv.DictReader(file)] == ["T00004", "T00002"]
    for pair in ([], [paths[0], f"--images={images}"]):
        with pytest.raises(SystemExit) as left:
            main(["search", f"--index={folder}", *pair])
        assert left.value.code == 2
        assert "name the images once" in capsys.readouterr().err
    assert main(["search", f"--index={tmp_path}", f"--images={images}"]) == 1
    assert "is not an index" in capsys.readouterr().err
    assert main([*words[:-1], f"--out={tmp_path / 'm.txt'}"]) == 1
    assert ".csv, .json or .html" in capsys.readouterr().err
    assert main(["index", "remove", str(folder), *(f"T0000{i}" for i in range(1, 5))]) == 0
    assert main(["index", "info", str(folder)]) == 0
    assert "0 images" in capsys.readouterr().out

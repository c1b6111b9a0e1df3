"""Groups of copies: where they are cut, what two collections share, and what is moved away."""

import csv
import logging
import os
import pathlib
import shutil
import subprocess
import types
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageDraw
from toy import make_export, make_images

from rdcd_jax.cli.main import main
from rdcd_jax.core.errors import UserError
from rdcd_jax.images.given import images_of
from rdcd_jax.images.pack import pack_images
from rdcd_jax.images.seen import ink_of
from rdcd_jax.index import Index, store
from rdcd_jax.index import groups as group_module
from rdcd_jax.index.duplicates import find_duplicates
from rdcd_jax.index.groups import Group, groups_of, groups_within, part_of
from rdcd_jax.index.quarantine import write_script
from rdcd_jax.search import backends
from rdcd_jax.search.scoring import Scoring
from rdcd_jax.weights.library import load_model


def arc(*degrees):
    """Unit rows in a plane, at these angles."""
    turns = np.radians(degrees)
    return np.stack([np.cos(turns), np.sin(turns)], axis=1).astype(np.float32)


def named(rows, threshold):
    ids = [f"p{i}" for i in range(len(rows))]
    return groups_of(ids, ids, rows, threshold)


def test_groups_do_not_chain():
    # Each is near to the next, and the ends are at right angles.
    groups = named(arc(*range(0, 91, 10)), np.cos(np.radians(20.5)))
    scores = [group.scores for group in groups]
    assert sorted(name for group in groups for name in group.ids) == [f"p{i}" for i in range(10)]
    assert [len(group) for group in groups] == [5, 5]
    # All resemble one of them.
    assert all((each.min(axis=1).max() >= np.cos(np.radians(20.5))) for each in scores)
    first = groups[0]
    assert first.least == pytest.approx(np.cos(np.radians(40)), abs=1e-5)
    pairs = [np.cos(np.radians(10 * (j - i))) for i in range(5) for j in range(i + 1, 5)]
    assert first.mean == pytest.approx(np.mean(pairs), abs=1e-5)


def test_thousands_of_equal_images_are_one_group_and_searched_for_once(monkeypatch):
    searched = []

    def knn(queries, *others):
        searched.append(len(queries))
        return backends.knn(queries, *others)

    monkeypatch.setattr(group_module, "backends", types.SimpleNamespace(knn=knn))
    rows = np.concatenate([arc(3), np.tile(arc(0), (3000, 1)), arc(80), arc(0, 6)])
    (group,) = named(rows, 0.99)
    # Those at 3 degrees and at 6 too, and in the set's order.
    assert group.ids == (*(f"p{i}" for i in range(3001)), "p3002", "p3003")
    assert group.score == pytest.approx(np.cos(np.radians(6))) and sum(searched) == 4


def test_what_a_group_says_of_its_scores_takes_some_rows_at_a_time(monkeypatch):
    monkeypatch.setattr(group_module, "_BLOCK", 4)
    (group,) = named(arc(*range(11)), 0.9)
    pairs = group.scores[np.triu_indices(11, 1)]
    assert group.least == pytest.approx(pairs.min()) and group.mean == pytest.approx(pairs.mean())
    part = part_of(group, list(range(1, 10)))
    assert part.score == pytest.approx(np.cos(np.radians(4)), abs=1e-5)


def test_what_is_left_without_the_one_that_all_resemble_is_cut_anew():
    # Both ends are near to the middle, and not to each other.
    (group,) = named(arc(0, 20, 40, 41), np.cos(np.radians(25)))
    assert group.ids == ("p0", "p1", "p2", "p3")
    assert groups_within(group, [0, 2]) == [] == groups_within(group, [1])
    (rest,) = groups_within(group, [0, 2, 3])
    assert rest.ids == ("p2", "p3") and rest.score == pytest.approx(np.cos(np.radians(1)))
    assert groups_within(group, [0, 1, 2, 3]) == [group]


def test_an_index_says_no_age_of_what_lies_in_an_archive(student, tmp_path):
    folder = make_images(tmp_path / "old", 2, size=96)
    os.utime(folder / "T00001.jpg", (10**9, 10**9))
    with zipfile.ZipFile(tmp_path / "copies.zip", "w") as archive:
        archive.write(folder / "T00001.jpg", "copy.jpg")
    sources = [str(folder), str(tmp_path / "copies.zip")]
    index = Index.build(tmp_path / "x", sources, model=str(student))
    # As a time, its checksum would be one of the first seconds of 1970.
    (group,) = find_duplicates(index, threshold=0.999)
    assert sorted(group.ids) == ["T00001", "copy"]
    assert group.ids[group.kept("oldest")] == "T00001"


def test_an_index_is_no_other_collection(student, tmp_path):
    folder = make_images(tmp_path / "a", 1)
    index = Index.build(tmp_path / "x", str(folder), model=str(student))
    with pytest.raises(UserError, match="is an index; give that as the images, and against it"):
        find_duplicates(str(folder), against=index)


FILES = np.asarray([[90, 3, 10, 10], [80, 1, 20, 10], [70, 2, 20, 10], [1, 0, 0, 0]])


@pytest.mark.parametrize(("rule", "kept"), [("largest", 1), ("least-compressed", 0), ("oldest", 1)])
def test_what_is_kept(rule, kept):
    names = ("a", "b", "c", "d")
    files = FILES if rule != "least-compressed" else FILES[:3]
    group = Group(
        names[: len(files)], names[: len(files)], 1.0, 0.9, arc(*[0] * len(files)), Scoring(), files
    )
    assert group.kept(rule) == kept
    with pytest.raises(
        UserError, match="no rule 'newest'; use|no rule 'newest' for what to keep; use largest"
    ):
        group.kept("newest")


@pytest.fixture
def photos(tmp_path):
    """Three images, and of the second a small and a strongly compressed copy."""
    folder = make_images(tmp_path / "photos", 3, size=96)
    image = Image.open(folder / "T00001.jpg")
    image.resize((60, 60)).save(folder / "small's copy.png")
    image.save(folder / "poor.jpg", quality=60)
    return folder


def test_the_script_moves_all_but_one(student, photos, tmp_path, capsys):
    script, moved = tmp_path / "move.sh", tmp_path / "away it goes"
    words = ["duplicates", str(photos), f"--model={student}", "--threshold=0.99"]
    assert main([*words, f"--script={script}", f"--quarantine={moved}"]) == 0
    assert f"move.sh moves 2 of them into {moved} when you run it" in capsys.readouterr().out
    assert len(list(photos.iterdir())) == 5 and not moved.exists()
    subprocess.run(["sh", script], check=True)
    assert sorted(path.name for path in photos.iterdir()) == [
        "T00000.jpg",
        "T00001.jpg",
        "T00002.jpg",
    ]
    assert sorted(path.name for path in moved.iterdir()) == [
        "000001-poor.jpg",
        "000002-small's copy.png",
    ]
    with pytest.raises(SystemExit):
        main([*words, "--quarantine=x"])
    assert "--quarantine is where the script of --script moves files" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--out=both.csv", "--script=both.csv"])
    assert "--out and --script are one file, both.csv; name two" in capsys.readouterr().err


def test_a_link_is_not_moved_to_where_it_leads_nowhere(student, photos, tmp_path):
    os.rename(photos / "poor.jpg", tmp_path / "elsewhere.jpg")
    (photos / "poor.jpg").symlink_to("../elsewhere.jpg")
    groups = find_duplicates(photos, model=str(student), threshold=0.99)
    assert groups.save_script(tmp_path / "move.sh", tmp_path / "away" / "deep") == 1
    assert "# a link, so it stays: " in (tmp_path / "move.sh").read_text()
    for _ in range(2):
        subprocess.run(["sh", tmp_path / "move.sh"], check=True)
    assert (photos / "poor.jpg").exists()


def test_a_file_that_is_no_text_is_moved(student, photos, tmp_path):
    try:
        os.rename(photos / "poor.jpg", os.fsencode(photos) + b"/caf\xe9.jpg")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    model = load_model(str(student))
    groups = find_duplicates(photos, model=model, threshold=0.99)
    assert groups.save_script(tmp_path / "move.sh", tmp_path / "away") == 2
    for kind in ("csv", "json", "html"):
        groups.save(tmp_path / f"g.{kind}")
    subprocess.run(["sh", tmp_path / "move.sh"], check=True)
    assert len(list(photos.iterdir())) == 3
    assert "caf\\udce9" in (tmp_path / "g.csv").read_text()


def test_a_threshold_that_is_no_score_is_refused_before_anything_is_loaded():
    with pytest.raises(UserError, match="75 is no score; they run from -2 to 1"):
        find_duplicates("nowhere", model="nothing", threshold=75)


def test_what_two_collections_share(student, photos, tmp_path, capsys):
    library = tmp_path / "library"
    shutil.copytree(photos, library)
    (library / "T00000.jpg").unlink()
    new = make_images(tmp_path / "new", 2, size=96)
    words = [
        "duplicates",
        str(new),
        f"--against={library}",
        f"--model={student}",
        "--threshold=0.99",
    ]
    out, script = tmp_path / "g.csv", tmp_path / "move.sh"
    assert main([*words, f"--out={out}", f"--script={script}"]) == 0
    assert f"1 images are in {library} too" in capsys.readouterr().out
    assert "keeps of each group the other collection's images" in script.read_text()
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["path"] == str(new / "T00001.jpg") and rows[0]["keep"] == "0"
    assert len(rows) == 4 and all(row["keep"] == "1" for row in rows[1:])
    subprocess.run(["sh", script], check=True)
    # Of the library nothing was moved.
    assert len(list(library.iterdir())) == 4 and len(list(new.iterdir())) == 1


def test_duplicates_of_an_index(student, photos, tmp_path, capsys):
    Index.build(tmp_path / "x", photos, model=str(student))
    words = ["duplicates", f"--index={tmp_path / 'x'}", "--threshold=0.99"]
    assert main([*words, f"--out={tmp_path / 'g.csv'}"]) == 0
    assert "1 groups of copies, 3 of 5 images in all" in capsys.readouterr().out
    again = find_duplicates(photos, model=str(student), threshold=0.99)
    found = find_duplicates(Index(tmp_path / "x"), threshold=0.99)
    assert [group.paths for group in found] == [group.paths for group in again]
    np.testing.assert_array_equal(found[0].files, again[0].files)
    with pytest.raises(SystemExit):
        main([*words, str(photos)])
    other = make_export(tmp_path / "other", dim=8, seed=5)
    assert main([*words, f"--model={other}"]) == 1
    assert "was made by other weights" in capsys.readouterr().err
    shared = find_duplicates(Index(tmp_path / "x"), against=photos, threshold=0.999)
    # None is a copy of itself.
    assert len(shared) == 3


def test_what_is_no_copy_of_the_kept_image_stays(tmp_path):
    names = [f"p{i}" for i in range(5)]
    paths = [str(tmp_path / "photos" / f"{name}.jpg") for name in names]
    (tmp_path / "photos").mkdir()
    for path in paths:
        pathlib.Path(path).write_text(path)
    (group,) = groups_of(names, paths, arc(0, 10, 20, 30, 40), np.cos(np.radians(20.5)))
    # The first is kept, since nothing tells them apart, and not the one in the middle that all resemble.
    assert group.stays().tolist() == [True, False, False, True, True]
    script = tmp_path / "move.sh"
    assert write_script(script, [group], tmp_path / "quarantine") == 2
    assert script.read_text().count("# no copy of that one, so it stays: ") == 2
    # It goes on past what is gone, and does the same when it is run again.
    pathlib.Path(paths[1]).unlink()
    for _ in range(2):
        done = subprocess.run(["sh", script], capture_output=True, text=True)
        assert done.returncode == 1 and f"not there: {paths[1]}" in done.stderr
        assert os.listdir(tmp_path / "quarantine") == ["000002-p2.jpg"]
    # What lies in quarantine is neither overwritten nor passed over in silence.
    pathlib.Path(paths[2]).write_text("another")
    done = subprocess.run(["sh", script], capture_output=True, text=True)
    assert done.returncode == 1 and "000002-p2.jpg is there" in done.stderr
    assert pathlib.Path(paths[2]).read_text() == "another"


def test_of_each_image_one_stays_where_collections_overlap(student, photos, tmp_path):
    library = tmp_path / "library"
    (library / "deep").mkdir(parents=True)
    for path in photos.iterdir():
        shutil.move(path, library / "deep")
    (library / "link.png").symlink_to(library / "deep" / "T00000.jpg")
    shared = find_duplicates(library / "deep", against=library, model=str(student), threshold=0.99)
    # The copies of one image are in both, and are each other's; no image is its own.
    assert len(shared) == 3 and all("T00000.jpg" not in group.paths[0] for group in shared)
    script = tmp_path / "move.sh"
    # What stays for one of them is not moved for another.
    assert shared.save_script(script, tmp_path / "quarantine") == 1
    subprocess.run(["sh", script], check=True)
    assert len(list((library / "deep").iterdir())) == 4


def test_an_index_that_is_out_of_date_moves_nothing(student, photos, tmp_path, caplog, capsys):
    Index.build(tmp_path / "x", photos, model=str(student))
    shutil.copy(photos / "T00002.jpg", photos / "poor.jpg")
    with caplog.at_level(logging.WARNING):
        found = find_duplicates(Index(tmp_path / "x"), threshold=0.99)
    assert [len(group) for group in found] == [2] and "poor" not in found[0].ids
    assert "x: 1 images have changed or are gone since they were added" in caplog.text
    (photos / "T00001.jpg").unlink()
    words = ["search", f"--index={tmp_path / 'x'}", str(photos / "T00000.jpg")]
    assert main([*words, "--threshold=-2"]) == 0
    assert "Warning: 2 of the images found have changed or are gone" in capsys.readouterr().err
    assert not len(find_duplicates(Index(tmp_path / "x"), threshold=0.99))


def drawn(seed, size=(400, 300)):
    """Black lines on white."""
    sheet = Image.new("RGB", (400, 300), "white")
    draw, random = ImageDraw.Draw(sheet), np.random.default_rng(seed)
    for _ in range(4):
        draw.line(random.integers(0, 300, 4).tolist(), "black", 3)
    return sheet.resize(size)


def test_drawings_are_told_by_their_ink(student, tmp_path):
    folder = make_images(tmp_path / "a", 1)
    Image.open(folder / "T00000.jpg").save(folder / "T1.png")
    for seed in range(3):
        drawn(seed).save(folder / f"d{seed}.png")
    drawn(1, (600, 450)).save(folder / "large.jpg")
    # To a random network all drawings are one.
    images = images_of(folder).seen()
    assert [ink_of(images.decode(i)) is None for i in range(len(images))] == [
        True,
        True,
        *[False] * 4,
    ]
    groups = find_duplicates(folder, model=str(student), threshold=0.5)
    assert sorted(group.ids for group in groups) == [("T00000", "T1"), ("d1", "large")]
    index = Index.build(tmp_path / "x", folder, model=str(student))
    again = find_duplicates(index, threshold=0.5)
    assert sorted(group.ids for group in again) == [("T00000", "T1"), ("d1", "large")]


def test_pages_of_two_collections_are_told_by_their_ink(student, tmp_path):
    new, library = tmp_path / "new", tmp_path / "library"
    for folder in (new, library):
        folder.mkdir()
    for seed in range(3):
        drawn(seed).save(new / f"page{seed}.png")
    drawn(1, (600, 450)).save(library / "scan.jpg")
    drawn(7).save(library / "page0.png")
    make_images(library, 1)
    shared = find_duplicates(new, against=library, model=str(student), threshold=0.5)
    # A photograph is no page, so its score alone decides.
    assert [
        [name for name in group.ids if name != "T00000"] for group in shared if "scan" in group.ids
    ] == [["page1", "scan"]]
    assert all("page0" not in group.ids[1:] for group in shared)
    index = Index.build(tmp_path / "x", new, model=str(student))
    again = find_duplicates(index, against=library, threshold=0.5)
    assert sorted(group.ids for group in again) == sorted(group.ids for group in shared)


def test_what_lies_in_quarantine_is_not_kept(student, photos, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(photos)
    (photos / "poor.jpg").rename(photos / "zoo.jpg")
    for _ in range(2):
        words = [f"--model={student}", "--threshold=0.99", "--script=move.sh"]
        assert main(["duplicates", ".", *words]) == 0
        subprocess.run(["sh", "move.sh"], check=True)
        assert sorted(path.stem for path in photos.glob("*.*g")) == ["T00000", "T00001", "T00002"]
    found = find_duplicates(photos, model=str(student), threshold=0.99)
    assert len(found) == 1 and len(found.outside(photos / "quarantine")) == 0
    assert found.save_script(tmp_path / "again.sh", photos / "quarantine") == 0
    # They decide of no group either, be they in a folder or in an index.
    with caplog.at_level(logging.WARNING):
        assert (
            find_duplicates(
                photos, leave_out="quarantine", model=str(student), threshold=0.99
            ).images
            == 3
        )
    assert "the 2 images in quarantine are left out" in caplog.text
    index = Index.build(tmp_path / "x", photos, model=str(student))
    groups = find_duplicates(index, leave_out="quarantine", threshold=-2)
    paths = [path for group in groups for path in group.paths]
    assert groups.images == 3 and {os.path.dirname(path) for path in paths} == {str(photos)}
    with pytest.raises(
        UserError, match="All images of quarantine lie in quarantine, where what is moved"
    ):
        find_duplicates(photos, against="quarantine", leave_out="quarantine", model=str(student))


def test_a_file_that_an_index_holds_twice_is_no_copy_of_itself(student, photos, tmp_path):
    (tmp_path / "again").symlink_to(photos)
    rows = Index.build(tmp_path / "x", photos, model=str(student)).contents().rows
    ids = [f"p{i}" for i in range(10)]
    paths = [
        str(folder / path.name)
        for folder in (photos, tmp_path / "again")
        for path in sorted(photos.iterdir())
    ]
    with store.writer(tmp_path / "x") as writer:
        writer.remove([name for segment in writer.segments() for name in segment.ids])
        writer.add(store.Descriptors(np.asarray(ids), np.concatenate([rows, rows])), paths)
    (group,) = find_duplicates(Index(tmp_path / "x"), threshold=0.99)
    assert len(group) == 3 and len({os.path.realpath(path) for path in group.paths}) == 3


def test_pages_that_were_not_compared_are_not_moved(student, tmp_path):
    folder = make_images(tmp_path / "a", 3)
    cover, *pages = (Image.open(path) for path in sorted(folder.iterdir()))
    for name, page in zip(("one", "two"), pages, strict=True):
        cover.save(folder / f"{name}.tif", save_all=True, append_images=[page])
    shutil.copy(folder / "one.tif", folder / "one again.tif")
    groups = find_duplicates(folder, model=str(student), threshold=0.99)
    kept = groups[0].paths[groups[0].kept()]
    assert pathlib.Path(kept).suffix == ".tif"
    # Of three documents one is, byte for byte, the one that is kept or its copy.
    script = tmp_path / "move.sh"
    moved = groups.save_script(script, tmp_path / "quarantine")
    text = script.read_text()
    assert "several pages, of which one was compared, so it stays: " in text
    assert moved == text.count("\nmove ")
    assert not any("two.tif" in line for line in text.splitlines() if line.startswith("move "))


def test_strict_asks_for_all_of_both_collections(student, photos, tmp_path, capsys):
    library = make_images(tmp_path / "library", 2, seed=5)
    words = [
        "duplicates",
        str(photos),
        f"--against={library}",
        f"--model={student}",
        "--threshold=0.9",
    ]
    assert main([*words, "--strict"]) == 0
    (library / "raw.cr2").write_bytes(b"raw")
    assert main([*words, "--strict"]) == 1
    assert "1 images were left out, see above, and --strict asks for all" in capsys.readouterr().err


def packed(folder, out):
    pack_images(folder, out, short_side=300)
    return out


def zipped(folder, out):
    return shutil.make_archive(str(out), "zip", folder)


def tarred(folder, out):
    return shutil.make_archive(str(out), "tar", folder.parent, folder.name)


@pytest.mark.parametrize("hold", [packed, zipped, tarred])
def test_an_index_of_images_that_are_no_files(hold, student, tmp_path, caplog, capsys):
    folder = tmp_path / "a"
    folder.mkdir()
    for seed in range(2):
        drawn(seed).save(folder / f"d{seed}.png")
    drawn(1, (600, 450)).save(folder / "larger.png")
    source = hold(folder, tmp_path / "held")
    index = Index.build(tmp_path / "x", str(source), model=str(student))
    with caplog.at_level(logging.WARNING):
        groups = find_duplicates(index, threshold=0.5)
    # What tells drawings apart is read where they lie, and nothing of them is taken for changed.
    assert [sorted(group.ids) for group in groups] == [["d1", "larger"]]
    assert not caplog.text
    page = tmp_path / "g.html"
    groups.save(page)
    assert page.read_text().count("data:image/") == 2
    words = ["search", f"--index={tmp_path / 'x'}", str(folder / "d1.png"), "--threshold=-2"]
    assert main(words) == 0 and "changed" not in capsys.readouterr().err
    gone = [tmp_path / "held", tmp_path / "held.zip", tmp_path / "held.tar"]
    for path in gone:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    assert main(words) == 0 and "have changed or are gone" in capsys.readouterr().err

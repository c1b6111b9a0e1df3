"""Indexes whose images change, move, repeat names, or are links."""

import os
import pathlib
import shutil
import time
import zipfile

import numpy as np
import pytest
from PIL import Image
from toy import make_export, make_images

from rdcd_jax.cli.main import main
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.service import embed_to_file
from rdcd_jax.images.given import images_of
from rdcd_jax.images.pack import pack_images
from rdcd_jax.index import Index, changes, store, writing
from rdcd_jax.index.results import Updated


@pytest.fixture
def model(student):
    return str(student)


def found_first(index, query):
    (match,) = index.search(query, k=1, threshold=-2.0, variants=())
    return match


def test_equal_names_are_told_apart(model, tmp_path):
    first, second = (
        make_images(tmp_path / year, 2, seed=s) for year, s in (("2023", 1), ("2024", 2))
    )
    index = Index.build(tmp_path / "x", first, model=model)
    added = index.add(second)
    assert (added.added, added.present) == (2, 0) and len(index) == 4
    match = found_first(index, second / "T00001.jpg")
    assert match.reference == "2024/T00001" and match.path == str(second / "T00001.jpg")
    assert (match.width, match.height) == (48, 48)
    assert match.bytes == os.path.getsize(second / "T00001.jpg")
    both = Index.build(tmp_path / "y", [first, second], model=model)
    assert found_first(both, first / "T00001.jpg").reference == "2023/T00001"
    # Two folders of queries at once.
    matches = both.search([first, second], k=1, threshold=-2.0)
    assert [match.query for match in matches] == [match.reference for match in matches]
    with store.writer(tmp_path / "y") as writer:
        paths = [path for segment in writer.segments() for path in segment.paths]
    assert paths == [f"./{y}/T0000{i}.jpg" for y in ("2023", "2024") for i in range(2)]


def change(folder):
    """Replaces the first image, removes the second, adds a fourth."""
    make_images(folder / "new", 1, seed=9)
    time.sleep(0.01)
    shutil.move(folder / "new" / "T00000.jpg", folder / "T00000.jpg")
    (folder / "T00001.jpg").unlink()
    Image.radial_gradient("L").save(folder / "fourth.png")


def test_update(model, tmp_path, capsys):
    folder = make_images(tmp_path / "photos", 3)
    index = Index.build(tmp_path / "x", folder, model=model)
    change(folder)
    assert main(["index", "add", str(tmp_path / "x"), str(folder)]) == 0
    assert "1 images have changed since they were added" in capsys.readouterr().err
    (folder / "fourth.png").unlink()
    index.update()
    Image.radial_gradient("L").save(folder / "fourth.png")
    make_images(folder, 1, seed=4)
    before = {path.name: path.read_bytes() for path in (tmp_path / "x").glob("*.json")}
    assert main(["index", "update", str(tmp_path / "x"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"new: {folder / 'fourth.png'}" in said and f"changed: {folder / 'T00000.jpg'}" in said
    assert "1 added, 1 embedded anew, 0 removed, 1 as they are" in said
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "x").glob("*.json")}
    assert main(["index", "update", str(tmp_path / "x")]) == 0
    assert (
        "3 images: 1 added, 1 embedded anew, 0 removed, 1 as they were" in capsys.readouterr().out
    )
    (folder / "fourth.png").unlink()
    assert main(["index", "update", str(tmp_path / "x"), "--dry-run"]) == 0
    assert f"gone: {folder / 'fourth.png'}\n" in capsys.readouterr().out
    Image.radial_gradient("L").save(folder / "fourth.png")
    fresh = Index.build(tmp_path / "y", folder, model=model)
    assert rows(tmp_path / "x").keys() == rows(tmp_path / "y").keys()
    for name, row in rows(tmp_path / "y").items():
        np.testing.assert_allclose(rows(tmp_path / "x")[name], row, atol=1e-6)
    assert fresh.update() == Updated(0, 0, 0, 3, [])


def rows(folder):
    with store.writer(folder) as writer:
        return {
            (name, path): row
            for segment in writer.segments()
            for name, path, row in zip(
                segment.ids, segment.paths, segment.descriptors(), strict=True
            )
        }


def test_an_update_calls_images_as_the_build_did(model, tmp_path):
    folder = make_images(tmp_path / "photos" / "2023", 2).parent
    words = ["index", "build", str(folder), f"--model={model}", f"--out={tmp_path / 'x'}"]
    assert main([*words, "--ids=path"]) == 0
    make_images(folder / "2024", 1, seed=1)
    assert main(["index", "update", str(tmp_path / "x")]) == 0
    make_images(folder / "2025", 1, seed=2)
    index = Index(tmp_path / "x")
    index.update(folder)
    years = ("2023/T00000", "2023/T00001", "2024/T00000", "2025/T00000")
    assert sorted(index.ids) == [f"{name}.jpg" for name in years]


def test_what_a_list_names_first_may_be_gone(model, tmp_path):
    folder = make_images(tmp_path / "photos", 3)
    names = sorted(str(path) for path in folder.iterdir())
    (tmp_path / "list.txt").write_text("\n".join(names))
    index = Index.build(tmp_path / "x", tmp_path / "list.txt", model=model)
    pathlib.Path(names[0]).unlink()
    done = index.update()
    assert [each.id for each in done.unreadable] == ["T00000"] and len(index) == 2


def test_a_member_of_an_archive_keeps_its_id(model, tmp_path):
    folder = make_images(tmp_path / "photos", 2)
    archive = tmp_path / "photos.zip"
    index = Index.build(tmp_path / "x", folder, model=model)
    for seed in (5, 6):
        make_images(folder, 2, seed=seed)
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(folder.iterdir()):
                file.write(path, f"set/{path.name}")
        if seed == 5:
            index.add(archive)
            ids = sorted(index.ids)
    assert index.update(archive).renewed == 2
    assert sorted(index.ids) == [name for name in ids if name not in ("T00000", "T00001")]


def test_images_that_take_anothers_place_take_its_id(model, tmp_path):
    folder = make_images(tmp_path / "photos", 3)
    index = Index.build(tmp_path / "x", folder, model=model)
    ids = index.ids
    shutil.move(folder, tmp_path / "moved")
    index.update(tmp_path / "moved")
    assert sorted(index.ids) == sorted(ids)
    assert found_first(index, tmp_path / "moved" / "T00001.jpg").reference == "T00001"


def test_records_of_equal_names_are_told_apart_by_their_folders(model, tmp_path):
    packs = []
    for year in ("2023", "2024"):
        packs.append(tmp_path / "packed" / year)
        pack_images(make_images(tmp_path / year, 2, seed=int(year)), packs[-1], shards=1)
    index = Index.build(tmp_path / "x", packs, model=model)
    names = [f"{year}/T0000{i}" for year in ("2023", "2024") for i in range(2)]
    assert sorted(index.ids) == names
    index = Index.build(tmp_path / "y", packs[0], model=model)
    index.add(packs[1])
    assert sorted(index.ids) == sorted(["T00000", "T00001", *names[2:]])


def test_a_record_that_has_changed_keeps_its_id(model, tmp_path):
    folder = make_images(tmp_path / "photos", 4)
    pack_images(folder, tmp_path / "packed", shards=1)
    index = Index.build(tmp_path / "x", tmp_path / "packed", model=model)
    # The second changes, the third is gone, so the last lies in its place.
    make_images(tmp_path / "new", 1, seed=9)
    shutil.move(tmp_path / "new" / "T00000.jpg", folder / "T00001.jpg")
    (folder / "T00002.jpg").unlink()
    shutil.rmtree(tmp_path / "packed")
    pack_images(folder, tmp_path / "packed", shards=1)
    index.update()
    assert sorted(index.ids) == ["T00000", "T00001", "T00003"]
    for name in index.ids:
        assert found_first(index, folder / f"{name}.jpg").reference == name


def test_what_cannot_be_seen_does_not_count_as_gone(model, tmp_path, monkeypatch):
    folder = make_images(tmp_path / "photos", 2)
    make_images(folder / "private", 1, seed=3)
    index = Index.build(
        tmp_path / "x",
        [folder, np.zeros((9, 9, 3), np.uint8) + np.arange(9, dtype=np.uint8)[:, None, None] * 20],
        model=model,
    )
    assert len(index) == 4
    scan = os.scandir

    def refusing(path):
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    with monkeypatch.context() as closed:
        closed.setattr(os, "scandir", refusing)
        assert index.update(folder) == Updated(0, 0, 0, 2, [])
    shutil.rmtree(folder / "private")
    assert index.update() == Updated(0, 0, 1, 2, [])
    shutil.rmtree(folder)
    with pytest.raises(
        UserError,
        match="x: what it was built from cannot be listed: .*photos: there is no such folder",
    ):
        index.update()
    assert len(Index(tmp_path / "x")) == 3


def test_a_changed_image_that_cannot_be_read_is_dropped_and_named(model, tmp_path):
    folder = make_images(tmp_path / "photos", 2)
    index = Index.build(tmp_path / "x", folder, model=model)
    (folder / "T00001.jpg").write_bytes(b"no image")
    done = index.update()
    assert (done.added, done.renewed, done.removed, done.present) == (0, 0, 0, 1)
    assert [each.id for each in done.unreadable] == ["T00001"] and len(index) == 1


def test_images_and_model_that_were_moved(model, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "model")
    folder = make_images(tmp_path / "photos", 2)
    Index.build(tmp_path / "x", folder, model=str(tmp_path / "model"))
    query = make_images(tmp_path / "q", 1, seed=7)
    folder.rename(tmp_path / "pictures")
    (tmp_path / "model").rename(tmp_path / "moved")
    shutil.move(tmp_path / "x", tmp_path / "elsewhere")
    x = str(tmp_path / "elsewhere")
    assert main(["search", str(query), f"--index={x}"]) == 1
    said = capsys.readouterr().err
    assert f"{x} was made by the model {tmp_path / 'model'}" in said and "--model=" in said
    given = f"--model={tmp_path / 'moved'}"
    assert main(["search", str(query), f"--index={x}", "--threshold=-2", given]) == 0
    assert main(["index", "update", x, f"--root={tmp_path / 'pictures'}", given]) == 0
    assert "0 added, 0 embedded anew, 0 removed, 2 as they were" in capsys.readouterr().out
    match = found_first(Index(x), query)
    assert pathlib.Path(match.path).parent == tmp_path / "pictures"
    # From now on it knows where its model lies.
    assert Index(x).manifest.model == str(tmp_path / "moved")
    with pytest.raises(UserError, match="gone: there is no such folder"):
        Index(x).move(tmp_path / "gone")
    other = make_export(tmp_path / "other", dim=8, seed=5)
    with pytest.raises(UserError, match="was made by other weights"):
        Index(x, model=str(other)).search(query)


def test_an_image_whose_reader_is_missing_does_not_count_as_gone(model, tmp_path, monkeypatch):
    folder = make_images(tmp_path / "photos", 2)
    index = Index.build(tmp_path / "x", folder, model=model)
    # As where pillow-heif was there, and is no more.
    monkeypatch.setattr(changes, "PLUGINS", {".jpg": "pillow-heif"})
    assert index.changes([folder / "T00000.jpg"]).gone == []
    (folder / "T00001.jpg").unlink()
    assert index.changes([folder / "T00000.jpg"]).gone == ["./T00001.jpg"]


def test_sources_may_stand_behind_options(model, tmp_path, capsys, monkeypatch):
    folders = [make_images(tmp_path / name, 1, seed=seed) for seed, name in enumerate("ab")]
    Index.build(tmp_path / "x", folders[0], model=model)
    words = ["index", "update", str(tmp_path / "x"), "--dry-run", *map(str, folders)]
    assert main(words) == 0
    assert "1 added, 0 embedded anew, 0 removed, 1 as they are" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*words, "--nothing"])
    # Behind two dashes a name may begin with one.
    (tmp_path / "b").rename(tmp_path / "-b")
    monkeypatch.chdir(tmp_path)
    words = ["index", "update", "x", str(folders[0]), "--dry-run", "--", "-b"]
    assert main(words) == 0
    assert "1 added, 0 embedded anew, 0 removed, 1 as they are" in capsys.readouterr().out


def test_a_wrong_root_changes_nothing(model, tmp_path):
    first, second = make_images(tmp_path / "a", 2), make_images(tmp_path / "b", 1, seed=5)
    index = Index.build(tmp_path / "x", first, model=model)
    index.add(second)
    before = (tmp_path / "x" / "index.json").read_bytes()
    make_images(tmp_path / "c", 1, seed=6, prefix="Q")
    with pytest.raises(UserError, match=r"c: none of the images of .*x lies there, such as"):
        index.move(tmp_path / "c")
    # The second lies outside the root, so no root can say where it went.
    second.rename(tmp_path / "moved")
    shutil.copytree(first, tmp_path / "copy")
    with pytest.raises(UserError, match=r"b: .*x was built from it too, .*name all that the index"):
        index.move(tmp_path / "copy")
    with pytest.raises(UserError, match="cannot be listed"):
        index.update()
    assert (tmp_path / "x" / "index.json").read_bytes() == before
    done = index.update([first, tmp_path / "moved"])
    assert (done.added, done.removed, done.present) == (1, 1, 2)


def test_links_are_one_image(model, tmp_path, caplog):
    folder = make_images(tmp_path / "photos", 2)
    (folder / "best").mkdir()
    (folder / "A_link.jpg").symlink_to(folder / "T00000.jpg")
    os.link(folder / "T00001.jpg", folder / "best" / "hard.jpg")
    index = Index.build(tmp_path / "x", folder, model=model)
    assert len(index) == 2 and "2 images are links to others of them" in caplog.text
    paths = [path for _, path in rows(tmp_path / "x")]
    assert paths == ["./T00000.jpg", "./T00001.jpg"]


def test_links_that_are_added_later_are_present(model, tmp_path, caplog):
    folder = make_images(tmp_path / "photos", 3)
    index = Index.build(tmp_path / "x", folder, model=model)
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "soft.jpg").symlink_to(folder / "T00000.jpg")
    os.link(folder / "T00001.jpg", tmp_path / "album" / "hard.jpg")
    make_images(tmp_path / "album", 1, prefix="N", seed=9)
    (tmp_path / "again").symlink_to(folder)
    added = [index.add(tmp_path / name) for name in ("album", "again")]
    assert [(each.added, each.present) for each in added] == [(1, 2), (0, 3)] and len(index) == 4
    assert "2 images are links to images of the index (the first: " in caplog.text
    # An update lists all of the sources, each image once.
    assert index.update() == Updated(0, 0, 0, 4, [])
    # What is named alone is taken as it is named.
    assert index.update(tmp_path / "album") == Updated(2, 0, 3, 1, [])


def test_an_addition_that_was_killed_is_not_undone(model, tmp_path, monkeypatch):
    first, second = make_images(tmp_path / "a", 1), make_images(tmp_path / "b", 3, seed=5)
    index = Index.build(tmp_path / "x", first, model=model)
    add, calls = store.Writer.add, []

    def add_and_end(writer, *arguments, **options):
        if calls:
            raise KeyboardInterrupt
        calls.append(add(writer, *arguments, **options))

    monkeypatch.setattr(writing, "CHUNK", 2)
    with monkeypatch.context() as ended, pytest.raises(KeyboardInterrupt):
        ended.setattr(store.Writer, "add", add_and_end)
        index.add(second)
    assert len(Index(tmp_path / "x")) == 3
    assert Index(tmp_path / "x").update() == Updated(1, 0, 0, 3, [])


def test_an_image_that_was_named_and_deleted_is_dropped(model, tmp_path):
    folder = make_images(tmp_path / "photos", 3)
    index = Index.build(tmp_path / "x", sorted(folder.iterdir()), model=model)
    (folder / "T00001.jpg").unlink()
    assert index.update() == Updated(0, 0, 1, 2, [])
    # A disk that is missing is no reason to drop all.
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="cannot be listed"):
        index.update()


def test_a_path_over_a_link_is_the_same_at_the_next_update(model, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    photos = make_images(tmp_path / "disk" / "photos", 2)
    (tmp_path / "photos").symlink_to(photos)
    monkeypatch.chdir(tmp_path / "work")
    for source in ("../photos", "../work/../photos"):
        index = Index.build(tmp_path / f"x{len(source)}", source, model=model)
        assert index.update() == Updated(0, 0, 0, 2, [])
    # Up from where a link leads.
    (tmp_path / "link").symlink_to(photos)
    index = Index.build(tmp_path / "y", "../link/../photos", model=model)
    assert index.update() == Updated(0, 0, 0, 2, [])
    assert index.manifest.sources == (str(photos),)


def test_a_drive_that_is_missing_keeps_its_images(model, tmp_path, caplog):
    folder, drive = make_images(tmp_path / "photos", 1), make_images(tmp_path / "drive", 2, seed=5)
    (folder / "nas").symlink_to(drive)
    index = Index.build(tmp_path / "x", folder, model=model)
    card = make_images(tmp_path / "card", 1, seed=7)
    (folder / "link.jpg").symlink_to(card / "T00000.jpg")
    assert index.update() == Updated(1, 0, 0, 3, [])
    drive.rename(tmp_path / "unplugged")
    card.rename(tmp_path / "taken out")
    assert index.update() == Updated(0, 0, 0, 2, [])
    assert len(index) == 4 and "1 images are links that lead nowhere now" in caplog.text


def test_a_source_above_the_root_moves_with_it(model, tmp_path):
    make_images(tmp_path / "card" / "100CANON", 2)
    index = Index.build(tmp_path / "x", tmp_path / "card", model=model)
    (tmp_path / "card").rename(tmp_path / "copy")
    with pytest.raises(UserError, match="name the folder that is now what .*100CANON was"):
        index.move(tmp_path / "copy")
    index.move(tmp_path / "copy" / "100CANON")
    assert index.manifest.sources == (str(tmp_path / "copy"),)
    assert index.update() == Updated(0, 0, 0, 2, [])
    # A copy of the whole path elsewhere says nothing of other sources.
    other = make_images(tmp_path / "other", 1, seed=5)
    index.add(other)
    old = str(tmp_path / "copy" / "100CANON")
    backup = tmp_path / "backup" / old.lstrip("/")
    shutil.copytree(old, backup)
    index.move(backup)
    assert index.manifest.sources == (str(tmp_path / "copy"), str(other))


def test_a_clock_may_be_set_to_any_year(model, tmp_path):
    folder = make_images(tmp_path / "photos", 2)
    os.utime(folder / "T00001.jpg", (2**34, 2**34))
    index = Index.build(tmp_path / "x", folder, model=model)
    assert len(index) == 2 and index.update() == Updated(0, 0, 0, 2, [])
    found = embed_to_file(index.embedder, images_of(folder), tmp_path / "rows.npz")
    assert found.count == 2


def test_an_index_without_paths_is_not_updated(model, tmp_path):
    folder = make_images(tmp_path / "photos", 2)
    index = Index.build(tmp_path / "x", folder, model=model)
    with store.writer(tmp_path / "x") as writer:
        (segment,) = writer.segments()
        found = store.Descriptors(np.asarray(segment.ids), segment.descriptors())
        writer.remove(segment.ids)
        writer.add(found, ["", ""])
    with pytest.raises(UserError, match="kept no paths, so changes cannot be seen; build it again"):
        index.update()


def test_ids_that_begin_with_at(model, tmp_path, capsys):
    folder = make_images(tmp_path / "photos", 2)
    (folder / "T00000.jpg").rename(folder / "@home.jpg")
    Index.build(tmp_path / "x", folder, model=model)
    assert main(["index", "remove", str(tmp_path / "x"), "@@home"]) == 0
    assert "1 images: 1 removed" in capsys.readouterr().out


def test_images_in_memory_are_known_by_their_content(model, tmp_path):
    first, second, third = (
        np.asarray(Image.open(path)) for path in sorted(make_images(tmp_path / "a", 3).iterdir())
    )
    index = Index.build(tmp_path / "x", [first], model=model)
    assert index.add([second]).added == 1
    again = index.add([second, third, first])
    assert (again.added, again.present, again.changed) == (1, 2, 0) and len(index) == 3
    found = [found_first(index, image).reference for image in (first, second, third)]
    assert found == ["#0", "#1", "#2"]
    # They are nowhere to be looked for, so what is not given again stays.
    updated = index.update([third])
    assert (updated.added, updated.removed, updated.present) == (0, 0, 1) and len(index) == 3


def test_an_index_built_anew_is_not_taken_for_the_one_that_lay_there(model, tmp_path):
    first, second = (make_images(tmp_path / name, 3, seed=s) for s, name in ((1, "a"), (2, "b")))
    index = Index.build(tmp_path / "x", first, model=model)
    path = found_first(index, first / "T00001.jpg").path
    shutil.rmtree(tmp_path / "x")
    Index.build(tmp_path / "x", second, model=model)
    # As many images, of the same model.
    assert path == str(first / "T00001.jpg")
    assert found_first(index, second / "T00001.jpg").path == str(second / "T00001.jpg")
    assert index.nearest(index.contents().rows, 1)[1].tolist() == [[0], [1], [2]]


def test_a_build_that_read_nothing_binds_nobody(model, tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"nothing")
    words = ["index", "build", f"--out={tmp_path / 'x'}"]
    assert main([*words, str(tmp_path / "bad"), f"--model={model}"]) == 1
    assert "can be read" in capsys.readouterr().err
    good = make_images(tmp_path / "good", 2)
    assert main([*words, str(good), f"--model={model}", "--dtype=int8"]) == 0
    assert Index(tmp_path / "x").manifest.dtype == "int8"
    assert main([*words, str(good), f"--model={model}"]) == 1
    assert "give another folder" in capsys.readouterr().err

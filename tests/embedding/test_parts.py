"""An embedding's way into a file: killed, continued, shared."""

import concurrent.futures
import dataclasses
import json
import threading
import tracemalloc

import numpy as np
import pytest
from test_stream import made, means
from toy import make_export, make_images

from rdcd_jax.cli.main import main
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding import descriptors, parts
from rdcd_jax.embedding.descriptors import read_descriptors
from rdcd_jax.embedding.service import embed_to_file, embedded_sets
from rdcd_jax.embedding.stream import Embedder, embed_images
from rdcd_jax.images.sources import find_images

MODEL = Embedder(means, 8, name="means", fingerprint="1")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "ROWS", 100)


class Killed(Exception):
    pass


def killed_after(batches, model=MODEL):
    """The model, which ends after some batches, and what it was given."""
    given = []

    def embed(images):
        given.append(images.shape)
        if len(given) > batches:
            raise Killed
        return model.embed_batch(images)

    return dataclasses.replace(model, embed_batch=embed), given


@pytest.mark.parametrize("name", ["d.npz", "d.h5"])
@pytest.mark.parametrize("short_edge", [False, True])
def test_who_is_killed_goes_on(tmp_path, name, short_edge):
    model = dataclasses.replace(MODEL, short_edge=short_edge)
    images, out = made(1350), tmp_path / "killed" / name
    whole = embed_to_file(model, images, tmp_path / name)
    assert (whole.count, whole.dim) == (1348, 3)
    assert [each.id for each in whole.unreadable] == ["0000007", "0001007"]
    batches = 0
    while True:
        batches += 20
        ending, given = killed_after(20, model)
        try:
            again = embed_to_file(ending, images, out)
            break
        except Killed:
            assert not out.exists()
            assert len(list(out.parent.glob("*.parts/0*.npz"))) >= batches // 20
    assert batches > 20 and len(given) < 20
    assert again == whole
    assert out.read_bytes() == (tmp_path / name).read_bytes()
    listed = (out.parent / f"{name}.unreadable.txt").read_text()
    assert listed == (tmp_path / f"{name}.unreadable.txt").read_text()
    assert len(list(out.parent.iterdir())) == 2
    memory, _ = embed_images(model, images)
    found = read_descriptors(out)
    assert found.ids.tolist() == memory.ids.tolist() and found.model == "means"
    np.testing.assert_array_equal(found.descriptors, memory.descriptors)


@pytest.mark.parametrize("name", ["d.npz", "d.h5"])
def test_memory_follows_the_part_and_not_the_set(tmp_path, name):
    model = dataclasses.replace(
        MODEL, embed_batch=lambda x: np.repeat(means(x), 200, axis=1), short_edge=True
    )

    def peak(count):
        images = made(count)
        tracemalloc.start()
        embed_to_file(model, images, tmp_path / name)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (tmp_path / name).stat().st_size > 2400 * (count - 10)
        return most

    assert peak(3000) < peak(1000) + 500_000 < 2_400_000


def test_progress_goes_on(tmp_path):
    stored = []
    with pytest.raises(Killed):
        embed_to_file(killed_after(5)[0], made(300), tmp_path / "d.npz")
    embed_to_file(
        MODEL, made(300), tmp_path / "d.npz", on_progress=lambda *each: stored.append(each)
    )
    assert stored[0] == ("made up", 100, 300) and stored[-1] == ("made up", 300, 300)


def begun(out, images=None, model=MODEL):
    with pytest.raises(Killed):
        embed_to_file(killed_after(5, model)[0], images or made(300), out)
    return out.with_name(f"{out.name}.parts")


@pytest.mark.parametrize(
    ("changes", "count", "sentence"),
    [
        ({"name": "other"}, 300, r"d\.npz\.parts holds parts .* \(by 'means', not 'other'\)"),
        ({"fingerprint": "2"}, 300, "by other weights of 'means'"),
        ({"image_size": 9}, 300, "of 8 pixels, not 9"),
        ({"short_edge": True}, 300, "of square images"),
        ({}, 301, "there were 300 images, and now there are 301"),
    ],
)
def test_another_embeddings_parts_are_refused(tmp_path, changes, count, sentence):
    folder = begun(tmp_path / "d.npz")
    with pytest.raises(UserError, match=sentence):
        embed_to_file(dataclasses.replace(MODEL, **changes), made(count), tmp_path / "d.npz")
    assert (folder / "000000.npz").exists()
    assert embed_to_file(MODEL, made(300), tmp_path / "d.npz").count == 299


def test_a_folder_without_parts_stands_in_nobodys_way(tmp_path):
    with pytest.raises(Killed):
        embed_to_file(killed_after(0)[0], made(300), tmp_path / "d.npz")
    other = dataclasses.replace(MODEL, image_size=9)
    assert embed_to_file(other, made(300), tmp_path / "d.npz").count == 299


def test_damaged_parts_are_made_again(tmp_path):
    folder = begun(tmp_path / "d.npz")
    part = folder / "000000.npz"
    part.write_bytes(part.read_bytes()[:-100])
    model, given = killed_after(100)
    found = embed_to_file(model, made(300), tmp_path / "d.npz")
    assert (found.count, len(given)) == (299, 12)
    folder = begun(tmp_path / "d.npz")
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"manifest\.json: cannot be read"):
        embed_to_file(MODEL, made(300), tmp_path / "d.npz")


def test_a_very_long_id_is_kept_and_read_again(tmp_path, monkeypatch):
    # As wide as the longest, ids of a part would take 12 MB.
    monkeypatch.setattr(descriptors, "_ROOMY", 2**20)
    images = made(300)
    images = dataclasses.replace(images, ids=(*images.ids[:-1], " " * 40_000 + "299"))
    folder = begun(tmp_path / "d.npz", images)
    assert embed_to_file(MODEL, images, tmp_path / "d.npz", process=(2, 3)) is None
    last = folder / "000002.npz"
    assert last.stat().st_size < 200_000
    model, given = killed_after(100)
    assert embed_to_file(model, images, tmp_path / "d.npz", process=(0, 1)).count == 299
    assert len(given) == 4, "the part between alone is made"
    expected = [name for name in images.ids if name != "0000007"]
    assert read_descriptors(tmp_path / "d.npz").ids.tolist() == expected


def test_a_damaged_part_of_another_process_is_named(tmp_path):
    out = tmp_path / "d.npz"
    assert embed_to_file(MODEL, made(300), out, process=(0, 2)) is None
    part = tmp_path / "d.npz.parts" / "000002.npz"
    part.write_bytes(b"")
    with pytest.raises(UserError, match=r"000002\.npz is damaged; delete it"):
        embed_to_file(MODEL, made(300), out, process=(1, 2))
    part.unlink()
    assert embed_to_file(MODEL, made(300), out, process=(0, 2)) == embed_to_file(
        MODEL, made(300), tmp_path / "alone.npz"
    )


def test_processes_share_the_work(tmp_path):
    """Three at once, as threads: locks are of open files. One joins what all have made."""
    start = threading.Barrier(3)

    def run(index):
        start.wait()
        return embed_to_file(MODEL, made(1350), tmp_path / "d.npz", process=(index, 3))

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = list(pool.map(run, range(3)))
    whole = embed_to_file(MODEL, made(1350), tmp_path / "alone.npz")
    assert sorted(found, key=bool) == [None, None, whole]
    assert (tmp_path / "d.npz").read_bytes() == (tmp_path / "alone.npz").read_bytes()
    assert not list(tmp_path.glob("*.parts")) and not list(tmp_path.glob(".*"))


def test_shares_of_another_number_of_processes_fit(tmp_path):
    out = tmp_path / "d.npz"
    assert embed_to_file(MODEL, made(1350), out, process=(1, 3)) is None
    assert embed_to_file(MODEL, made(1350), out, process=(1, 2)) is None
    model, given = killed_after(1000)
    assert embed_to_file(model, made(1350), out).count == 1348
    # Parts 0, 2, 6, 8 and 12 of 14 are left, of four batches each.
    assert len(given) == 5 * 4


def test_a_second_process_of_the_same_share_is_refused(tmp_path):
    entered, go_on = threading.Event(), threading.Event()

    def embed(images):
        entered.set()
        go_on.wait()
        return means(images)

    waiting = dataclasses.replace(MODEL, embed_batch=embed)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(embed_to_file, waiting, made(300), tmp_path / "d.npz")
        entered.wait()
        try:
            with pytest.raises(UserError, match=r"d\.npz\.parts: another process makes these"):
                embed_to_file(MODEL, made(300), tmp_path / "d.npz")
        finally:
            go_on.set()
        assert first.result().count == 299


def test_what_another_model_began_gives_way_where_nothing_is_to_stay(tmp_path):
    images = {"queries": find_images(make_images(tmp_path / "p", 3))}
    other = dataclasses.replace(MODEL, fingerprint="2")

    def sets(model, keep):
        return embedded_sets(model, images, tmp_path / "out", 4, None, keep=keep)

    with pytest.raises(Killed), sets(MODEL, False):
        raise Killed
    # Nobody's own work is thrown away.
    with pytest.raises(UserError, match="by other weights of 'means'"), sets(other, True):
        pass
    with sets(other, False) as (found, _):
        assert found["queries"].fingerprint == "2"
    assert not list((tmp_path / "out").iterdir())


def test_a_late_process_without_a_share_begins_nothing(tmp_path):
    out = tmp_path / "d.npz"
    assert embed_to_file(MODEL, made(90), out, process=(0, 2)).count == 89
    assert embed_to_file(MODEL, made(90), out, process=(1, 2)) is None
    assert not list(tmp_path.glob("*.parts"))


def test_no_such_process(tmp_path):
    with pytest.raises(UserError, match="no process 2 of 2"):
        embed_to_file(MODEL, made(3), tmp_path / "d.npz", process=(2, 2))
    assert not list(tmp_path.iterdir())


def test_nothing_readable_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="none of the 1 images can be read; the first: 7: broken"):
        embed_to_file(MODEL, made(8).subset([7]), tmp_path / "d.npz")
    assert not list(tmp_path.iterdir())


def test_a_model_that_gives_zeros_alone_is_named(tmp_path):
    zeros = dataclasses.replace(MODEL, embed_batch=lambda x: np.zeros((len(x), 3), np.float32))
    with pytest.raises(
        UserError, match="the model means embeds each of the 5 images by nothing but zeros"
    ):
        embed_to_file(zeros, made(5), tmp_path / "d.npz")


def test_the_manifest_tells_what_is_embedded(tmp_path):
    images = find_images(make_images(tmp_path / "p", 3))
    with parts.open_parts(tmp_path / "d.npz", MODEL, images, (0, 1)) as opened:
        stored = json.loads((opened.folder / parts.MANIFEST).read_text())
    assert stored["pictures"] == images.fingerprint()
    assert stored["model"] == "means" and stored["rows"] == 100


def test_the_command_line(toys, tmp_path, capsys):
    images = make_images(tmp_path / "p", 240, size=12)
    student = make_export(tmp_path / "student")
    words = ["embed", f"--model={student}", f"--images={images}", f"--out={tmp_path / 'd.npz'}"]
    assert main([*words, "--short-edge=16", "--process=1/2"]) == 0
    assert "the last one to end writes" in capsys.readouterr().out
    assert not (tmp_path / "d.npz").exists()
    # Another size is another embedding.
    assert main(words) == 1
    assert "d.npz.parts holds parts of another embedding (of 16 pixels, not 32)" in (
        capsys.readouterr().err
    )
    assert main([*words, "--short-edge=16"]) == 0
    stored = capsys.readouterr()
    assert (
        "240 descriptors of 4 dimensions in" in stored.out and "240/240, 0:00:00 left" in stored.err
    )
    assert len(read_descriptors(tmp_path / "d.npz")) == 240
    assert main([*words, "--short-edge=100000"]) == 1
    assert "The short edge is 100000; give 1 to" in capsys.readouterr().err
    for wrong in (
        ["--short-edge=0"],
        ["--short-edge=16", "--image-size=16"],
        ["--process=2/2"],
        ["--process=1"],
    ):
        with pytest.raises(SystemExit, match="2"):
            main([*words, *wrong])


def test_a_part_whose_files_have_changed_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "ROWS", 4)
    folder = make_images(tmp_path / "a", 12)
    with pytest.raises(Killed):
        embed_to_file(killed_after(2)[0], folder, tmp_path / "d.npz", batch_size=4)
    make_images(tmp_path / "b", 1, seed=9)
    (tmp_path / "b" / "T00000.jpg").replace(folder / "T00002.jpg")
    model, given = killed_after(100)
    embed_to_file(model, folder, tmp_path / "d.npz", batch_size=4)
    # Of two parts one was whole and as the files are.
    assert len(given) == 2
    embed_to_file(MODEL, folder, tmp_path / "fresh.npz")
    found, fresh = (read_descriptors(tmp_path / f"{name}.npz") for name in ("d", "fresh"))
    np.testing.assert_array_equal(found.descriptors, fresh.descriptors)


def test_who_is_killed_before_the_list_is_there_goes_on(tmp_path, monkeypatch):
    folder = make_images(tmp_path / "a", 2)
    (folder / "bad.jpg").write_bytes(b"nothing")
    out = tmp_path / "d.npz"
    with monkeypatch.context() as dying:
        dying.setattr(parts, "list_unreadable", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            embed_to_file(MODEL, folder, out)
    model, given = killed_after(0)
    assert len(embed_to_file(model, folder, out).unreadable) == 1 and not given
    assert "bad.jpg" in (tmp_path / "d.npz.unreadable.txt").read_text()


def test_a_process_that_is_started_again_leaves_the_file_as_it_is(toys, tmp_path, capsys):
    out, model = tmp_path / "d.npz", make_export(tmp_path / "student", dim=8)
    words = ["embed", str(make_images(tmp_path / "a", 300)), f"--model={model}", f"--out={out}"]
    assert main([*words, "--process=0/2"]) == 0 and "the last one to end" in capsys.readouterr().out
    assert main([*words, "--process=1/2"]) == 0 and "300 descriptors" in capsys.readouterr().out
    before = out.read_bytes()
    assert main([*words, "--process=1/2"]) == 0
    assert "d.npz is there; delete it" in capsys.readouterr().out
    assert out.read_bytes() == before and not (tmp_path / "d.npz.parts").exists()

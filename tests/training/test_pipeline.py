import gc
import itertools
import json
import multiprocessing.util
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from rdcd_jax.augment.policies import Step, make_view
from rdcd_jax.core.errors import UserError
from rdcd_jax.images.pack import pack_images
from rdcd_jax.images.sources import ImageSet, find_images
from rdcd_jax.training import pipeline
from rdcd_jax.training.pipeline import Views, Workers, make_batches

COUNT, SIZE = 11, 16


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Eleven small images, told apart by their colours."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        noise = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((40, 30)).save(folder / f"{i:02}.png")
    return find_images(folder)


def batches_of(images, *, policy="SIMCLR", image_size=SIZE, views=2, workers=0, **options):
    make = Views(make_view(policy, image_size), views)
    reading = {name: options.pop(name) for name in ("prefetch", "timeout_s") if name in options}
    options = {"batch_size": 4, "seed": 7} | options
    return make_batches(images, make, workers=Workers(workers, **reading), **options)


def take(count, images, **options):
    with batches_of(images, **options) as batches:
        return list(itertools.islice(batches, count))


def assert_same(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def ten(images):
    return take(10, images)


def test_shapes_dtypes_and_positions(ten):
    for batch in ten:
        assert sorted(batch) == ["index", "key", "query", "unreadable"]
        for name in ("query", "key"):
            assert batch[name].shape == (4, SIZE, SIZE, 3) and batch[name].dtype == np.uint8
        for name in ("index", "unreadable"):
            assert batch[name].shape == (4,) and batch[name].dtype == np.int64
        assert (batch["unreadable"] == -1).all()


def test_index_names_the_image_that_is_shown(images):
    whole = (Step("resized_crop", 1, {"scale": (1, 1), "ratio": (4 / 3, 4 / 3)}),)
    for batch in take(4, images, policy=whole, views=1):
        assert "key" not in batch
        for query, position in zip(batch["query"], batch["index"], strict=True):
            with Image.open(images.paths[position]) as image:
                want = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(query, np.asarray(want))


def test_an_epoch_is_a_whole_number_of_batches_without_repetition(images):
    steps = COUNT // 4
    batches = take(30 * steps, images, views=1)
    epochs = [
        np.concatenate([batch["index"] for batch in batches[start : start + steps]])
        for start in range(0, len(batches), steps)
    ]
    for epoch in epochs:
        assert len(epoch) == 8 == len(set(epoch))
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    # What an epoch leaves out changes, so that no image is never seen.
    assert set(np.concatenate(epochs)) == set(range(COUNT))


def test_the_seed_decides(images, ten):
    assert_same(take(3, images), ten[:3])
    other = take(3, images, seed=8)
    assert any((a["index"] != b["index"]).any() for a, b in zip(other, ten, strict=False))
    assert (other[0]["query"] != ten[0]["query"]).any()


@pytest.mark.parametrize("start", [1, 2, 5])
def test_a_run_continues_where_it_stopped(images, ten, start):
    assert_same(take(10 - start, images, start_step=start), ten[start:])


def test_workers_change_nothing(images, ten):
    assert_same(take(10, images, workers=1), ten)
    assert_same(take(7, images, workers=2, start_step=3, prefetch=1), ten[3:])


def test_two_hosts_read_together_what_one_would(images, ten):
    hosts = [take(10, images, host=(host, 2)) for host in (0, 1)]
    for host, batches in enumerate(hosts):
        parts = [{k: np.split(v, 2)[host] for k, v in batch.items()} for batch in ten]
        assert_same(batches, parts)


@pytest.fixture(scope="module")
def packed(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "shards"
    pack_images(images.source, out, shards=3)
    return find_images(out)


@pytest.fixture(scope="module")
def alike(images, tmp_path_factory):
    """Eleven copies of one image, packed: only the random numbers tell their views apart."""
    folder = tmp_path_factory.mktemp("alike")
    for position in range(COUNT):
        shutil.copy(images.paths[0], folder / f"{position}.png")
    shards = tmp_path_factory.mktemp("alike_packed") / "shards"
    pack_images(folder, shards, shards=2)
    return find_images(shards)


def test_records_give_the_batches_of_the_files(packed, ten):
    assert packed.reader is not None
    assert_same(take(10, packed), ten)
    assert_same(take(3, packed, workers=2), ten[:3])


def send_host_batches(connection, sets, host):
    """What a host does, as a process of its own."""
    connection.send({name: take(10, images, host=(host, 2)) for name, images in sets.items()})


@pytest.fixture(scope="module")
def two_processes(images, packed, alike):
    """Ten batches of each set by both of two processes."""
    context = multiprocessing.get_context("spawn")
    sets = {"files": images, "records": packed, "alike": alike}
    ends, processes = [], []
    for host in (0, 1):
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=send_host_batches, args=(send, sets, host), daemon=True)
        process.start()
        send.close()
        ends.append(receive)
        processes.append(process)
    found = [end.recv() for end in ends]
    for process in processes:
        process.join()
    return {name: [host[name] for host in found] for name in sets}


@pytest.mark.parametrize("source", ["files", "records"])
def test_two_processes_see_the_batches_of_one(two_processes, ten, source):
    for whole, *parts in zip(ten, *two_processes[source], strict=True):
        together = {name: np.concatenate([part[name] for part in parts]) for name in whole}
        assert_same([together], [whole])


@pytest.mark.parametrize("source", ["files", "records"])
def test_an_epoch_of_two_processes_shows_no_image_twice(two_processes, source):
    steps = COUNT // 4  # The last batch, which three images do not fill, is left out.
    first, second = (np.stack([b["index"] for b in host]) for host in two_processes[source])
    for start in range(0, 10, steps):
        shown = np.concatenate([first[start : start + steps], second[start : start + steps]])
        assert len(set(shown.flat)) == shown.size == steps * 4
    assert {*first.flat, *second.flat} == set(range(COUNT))


def test_an_epoch_that_batches_fill_shows_every_image(images):
    hosts = [take(4, images.subset(range(8)), host=(host, 2)) for host in (0, 1)]
    for start in (0, 2):
        shown = [b["index"] for host in hosts for b in host[start : start + 2]]
        assert sorted(np.concatenate(shown)) == list(range(8))


def test_no_two_processes_draw_the_same_numbers(two_processes):
    views = [b[name] for host in two_processes["alike"] for b in host for name in ("query", "key")]
    views = np.concatenate(views)
    assert len(views) == 2 * 10 * 4
    assert len(np.unique(views.reshape(len(views), -1), axis=0)) == len(views)


def test_views_and_repeated_images_are_drawn_anew(images):
    batches = take(24, images)
    queries = np.concatenate([batch["query"] for batch in batches])
    keys = np.concatenate([batch["key"] for batch in batches])
    views = np.concatenate([queries, keys]).reshape(2 * len(queries), -1)
    assert len(np.unique(views, axis=0)) == len(views)


def test_an_unreadable_image_is_replaced_by_the_next_and_reported(images, tmp_path):
    broken = {3: b"", 4: b"no picture", 10: pathlib.Path(images.paths[10]).read_bytes()[:200]}
    paths = list(images.paths)
    for position, content in broken.items():
        paths[position] = str(tmp_path / f"{position}.png")
        pathlib.Path(paths[position]).write_bytes(content)
    spoilt = ImageSet("spoilt", images.ids, tuple(paths))
    batches = take(COUNT, spoilt, batch_size=COUNT)
    assert len(batches) == COUNT
    for batch in batches:
        stood_in = {
            u: i for u, i in zip(batch["unreadable"], batch["index"], strict=True) if u >= 0
        }
        assert stood_in == {3: 5, 4: 5, 10: 0}
        assert sorted(batch["index"]) == sorted([0, 0, 1, 2, 5, 5, 5, 6, 7, 8, 9])


def test_only_unreadable_images_is_an_error_with_or_without_workers(tmp_path):
    paths = tuple(str(tmp_path / f"gone {i}.png") for i in range(5))
    gone = ImageSet("my images", tuple("abcde"), paths)
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"my images: 5 images in a row.*gone \d.png"):
            take(1, gone, workers=workers)


def test_as_few_as_one_image_will_do(images):
    one = ImageSet("one", images.ids[:1], images.paths[:1])
    batches = take(3, one, batch_size=1)
    assert [batch["index"].tolist() for batch in batches] == [[0]] * 3
    assert (batches[0]["query"] != batches[1]["query"]).any()


def workers_of_ours():
    return [c for c in multiprocessing.active_children() if c.name.startswith("grain-")]


def test_a_worker_that_dies_is_replaced(images, ten, capfd):
    with batches_of(images, workers=1, prefetch=1) as batches:
        got = [next(batches)]
        for child in workers_of_ours():
            os.kill(child.pid, signal.SIGKILL)
            child.join()
        got += itertools.islice(batches, 4)
    assert_same(got, ten[:5])
    assert "A data worker process died; new ones go on from batch" in capfd.readouterr().err


def test_workers_that_keep_dying_are_an_error(images, monkeypatch):
    monkeypatch.setattr(pipeline, "_start_worker", leave_at_once)
    with (
        batches_of(images, workers=1) as batches,
        pytest.raises(UserError, match=r"worker process died 4 times at one batch"),
    ):
        next(batches)


def leave_at_once(index, count):
    os._exit(1)


def test_ended_workers_leave_no_semaphores(images):
    gc.collect()
    before = len(multiprocessing.util._finalizer_registry)
    with batches_of(images, workers=1) as batches:
        next(batches)
        assert len(multiprocessing.util._finalizer_registry) > before
    assert len(multiprocessing.util._finalizer_registry) == before


class Endless(os.PathLike):
    """The path of a file whose reading never ends, as on a network drive that is gone."""

    def __fspath__(self):
        time.sleep(1000)


def test_an_image_on_which_reading_hangs_is_left_out(images, monkeypatch, capfd):
    monkeypatch.setattr(pipeline.hanging_images, "__defaults__", (3,))
    monkeypatch.setattr(pipeline, "_START_S", 10)
    paths = (*images.paths[:4], Endless(), *images.paths[5:])
    spoilt = ImageSet("spoilt", images.ids, paths)
    got = take(3, spoilt, workers=1, batch_size=COUNT, timeout_s=10)
    for batch in got:
        stood_in = [
            (u, i) for u, i in zip(batch["unreadable"], batch["index"], strict=True) if u >= 0
        ]
        assert stood_in == [(4, 5)]
    assert "reading it hangs. It is left out" in capfd.readouterr().err
    # The same as of an image that cannot be read for another reason.
    gone = ImageSet("gone", images.ids, (*images.paths[:4], "gone.png", *images.paths[5:]))
    assert_same(got, take(3, gone, batch_size=COUNT))


def test_workers_that_hang_by_themselves_are_an_error(images):
    with batches_of(images, workers=1, timeout_s=5) as batches:
        next(batches)
        for child in workers_of_ours():
            os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(UserError, match=r"gave no batch for 5 seconds, though each"):
            for _ in range(5):
                next(batches)


def test_workers_leave_with_a_parent_that_is_killed(images, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        """
import json, multiprocessing, os, signal, sys
from rdcd_jax.augment.policies import make_view
from rdcd_jax.images.sources import find_images
from rdcd_jax.training.pipeline import Views, Workers, make_batches

if __name__ == "__main__":
    images = find_images(sys.argv[1])
    views = Views(make_view("SIMCLR", 16))
    batches = make_batches(images, views, batch_size=4, seed=0, workers=Workers(1))
    next(batches)
    print(json.dumps([c.pid for c in multiprocessing.active_children()]), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    root = str(pathlib.Path(pipeline.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen(
        [sys.executable, str(script), images.source],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as run:
        pids = json.loads(run.stdout.readline())
        try:
            # The workers share this pipe: it closes when the last of them is gone.
            assert run.communicate(timeout=30)[0] == b""
            assert run.returncode == -signal.SIGKILL and pids
        except subprocess.TimeoutExpired:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            raise


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 12}, "11 images do not fill a batch of 12"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 5, "host": (0, 2)}, "batch_size=5 must be a positive multiple of .* 2"),
        ({"host": (2, 2)}, "2 is not within 2 hosts"),
        ({"views": 3}, "views=3"),
        ({"seed": -1}, "seed=-1"),
        ({"start_step": -1}, "start_step=-1"),
        ({"policy": "SIMCLRR"}, "SIMCLRR"),
        ({"image_size": 0}, "image_size=0"),
        ({"workers": -1}, "workers=-1"),
        ({"prefetch": 0}, "prefetch=0"),
    ],
)
def test_mistakes_are_refused_by_name(images, options, says):
    with pytest.raises(UserError, match=says):
        take(1, images, **options)

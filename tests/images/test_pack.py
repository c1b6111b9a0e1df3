"""Packing: the same shards however often it is ended, and clear words about what cannot be."""

import json
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
from toy import make_images

from rdcd_jax.cli.main import main
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.locks import held
from rdcd_jax.images import pack
from rdcd_jax.images.pack import pack_images
from rdcd_jax.images.sources import find_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty images, of which two cannot be read."""
    folder = make_images(tmp_path_factory.mktemp("pack") / "pictures", 20)
    (folder / "T00004.jpg").write_bytes(b"no picture")
    whole = (folder / "T00015.jpg").read_bytes()
    (folder / "T00015.jpg").write_bytes(whole[:-60])
    return folder


@pytest.fixture(scope="module")
def packed(folder):
    pack_images(folder, folder.parent / "packed", shards=5)
    return folder.parent / "packed"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_unreadable_images_are_left_out_and_listed(folder, packed):
    ids = find_images(packed).ids
    assert ids == tuple(id_ for id_ in find_images(folder).ids if id_ not in ("T00004", "T00015"))
    lines = (packed / "unreadable.txt").read_text().splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        str(folder / "T00004.jpg"),
        str(folder / "T00015.jpg"),
    ]
    assert "not an image" in lines[0] and "truncated" in lines[1]


def test_processes_make_the_same_shards_and_report_how_far_they_are(folder, packed, tmp_path):
    stored = []
    done = pack_images(
        folder, tmp_path / "out", shards=5, workers=2, on_progress=lambda *each: stored.append(each)
    )
    assert (done.images, done.shards, len(done.unreadable)) == (18, 5, 2)
    assert contents(tmp_path / "out") == contents(packed)
    assert stored[-1] == (20, 20) and stored == sorted(set(stored))


def test_an_ended_pack_goes_on_from_sound_shards(folder, packed, tmp_path, monkeypatch):
    out = shutil.copytree(packed, tmp_path / "out")
    shards = sorted(out.glob("*.array_record"))
    shards[1].unlink()  # never made
    shards[2].write_bytes(shards[2].read_bytes()[:-5])  # cut short
    flipped = bytearray(shards[3].read_bytes())
    flipped[-1] ^= 1
    shards[3].write_bytes(flipped)
    pathlib.Path(f"{shards[4]}.json").unlink()  # ended before its index
    (out / ".pictures-00001-of-00005-abc.array_record").write_bytes(b"half")
    (out / "unreadable.txt").unlink()
    made = []
    real = pack._write_records
    monkeypatch.setattr(
        pack, "_write_records", lambda path, records: made.append(1) or real(path, records)
    )
    kept = shards[0].stat().st_mtime_ns
    pack_images(folder, out, shards=5)
    assert len(made) == 4 and shards[0].stat().st_mtime_ns == kept
    assert contents(out) == contents(packed)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_what_could_not_be_read_is_tried_again(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "a")
    assert len(pack_images(tmp_path / "a", tmp_path / "out", shards=5).unreadable) == 2
    untouched = (tmp_path / "out" / "pictures-00000-of-00005.array_record").stat().st_mtime_ns
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a" / "T00004.jpg")
    again = pack_images(tmp_path / "a", tmp_path / "out", shards=5)
    assert again.images == 19 and len(again.unreadable) == 1
    assert "T00004" in find_images(tmp_path / "out").ids
    after = (tmp_path / "out" / "pictures-00000-of-00005.array_record").stat().st_mtime_ns
    assert after == untouched


def test_a_file_that_has_changed_is_packed_again(tmp_path):
    folder, out = make_images(tmp_path / "a", 4), tmp_path / "packed"
    pack_images(folder, out, shards=2)
    before = {shard.name: shard.stat().st_mtime_ns for shard in out.glob("*.array_record")}
    assert len(before) == 2
    make_images(tmp_path / "new", 1, seed=9)
    shutil.move(tmp_path / "new" / "T00000.jpg", folder / "T00000.jpg")
    pack_images(folder, out, shards=2)
    assert find_images(out).read(0) == (folder / "T00000.jpg").read_bytes()
    same = [
        shard.stat().st_mtime_ns == before[shard.name]
        for shard in sorted(out.glob("*.array_record"))
    ]
    assert sorted(same) == [False, True]


def test_images_are_known_by_their_content_and_others_are_told_of(tmp_path, capsys):
    folder, out = make_images(tmp_path / "a", 2), tmp_path / "packed"
    (folder / "T00001.jpg").rename(folder / "no extension")
    (folder / "raw.cr2").write_bytes(b"raw")
    words = ["data", "pack", str(folder)]
    assert main([*words, str(out)]) == 0
    stored = capsys.readouterr()
    assert "holds 2 images" in stored.out and "not read as images: 1 .cr2" in stored.err
    assert main([*words, str(out), "--strict"]) == 1
    assert main([*words, str(folder / "packed")]) == 1
    assert "packed would be found among the images of" in capsys.readouterr().err


def test_two_packs_into_one_folder_are_refused(folder, tmp_path):
    (tmp_path / "out").mkdir()
    says = "another process is packing images into it"
    with held(tmp_path / "out", ""), pytest.raises(UserError, match=says):
        pack_images(folder, tmp_path / "out")


def test_a_killed_pack_goes_on(tmp_path):
    folder = make_images(tmp_path / "pictures", 60, size=480)
    words = [sys.executable, "-m", "rdcd_jax", "data", "pack", str(folder)]
    root = str(pathlib.Path(pack.__file__).parents[2])
    options = ["--shards=12", "--short-side=100", "--workers=2"]
    environment = {**os.environ, "PYTHONPATH": root}
    out = tmp_path / "out"
    with subprocess.Popen(
        [*words, str(out), *options], env=environment, stderr=subprocess.DEVNULL
    ) as run:
        limit = time.monotonic() + 30
        while not list(out.glob("pictures-*.array_record")) and time.monotonic() < limit:
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
    time.sleep(0.5)  # its workers leave with it
    before = {path: path.stat().st_mtime_ns for path in out.glob("pictures-*.array_record")}
    assert before and not (out / "unreadable.txt").exists()
    done = pack_images(folder, out, shards=12, short_side=100)
    assert done.images == 60
    pack_images(folder, tmp_path / "undisturbed", shards=12, short_side=100)
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_images_are_reduced_and_never_enlarged(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    wave = np.sin(np.linspace(0, 6, 300))[:, None, None] * np.ones((1, 400, 3))
    large = Image.fromarray((127 + 120 * wave).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    large.save(folder / "large.png")
    large.save(folder / "lying.jpg", exif=exif, quality=95)
    large.resize((40, 30)).save(folder / "small.png")
    large.resize((40, 30)).save(folder / "tiny.jpg")
    pack_images(folder, tmp_path / "out", short_side=100, quality=90)
    images = find_images(tmp_path / "out")
    size = {id_: images.decode(position).size for position, id_ in enumerate(images.ids)}
    assert size == {"large": (133, 100), "lying": (100, 133), "small": (40, 30), "tiny": (40, 30)}
    stored = {id_: images.read(position) for position, id_ in enumerate(images.ids)}
    assert all(content.startswith(b"\xff\xd8\xff") for content in stored.values())
    assert stored["tiny"] == (folder / "tiny.jpg").read_bytes()
    got = np.asarray(images.decode(0), np.float32)
    want = np.asarray(large.resize((133, 100), Image.Resampling.BILINEAR), np.float32)
    assert abs(got - want).mean() < 1.5


def test_what_can_be_seen_in_several_ways_stays_as_it_is(tmp_path):
    folder = make_images(tmp_path / "pictures", 1, size=120)
    photo = Image.open(folder / "T00000.jpg")
    mask = Image.new("L", photo.size)
    mask.paste(255, (0, 0, 60, 120))
    photo.save(folder / "opaque.png")
    photo.putalpha(255)
    photo.save(folder / "screenshot.png")
    photo.putalpha(mask)
    photo.save(folder / "transparent.png")
    photo.save(folder / "animated.gif", save_all=True, append_images=[photo.rotate(90)])
    Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 16).save(folder / "deep.png")
    pack_images(folder, tmp_path / "out", short_side=60)
    images = find_images(tmp_path / "out")
    size = {id_: images.decode(position).size for position, id_ in enumerate(images.ids)}
    reduced = {id_ for id_, (width, _) in size.items() if width == 60}
    assert reduced == {"T00000", "opaque", "screenshot"}
    for name in ("transparent.png", "animated.gif", "deep.png"):
        position = images.ids.index(name.partition(".")[0])
        assert images.read(position) == (folder / name).read_bytes()


def test_images_in_memory_are_packed(tmp_path):
    image = Image.radial_gradient("L").resize((64, 48))
    pack_images([image, np.asarray(image.convert("RGB"))], tmp_path / "out")
    found = find_images(tmp_path / "out")
    for position in range(2):
        np.testing.assert_array_equal(found.decode(position), image.convert("RGB"))


def test_records_are_packed_again(packed, tmp_path):
    pack_images(packed, tmp_path / "out", short_side=24, shards=2)
    images = find_images(tmp_path / "out")
    assert images.ids == find_images(packed).ids and images.decode(0).size == (24, 24)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shards": 4}, "begun with shards = 5, and this is 4"),
        ({"shards": 5, "short_side": 24}, "begun with short_side = None, and this is 24"),
    ],
)
def test_other_settings_are_refused(folder, packed, options, says):
    before = contents(packed)
    with pytest.raises(UserError, match=says):
        pack_images(folder, packed, **options)
    assert contents(packed) == before


def test_another_source_is_refused(folder, packed, tmp_path):
    before = contents(packed)
    other = shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(UserError, match=r"begun with source = .*pictures'.* this is .*other'"):
        pack_images(other, packed, shards=5)
    shutil.copy(folder / "T00000.jpg", folder / "more.jpg")
    try:
        with pytest.raises(UserError, match="there were 20 images, and now there are 21"):
            pack_images(folder, packed, shards=5)
    finally:
        (folder / "more.jpg").unlink()
    assert contents(packed) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    with pytest.raises(UserError, match="mine exists and is no folder of packed images"):
        pack_images(folder, tmp_path / "mine")
    assert contents(tmp_path / "mine") == {"diary.txt": b"dear diary"}


def test_a_damaged_plan_is_refused(folder, tmp_path):
    (tmp_path / "pack.json").write_text("{")
    with pytest.raises(UserError, match=r"pack\.json is damaged"):
        pack_images(folder, tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shards": 21}, "21 shards are too many for 20 images"),
        ({"shards": 0}, "shards=0"),
        ({"shard_size": -1}, "shard_size=-1"),
        ({"shards": 1, "shard_size": 1}, "not both"),
        ({"quality": 90}, "give short_side"),
        ({"quality": 101, "short_side": 100}, "quality=101"),
        ({"short_side": 0}, "short_side=0"),
        ({"workers": 0}, "workers=0"),
    ],
)
def test_mistakes_are_refused_by_name(folder, tmp_path, options, says):
    with pytest.raises(UserError, match=says):
        pack_images(folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 1 images can be read; the first: .*a\.jpg"):
        pack_images(tmp_path / "set", tmp_path / "out")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_leaves_whole_shards_and_a_sentence(folder, packed, tmp_path, monkeypatch):
    real = pack._write_records
    written = []

    def write(path, records):
        written.append(path)
        # The third goes to a device that is always full.
        real("/dev/full" if len(written) == 3 else path, records)

    monkeypatch.setattr(pack, "_write_records", write)
    with pytest.raises(UserError, match=r"out: the disk is full; no half-written shard"):
        pack_images(folder, tmp_path / "out", shards=5)
    there = contents(tmp_path / "out")
    assert len(there) == 1 + 2 * 2
    assert there.items() <= contents(packed).items()
    pack_images(folder, tmp_path / "out", shards=5)
    assert contents(tmp_path / "out") == contents(packed)


def test_the_command_packs(folder, tmp_path, capsys):
    assert main(["data", "pack", str(folder), str(tmp_path / "out"), "--shard-size=7"]) == 0
    said = capsys.readouterr()
    assert "out holds 18 images; shards: 3." in said.out
    assert "2 images could not be read" in said.err and "unreadable.txt" in said.err
    assert json.loads((tmp_path / "out" / "pack.json").read_text())["shards"] == 3
    assert main(["data", "pack", str(folder), str(tmp_path / "out")]) == 1
    assert "begun with shards = 3" in capsys.readouterr().err

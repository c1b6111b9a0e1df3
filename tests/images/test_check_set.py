import json
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image
from test_perceptual import image

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_json
from rdcd_jax.images.check_set import Group, Overlap, Spread, check_images, report_text
from rdcd_jax.images.sources import find_images


@pytest.fixture
def sets(tmp_path):
    """A training set with every sort of duplicate, and references and queries that it overlaps."""
    train, references, queries = (tmp_path / name for name in ("train", "references", "queries"))
    for folder in (train, references, queries):
        folder.mkdir()
    for seed in range(6):
        image(seed, (80 + seed, 60)).save(train / f"T{seed}.png")
    (train / "T6.png").write_bytes((train / "T0.png").read_bytes())
    image(1, (81, 60)).save(train / "T7.bmp")
    image(2, (200, 160)).save(train / "T8.jpg", quality=60)
    image(2, (50, 50)).save(train / "T9.jpg", quality=90)
    (train / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    (train / "empty.jpg").write_bytes(b"")
    image(100).point(lambda value: 77).save(train / "flat1.png")
    image(100).point(lambda value: 78).save(train / "flat2.png")
    for seed in range(3):
        image(10 + seed).save(references / f"R{seed}.png")
    (references / "R3.png").write_bytes((train / "T3.png").read_bytes())
    image(1, (81, 60)).save(references / "R4.bmp", "TIFF")
    image(4, (300, 300)).save(queries / "Q0.jpg", quality=30)
    (queries / "Q1.png").write_bytes(b"")
    return train, references, queries


@pytest.fixture
def report(sets):
    train, *against = sets
    return check_images(train, against=against, workers=1)


def test_counts_and_sizes(report, sets):
    assert (report.images, report.readable, report.without_structure) == (14, 12, 2)
    assert report.formats == {"PNG": 9, "JPEG": 2, "BMP": 1}
    assert report.sizes["width"] == Spread(50, 82.5, 320)
    assert report.sizes["height"] == Spread(50, 60, 240)
    assert report.sizes["megapixels"].max == 320 * 240 / 1e6
    files = [path.stat().st_size for path in sets[0].iterdir() if path.stem[0] in "Tf"]
    assert report.total_bytes == sum(files)
    assert report.sizes["file_bytes"].max == max(files)
    assert list(report.against.values()) == [5, 2]


def test_unreadable_images_are_reported_with_their_set(report, sets):
    assert [(each.source, each.id) for each in report.unreadable] == [
        (str(sets[0]), "broken"),
        (str(sets[0]), "empty"),
        (str(sets[2]), "Q1"),
    ]
    assert "broken.jpg: " in report.unreadable[0].reason


def test_duplicates_within_the_set(report):
    assert report.groups == (
        Group("bytes", ("T0", "T6")),
        Group("pixels", ("T1", "T7")),
        Group("near", ("T2", "T8", "T9")),
    )


def test_overlaps_with_other_sets(report, sets):
    _, references, queries = map(str, sets)
    assert report.overlaps[:3] == (
        Overlap("pixels", "T1", references, "R4", 0),
        Overlap("bytes", "T3", references, "R3", 0),
        Overlap("near", "T4", queries, "Q0", report.overlaps[2].distance),
    )
    assert report.overlaps[2].distance <= 6
    assert report.overlaps[3:] == (Overlap("pixels", "T7", references, "R4", 0),)


def test_processes_find_the_same(report, sets):
    stored = []
    train, *against = sets
    again = check_images(
        find_images(train),
        against=against,
        workers=2,
        on_progress=lambda *each: stored.append(each),
    )
    assert again == report
    assert stored == [(str(train), 14, 14), (str(sets[1]), 5, 5), (str(sets[2]), 2, 2)]


def test_text_and_json(report, sets, tmp_path):
    text = report_text(report, lines=1)
    assert f"{sets[0]}: 14 images, 12 readable (9 PNG, 2 JPEG, 1 BMP)" in text
    assert "unreadable: 3\n" in text and "  and 2 more\n" in text
    assert "groups of same files: 1\n  T0, T6\n" in text
    assert f"same files also in {sets[1]}: 1\n  T3 is R3\n" in text
    assert f"look-alikes also in {sets[2]}: 1\n  T4 is Q0 (" in text
    write_json(tmp_path / "report.json", report.as_json())
    read = json.loads((tmp_path / "report.json").read_text())
    assert read["groups"][2] == {"kind": "near", "ids": ["T2", "T8", "T9"]}
    assert read["sizes"]["width"] == {"min": 50, "median": 82.5, "max": 320}


def test_nothing_readable(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no")
    report = check_images(tmp_path, workers=1)
    assert (report.readable, report.sizes, report.groups) == (0, {}, ())
    assert "1 images, 0 readable (none)" in report_text(report)


def test_a_later_frame_that_is_damaged_leaves_an_animation_readable(tmp_path):
    first, second = (Image.effect_noise((64, 64), 90).convert("RGB") for _ in range(2))
    first.save(tmp_path / "whole.gif", save_all=True, append_images=[second])
    content = (tmp_path / "whole.gif").read_bytes()
    (tmp_path / "cut.gif").write_bytes(content[: len(content) - 1000])
    found = check_images(tmp_path, workers=1)
    assert (found.readable, found.unreadable) == (2, ())
    # The same first frame, but not the same file.
    assert [group.kind for group in found.groups] == ["near"]


def test_a_set_given_twice_is_refused(sets):
    with pytest.raises(UserError, match="train is given twice"):
        check_images(sets[0], against=[sets[1], sets[0]])


def test_look_alikes_are_not_joined_by_an_image_of_another_set(tmp_path, monkeypatch):
    """A and B are both near C, which only the other set holds, and not near each other."""
    hashes = {80: 0b1111, 81: 0b1111 << 20, 82: 0}
    thumbnail = image(0).convert("L").resize((8, 8)).tobytes()
    monkeypatch.setattr(
        "rdcd_jax.images.check_set.perceptual_hash",
        lambda image: (hashes[image.width], list(thumbnail)),
    )
    for name, width in (("own/A", 80), ("own/B", 81), ("other/C", 82)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image(width, (width, 60)).save(tmp_path / f"{name}.png")
    report = check_images(tmp_path / "own", against=[tmp_path / "other"], workers=1)
    assert report.groups == ()
    assert [(each.id, each.distance) for each in report.overlaps] == [("A", 4), ("B", 4)]


KILLING = """
import os, signal, sys
from rdcd_jax.images import check_set
def die(images):
    os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    check_set._measure = die
    try:
        check_set.check_images(sys.argv[1], workers=2)
    except check_set.UserError as error:
        print(error)
else:
    check_set._measure = die
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
def test_a_killed_process_is_reported(sets, tmp_path):
    (tmp_path / "kill.py").write_text(KILLING)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "kill.py"), str(sets[0])],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "use fewer workers" in done.stdout, done.stderr

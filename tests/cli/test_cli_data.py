"""`rdcd-jax data`: pack, prepare, check and preview."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from toy import make_images

from rdcd_jax.cli.main import main
from rdcd_jax.images.sources import find_images

POLICY = "hflip 0.5; resized_crop 1 scale=0.3,1 ratio=0.75,1.33"


@pytest.fixture
def images(tmp_path):
    folder = make_images(tmp_path / "pictures", 5)
    (folder / "broken.jpg").write_bytes(b"broken")
    return folder


@pytest.fixture
def disc(tmp_path):
    root = tmp_path / "disc"
    make_images(root / "queries", 3, prefix="Q", seed=1)
    make_images(root / "references", 4, prefix="R", seed=1)
    (root / "ground_truth.csv").write_text("Q00000,R00000\nQ00001,\n")
    return root


def run(capsys, *arguments):
    """What a successful call says on stdout and stderr."""
    assert main(["data", *map(str, arguments)]) == 0
    return capsys.readouterr()


def sentence(capsys, *arguments):
    """The last line of a call that fails."""
    assert main(["data", *map(str, arguments)]) == 1
    return capsys.readouterr().err.splitlines()[-1]


def contents(source):
    images = find_images(source)
    return {id_: images.read(position) for position, id_ in enumerate(images.ids)}


@pytest.mark.parametrize("action", ["pack", "prepare", "check", "preview"])
def test_help_has_an_example(action, capsys):
    with pytest.raises(SystemExit) as left:
        main(["data", action, "--help"])
    assert left.value.code == 0
    assert f"example:\n  rdcd-jax data {action} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "ACTION"),
        (["fly"], "fly"),
        (["check", "x", "--wings=2"], "--wings=2; see `rdcd-jax data check --help`"),
        (["check", "x", "--workers=0"], "workers"),
        (["prepare", "disc2021"], "--manual-dir"),
        (["preview", "x"], "--out"),
        (["pack", "x"], "out"),
    ],
)
def test_usage_errors_exit_with_2(arguments, says, capsys):
    with pytest.raises(SystemExit) as left:
        main(["data", *arguments])
    assert left.value.code == 2
    assert says in capsys.readouterr().err


def test_packing(images, tmp_path, capsys):
    out = tmp_path / "packed"
    stored = run(capsys, "pack", images, out, "--shards=2", "--workers=1")
    assert stored.out == f"{out} holds 5 images; shards: 2.\n"
    assert f"1 images could not be read and were left out; {out}/unreadable.txt" in stored.err
    (images / "broken.jpg").unlink()
    assert contents(out) == contents(images)


def test_a_benchmark_is_prepared_once_and_then_read(disc, tmp_path, capsys, monkeypatch):
    data_dir = tmp_path / "tfds"
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    monkeypatch.setenv("RDCD_JAX_CACHE", str(tmp_path / "cache"))
    source = "tfds:disc2021/queries"
    stored = sentence(capsys, "check", source)
    assert f"not prepared in {data_dir}" in stored
    assert "`rdcd-jax data prepare disc2021 --manual-dir=" in stored
    arguments = ["prepare", "disc2021", f"--manual-dir={disc}"]
    stored = run(capsys, *arguments, f"--data-dir={data_dir}")
    assert stored.out.splitlines() == [
        f"disc2021 is prepared in {data_dir}/disc2021/1.0.0; images: references 4, queries 3.",
        f"Give it as tfds:disc2021/references, with TFDS_DATA_DIR={data_dir}.",
    ]
    assert "queries: 3/3" in stored.err
    assert contents(source) == contents(disc / "queries")
    stored = run(capsys, *arguments)
    assert "was there already" in stored.out and "TFDS_DATA_DIR" not in stored.out


def test_benchmarks_that_cannot_be_prepared(disc, tmp_path, capsys):
    def prepare(name, manual_dir, *more):
        return sentence(
            capsys,
            "prepare",
            name,
            f"--manual-dir={manual_dir}",
            f"--data-dir={tmp_path / 'tfds'}",
            *more,
        )

    assert "no data set 'nope': use disc2021, ndec, copydays" in prepare("nope", disc)
    assert "/no/such: is not a folder. Unpack NDEC" in prepare("ndec", "/no/such")
    assert "holds no folder of originals" in prepare("copydays", disc)
    files = tmp_path / "files"
    shutil.move(disc / "references", files)
    run(capsys, "pack", files, disc / "references", "--workers=1")
    assert f"{disc}/references: holds packed images" in prepare("disc2021", disc)


def test_checking_against_other_sets(images, tmp_path, capsys):
    other, out = tmp_path / "other", tmp_path / "new" / "report.json"
    other.mkdir()
    shutil.copy(images / "T00003.jpg", other / "Q00000.jpg")
    stored = run(
        capsys, "check", images, f"--against={other}", "--workers=1", f"--out={out}", "--ids=path"
    ).out
    assert f"{images}: 6 images, 5 readable (5 JPEG)" in stored
    assert "unreadable: 1" in stored and "broken.jpg" in stored
    assert f"same files also in {other}: 1\n  T00003.jpg is Q00000.jpg\n" in stored
    report = json.loads(out.read_text())
    assert report["against"] == {str(other): 1}
    assert [each["id"] for each in report["overlaps"]] == ["T00003.jpg"]


def test_sets_that_cannot_be_checked(images, tmp_path, capsys):
    check = ["check", images, "--workers=1"]
    assert "/no/such: there is no such folder" in sentence(capsys, *check, "--against=/no/such")
    assert "is given twice" in sentence(capsys, *check, f"--against={images}")
    # Reported before the images are read.
    stored = sentence(capsys, *check, f"--out={tmp_path}")
    assert stored == f"rdcd-jax: {tmp_path}: is a folder; give the name of a file."
    (tmp_path / "file").touch()
    stored = sentence(capsys, *check, f"--out={tmp_path / 'file' / 'report.json'}")
    assert str(tmp_path / "file") in stored


def test_previews(images, tmp_path, capsys):
    packed = tmp_path / "packed"
    run(capsys, "pack", images, packed, "--workers=1")
    options = [f"--policy={POLICY}", "--image-size=32", "--rows=2", "--views=2", "--seed=3"]
    sheets = []
    # The files' unreadable image is the last, so the rows are the same.
    for source, out in [(images, tmp_path / "a.png"), (packed, tmp_path / "b.png")]:
        assert str(out) in run(capsys, "preview", source, f"--out={out}", *options).out
        sheets.append(np.asarray(Image.open(out)))
    np.testing.assert_array_equal(*sheets)


def test_a_preview_tells_equal_names_apart(tmp_path, capsys):
    for year in ("2023", "2024"):
        make_images(tmp_path / "set" / year, 1)
    options = [f"--policy={POLICY}", "--image-size=32", f"--out={tmp_path / 'a.png'}"]
    assert "a.png" in run(capsys, "preview", tmp_path / "set", *options).out


def test_previews_that_fail(images, tmp_path, capsys):
    preview, out = ["preview", images], f"--out={tmp_path / 'a.png'}"
    assert "Unknown policy 'NOPE'" in sentence(capsys, *preview, out, "--policy=NOPE")
    assert ".png, .jpg" in sentence(capsys, *preview, "--out=a.gif", f"--policy={POLICY}")
    (tmp_path / "a.png").mkdir()
    assert "a.png: is a folder" in sentence(capsys, *preview, out, f"--policy={POLICY}")
    assert "/no/such" in sentence(capsys, "preview", "/no/such", out)

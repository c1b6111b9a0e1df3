"""`rdcd-jax data`: pack, prepare, check and preview."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from toy import make_pictures

from rdcd_jax.cli.main import main
from rdcd_jax.images.sources import find_images

POLICY = "hflip 0.5; resized_crop 1 scale=0.3,1 ratio=0.75,1.33"


@pytest.fixture
def pictures(tmp_path):
    folder = make_pictures(tmp_path / "pictures", 5)
    (folder / "broken.jpg").write_bytes(b"broken")
    return folder


@pytest.fixture
def disc(tmp_path):
    root = tmp_path / "disc"
    make_pictures(root / "queries", 3, prefix="Q", seed=1)
    make_pictures(root / "references", 4, prefix="R", seed=1)
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
    return {id_: images.read(place) for place, id_ in enumerate(images.ids)}


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


def test_packing(pictures, tmp_path, capsys):
    out = tmp_path / "packed"
    told = run(capsys, "pack", pictures, out, "--shards=2", "--workers=1")
    assert told.out == f"{out} holds 5 pictures; shards: 2.\n"
    assert f"1 pictures could not be read and were left out; {out}/unreadable.txt" in told.err
    (pictures / "broken.jpg").unlink()
    assert contents(out) == contents(pictures)


def test_a_benchmark_is_prepared_once_and_then_read(disc, tmp_path, capsys, monkeypatch):
    data_dir = tmp_path / "tfds"
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    monkeypatch.setenv("RDCD_JAX_CACHE", str(tmp_path / "cache"))
    source = "tfds:disc2021/queries"
    told = sentence(capsys, "check", source)
    assert f"not prepared in {data_dir}" in told
    assert "`rdcd-jax data prepare disc2021 --manual-dir=" in told
    arguments = ["prepare", "disc2021", f"--manual-dir={disc}"]
    told = run(capsys, *arguments, f"--data-dir={data_dir}")
    assert told.out.splitlines() == [
        f"disc2021 is prepared in {data_dir}/disc2021/1.0.0; pictures: references 4, queries 3.",
        f"Give it as tfds:disc2021/references, with TFDS_DATA_DIR={data_dir}.",
    ]
    assert "queries: 3/3" in told.err
    assert contents(source) == contents(disc / "queries")
    told = run(capsys, *arguments)
    assert "was there already" in told.out and "TFDS_DATA_DIR" not in told.out


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
    assert f"{disc}/references: holds packed pictures" in prepare("disc2021", disc)


def test_checking_against_other_sets(pictures, tmp_path, capsys):
    other, out = tmp_path / "other", tmp_path / "new" / "report.json"
    other.mkdir()
    shutil.copy(pictures / "T00003.jpg", other / "Q00000.jpg")
    told = run(
        capsys, "check", pictures, f"--against={other}", "--workers=1", f"--out={out}", "--ids=path"
    ).out
    assert f"{pictures}: 6 pictures, 5 readable (5 JPEG)" in told
    assert "unreadable: 1" in told and "broken.jpg" in told
    assert f"same files also in {other}: 1\n  T00003.jpg is Q00000.jpg\n" in told
    report = json.loads(out.read_text())
    assert report["against"] == {str(other): 1}
    assert [each["id"] for each in report["overlaps"]] == ["T00003.jpg"]


def test_sets_that_cannot_be_checked(pictures, tmp_path, capsys):
    check = ["check", pictures, "--workers=1"]
    assert "/no/such: there is no such folder" in sentence(capsys, *check, "--against=/no/such")
    assert "is given twice" in sentence(capsys, *check, f"--against={pictures}")
    # Told before the pictures are read.
    told = sentence(capsys, *check, f"--out={tmp_path}")
    assert told == f"rdcd-jax: {tmp_path}: is a folder; give the name of a file."
    (tmp_path / "file").touch()
    told = sentence(capsys, *check, f"--out={tmp_path / 'file' / 'report.json'}")
    assert str(tmp_path / "file") in told


def test_previews(pictures, tmp_path, capsys):
    packed = tmp_path / "packed"
    run(capsys, "pack", pictures, packed, "--workers=1")
    options = [f"--policy={POLICY}", "--image-size=32", "--rows=2", "--views=2", "--seed=3"]
    sheets = []
    # The files' unreadable picture is the last, so the rows are the same.
    for source, out in [(pictures, tmp_path / "a.png"), (packed, tmp_path / "b.png")]:
        assert str(out) in run(capsys, "preview", source, f"--out={out}", *options).out
        sheets.append(np.asarray(Image.open(out)))
    np.testing.assert_array_equal(*sheets)


def test_previews_that_fail(pictures, tmp_path, capsys):
    preview, out = ["preview", pictures], f"--out={tmp_path / 'a.png'}"
    assert "Unknown policy 'NOPE'" in sentence(capsys, *preview, out, "--policy=NOPE")
    assert ".png, .jpg" in sentence(capsys, *preview, "--out=a.gif", f"--policy={POLICY}")
    (tmp_path / "a.png").mkdir()
    assert "a.png: is a folder" in sentence(capsys, *preview, out, f"--policy={POLICY}")
    assert "/no/such" in sentence(capsys, "preview", "/no/such", out)

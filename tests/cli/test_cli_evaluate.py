"""`rdcd-jax evaluate`: from images and from descriptor files to figures, and what it refuses."""

import csv
import json

import jax
import numpy as np
import pytest
from toy import make_features, make_images, options

from rdcd_jax.cli.main import main
from rdcd_jax.embedding.descriptors import Descriptors, read_descriptors, write_descriptors


@pytest.fixture
def disc(tmp_path):
    """Queries that equal the first references, one distractor, and training images."""
    root = tmp_path / "disc"
    make_images(root / "queries", 5, prefix="Q", seed=1)
    make_images(root / "references", 8, prefix="R", seed=1)
    make_images(root / "train", 20, prefix="T", seed=2)
    lines = [f"Q{i:05d},R{i:05d}\n" for i in range(4)]
    (root / "ground_truth.csv").write_text("query_id,reference_id\n" + "".join(lines) + "Q00004,\n")
    return root


@pytest.fixture
def files(tmp_path):
    """Made-up descriptor files and their ground truth, as arguments."""
    make_images(tmp_path / "q", 5, prefix="Q", size=12)
    make_images(tmp_path / "r", 8, prefix="R", size=12)
    (tmp_path / "truth.csv").write_text("Q00000,R00000\nQ00001,R00001\n")
    return {
        "queries": make_features(tmp_path / "q.npz", tmp_path / "q"),
        "references": make_features(tmp_path / "r.npz", tmp_path / "r"),
        "ground-truth": tmp_path / "truth.csv",
        "out": tmp_path / "out",
    }


def test_arguments_of_evaluate_that_do_not_belong_together(files, usage_error):
    stored = usage_error("evaluate", "disc", *options(**files), "--model=x")
    assert "either --model and --data, or --queries, --references, --ground-truth" in stored


def test_foreign_text_stays_on_one_line(files, fails):
    files["ground-truth"].write_text('"Q00\n00\x1b[2J",R00000\n' + "Q" * 100_000 + ",R00000\n")
    stored = fails("evaluate", "disc", *options(**files))
    assert "Q00\\n00\\x1b[2J" in stored and len(stored) < 1700


def test_too_little_memory_is_reported_in_a_sentence(files, monkeypatch, fails):
    def failing_by(error):
        def without_memory(*arguments, **more):
            raise error

        monkeypatch.setattr("rdcd_jax.benchmarks.disc_runs.evaluate_disc_files", without_memory)

    failing_by(MemoryError("Unable to allocate 9 TiB"))
    stored = fails("evaluate", "disc", *options(**files))
    assert "There is not enough memory (Unable to allocate 9 TiB)" in stored
    failing_by(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating"))
    stored = fails("evaluate", "disc", *options(**files))
    assert "There is not enough memory (on the device)" in stored
    failing_by(jax.errors.JaxRuntimeError("INTERNAL: a bug"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        main(["evaluate", "disc", *options(**files)])


def table(folder):
    with (folder / "disc_metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_evaluation_of_images_and_of_their_descriptors(student, disc, tmp_path, capsys):
    out = tmp_path / "out"
    chosen = options(codecs="Flat;PCAW4,L2norm,Flat")
    assert main(["evaluate", "disc", *options(model=student, data=disc, out=out), *chosen]) == 0
    assert "PCAW4,L2norm,Flat" in capsys.readouterr().out
    rows = table(out)
    assert [(row["codec"], row["score_norm"]) for row in rows] == [
        (codec, norm) for codec in ("Flat", "PCAW4,L2norm,Flat") for norm in ("None", "1.0[0,2]")
    ]
    assert list(rows[0]) == ["codec", "score_norm", "uAP", "accuracy-at-1", "recall-at-p90"]
    assert float(rows[0]["accuracy-at-1"]) == 1.0
    kept = out / "descriptors"
    again = options(
        queries=kept / "queries.npz",
        references=kept / "references.npz",
        training=kept / "training.npz",
        out=tmp_path / "again",
    )
    truth = f"--ground-truth={disc / 'ground_truth.csv'}"
    assert main(["evaluate", "disc", *again, truth, *chosen]) == 0
    assert table(tmp_path / "again") == rows
    for name in ("metrics.json", "predictions.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_figures_that_do_not_exist_are_left_empty(files, capsys):
    assert main(["evaluate", "disc", *options(**files)]) == 0
    assert table(files["out"])[0]["recall-at-p90"] in ("", "0.5", "1.0")
    files["ground-truth"].write_text("Q00000,R00007\n")
    queries = read_descriptors(files["queries"])
    rows = np.eye(8, 16, dtype=np.float32)
    ids = np.asarray([f"R{i:05d}" for i in range(8)])
    write_descriptors(files["references"], Descriptors(ids, rows, "made up"))
    rows = np.tile(np.arange(16, 0, -1, dtype=np.float32), (5, 1))
    write_descriptors(files["queries"], Descriptors(queries.ids, rows, "made up"))
    assert main(["evaluate", "disc", *options(**files)]) == 0
    assert table(files["out"])[0]["recall-at-p90"] == ""
    assert json.loads((files["out"] / "metrics.json").read_text())[0]["recall-at-p90"] is None


def test_evaluation_that_fails(files, tmp_path, fails):
    def changed(**values):
        return ["evaluate", "disc", *options(**(files | values))]

    def truth(text):
        (tmp_path / "other.csv").write_text(text)
        return changed(**{"ground-truth": tmp_path / "other.csv"})

    def queries(**changes):
        good = read_descriptors(files["queries"])
        fields = {"ids": good.ids, "descriptors": good.descriptors, "model": good.model} | changes
        np.savez(tmp_path / "bad.npz", **fields)
        return changed(queries=tmp_path / "bad.npz")

    good = read_descriptors(files["queries"])
    stored = fails(*truth("Q00000,R00000\nQ77777,R00000\n"))
    assert "other.csv" in stored and "Q77777" in stored and "queries" in stored
    stored = fails(*truth("Q00000,R77777\n"))
    assert "R77777" in stored and "references" in stored
    assert "holds no pair" in fails(*truth("query_id,reference_id\n"))
    assert "line 1" in fails(*truth("a,b,c\n"))
    stored = fails(*queries(ids=np.asarray(["Q00000"] * 5)))
    assert "bad.npz: 4 ids are repeated, such as Q00000" in stored
    rows = good.descriptors.copy()
    rows[2, 3] = np.nan
    stored = fails(*queries(descriptors=rows))
    assert "bad.npz: 1 of 5 descriptors hold NaN or infinity, the first for Q00002" in stored
    stored = fails(*queries(model="another"))
    assert (
        "'another'" in stored
        and "'made up'" in stored
        and "bad.npz" in stored
        and "r.npz" in stored
    )
    stored = fails(*queries(descriptors=rows[:, :3]))
    assert "3-d" in stored and "16-d" in stored
    (tmp_path / "torn.npz").write_bytes(files["queries"].read_bytes()[:200])
    assert "torn.npz: cannot be read" in fails(*changed(queries=tmp_path / "torn.npz"))
    assert "none.npz: there is no such" in fails(*changed(queries=tmp_path / "none.npz"))
    assert "IVF" in fails(*changed(codecs="IVF"))
    assert "'1.0[0,2]' is fitted on a training set" in fails(*changed(**{"score-norm": "1.0[0,2]"}))
    assert "k is 0" in fails(*changed(k=0))
    assert "choose one of" in fails(*changed(backend="faiss"))
    assert not files["out"].exists()


def test_evaluation_of_a_folder_that_fails(student, disc, tmp_path, fails):
    arguments = options(model=student, data=disc, out=tmp_path / "out")
    (disc / "ground_truth.csv").write_text("Q99999,R00000\n")
    assert "Q99999" in fails("evaluate", "disc", *arguments)
    (disc / "ground_truth.csv").unlink()
    assert "holds no ground-truth file" in fails("evaluate", "disc", *arguments)
    assert "/no/such: there is no such folder" in fails(
        "evaluate", "disc", *options(model=student, data="/no/such", out=tmp_path / "out")
    )
    assert not (tmp_path / "out").exists()


# NDEC and Copydays.


def test_ndec_is_embedded_at_its_own_size(student, disc, tmp_path, monkeypatch, capsys):
    sizes = []
    from rdcd_jax.benchmarks import disc_runs

    def evaluated(model, *arguments, **settings):
        sizes.append((model.image_size, settings["benchmark"]))
        return [], None, []

    monkeypatch.setattr(disc_runs, "evaluate_disc", evaluated)
    arguments = options(model=student, data=disc, out=tmp_path / "out")
    for more in (["ndec"], ["ndec", "--image-size=96"], ["disc"]):
        assert main(["evaluate", *more, *arguments]) == 0
    assert sizes == [(224, "ndec"), (96, "ndec"), (32, "disc")]


def test_ndec_from_images_and_from_descriptors(student, disc, tmp_path, capsys):
    (disc / "ground_truth.csv").rename(disc / "public_ground_truth_h5.csv")
    out, small = tmp_path / "out", "--image-size=32"
    assert main(["evaluate", "ndec", *options(model=student, data=disc, out=out), small]) == 0
    kept = out / "descriptors"
    files = options(
        queries=kept / "queries.npz",
        references=kept / "references.npz",
        training=kept / "training.npz",
        out=tmp_path / "again",
        **{"ground-truth": disc / "public_ground_truth_h5.csv"},
    )
    assert main(["evaluate", "ndec", *files]) == 0
    tables = [(folder / "ndec_metrics.csv").read_bytes() for folder in (out, tmp_path / "again")]
    assert tables[0] == tables[1]
    assert tables[0].startswith(b"codec,score_norm,uAP,accuracy-at-1,recall-at-p90\nFlat,None,")
    assert (out / "calibration.json").exists()


@pytest.fixture
def copydays(tmp_path):
    """Originals, and copies that equal them."""
    root = tmp_path / "copydays"
    for folder in ("original", "strong", "jpegqual/75"):
        made = make_images(root / folder, 4, prefix="2", seed=1)
        for path in sorted(made.iterdir()):
            path.rename(path.with_name(f"2{path.stem[-1]:>03}00.jpg"))
    return root


def test_copydays_from_images_and_from_descriptors(student, copydays, tmp_path, capsys):
    out = tmp_path / "out"
    distractors = make_images(tmp_path / "distractors", 20, seed=2)
    chosen = options(codecs="Flat;PCAW4,L2norm,Flat")
    sets = options(distractors=distractors, training=distractors)
    arguments = options(model=student, data=copydays, out=out)
    assert main(["evaluate", "copydays", *arguments, *sets, *chosen]) == 0
    stored = capsys.readouterr()
    assert "PCAW4,L2norm,Flat" in stored.out and "copydays_blocks.csv" in stored.out
    assert "These are 12 images in 3 parts and Copydays has 3212 in 20" in stored.err
    table = (out / "copydays_metrics.csv").read_text()
    assert table.splitlines()[:2] == ["codec,strong_mAP,overall_uAP", "Flat,1.0,1.0"]
    # The same descriptors made by `embed` of the folder, whose ids tell the parts.
    made = tmp_path / "made.npz"
    assert main(["embed", "--ids=path", *options(model=student, images=copydays, out=made)]) == 0
    kept = out / "descriptors"
    for file in (kept / "copydays.npz", made):
        files = options(
            queries=file,
            distractors=kept / "distractors.npz",
            training=kept / "training.npz",
            out=tmp_path / "again",
        )
        assert main(["evaluate", "copydays", *files, *chosen]) == 0
        again = json.loads((tmp_path / "again" / "metrics.json").read_text())
        for row, same in zip(json.loads((out / "metrics.json").read_text()), again, strict=True):
            assert row == pytest.approx(same, abs=1e-6)


def test_copydays_that_fails(student, copydays, files, tmp_path, fails, usage_error):
    arguments = ["evaluate", "copydays", *options(model=student, data=copydays, out=tmp_path / "o")]
    assert "takes no --score-norm" in usage_error(*arguments, "--score-norm=None")
    assert "takes no --references" in usage_error(*arguments, "--references=r.npz")
    assert "takes no --global-candidates" in usage_error(*arguments, "--global-candidates")
    assert "either --model and --data, or --queries" in usage_error(*arguments, "--queries=q.npz")
    stored = usage_error("evaluate", "disc", *options(**files), "--distractors=x")
    assert "evaluate disc takes no --distractors" in stored
    stored = usage_error("evaluate", "disc", *options(**files), "--image-size=64")
    assert "--image-size and --short-edge go with --model" in stored
    assert "k is 5, but queries are compared with 4 images" in fails(*arguments, "--k=5")
    assert "k is 0" in fails(*arguments, "--k=0")
    assert "is fitted on a training set" in fails(*arguments, "--codecs=PCAW4,L2norm,Flat")
    assert "belongs to no part of Copydays" in fails(
        "evaluate", "copydays", *options(queries=files["queries"], out=tmp_path / "o")
    )
    (copydays / "strong").rename(copydays / "weak")
    stored = fails(*arguments)
    assert f"{copydays}: holds no folder of strong attacks; it may be called strong" in stored
    assert not (tmp_path / "o").exists()

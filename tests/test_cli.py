"""The command line: exit codes, sentences, and the main uses from pictures to figures."""

import csv
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from toy import CONFIGS, add_toys, make_export, make_features, make_pictures

import rdcd_jax
from rdcd_jax.cli import main
from rdcd_jax.errors import UserError
from rdcd_jax.evaluation.descriptors import Descriptors, read_descriptors, write_descriptors

VERBS = ("demo", "train", "embed", "evaluate", "weights", "models", "search", "duplicates")


@pytest.fixture
def student(monkeypatch, tmp_path):
    add_toys(monkeypatch)
    return make_export(tmp_path / "student", dim=8)


@pytest.fixture
def disc(tmp_path):
    """Queries that equal the first references, one distractor, and training pictures."""
    root = tmp_path / "disc"
    make_pictures(root / "queries", 5, prefix="Q", seed=1)
    make_pictures(root / "references", 8, prefix="R", seed=1)
    make_pictures(root / "train", 20, prefix="T", seed=2)
    lines = [f"Q{i:05d},R{i:05d}\n" for i in range(4)]
    (root / "ground_truth.csv").write_text("query_id,reference_id\n" + "".join(lines) + "Q00004,\n")
    return root


@pytest.fixture
def files(tmp_path):
    """Made-up descriptor files and their ground truth, as arguments."""
    make_pictures(tmp_path / "q", 5, prefix="Q", size=12)
    make_pictures(tmp_path / "r", 8, prefix="R", size=12)
    (tmp_path / "truth.csv").write_text("Q00000,R00000\nQ00001,R00001\n")
    return {
        "queries": make_features(tmp_path / "q.npz", tmp_path / "q"),
        "references": make_features(tmp_path / "r.npz", tmp_path / "r"),
        "ground-truth": tmp_path / "truth.csv",
        "out": tmp_path / "out",
    }


@pytest.fixture
def fails(capsys):
    """Runs arguments that must fail with 1 and one line on stderr after any progress; gives it."""

    def run(*arguments):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 1
        told = capsys.readouterr()
        assert told.out == ""
        *progress, sentence = told.err.splitlines()
        assert sentence.startswith("rdcd-jax: ")
        assert all(line.endswith(" left") for line in progress), told.err
        return sentence

    return run


def options(**values):
    return [f"--{name}={value}" for name, value in values.items()]


def usage_error(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert left.value.code == 2
    return capsys.readouterr().err


# The parser.


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(verb, capsys):
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0
    assert f"example:\n  rdcd-jax {verb}" in capsys.readouterr().out


def test_module_runs_as_the_script():
    command = [sys.executable, "-m", "rdcd_jax"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"rdcd-jax {rdcd_jax.__version__}\n"
    failed = subprocess.run([*command, "embed"], capture_output=True, text=True)
    assert failed.returncode == 2
    assert "--model" in failed.stderr and "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "VERB"),
        (["fly"], "fly"),
        (["embed", "--model=x"], "--images"),
        (["embed", "--model=x", "--images=x", "--out=x.npz", "--wings=2"], "--wings=2"),
        (["embed", "--model=x", "--images=x", "--out=x.npz", "--batch-size=0"], "batch-size"),
        (["embed", "--model=x", "--images=x", "--out=x.npz", "--batch-size=x"], "batch-size"),
        (["evaluate", "fish", "--out=x"], "fish"),
        (["train", "--config=c.py"], "--workdir"),
        (["train", "--config=c.py", "--workdir=w", "--batch_size=3"], "--batch_size=3"),
        (["weights"], "list"),
    ],
)
def test_usage_errors_exit_with_2(arguments, match, capsys):
    told = usage_error(capsys, *arguments)
    assert match in told and "Traceback" not in told


def test_arguments_of_evaluate_that_do_not_belong_together(files, capsys):
    told = usage_error(capsys, "evaluate", "disc", *options(**files), "--model=x")
    assert "either --model and --data, or --queries" in told


# Embedding.


def test_embedding_of_a_folder(student, tmp_path, capsys):
    pictures = make_pictures(tmp_path / "my pictures", 3, prefix="ein Bild ü")
    (pictures / "鳥 1.jpg").write_bytes((pictures / "ein Bild ü00000.jpg").read_bytes())
    out = tmp_path / "out dir" / "é.npz"
    arguments = options(model=student, images=pictures, out=out)
    assert main(["embed", *arguments]) == 0
    assert "4 descriptors of 8 numbers in" in capsys.readouterr().out
    found = read_descriptors(out)
    assert found.ids.tolist() == [f"ein Bild ü0000{i}" for i in range(3)] + ["鳥 1"]
    assert found.model == "student"
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-5)
    # The same whatever the batch; another at another size.
    assert main(["embed", *arguments, "--batch-size=3"]) == 0
    np.testing.assert_allclose(read_descriptors(out).descriptors, found.descriptors, atol=1e-6)
    assert main(["embed", *arguments, "--image-size=24", "--ids=path"]) == 0
    other = read_descriptors(out)
    assert other.ids.tolist() == [f"{image_id}.jpg" for image_id in found.ids]
    assert np.abs(other.descriptors - found.descriptors).max() > 1e-4


def test_embedding_leaves_out_and_tells_unreadable_pictures(student, tmp_path, capsys):
    pictures = make_pictures(tmp_path / "p", 3)
    (pictures / "broken.jpg").write_bytes(b"broken")
    out = tmp_path / "p.npz"
    # The last batch is full before the unreadable one, which is the last of all.
    arguments = options(model=student, images=pictures, out=out)
    assert main(["embed", *arguments, "--batch-size=3"]) == 0
    told = capsys.readouterr().err
    assert "4/4" in told
    assert "1 pictures could not be read" in told
    assert "broken.jpg" in (tmp_path / "p.npz.unreadable.txt").read_text()
    assert len(read_descriptors(out)) == 3


def test_embedding_that_fails(student, tmp_path, fails):
    out = tmp_path / "out.npz"
    pictures = make_pictures(tmp_path / "p", 2)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty}: no images found" in fails(
        "embed", *options(model=student, images=empty, out=out)
    )
    (empty / "a.jpg").write_bytes(b"")
    told = fails("embed", *options(model=student, images=empty, out=out))
    assert "none of the 1 images can be read" in told and "a.jpg" in told
    assert "/no/such: there is no such folder" in fails(
        "embed", *options(model=student, images="/no/such", out=out)
    )
    assert "There is no model 'nowhere'; give a" in fails(
        "embed", *options(model="nowhere", images=pictures, out=out)
    )
    assert "has no model.json" in fails("embed", *options(model=empty, images=pictures, out=out))
    assert "out.txt: descriptors are kept in .npz or .h5" in fails(
        "embed", *options(model=student, images=pictures, out=tmp_path / "out.txt")
    )
    (pictures / "sub").mkdir()
    (pictures / "sub" / "T00000.jpg").write_bytes((pictures / "T00000.jpg").read_bytes())
    told = fails("embed", *options(model=student, images=pictures, out=out))
    assert "Two images have the id 'T00000'" in told
    assert not out.exists()


def test_models_that_are_damaged(student, tmp_path, fails):
    pictures = make_pictures(tmp_path / "p", 2)
    arguments = options(model=student, images=pictures, out=tmp_path / "out.npz")
    card_path, weights = student / "model.json", student / "weights.safetensors"
    card = json.loads(card_path.read_text())

    card_path.write_text(json.dumps(card | {"network": "efficientnet_b0"}))
    told = fails("embed", *arguments)
    assert str(weights) in told and "These are not the weights of this efficientnet_b0" in told
    card_path.write_text(json.dumps(card | {"network": "alexnet"}))
    assert "There is no network 'alexnet'" in fails("embed", *arguments)
    card_path.write_text(json.dumps(card | {"dim": 4}))
    assert "of another shape: projector" in fails("embed", *arguments)
    card_path.write_text(json.dumps({name: card[name] for name in card if name != "dim"}))
    assert f"{card_path} is damaged" in fails("embed", *arguments)
    card_path.write_text(json.dumps(card | {"dim": "eight"}))
    assert f"{card_path} is damaged" in fails("embed", *arguments)
    card_path.write_text("{")
    assert f"{card_path} is damaged" in fails("embed", *arguments)
    card_path.write_text(json.dumps(card))
    weights.write_bytes(weights.read_bytes()[:-100])
    assert f"{weights} is not a whole safetensors file" in fails("embed", *arguments)
    weights.unlink()
    assert str(weights) in fails("embed", *arguments)


def test_foreign_text_stays_on_one_line(files, fails):
    files["ground-truth"].write_text('"Q00\n00\x1b[2J",R00000\n' + "Q" * 100_000 + ",R00000\n")
    told = fails("evaluate", "disc", *options(**files))
    assert "Q00\\n00\\x1b[2J" in told and len(told) < 1700


def test_too_little_memory_is_told_in_a_sentence(files, monkeypatch, fails):
    def failing_by(error):
        def without_memory(*arguments, **more):
            raise error

        monkeypatch.setattr("rdcd_jax.evaluation.runs.evaluate_disc_files", without_memory)

    failing_by(MemoryError("Unable to allocate 9 TiB"))
    told = fails("evaluate", "disc", *options(**files))
    assert "There is not enough memory (Unable to allocate 9 TiB)" in told
    failing_by(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating"))
    told = fails("evaluate", "disc", *options(**files))
    assert "There is not enough memory (on the device)" in told
    failing_by(jax.errors.JaxRuntimeError("INTERNAL: a bug"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        main(["evaluate", "disc", *options(**files)])


def test_debug_shows_the_exception(tmp_path):
    arguments = options(model="nowhere", images=make_pictures(tmp_path / "p", 1), out="x.npz")
    with pytest.raises(UserError, match="There is no model 'nowhere'"):
        main(["embed", "--debug", *arguments])


# Evaluating.


def table(folder):
    with (folder / "disc_metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_evaluation_of_pictures_and_of_their_descriptors(student, disc, tmp_path, capsys):
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
    told = fails(*truth("Q00000,R00000\nQ77777,R00000\n"))
    assert "other.csv" in told and "Q77777" in told and "queries" in told
    told = fails(*truth("Q00000,R77777\n"))
    assert "R77777" in told and "references" in told
    assert "holds no pair" in fails(*truth("query_id,reference_id\n"))
    assert "line 1" in fails(*truth("a,b,c\n"))
    told = fails(*queries(ids=np.asarray(["Q00000"] * 5)))
    assert "bad.npz: 4 ids are repeated, such as Q00000" in told
    rows = good.descriptors.copy()
    rows[2, 3] = np.nan
    told = fails(*queries(descriptors=rows))
    assert "bad.npz: 1 of 5 descriptors hold NaN or infinity, the first for Q00002" in told
    told = fails(*queries(model="another"))
    assert "'another'" in told and "'made up'" in told and "bad.npz" in told and "r.npz" in told
    told = fails(*queries(descriptors=rows[:, :3]))
    assert "3-d" in told and "16-d" in told
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


# Training.


def test_training_from_the_command_line(student, tmp_path, capsys):
    pictures = make_pictures(tmp_path / "train", 16)
    features = make_features(tmp_path / "features.npz", pictures)
    arguments = [
        *options(config=f"{CONFIGS / 'rdcd.py'}:smoke,student=toy,dim=8,data={pictures}"),
        *options(workdir=tmp_path / "run", **{"init-from": student}),
        f"--config.teacher.features={features}",
        "--config.schedule.max_steps=1",
        "--config.evaluate.image_size=32",
        "--config.queue.size=16",
    ]
    assert main(["train", *arguments]) == 0
    assert str(tmp_path / "run" / "export") in capsys.readouterr().out
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert config["init_from"] == str(student)
    assert config["queue"]["size"] == 16
    out = tmp_path / "out.npz"
    export = tmp_path / "run" / "export"
    assert main(["embed", *options(model=export, images=pictures, out=out)]) == 0
    assert read_descriptors(out).descriptors.shape == (16, 8)


def test_training_that_fails(student, tmp_path, fails):
    pictures = make_pictures(tmp_path / "train", 8)
    workdir = f"--workdir={tmp_path / 'run'}"
    config = f"--config={CONFIGS / 'rdcd.py'}:smoke,student=toy,dim=8,data={pictures}"
    told = fails("train", config, workdir, "--config.optimizer.nmae=lars")
    assert "no field 'optimizer.nmae'; did you mean optimizer.name" in told
    assert "batch_size=many" in fails("train", config, workdir, "--config.batch_size=many")
    assert "optimizer.name is 'adam'" in fails(
        "train", config, workdir, "--config.optimizer.name=adam"
    )
    assert "nope.py: there is no such config file" in fails("train", "--config=nope.py", workdir)
    assert "has no 'smok'" in fails("train", f"--config={CONFIGS / 'rdcd.py'}:smok", workdir)
    told = fails("train", config, workdir, "--config.teacher.model=nowhere")
    assert "There is no model 'nowhere'" in told
    features = make_features(tmp_path / "features.npz", pictures)
    told = fails(
        "train", config, workdir, f"--config.teacher.features={features}", "--init-from=nowhere"
    )
    assert "There is no model 'nowhere'" in told
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_weights_that_fail(tmp_path, fails, monkeypatch):
    monkeypatch.setenv("RDCD_JAX_CACHE", str(tmp_path / "cache"))
    assert "sscd-classy needs a file" in fails("weights", "import", "sscd-classy")
    assert "no-such-kind" in fails("weights", "import", "no-such-kind", tmp_path / "x.pt")
    assert "x.pt" in fails("weights", "import", "sscd-classy", tmp_path / "x.pt")
    assert main(["weights", "list"]) == 0

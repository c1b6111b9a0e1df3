"""The command line: exit codes, sentences, and the main uses from images to figures."""

import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
from toy import CONFIGS, make_features, make_images, options

import rdcd_jax
from rdcd_jax.cli.main import main
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.descriptors import read_descriptors

ROOT = pathlib.Path(__file__).parents[2]
VERBS = ("demo", "train", "embed", "evaluate", "weights", "models", "search", "duplicates")


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


def test_stdout_may_be_closed():
    command = [sys.executable, "-m", "rdcd_jax", "models"]
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command], capture_output=True, text=True, cwd=ROOT
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "VERB"),
        (["fly"], "fly"),
        (["embed", "--model=x"], "--images"),
        (["embed", "--model=x", "--images=x", "--out=x.npz", "--wings=2"], "--wings=2"),
        (["embed", "--model=x", "--images=x", "--out=x.npz", "--batch-size=0"], "batch-size"),
        (["embed", "--model=x", "--images=x", "--out=x.npz", "--batch-size=x"], "batch-size"),
        (["embed", "--model=x", "--images=x", "--out=x.npz", "--image-size=-3"], "image-size"),
        (
            ["search", "--index=x", "q.jpg", "--variants=none,crops"],
            "none,crops is none and others",
        ),
        (["duplicates", "x", "--keep=oldest"], "--keep says what --out and --script keep"),
        (["duplicates", "--index=x", "--ids=path"], "--ids is for images that are listed"),
        (["index", "build", "x", "--model=x", "--out="], "the path is empty; . is the current"),
        (["evaluate", "fish", "--out=x"], "fish"),
        (
            ["embed", "--model=x", "sample:queries", "--out=gs://b/x.npz"],
            "gs://b/x.npz is an address",
        ),
        (["train", "--config=c.py"], "--workdir"),
        (["train", "--config=c.py", "--workdir=w", "--batch_size=3"], "--batch_size=3"),
        (["weights"], "list"),
    ],
)
def test_usage_errors_exit_with_2(arguments, match, usage_error):
    stored = usage_error(*arguments)
    assert match in stored and "Traceback" not in stored


# Embedding.


def test_embedding_of_a_folder(student, tmp_path, capsys):
    images = make_images(tmp_path / "my images", 3, prefix="ein Bild ü")
    (images / "鳥 1.jpg").write_bytes((images / "ein Bild ü00000.jpg").read_bytes())
    out = tmp_path / "out dir" / "é.npz"
    arguments = options(model=student, images=images, out=out)
    assert main(["embed", *arguments]) == 0
    assert "4 descriptors of 8 dimensions in" in capsys.readouterr().out
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


def test_embedding_leaves_out_and_tells_unreadable_images(student, tmp_path, capsys):
    images = make_images(tmp_path / "p", 3)
    (images / "broken.jpg").write_bytes(b"broken")
    out = tmp_path / "p.npz"
    # The last batch is full before the unreadable one, which is the last of all.
    arguments = options(model=student, images=images, out=out)
    assert main(["embed", *arguments, "--batch-size=3"]) == 0
    stored = capsys.readouterr().err
    assert "4/4" in stored
    assert "1 images could not be read" in stored
    assert "broken.jpg" in (tmp_path / "p.npz.unreadable.txt").read_text()
    assert len(read_descriptors(out)) == 3


def test_embedding_that_fails(student, tmp_path, fails):
    out = tmp_path / "out.npz"
    images = make_images(tmp_path / "p", 2)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{empty}: no images found" in fails(
        "embed", *options(model=student, images=empty, out=out)
    )
    (empty / "a.jpg").write_bytes(b"")
    stored = fails("embed", *options(model=student, images=empty, out=out))
    assert "none of the 1 images can be read" in stored and "a.jpg" in stored
    assert "/no/such: there is no such folder" in fails(
        "embed", *options(model=student, images="/no/such", out=out)
    )
    assert "There is no model 'nowhere'; give a" in fails(
        "embed", *options(model="nowhere", images=images, out=out)
    )
    assert "has no model.json" in fails("embed", *options(model=empty, images=images, out=out))
    assert "out.txt: descriptors are kept in .npz or .h5" in fails(
        "embed", *options(model=student, images=images, out=tmp_path / "out.txt")
    )
    assert not out.exists()


def test_models_that_are_damaged(student, tmp_path, fails):
    images = make_images(tmp_path / "p", 2)
    arguments = options(model=student, images=images, out=tmp_path / "out.npz")
    card_path, weights = student / "model.json", student / "weights.safetensors"
    card = json.loads(card_path.read_text())

    card_path.write_text(json.dumps(card | {"network": "efficientnet_b0"}))
    stored = fails("embed", *arguments)
    assert str(weights) in stored and "These are not the weights of this efficientnet_b0" in stored
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


def test_debug_shows_the_exception(tmp_path):
    arguments = options(model="nowhere", images=make_images(tmp_path / "p", 1), out="x.npz")
    with pytest.raises(UserError, match="There is no model 'nowhere'"):
        main(["embed", "--debug", *arguments])


# Training.


def test_training_from_the_command_line(student, tmp_path, capsys):
    images = make_images(tmp_path / "train", 16)
    features = make_features(tmp_path / "features.npz", images)
    arguments = [
        *options(config=f"{CONFIGS / 'rdcd.py'}:smoke,student=toy,dim=8,data={images}"),
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
    assert main(["embed", *options(model=export, images=images, out=out)]) == 0
    assert read_descriptors(out).descriptors.shape == (16, 8)


def test_a_training_that_was_stopped_does_not_end_as_one_that_is_done(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        "rdcd_jax.training.loop.run_training",
        lambda *_, **__: (types.SimpleNamespace(step=3), False),
    )
    # What an earlier end of the run left.
    (tmp_path / "export").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["train", f"--config={CONFIGS / 'rdcd.py'}:smoke", f"--workdir={tmp_path}"])
    assert ended.value.code == 143
    assert "Stopped and saved after step 3; the same command" in capsys.readouterr().out


def test_training_that_fails(student, tmp_path, fails):
    images = make_images(tmp_path / "train", 8)
    workdir = f"--workdir={tmp_path / 'run'}"
    config = f"--config={CONFIGS / 'rdcd.py'}:smoke,student=toy,dim=8,data={images}"
    stored = fails("train", config, workdir, "--config.optimizer.nmae=lars")
    assert "no field 'optimizer.nmae'; did you mean optimizer.name" in stored
    assert "batch_size=many" in fails("train", config, workdir, "--config.batch_size=many")
    assert "optimizer.name is 'adam'" in fails(
        "train", config, workdir, "--config.optimizer.name=adam"
    )
    assert "nope.py: there is no such config file" in fails("train", "--config=nope.py", workdir)
    assert "has no 'smok'" in fails("train", f"--config={CONFIGS / 'rdcd.py'}:smok", workdir)
    stored = fails("train", config, workdir, "--config.teacher.model=nowhere")
    assert "There is no model 'nowhere'" in stored
    features = make_features(tmp_path / "features.npz", images)
    stored = fails(
        "train", config, workdir, f"--config.teacher.features={features}", "--init-from=nowhere"
    )
    assert "There is no model 'nowhere'" in stored
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_weights_that_fail(tmp_path, fails, monkeypatch):
    monkeypatch.setenv("RDCD_JAX_CACHE", str(tmp_path / "cache"))
    assert "sscd-classy needs a file" in fails("weights", "import", "sscd-classy")
    assert "no-such-kind" in fails("weights", "import", "no-such-kind", tmp_path / "x.pt")
    assert "x.pt" in fails("weights", "import", "sscd-classy", tmp_path / "x.pt")
    assert main(["weights", "list"]) == 0


@pytest.mark.parametrize("verb", ["search", "duplicates"])
@pytest.mark.parametrize("given", ["90", "nan", "-3", "much"])
def test_a_threshold_that_is_no_score_is_refused(verb, given, capsys):
    with pytest.raises(SystemExit) as left:
        main([verb, "x", f"--threshold={given}", *(["--index=y"] if verb == "search" else [])])
    assert left.value.code == 2
    assert given in capsys.readouterr().err


def test_output_may_be_cut_short_and_of_any_encoding():
    program = "import sys; from rdcd_jax.__main__ import run; sys.exit(run())"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    for verb, reader, code in (
        ("models", "true", 1),
        ("models", "cat > /dev/null", 0),
    ):
        found = subprocess.run(
            [
                "bash",
                "-o",
                "pipefail",
                "-c",
                f'"{sys.executable}" -c "{program}" {verb} | {reader}',
            ],
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
        )
        assert (found.returncode, found.stderr) == (code, "")

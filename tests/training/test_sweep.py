"""Sweeps from a config file to result files, tables and plots, with the toy student."""

import dataclasses
import importlib.util
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from toy import CONFIGS, add_toys, make_images

from rdcd_jax.cli import main
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.descriptors import Descriptors, write_descriptors
from rdcd_jax.training import loop, sweep
from rdcd_jax.training.check import check_config
from rdcd_jax.training.config import load_config
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.results import Result, portable, read_results
from rdcd_jax.training.step_log import StepLog
from rdcd_jax.training.sweep import load_sweep
from rdcd_jax.weights.library import load_model

CONFIG = """
from configs.common import parse_arg
from configs.rdcd import get_config as rdcd

def get_config(arg=None):
    given = parse_arg(arg, method="rdcd", data="")
    config = rdcd(f"smoke,dim=4,data={given.data}")
    config.student.network = "toy"
    config.evaluate.image_size = 32
    config.queue.size = config.bank.size = 24
    config.teacher.features = "TEACHER"
    config.schedule.max_steps = 2
    if given.method == "moco":
        config.objective.kld_lambda = 0.0
    return config

def sweep(add):
    for seed in range(2):
        add("method=moco", seed=seed)
    add(**{"optimizer.name": "adam"})
    add(**{"objective.hn_lambda": 0.0})
"""
NAMES = [
    "small+method=moco+seed=0",
    "small+method=moco+seed=1",
    "small+optimizer.name=adam",
    "small+objective.hn_lambda=0.0",
]


def write_config(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def disc(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "tiny"
    make_images(folder / "queries", 4, prefix="Q", seed=7)
    make_images(folder / "references", 6, prefix="R", seed=7)
    make_images(folder / "train", 8, prefix="U", seed=8)
    (folder / "ground_truth.csv").write_text("".join(f"Q0000{i},R0000{i}\n" for i in range(4)))
    return folder


@pytest.fixture(scope="module")
def swept(images, features, disc, tmp_path_factory):
    """The sweep's folder after a first go, and how to go on: what it gives is the exit status."""
    folder = tmp_path_factory.mktemp("sweep")
    config = folder / "configs" / "small.py"
    write_config(config, CONFIG.replace("TEACHER", str(features)))
    words = ["sweep", f"--config={config}:data={images}", f"--out={folder / 'out'}"]

    def go(*more):
        return main([*words, f"--config.evals.disc.data={disc}", "--config.log_every=2", *more])

    with pytest.MonkeyPatch.context() as patch:
        add_toys(patch)
        yield folder / "out", go, go()


def test_each_run_has_its_result_and_one_that_fails_stops_no_other(swept, disc, images):
    out, _, status = swept
    assert status == 1
    results = {result.name: result for result in read_results(out / "results")}
    assert list(results) == sorted(name for name in NAMES if "adam" not in name)
    one = results[NAMES[1]]
    assert one.overrides == {
        "method": "moco",
        "seed": 1,
        "data": images.name,
        "evals.disc.data": disc.name,
    }
    assert (one.seed, one.training_pictures, one.steps, one.benchmark) == (1, 40, 2, "tiny")
    assert one.training_seconds > 0
    assert one.config["objective"]["kld_lambda"] == 0.0
    assert one.config["data"]["train"] == images.name
    assert [(row["codec"], row["score_norm"]) for row in one.figures] == [
        ("Flat", "None"),
        ("Flat", "1.0[0,2]"),
    ]
    figures = json.loads(
        (out / one.name / "evaluations" / "2" / "disc" / "metrics.json").read_text()
    )
    assert one.figures == figures
    assert len(one.commits) == 1
    assert {"python", "versions", "devices", "platform"} == one.environment.keys()
    assert str(out.parent) not in (out / "results" / f"{one.name}.json").read_text()


def test_what_is_done_is_passed_over(swept, monkeypatch, capsys):
    out, go, _ = swept
    monkeypatch.setattr(
        sweep,
        "run_training",
        lambda config, workdir: check_config(config) or pytest.fail("trained"),
    )
    before = [path.stat().st_mtime_ns for path in sorted((out / "results").iterdir())]
    assert go("--only=moco", "--config.data.workers=1") == 0
    assert capsys.readouterr().out.count("done before") == 2
    # The one that failed before is reported again, and the others are no reason to exit otherwise.
    assert go() == 1
    stored = capsys.readouterr().err
    assert "small+optimizer.name=adam failed: config.optimizer.name is 'adam'" in stored
    assert "1 of 4 runs failed" in stored
    assert [path.stat().st_mtime_ns for path in sorted((out / "results").iterdir())] == before


def test_a_result_of_another_config_is_not_taken_for_done(swept, capsys):
    _, go, _ = swept
    assert go("--only=hn_lambda", "--config.schedule.max_steps=3") == 1
    stored = capsys.readouterr().err
    assert "is of a run with config.schedule.max_steps = 2, and this config has 3" in stored


def test_a_result_of_another_benchmark_of_that_name_is_not_taken_for_done(
    swept, disc, capsys, tmp_path
):
    _, go, _ = swept
    shutil.copytree(disc, tmp_path / "other" / disc.name)
    assert go("--only=hn_lambda", f"--config.evals.disc.data={tmp_path / 'other' / disc.name}") == 1
    assert "is of a run with config.evals.disc.data = " in capsys.readouterr().err


def test_runs_of_one_config_are_one_run_and_checkpoints_lie_apart(
    images, features, disc, tmp_path, toys, capsys
):
    text = CONFIG.replace("TEACHER", str(features)).partition("def sweep")[0]
    text += """def sweep(add):
    add(seed=0)
    add(seed=1)
    add(**{"seed": 1, "objective.hn_lambda": 5.0})
"""
    config = write_config(tmp_path / "small.py", text)
    words = ["sweep", f"--config={config}:data={images}", f"--out={tmp_path / 'out'}"]
    words += [f"--config.evals.disc.data={disc}", f"--config.checkpoint_dir={tmp_path / 'kept'}"]
    assert main(words) == 0
    assert "the same config as small+seed=1" in capsys.readouterr().out
    names = ["small+seed=0", "small+seed=1"]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == names
    weights = [(tmp_path / "out" / name / "export" / "weights.safetensors") for name in names]
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_a_stopped_run_is_continued(swept, capsys, monkeypatch):
    out, go, _ = swept
    path = out / "results" / f"{NAMES[0]}.json"
    whole = json.loads(path.read_text())
    path.unlink()

    def stopped(*given):
        os.kill(os.getpid(), signal.SIGTERM)
        return StepLog(*given)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        # Made before the first step.
        patch.setattr(loop, "StepLog", stopped)
        go("--only=moco")
    assert left.value.code == 128 + signal.SIGTERM
    out_lines = capsys.readouterr().out
    assert "was stopped and saved.\nStopped; the same command continues." in out_lines
    # The other was not begun.
    assert "[1/2]" in out_lines and "[2/2]" not in out_lines
    assert not path.exists()
    assert go("--only=moco") == 0
    again = json.loads(path.read_text())
    for name in ("figures", "config", "overrides", "steps", "training_seconds"):
        assert again[name] == whole[name], name


def test_a_sweep_ends_at_once_while_a_run_sets_up(swept, capsys, monkeypatch):
    out, go, _ = swept
    path = out / "results" / f"{NAMES[0]}.json"
    kept = path.read_bytes()
    path.unlink()

    def terminated(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the signal was put off")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "set_up", terminated)
        assert go("--only=moco") == 128 + signal.SIGTERM
    stored = capsys.readouterr()
    assert "ended by SIGTERM" in stored.err and "[2/2]" not in stored.out
    path.write_bytes(kept)


def test_a_benchmark_is_asked_for(swept, capsys):
    _, go, _ = swept
    assert go("--only=adam", "--config.evals.disc.data=") == 1
    assert "config.evals.disc.data is empty; give a benchmark" in capsys.readouterr().err


def test_only_must_name_a_run(swept, capsys):
    _, go, _ = swept
    assert go("--only=nothing") == 1
    assert NAMES[3] in capsys.readouterr().err


# Names.


def runs_of(tmp_path, body):
    text = "import configs.rdcd\nget_config = configs.rdcd.get_config\n" + body
    return load_sweep(str(write_config(tmp_path / "configs" / "c.py", text)))


def test_names_are_safe_short_and_apart(tmp_path):
    runs = runs_of(
        tmp_path,
        """
def sweep(add):
    add(**{"data.train": "/one/folder/a b.txt", "seed": 1})
    add(**{"data.train": "/other/folder/a b.txt", "seed": 1})
    add("dim=64", **{"data.policy": "hflip 0.5; " + "blur 0.3 radius=0.3,1.5; " * 9})
    add("smoke,dim=64", **{"optimizer.learning_rate": 3e-4})
""",
    )
    names = [run.name for run in runs]
    assert len(set(names)) == 4
    assert names[0].startswith("c+data.train=a_b.txt+seed=1-")
    assert names[3] == "c+smoke=true+dim=64+optimizer.learning_rate=0.0003"
    for name in names:
        assert len(name) <= 100
        assert not set(name) - set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+._=-"
        )
    assert [run.name for run in runs] == names
    config, overrides = runs[3].config(f"{tmp_path / 'configs' / 'c.py'}:dim=32", [])
    assert (config.student.dim, config.optimizer.learning_rate) == (64, 3e-4)
    assert overrides == {"smoke": "true", "dim": "64", "optimizer.learning_rate": 3e-4}


def test_a_config_without_sweep_is_one_run(tmp_path):
    assert [run.name for run in runs_of(tmp_path, "")] == ["c"]


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("def sweep(add):\n    add(seed=1)\n    add(seed=1)", r"adds the run c\+seed=1 twice"),
        ("def sweep(add):\n    add(1, 2)", r"c\.py: sweep\(add\): "),
        ("def sweep(add):\n    raise OSError('no disk')", "no disk"),
        ("sweep = 3", "not callable"),
    ],
)
def test_a_broken_sweep_is_reported_in_a_sentence(tmp_path, body, match):
    with pytest.raises(UserError, match=match):
        runs_of(tmp_path, body)


def test_baselines_cover_the_paper_s_table():
    runs = load_sweep(str(CONFIGS / "baselines.py"))
    methods = {}
    for run in runs:
        config, overrides = run.config(f"{CONFIGS / 'baselines.py'}:images=9145,data=x", [])
        methods.setdefault(overrides["method"], []).append(config)
    published = methods["rdcd"].pop()
    assert (published.seed, published.objective.moco_lambda) == (0, 1.0)
    assert set(methods) == {"rdcd", "moco", "no_hn", "rsd", "sscd", "compress"}
    for name in ("rdcd", "moco"):
        assert [config.seed for config in methods[name]] == [0, 1, 2]
        assert {config.objective.moco_lambda for config in methods[name]} == {0.1}
    # Every method has the same budget.
    for name, (config, *_) in methods.items():
        assert (config.batch_size, config.bank.size) == (64, 2286)
        assert config.queue.size == (64 if name in ("rdcd", "moco", "no_hn") else 2286)
        assert config.evals.disc.codecs == "Flat;PCAW128,L2norm,Flat"


@pytest.mark.parametrize("method", ["rsd", "compress"])
def test_smoke_variants_of_baselines_train(method, toys, images, features, tmp_path):
    arg = f"smoke,method={method},dim=4,images=40,data={images}"
    config = load_config(f"{CONFIGS / 'baselines.py'}:{arg}", [])
    config.student.network = "toy"
    config.teacher.features = str(features)
    config.evaluate.image_size = 32
    config.schedule.max_steps = 2
    # optax's own AdamW mixes dtypes.
    with jax.numpy_dtype_promotion("standard"):
        assert int(train_and_evaluate(config, tmp_path).step) == 2
    assert load_model(str(tmp_path / "export")).dim == 4


def test_an_unknown_method_is_refused():
    (run, *_) = load_sweep(str(CONFIGS / "baselines.py"))
    with pytest.raises(UserError, match="there is no method 'rdc'; it is one of rdcd, moco"):
        run.__class__("baselines", "method=rdc", {}).config(str(CONFIGS / "baselines.py"), [])


def test_paths_keep_their_last_part(tmp_path):
    (tmp_path / "run" / "export").mkdir(parents=True)
    tree = {
        "a": {
            "init_from": str(tmp_path / "run" / "export"),
            "model": f"onnxruntime:{tmp_path}/x.onnx",
        },
        "tfds": "tfds:disc2021/train",
        "none": "",
        "number": 3,
    }
    assert portable(tree) == {
        "a": {"init_from": "run/export", "model": "onnxruntime:x.onnx"},
        "tfds": "tfds:disc2021/train",
        "none": "",
        "number": 3,
    }


# Tables.


def made_up(method, seed, value, images=1000, steps=100):
    return Result(
        name=f"{method}{seed}{images}",
        overrides={"method": method, "seed": seed, "data": f"train{images}", "lr": "0.1"},
        seed=seed,
        config={"seed": seed, "batch_size": 64, "student": {"dim": 8}},
        training_pictures=images,
        steps=steps,
        training_seconds=60.0 * steps,
        benchmark="tiny",
        figures=[
            {"codec": "Flat", "score_norm": "None", "uAP": value},
            {"codec": "Flat", "score_norm": "1.0[0,2]", "uAP": None if value is None else 0.7},
        ],
        commits=["abc"],
        environment={},
    )


def test_tables_and_plots_come_from_the_files(tmp_path, capsys):
    results = [
        *(made_up("rdcd", seed, value) for seed, value in enumerate((0.5, 0.51, 0.55))),
        made_up("rdcd", 0, 0.6, images=4000),
        made_up("moco", 0, None),
    ]
    for result in results:
        result.write(tmp_path / f"{result.name}.json")
    assert sorted(read_results(tmp_path), key=lambda r: r.name) == sorted(
        results, key=lambda r: r.name
    )
    tables = importlib.import_module("experiments.studies.tables")
    assert tables.main([str(tmp_path)]) == 0
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0].endswith("The same in all: lr = 0.1.")
    assert (
        lines[2]
        == "| method | data | codec | seeds | images | steps | minutes | µAP | µAP, SN 1.0[0,2] |"
    )
    # The mean and sample deviation of 50, 51, 55.
    assert (
        "| rdcd | train1000 | Flat | 3 | 1000 | 100 | 100.0 | 52.00 ± 2.65 | 70.00 ± 0.00 |"
        in lines
    )
    assert "| rdcd | train4000 | Flat | 1 | 4000 | 100 | 100.0 | 60.00 | 70.00 |" in lines
    assert "| moco | train1000 | Flat | 1 | 1000 | 100 | 100.0 | - | - |" in lines
    assert len(lines) == 4 + 3
    # They vary in the number of images, and in nothing else.
    assert [path.name for path in tmp_path.glob("*.png")] == ["uap_by_pictures.png"]
    # What is only evaluated adds a row, and columns of its own alone.
    untrained = dataclasses.replace(
        made_up("teacher", None, 0.8, images=10, steps=0),
        overrides={"method": "teacher", "student.dim": 8},
    )
    lines = tables.table([*results, untrained]).splitlines()
    assert lines[0].endswith("The same in all: lr = 0.1, student.dim = 8.")
    assert lines[-1] == "| teacher |  | Flat | 1 | 10 | 0 | 0.0 | 80.00 | 70.00 |"
    curves = tables.curves(results, "training_pictures", tables.DATA | tables.LENGTH)
    (points,) = curves.values()
    np.testing.assert_allclose(points, [(1000, 70, 0), (4000, 70, 0)])


def test_tables_of_a_real_sweep(swept, capsys):
    out, _, _ = swept
    assert importlib.import_module("experiments.studies.tables").main([str(out / "results")]) == 0
    stored = capsys.readouterr().out
    assert "| moco | 5.0 | Flat | 2 | 40 | 2 |" in stored
    assert "| rdcd |" not in stored, (
        "the run without the argument has the default, which no file tells"
    )
    assert "| 0.0 | Flat | 1 | 40 | 2 |" in stored


def test_foreign_files_are_reported(tmp_path, capsys):
    tables = importlib.import_module("experiments.studies.tables")
    assert tables.main([str(tmp_path)]) == 1
    assert "no result files" in capsys.readouterr().err
    (tmp_path / "x.json").write_text('{"figures": 3}')
    assert tables.main([str(tmp_path)]) == 1
    assert "x.json is not a run's result" in capsys.readouterr().err


def test_whitened_teacher_writes_results_of_the_same_kind(disc, tmp_path, capsys):
    random = np.random.default_rng(0)
    for name, prefix, count in (("queries", "Q", 4), ("references", "R", 6), ("training", "U", 30)):
        rows = random.standard_normal((count, 16)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        ids = np.asarray([f"{prefix}{i:05d}" for i in range(count)])
        write_descriptors(tmp_path / "d" / f"{name}.npz", Descriptors(ids, rows, "teacher"))
    main = importlib.import_module("experiments.studies.whitened_teacher").main
    words = [str(tmp_path / "d"), str(disc), str(tmp_path / "out"), "--dims"]
    assert main([*words, "4", "8"]) == 0
    results = read_results(tmp_path / "out")
    assert [result.overrides["student.dim"] for result in results] == [4, 8]
    assert [row["codec"] for row in results[0].figures] == ["PCAW4,L2norm,Flat"] * 2
    assert results[0].training_pictures == 30
    assert main([*words, "64"]) == 1
    assert "whitened_teacher: " in capsys.readouterr().err

"""Whole runs: of the real student once, and of a toy wherever only the loop is at stake."""

import errno
import json
import shutil
import signal

import jax
import numpy as np
import pytest
from toy import (
    CONFIGS,
    embed,
    make_export,
    make_features,
    make_images,
    metrics_of,
    relational_kl_of,
    toy_config,
)

from rdcd_jax.benchmarks.disc_runs import evaluate_disc
from rdcd_jax.core import hosts
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.locks import held
from rdcd_jax.images.sources import ImageSet, find_images
from rdcd_jax.method.state import split
from rdcd_jax.training import record
from rdcd_jax.training.check import check_training_set
from rdcd_jax.training.config import load_config
from rdcd_jax.training.finish import Finish
from rdcd_jax.training.loop import run_training, train_and_evaluate
from rdcd_jax.training.setup import share_of
from rdcd_jax.training.student import make_student
from rdcd_jax.weights.library import load_model

LOSSES = {"loss", "info_nce", "hard_negative", "relational_kl"}
SPEEDS = {"images_per_second", "input_wait_seconds"}
STATISTICS = {
    "positive_similarity",
    "negative_similarity",
    "nearest_negative_similarity",
    "center_norm",
    "gradient_norm",
}


def assert_equal_states(actual, expected):
    for name in expected.__dataclass_fields__:
        jax.tree.map(
            lambda a, b, name=name: np.testing.assert_array_equal(a, b, err_msg=name),
            getattr(actual, name),
            getattr(expected, name),
        )


def test_running_statistics_stay_as_they_are_where_batch_norm_uses_them(
    images, features, toys, tmp_path
):
    start = str(make_export(tmp_path / "start"))
    changes = {"schedule.max_steps": 1, "init_from": start}

    def moved(bn):
        config = toy_config(images, features, **changes, **{"student.bn": bn})
        statistics = train_and_evaluate(config, tmp_path / bn).batch_stats
        before = split(make_student(config, 16).module)[2]
        return any(
            jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), statistics, before))
        )

    assert moved("batch") and not moved("running")
    measured = {"student.bn": "running", "student.recalibrate": 8}
    with pytest.raises(
        UserError, match=r"'running', .*\.recalibrate is 8, which would .* set it to 0"
    ):
        train_and_evaluate(toy_config(images, features, **changes, **measured), tmp_path / "no")


def test_a_smaller_share_lies_within_a_larger_and_keeps_the_order():
    names = tuple(f"T{i:03d}" for i in range(64))
    images = ImageSet("pictures", names, names)
    quarter, half = (share_of(images, share, seed=3).ids for share in (0.25, 0.5))
    assert len(quarter) == 16 and len(half) == 32
    assert set(quarter) < set(half) and quarter == tuple(sorted(quarter))
    assert share_of(images, 1.0, seed=3) == images
    assert share_of(images, 0.25, seed=4).ids != quarter
    assert len(share_of(images, 1e-6, seed=0)) == 1


# A whole run of the real student.


@pytest.fixture(scope="module")
def smoke(images, tmp_path_factory):
    features = make_features(images.parent / "wide.npz", images, dim=512)
    config = load_config(
        f"{CONFIGS / 'rdcd.py'}:smoke,dim=64,data={images}",
        [
            f"--config.teacher.features={features}",
            "--config.evaluate.image_size=32",
            "--config.schedule.max_steps=3",
        ],
    )
    workdir = tmp_path_factory.mktemp("smoke") / "run"
    return train_and_evaluate(config, workdir), config, workdir


def test_smoke_run_writes_what_the_contract_names(smoke):
    state, config, workdir = smoke
    assert int(state.step) == 3
    run = json.loads((workdir / "run.json").read_text())
    assert run["config"] == json.loads(json.dumps(config.to_dict()))
    (start,) = run["starts"]
    assert start["versions"]["jax"] == jax.__version__
    assert {"time", "command", "devices", "platform", "git_revision"} <= start.keys()
    rows = metrics_of(workdir)
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row.keys() == {"step", "learning_rate"} | SPEEDS | LOSSES | STATISTICS
        assert 0 <= row["input_wait_seconds"] < 60
        assert all(np.isfinite(value) for value in row.values())
        assert row["images_per_second"] > 0
    # Without warm-up the first step has the base rate, here for a batch of 8.
    assert rows[0]["learning_rate"] == pytest.approx(8 / 256)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "3"]
    assert not (workdir / "unreadable.txt").exists()


def test_smoke_run_s_export_embeds_images(smoke, images):
    state, _, workdir = smoke
    model = load_model(str(workdir / "export"))
    assert (model.network, model.image_size) == ("efficientnet_b0", 32)
    params, batch_stats = split(model.module)[1:]
    for ours, theirs in [(params, state.params), (batch_stats, state.batch_stats)]:
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    rows = embed(model, images)
    assert rows.shape == (40, 64)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    card = json.loads((workdir / "export" / "model.json").read_text())
    assert card["trained"] == {"steps": 3, "images": 40}


# Resuming.


def test_resumed_run_equals_an_undisturbed_one(toys, images, features, tmp_path):
    config = toy_config(
        images, features, **{"schedule.max_steps": 0, "schedule.epochs": 2, "log_every": 2}
    )
    whole = train_and_evaluate(config, tmp_path / "whole")
    assert int(whole.step) == 10
    # Stopped twice; the number of workers changes with every start.
    for steps, workers in [(3, 0), (7, 1), (0, 0)]:
        config.schedule.max_steps, config.data.workers = steps, workers
        parts = train_and_evaluate(config, tmp_path / "parts")
        assert int(parts.step) == (steps or 10)
    assert_equal_states(parts, whole)
    keep = lambda rows: [  # noqa: E731
        {name: value for name, value in row.items() if name not in SPEEDS} for row in rows
    ]
    parts = metrics_of(tmp_path / "parts")
    assert [row["step"] for row in parts] == list(range(1, 11))
    assert keep(parts) == keep(metrics_of(tmp_path / "whole"))
    assert len(json.loads((tmp_path / "parts" / "run.json").read_text())["starts"]) == 3
    exports = [tmp_path / name / "export" / "weights.safetensors" for name in ("parts", "whole")]
    assert exports[0].read_bytes() == exports[1].read_bytes()


def test_lines_of_lost_steps_are_dropped(toys, images, features, tmp_path):
    config = toy_config(images, features, **{"schedule.max_steps": 2})
    train_and_evaluate(config, tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 0.0}\n{"step": 4, "lo')
    config.schedule.max_steps = 3
    train_and_evaluate(config, tmp_path)
    rows = metrics_of(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[2]["loss"] > 0


def test_a_finished_run_is_left_as_it_is(toys, images, features, tmp_path):
    config = toy_config(images, features, **{"schedule.max_steps": 2})
    before = train_and_evaluate(config, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text()
    assert_equal_states(train_and_evaluate(config, tmp_path), before)
    assert (tmp_path / "metrics.jsonl").read_text() == lines


def test_a_run_that_is_past_its_end_says_what_it_exports(toys, images, features, tmp_path, caplog):
    config = toy_config(images, features, **{"schedule.max_steps": 2})
    train_and_evaluate(config, tmp_path)
    assert "max_steps" not in caplog.text
    config.schedule.max_steps = 1
    assert int(train_and_evaluate(config, tmp_path).step) == 2
    assert "has come to step 2 already, past config.schedule.max_steps = 1" in caplog.text


def test_eight_devices_agree_with_one(toys, images, features, tmp_path):
    states = []
    for devices in (1, 8):
        config = toy_config(images, features, devices=devices, **{"schedule.max_steps": 3})
        states.append(train_and_evaluate(config, tmp_path / str(devices)))
    one, eight = states
    for name in ("params", "batch_stats", "key_params", "key_batch_stats", "queue", "bank"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            getattr(eight, name),
            getattr(one, name),
        )
    assert len(jax.tree.leaves(eight.params)[0].devices()) == 8
    # A run may go on on other devices.
    config = toy_config(images, features, devices=4, **{"schedule.max_steps": 4})
    assert int(train_and_evaluate(config, tmp_path / "8").step) == 4


def test_a_window_of_steps_is_profiled(toys, images, features, tmp_path, caplog):
    config = toy_config(images, features, **{"schedule.max_steps": 3})
    train_and_evaluate(config, tmp_path, profile=(1, 1))
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 10_000
    # One that the run's end cuts short is written too.
    config.schedule.max_steps = 5
    train_and_evaluate(config, tmp_path, profile=(4, 100))
    assert len([*(tmp_path / "profile").rglob("*.xplane.pb")]) == 2
    assert "Nothing was traced" not in caplog.text
    train_and_evaluate(config, tmp_path, profile=(5, 1))
    assert "Nothing was traced: step 5, where the profile" in caplog.text


def test_batch_that_the_devices_cannot_share_is_refused(toys, images, features, tmp_path):
    config = toy_config(images, features, devices=3)
    with pytest.raises(
        UserError, match=r"config\.batch_size is 8, not a multiple of the 3 .*batch_size=6\)"
    ):
        train_and_evaluate(config, tmp_path / "run")
    config.devices = 9
    with pytest.raises(UserError, match="devices is 9, but there are 8"):
        train_and_evaluate(config, tmp_path / "run")


def test_sigterm_saves_and_returns(toys, images, features, tmp_path, monkeypatch):
    write = record.Metrics.write

    def write_and_stop(self, rows):
        write(self, rows)
        if rows[-1]["step"] == 3:
            signal.raise_signal(signal.SIGTERM)

    config = toy_config(images, features, **{"schedule.max_steps": 5, "checkpoint_every": 100})
    whole = train_and_evaluate(config, tmp_path / "whole")
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(record.Metrics, "write", write_and_stop)
        stopped = train_and_evaluate(config, tmp_path / "stopped")
    assert signal.getsignal(signal.SIGTERM) is before
    assert int(stopped.step) == 3
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == ["3"]
    assert not (tmp_path / "stopped" / "export").exists()
    assert_equal_states(train_and_evaluate(config, tmp_path / "stopped"), whole)


def test_a_stopped_run_is_not_taken_for_done_by_an_earlier_export(
    toys, images, features, tmp_path, monkeypatch
):
    config = toy_config(images, features, **{"schedule.max_steps": 2})
    assert run_training(config, tmp_path)[1]
    config.schedule.max_steps = 4
    with monkeypatch.context() as patch:
        patch.setattr(hosts, "preempted", lambda step, received: step == 3)
        state, finished = run_training(config, tmp_path)
    assert (int(state.step), finished) == (3, False)
    assert json.loads((tmp_path / "export" / "model.json").read_text())["trained"]["steps"] == 2


def test_steps_are_written_before_an_evaluation(toys, images, features, tmp_path, monkeypatch):
    changes = {"schedule.max_steps": 3, "log_every": 100, "evaluate.every": 2}
    config = toy_config(images, features, **changes)
    seen = []

    def evaluate(self, model, step, *, last):
        seen.append(([row["step"] for row in metrics_of(tmp_path)], (tmp_path / "export").exists()))
        return [{"step": step, "evaluate/x": 1.0}]

    monkeypatch.setattr(Finish, "evaluates", True)
    monkeypatch.setattr(Finish, "evaluate", evaluate)
    train_and_evaluate(config, tmp_path)
    # The last one comes after the export, which it cannot cost.
    assert seen == [([1, 2], False), ([1, 2, 2, 3], True)]


def test_a_loss_that_is_not_finite_stops_the_run(toys, images, features, tmp_path):
    config = toy_config(
        images, features, **{"schedule.max_steps": 5, "checkpoint_every": 2, "log_every": 5}
    )
    config.optimizer.learning_rate = 1e30
    config.optimizer.weight_decay = 1.0
    with pytest.raises(UserError) as caught:
        train_and_evaluate(config, tmp_path)
    message = str(caught.value)
    step = int(message.removeprefix("Step ").partition(":")[0])
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert all(each < step for each in saved)
    assert "loss is nan" in message
    assert f"checkpoint is of step {max(saved) if saved else None};" in message
    assert [row["step"] for row in metrics_of(tmp_path)] == list(range(1, step))
    assert not (tmp_path / "export").exists()


# What is refused.


@pytest.mark.parametrize(
    ("name", "value"),
    [("optimizer.learning_rate", 0.5), ("student.dim", 8), ("seed", 1), ("data.policy", "MILD")],
)
def test_workdir_of_another_config_is_refused(toys, images, features, tmp_path, name, value):
    config = toy_config(images, features, **{"schedule.max_steps": 1})
    record.begin(tmp_path, config.to_dict(), ())
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    before = (tmp_path / "run.json").read_text()
    other = toy_config(images, features, **{"schedule.max_steps": 1, name: value})
    with pytest.raises(UserError, match=rf"config\.{name} = .*{value}.*another workdir"):
        train_and_evaluate(other, tmp_path)
    assert (tmp_path / "run.json").read_text() == before


def test_a_damaged_record_is_refused(toys, images, features, tmp_path):
    (tmp_path / "run.json").write_text("{")
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"run\.json is not a run's record"):
        train_and_evaluate(toy_config(images, features), tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"queue.size": 7}, r"config\.queue\.size is 7, smaller than config\.batch_size = 8"),
        ({"bank.size": 7}, r"config\.bank\.size is 7, smaller than config\.batch_size = 8"),
        ({"student.dim": 17}, "dim is 17, .* between 1 and feature_dim = 16"),
        ({"student.network": "toi"}, "no network 'toi'; use one of .*toy"),
        ({"schedule.warmup_epochs": 1}, r"schedule\.warmup_epochs is 1, .*schedule\.epochs = 1"),
        ({"data.policy": "WILD"}, "WILD"),
        (
            {"batch_size": 48, "queue.size": 48, "bank.size": 48},
            "40 images do not fill one batch",
        ),
        ({"data.train": "/no/such"}, "/no/such: there is no such folder"),
        ({"teacher.features": "/no/such.npz"}, "/no/such.npz: there is no such descriptor file"),
    ],
)
def test_configs_that_cannot_train_are_refused(toys, images, features, tmp_path, changes, match):
    with pytest.raises(UserError, match=match):
        train_and_evaluate(toy_config(images, features, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_refused_config_can_be_mended_in_position(toys, images, features, tmp_path):
    changes = {"schedule.max_steps": 1, "student.dim": 17}
    with pytest.raises(UserError, match="dim is 17"):
        train_and_evaluate(toy_config(images, features, **changes), tmp_path)
    assert (tmp_path / "run.json").exists()
    changes["student.dim"] = 7
    train_and_evaluate(toy_config(images, features, **changes), tmp_path)


def test_two_runs_in_one_folder_are_refused(tmp_path, toys):
    images = make_images(tmp_path / "p", 8)
    with (
        held(tmp_path / "run" / ".lock0", ""),
        pytest.raises(UserError, match="run: another process trains in it"),
    ):
        train_and_evaluate(toy_config(images), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_two_runs_into_the_same_checkpoints_are_refused(toys, images, features, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    config = toy_config(images, features, **{"schedule.max_steps": 1, "checkpoint_dir": str(kept)})
    with (
        held(kept, ""),
        pytest.raises(UserError, match="kept: another process writes its checkpoints there"),
    ):
        train_and_evaluate(config, tmp_path / "run")
    assert int(train_and_evaluate(config, tmp_path / "run").step) == 1


def test_training_on_evaluation_images_is_refused(toys, images, features, tmp_path, caplog):
    queries = make_images(tmp_path / "queries", 9, prefix="Q")
    with pytest.raises(UserError, match=r"9 images of .*queries have names of DISC's queries"):
        train_and_evaluate(toy_config(queries, features), tmp_path / "run")

    # One name alone says little, and is told of.
    own = make_images(tmp_path / "own", 40)
    (own / "T00000.jpg").rename(own / "Q10000.jpg")
    check_training_set(find_images(own), toy_config(own))
    assert "The name Q10000 in" in caplog.text

    make_images(tmp_path / "references", 9, prefix="R")
    (tmp_path / "ground_truth.csv").write_text("Q00000,R00000\n")
    # By a link, so that neither name nor path gives it away.
    (tmp_path / "train").symlink_to(tmp_path / "references")
    config = toy_config(tmp_path / "train", features, **{"evals.disc.data": str(tmp_path)})
    with pytest.raises(UserError, match=r"R00000\.jpg of config\.evals\.disc is also a training"):
        train_and_evaluate(config, tmp_path / "run")

    for part in ("original", "strong"):
        make_images(tmp_path / "copydays" / part, 1, prefix="20")
    originals, data = tmp_path / "copydays" / "original", str(tmp_path / "copydays")
    config = toy_config(originals, features, **{"evals.copydays.data": data})
    with pytest.raises(UserError, match=r"of config\.evals\.copydays is also a training image"):
        train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unreadable_images_are_listed_and_passed_over(toys, tmp_path):
    images = make_images(tmp_path / "train", 16)
    features = make_features(tmp_path / "features.npz", images)
    (images / "T00003.jpg").write_bytes(b"no picture")
    changes = {"schedule.max_steps": 2, "schedule.epochs": 2}
    config = toy_config(images, features, **changes)
    train_and_evaluate(config, tmp_path / "run")
    listed = tmp_path / "run" / "unreadable.txt"
    assert listed.read_text() == f"{images / 'T00003.jpg'}\n"
    # Each once, also by a run that is continued.
    config.schedule.max_steps = 4
    assert int(train_and_evaluate(config, tmp_path / "run").step) == 4
    assert listed.read_text() == f"{images / 'T00003.jpg'}\n"


# Starting from a model.


def test_init_from_keeps_what_fits(toys, tmp_path):
    start = make_export(tmp_path / "start", dim=4, seed=5)
    given = split(load_model(str(start)).module)[1]
    bare = make_export(tmp_path / "bare", dim=None, seed=5)
    for init_from, dim in ((start, 4), (start, 8), (bare, 4)):
        config = toy_config(tmp_path, **{"init_from": str(init_from), "student.dim": dim})
        student = make_student(config, 16).module
        _, params, batch_stats = split(student)
        backbone = split(load_model(str(init_from)).module)[1]["backbone"]
        jax.tree.map(np.testing.assert_array_equal, params["backbone"], backbone)
        assert np.all(batch_stats["backbone"]["bn"]["mean"] != 0)
        assert params["projector"]["kernel"].shape == (16, dim)
    same = split(make_student(toy_config(tmp_path, init_from=str(start)), 16).module)[1]
    jax.tree.map(np.testing.assert_array_equal, same["projector"], given["projector"])
    fresh = split(make_student(toy_config(tmp_path), 16).module)[1]
    assert np.any(fresh["projector"]["kernel"] != given["projector"]["kernel"])


def test_init_from_what_does_not_fit_is_refused(toys, tmp_path):
    other = make_export(tmp_path / "other", network="other_toy")
    with pytest.raises(UserError, match="is a other_toy, but config.student.network is toy"):
        make_student(toy_config(tmp_path, init_from=str(other)), 16)
    wide = make_export(tmp_path / "wide", feature_dim=20)
    with pytest.raises(UserError, match="has not the feature of 16 dimensions"):
        make_student(toy_config(tmp_path, init_from=str(wide)), 16)
    start = make_export(tmp_path / "start")
    card = json.loads((start / "model.json").read_text())
    card["network"] = "efficientnet_b0"
    (start / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"weights\.safetensors: These are not the weights of this"):
        make_student(toy_config(tmp_path, init_from=str(start)), 16)
    with pytest.raises(UserError, match="There is no model 'nowhere'"):
        make_student(toy_config(tmp_path, init_from="nowhere"), 16)


# What a run may be made of.


def test_evaluation_during_a_run(toys, images, features, tmp_path, caplog):
    disc = tmp_path / "disc"
    make_images(disc / "queries", 4, prefix="Q", seed=7)
    make_images(disc / "references", 6, prefix="R", seed=7)
    (disc / "references" / "R00005.jpg").write_bytes(b"no image")
    (disc / "ground_truth.csv").write_text("".join(f"Q0000{i},R0000{i}\n" for i in range(4)))
    changes = {"evals.disc.data": str(disc), "evaluate.every": 2, "schedule.max_steps": 3}
    changes |= {
        "evals.pairs.queries": str(disc / "references"),
        "evals.pairs.codecs": "Flat;L2norm,Flat",
    }
    changes["evals.pairs.references"] = str(disc / "references")
    changes["evals.pairs.ground_truth"] = str(tmp_path / "pairs.csv")
    (tmp_path / "pairs.csv").write_text("R00001,R00001\n")
    config = toy_config(images, features, **changes)
    train_and_evaluate(config, tmp_path / "run")
    for step in (2, 3):
        folder = tmp_path / "run" / "evaluations" / str(step) / "disc"
        assert (folder / "disc_metrics.csv").is_file()
        assert (folder / "predictions.csv").is_file()
        assert f"leaves out 1 of its images, since they cannot be read; {folder}" in caplog.text
    rows = metrics_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 2, 3, 3]
    # Queries and references are the same images here.
    assert rows[4]["evaluate/disc/Flat/None/uAP"] == 1.0
    assert "evaluate/pairs/L2norm,Flat/None/uAP" in rows[4]
    # What is evaluated last is the export, and the descriptors do not stay.
    assert not [*(tmp_path / "run" / "evaluations").rglob("descriptors*")]
    model = load_model(str(tmp_path / "run" / "export"))
    again = evaluate_disc(model, disc, tmp_path / "again")[1]
    before = (tmp_path / "run" / "evaluations" / "3" / "disc" / "predictions.csv").read_text()
    scores = [float(line.rpartition(",")[2]) for line in before.splitlines()[1:]]
    np.testing.assert_allclose(scores, again.scores, atol=1e-6)
    # A run killed after its last checkpoint and before its evaluation is evaluated when it is started again, once.
    shutil.rmtree(tmp_path / "run" / "evaluations")
    shutil.rmtree(tmp_path / "run" / "export")
    for _ in range(2):
        train_and_evaluate(config, tmp_path / "run")
        assert metrics_of(tmp_path / "run") == rows
    assert (tmp_path / "run" / "evaluations" / "3" / "disc" / "disc_metrics.csv").is_file()
    assert (tmp_path / "run" / "export").is_dir()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ground_truth": "none.csv"}, r"none\.csv: cannot be read as a ground-truth CSV"),
        ({"ground_truth": ""}, "ground_truth is empty; an evaluation of pairs needs queries"),
        ({"training": "nowhere"}, "nowhere: there is no such folder"),
        ({"codecs": "PCAW2,Flat"}, "fitted on a training set and there is none"),
        (
            {"codecs": "PCAW8,Flat", "training": "q"},
            "PCAW8,Flat has 8 dimensions, and the .* only 4",
        ),
        (
            {"codecs": "PCAW2,Flat", "training": "q"},
            "PCAW2,Flat is fitted on at .* 2 are given for 4",
        ),
    ],
)
def test_evaluations_that_cannot_work_are_refused_before_training(
    toys, images, features, tmp_path, monkeypatch, changes, sentence
):
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "q", 2, prefix="Q", seed=7)
    (tmp_path / "pairs.csv").write_text("Q00000,Q00000\n")
    given = {"queries": "q", "references": "q", "ground_truth": "pairs.csv"} | changes
    changes = {f"evals.pairs.{name}": value for name, value in given.items()}
    with pytest.raises(UserError, match=rf"config\.evals\.pairs: .*{sentence}"):
        train_and_evaluate(toy_config(images, features, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_student_in_bfloat16_is_judged_as_its_export(toys, images, features, tmp_path):
    disc = tmp_path / "disc"
    make_images(disc / "queries", 4, prefix="Q", seed=7)
    make_images(disc / "references", 6, prefix="R", seed=8)
    (disc / "ground_truth.csv").write_text("".join(f"Q0000{i},R0000{i}\n" for i in range(4)))
    changes = {"evals.disc.data": str(disc), "schedule.max_steps": 2, "student.dtype": "bfloat16"}
    train_and_evaluate(toy_config(images, features, **changes), tmp_path / "run")
    model = load_model(str(tmp_path / "run" / "export"))
    again = evaluate_disc(model, disc, tmp_path / "again")[1]
    found = (tmp_path / "run" / "evaluations" / "2" / "disc" / "predictions.csv").read_text()
    scores = [float(line.rpartition(",")[2]) for line in found.splitlines()[1:]]
    np.testing.assert_allclose(scores, again.scores, atol=1e-6)


def test_a_config_may_add_evaluations(toys, images, features, tmp_path):
    make_images(tmp_path / "q", 2, prefix="Q", seed=7)
    # Each image equals itself, at the same similarity: both are pairs, so no tie decides.
    (tmp_path / "pairs.csv").write_text("Q00000,Q00000\nQ00001,Q00001\n")
    config = toy_config(images, features, **{"schedule.max_steps": 1})
    with config.unlocked():
        config.evals.mine = {
            "protocol": "pairs",
            "queries": str(tmp_path / "q"),
            "references": str(tmp_path / "q"),
            "ground_truth": str(tmp_path / "pairs.csv"),
        }
    train_and_evaluate(config, tmp_path / "run")
    assert metrics_of(tmp_path / "run")[-1]["evaluate/mine/Flat/None/uAP"] == 1
    for mine, sentence in (
        ({"data": "x", "codecs": 5}, r"evals\.mine\.codecs is 5; it must be of type str"),
        (5, r"evals\.mine is a field that nothing reads"),
    ):
        config = toy_config(images, features)
        with config.unlocked():
            config.evals.mine = mine
        with pytest.raises(UserError, match=rf"config\.{sentence}"):
            train_and_evaluate(config, tmp_path / "other")


def test_an_evaluation_without_room_stops_no_run(
    toys, images, features, tmp_path, monkeypatch, capsys
):
    changes = {
        "evals.disc.data": str(tmp_path / "disc"),
        "evaluate.every": 2,
        "schedule.max_steps": 3,
    }
    make_images(tmp_path / "disc" / "queries", 2, prefix="Q", seed=7)
    make_images(tmp_path / "disc" / "references", 2, prefix="R", seed=7)
    (tmp_path / "disc" / "ground_truth.csv").write_text("Q00000,R00000\n")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("rdcd_jax.training.finish.evaluate", full)
    with pytest.raises(OSError, match="No space"):
        train_and_evaluate(toy_config(images, features, **changes), tmp_path / "run")
    # The last one counts; the state is kept before it.
    assert "The evaluation 'disc' after step 2 failed" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"sscd_lambda": 1.0, "moco_lambda": 0.0, "kld_lambda": 0.0}, {"sscd_info_nce", "entropy"}),
        ({"sscd_lambda": 0.5}, {"sscd_info_nce", "entropy"} | LOSSES),
        ({"regress_lambda": 2.0}, {"regression"} | LOSSES),
        ({"kld_lambda": 0.0}, {"info_nce", "hard_negative"}),
        ({"compress_lambda": 1.0, "moco_lambda": 0.0, "kld_lambda": 0.0}, {"compress_kl"}),
        ({"compress_lambda": 0.5}, {"compress_kl"} | LOSSES),
    ],
)
def test_other_objectives_train(toys, images, features, tmp_path, changes, names):
    changes = {f"objective.{name}": value for name, value in changes.items()}
    config = toy_config(images, features, **changes, **{"schedule.max_steps": 2})
    state = train_and_evaluate(config, tmp_path)
    known = names | {"step", "loss", "learning_rate"} | SPEEDS
    for row in metrics_of(tmp_path):
        assert known <= row.keys() <= known | STATISTICS
    taught = bool(names & {"relational_kl", "compress_kl"})
    fresh = split(make_student(config, 16 if taught else 512).module)[1]
    assert any(
        np.any(a != b)
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(fresh), strict=True)
    )


def test_dropout_may_be_left_out(toys, images, features, tmp_path):
    found = []
    for dropout in (True, False):
        changes = {"student.dropout": dropout, "schedule.max_steps": 1}
        config = toy_config(images, features, **changes)
        found += relational_kl_of(config, tmp_path / str(dropout))
    assert abs(found[0] - found[1]) > 1e-5

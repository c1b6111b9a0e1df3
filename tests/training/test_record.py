"""What a run writes down, where what is there already is damaged."""

import importlib
import json
import os
import resource
import shutil
import signal
import struct
import subprocess

import pytest
from etils import epath
from toy import metrics_of, toy_config

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.options import flat
from rdcd_jax.images.pack import pack_images
from rdcd_jax.images.sources import find_images
from rdcd_jax.training import record
from rdcd_jax.training.loop import train_and_evaluate


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 100_000,
        "[]",
        '{"config": [], "starts": []}',
        '{"config": {}, "starts": 1}',
        '{"config": {}}',
        "\udcff",
    ],
    ids=lambda text: ascii(text[:30]),
)
def test_a_damaged_record_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text, errors="surrogateescape")
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"run\.json is not a run's record"):
        record.begin(tmp_path, {}, ())


@pytest.mark.skipif(os.name != "posix", reason="pipes are no files elsewhere")
def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl is not a file"):
        record.Metrics(tmp_path, 0, evaluates=True)
    os.mkfifo(tmp_path / "run.json")
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"run\.json: is a pipe"):
        record.begin(tmp_path, {"seed": 0}, ())


def test_lines_that_no_run_wrote_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 1, "loss": 2.0}\n'
    bad = [b"\xff", b"[" * 100_000, b"[]", b'{"step": "x"}', b'{"loss": 1.0}', b'{"step": 2, "lo']
    path.write_bytes(good + b"\n".join(bad))
    metrics = record.Metrics(tmp_path, 1, evaluates=True)
    metrics.write([{"step": 2, "loss": 1.0}])
    metrics.close()
    assert path.read_bytes() == good + b'{"step": 2, "loss": 1.0}\n'


def test_metrics_wait_for_room(tmp_path, capsys):
    """No file can grow beyond a limit: what a full disk does to a line."""
    metrics = record.Metrics(tmp_path, 0, evaluates=True)
    metrics.write([{"step": 1, "loss": 1.0}])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))
        for step in (2, 3):
            metrics.write([{"step": step, "loss": 1.0}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    path = tmp_path / "metrics.jsonl"
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1]
    assert "cannot be written" in capsys.readouterr().err
    metrics.write([{"step": 4, "loss": 1.0}])
    metrics.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_events_end_on_a_full_disk_and_the_metrics_do_not(tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    metrics = record.Metrics(tmp_path, 0, evaluates=True)
    metrics.write([{"step": 1, "loss": 1.0}])
    (events,) = (tmp_path / "tensorboard").iterdir()
    whole = events.stat().st_size
    assert whole > 100
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (whole + 1, hard))
        for step in (2, 3):
            metrics.write([{"step": step, "loss": 1.0}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    # More than the queue of tensorboardX's own writer holds.
    for step in range(4, 40):
        metrics.write([{"step": step, "loss": 1.0}])
    metrics.close()
    assert [row["step"] for row in metrics_of(tmp_path)] == list(range(1, 40))
    assert capsys.readouterr().err.count("tensorboard cannot be written") == 1


def test_events_say_what_the_metrics_say(tmp_path):
    pytest.importorskip("tensorboardX")
    event_pb2 = importlib.import_module("tensorboardX.proto.event_pb2")
    metrics = record.Metrics(tmp_path, 4, evaluates=True)
    metrics.write([{"step": 5, "loss": 0.5, "nothing": None}])
    metrics.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    content, found = path.read_bytes(), []
    while content:
        # A record: its length, a checksum of that, what it holds, a checksum of this.
        (size,) = struct.unpack("Q", content[:8])
        found.append(event_pb2.Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    version, start, figure = found
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, event_pb2.SessionLog.START)
    (value,) = figure.summary.value
    assert (figure.step, value.tag, value.simple_value) == (5, "loss", 0.5)


def test_the_revision_is_of_this_package_s_own_checkout(tmp_path, monkeypatch):
    installed = tmp_path / "project" / "site-packages" / "rdcd_jax" / "training" / "record.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    monkeypatch.setattr(record, "__file__", str(installed))
    git = ["git", "-C", str(tmp_path / "project"), "-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    assert record._git_revision() is None
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "ours"], check=True)
    assert len(record._git_revision()) == 40


def test_a_step_s_evaluation_is_dropped_only_where_it_is_made_again(tmp_path):
    rows = [{"step": 3, "loss": 1.0}, {"step": 3, "evaluate/disc/Flat/None/uAP": 0.5}]
    for evaluates in (False, True):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        record.Metrics(tmp_path, 3, evaluates=evaluates).close()
        assert metrics_of(tmp_path) == rows[: 1 if evaluates else 2]


def test_checkpoints_of_another_run_are_not_taken(tmp_path):
    folder = epath.Path(tmp_path / "elsewhere")
    folder.mkdir()
    first = {"seed": 0, "checkpoint_dir": str(folder)}
    for _ in range(2):
        record.claim_checkpoints(folder, first)
    record.claim_checkpoints(folder, first | {"log_every": 7})
    with pytest.raises(
        UserError, match=r"elsewhere holds a run with config\.seed = 0, .* 1; give config\.checkp"
    ):
        record.claim_checkpoints(folder, first | {"seed": 1})
    # Another workdir's run may be on other images.
    images = {"kind": "files", "pictures": 10, "ids": "a"}
    apart = epath.Path(tmp_path / "apart")
    apart.mkdir()
    for _ in range(2):
        record.claim_checkpoints(apart, first, images)
    with pytest.raises(UserError, match=r"apart holds .* were 10 images, and now there are 9; giv"):
        record.claim_checkpoints(apart, first, images | {"pictures": 9})
    # Nor are those that a run has left behind forgotten.
    (folder / "5").mkdir()
    record.begin(tmp_path / "run", first)
    record.begin(tmp_path / "run", first)
    with pytest.raises(
        UserError, match=r"whose checkpoints lie in .*elsewhere, and there are none where .* ''"
    ):
        record.begin(tmp_path / "run", first | {"checkpoint_dir": ""})
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["starts"]) == 2


def test_a_tilde_is_one_s_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = {"checkpoint_dir": "~/kept"}
    assert record.checkpoint_folder(tmp_path / "run", config) == epath.Path(tmp_path / "kept")
    record.begin(tmp_path / "run", config)
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert stored["config"]["checkpoint_dir"] == str(tmp_path / "kept")
    bucket = {"checkpoint_dir": "gs://bucket/run"}
    assert str(record.checkpoint_folder(tmp_path, bucket)) == "gs://bucket/run"


def test_a_run_of_version_0_1_goes_on(tmp_path):
    """Its record has former names, and lacks what came later."""
    config = toy_config("x", **{"student.recalibrate": 7})
    former = flat(config.to_dict())
    former["student.calibrate"] = former.pop("student.recalibrate")
    former["data.picture_size"] = former.pop("data.source_size")
    for name in [*former]:
        if name.startswith("evals.") or name in ("student.background", "objective.nested_dims"):
            del former[name]
    old = {}
    for name, value in former.items():
        *parts, leaf = name.split(".")
        node = old
        for part in parts:
            node = node.setdefault(part, {})
        node[leaf] = value
    old["evaluate"] |= {"data": "a/benchmark", "training": "", "codecs": "Flat"}
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    (tmp_path / "run.json").write_text(json.dumps({"config": old, "starts": []}))
    config.student.background = 3000
    record.begin(tmp_path, config.to_dict())
    config.student.recalibrate = 8
    with pytest.raises(UserError, match=r"config\.student\.recalibrate = 7.* has 8"):
        (tmp_path / "run.json").write_text(json.dumps({"config": old, "starts": []}))
        record.begin(tmp_path, config.to_dict())


def test_another_training_set_is_refused(tmp_path):
    before = {"kind": "shards", "pictures": 10, "ids": "a", "records": "x"}
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    record.begin(tmp_path, {}, before)
    record.begin(tmp_path, {}, before)
    for name, value, says in [
        ("kind", "files", "they lay in shards, and now lie in files"),
        ("pictures", 9, "there were 10 images, and now there are 9"),
        ("ids", "b", "the 10 images have other ids"),
        ("records", "y", ".* their records .shards. hold other content"),
    ]:
        with pytest.raises(UserError, match=f"training set was another: {says}"):
            record.begin(tmp_path, {}, {**before, name: value})
    assert json.loads((tmp_path / "run.json").read_text())["training_set"] == before
    assert len(json.loads((tmp_path / "run.json").read_text())["starts"]) == 2


def test_a_run_goes_on_only_with_the_same_shards(toys, images, features, tmp_path):
    (tmp_path / "run" / "checkpoints" / "1").mkdir(parents=True)
    pack_images(images, tmp_path / "packed", shards=2)
    config = toy_config(tmp_path / "packed", features, **{"schedule.max_steps": 1})
    fingerprint = find_images(tmp_path / "packed").fingerprint()
    record.begin(tmp_path / "run", config.to_dict(), fingerprint)
    shutil.rmtree(tmp_path / "packed")
    pack_images(images, tmp_path / "packed", shards=2, short_side=40)
    with pytest.raises(
        UserError, match=r"run holds a run .*same ids, but their records \(shards\)"
    ):
        train_and_evaluate(config, tmp_path / "run")

"""Several processes as one: real ones, two of four devices each, against this one of eight."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from toy import make_export, make_images, metrics_of, toy_config

from rdcd_jax.benchmarks.disc_runs import evaluate_disc
from rdcd_jax.core import hosts
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.descriptors import read_descriptors
from rdcd_jax.index.search import Index
from rdcd_jax.training.config import load_config
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.step_log import SPEEDS
from rdcd_jax.weights.library import load_model

HERE = pathlib.Path(__file__).parent.parent
POLICY = "hflip 0.5; resized_crop 1 scale=0.3,1 ratio=0.75,1.33; grey 0.2"
CONFIG = [
    "student.network=toy",
    "evaluate.image_size=32",
    "queue.size=24",
    "bank.size=24",
    "devices=0",
    "checkpoint_every=2",
    "log_every=1",
]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def jax_variables(number, port):
    """What tells a process its place among two."""
    return {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(number),
    }


def slurm_variables(number, port):
    """The same as `srun` says it; JAX makes the port of the job's number."""
    return {
        "SLURM_JOB_ID": str(port),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
    }


class Pair:
    """Two processes that run one command; ended with the block."""

    def __init__(self, *words, variables=jax_variables, folders=(None, None)):
        port = free_port()
        self.processes = [
            subprocess.Popen(
                [sys.executable, HERE / "toy_process.py", *map(str, words)],
                env=os.environ | variables(number, port),
                cwd=folders[number],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(2)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.wait()

    def ended(self, timeout=240):
        """Exit codes, and what each wrote to stdout and stderr."""
        written = [process.communicate(timeout=timeout) for process in self.processes]
        return [process.returncode for process in self.processes], written


def run_pair(*words, variables=jax_variables):
    with Pair(*words, variables=variables) as pair:
        codes, written = pair.ended()
    assert codes == [0, 0], written
    return written


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disc")
    make_images(folder / "queries", 4, prefix="Q", seed=7)
    make_images(folder / "references", 6, prefix="R", seed=8)
    (folder / "references" / "broken.jpg").write_bytes(b"no image")
    shutil.copy(folder / "queries" / "Q00001.jpg", folder / "references" / "R00001.jpg")
    (folder / "ground_truth.csv").write_text("Q00001,R00001\nQ00002,R00002\n")
    return folder


def command(images, **changes):
    """The words that say a run's config."""
    fields = [*CONFIG, *(f"{name}={value}" for name, value in changes.items())]
    return [f"{HERE.parent / 'configs' / 'rdcd.py'}:smoke,dim=4,data={images}"], [
        f"--config.{field}" for field in fields
    ]


def started(images, workdir, **changes):
    name, fields = command(images, **changes)
    return Pair("train", f"--config={name[0]}", f"--workdir={workdir}", *fields)


def assert_close(actual, expected):
    for name in ("params", "batch_stats", "key_params", "key_batch_stats", "queue", "bank"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            getattr(actual, name),
            getattr(expected, name),
        )


def test_two_processes_make_the_run_of_one(toys, images, benchmark, tmp_path):
    make_export(tmp_path / "teacher", network="other_toy")
    changes = {
        "teacher.model": tmp_path / "teacher",
        "teacher.features": "cached",
        "evals.disc.data": benchmark,
        "evaluate.every": 2,
        "schedule.max_steps": 3,
    }
    with started(images, tmp_path / "two", **changes) as pair:
        codes, written = pair.ended()
    assert codes == [0, 0], written
    # A CPU's collectives report their connections on stdout, several at once.
    assert "The run is in" in written[0][0]
    assert "The run is in" not in written[1][0]
    name, fields = command(images, **changes)
    config = load_config(name[0], fields)
    one = train_and_evaluate(config, tmp_path / "one")
    # One process goes on with what two have kept, and finds it finished.
    two = train_and_evaluate(config, tmp_path / "two")
    assert_close(two, one)
    rows = [
        [{k: v for k, v in row.items() if k not in SPEEDS} for row in metrics_of(tmp_path / name)]
        for name in ("two", "one")
    ]
    assert len(rows[0]) == 5
    for theirs, ours in zip(*rows, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-5, abs=1e-5)
    files = [
        sorted(p.relative_to(tmp_path / name).as_posix() for p in (tmp_path / name).rglob("*"))
        for name in ("two", "one")
    ]
    kept = [
        [
            each
            for each in some
            if "checkpoints/" not in each and "tensorboard/" not in each and ".lock" not in each
        ]
        for some in files
    ]
    assert kept[0] == kept[1]
    starts = json.loads((tmp_path / "two" / "run.json").read_text())["starts"]
    assert [len(start["devices"]) for start in starts] == [8, 8]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"data.views": "device", "data.keep": "device", "data.policy": POLICY},
        {"student.trainable": "projector", "data.cached_views": 2, "objective.kld_lambda": 0.0},
    ],
    ids=["views and images on the devices", "the projector alone"],
)
def test_two_processes_make_other_runs_of_one(toys, images, features, tmp_path, changes):
    changes = {"teacher.features": features, "schedule.max_steps": 2} | changes
    if "student.trainable" in changes:
        changes["init_from"] = make_export(tmp_path / "start")
    with started(images, tmp_path / "two", **changes) as pair:
        codes, written = pair.ended()
    assert codes == [0, 0], written
    name, fields = command(images, **changes)
    config = load_config(name[0], fields)
    one = train_and_evaluate(config, tmp_path / "one")
    assert_close(train_and_evaluate(config, tmp_path / "two"), one)


@pytest.mark.parametrize(
    ("killed", "victim"),
    [
        ("the one that works", 1),
        pytest.param("the one that works", 0, marks=pytest.mark.slow),
        pytest.param("its parent", 1, marks=pytest.mark.slow),
    ],
)
def test_a_killed_process_ends_the_other_and_one_goes_on_alone(
    toys, images, features, tmp_path, killed, victim
):
    changes = {"teacher.features": features, "schedule.max_steps": 0, "schedule.epochs": 1000}
    # Small steps, so that rounding does not grow from one to the next.
    changes["optimizer.learning_rate"] = 1e-3
    with started(images, tmp_path / "run", **changes) as pair:
        wait_for(tmp_path / "run" / "checkpoints" / "4")
        # The parent only waits.
        parent = pair.processes[victim].pid
        (child,) = children_of(parent)
        os.kill(child if killed == "the one that works" else parent, signal.SIGKILL)
        since = time.monotonic()
        codes, written = pair.ended(timeout=60)
        assert time.monotonic() - since < 60
        assert has_ended(child)
    assert codes[victim] in (128 + signal.SIGKILL, -signal.SIGKILL)
    assert codes[1 - victim] == 1
    assert written[1 - victim][1].splitlines()[-1] == f"rdcd-jax: {hosts.ENDED}"
    name, fields = command(images, **changes)
    config = load_config(name[0], fields)
    config.schedule.max_steps = done = 2 + max(
        int(path.name)
        for path in (tmp_path / "run" / "checkpoints").iterdir()
        if path.name.isdecimal()
    )
    again = train_and_evaluate(config, tmp_path / "run")
    whole = train_and_evaluate(config, tmp_path / "whole")
    assert int(again.step) == done
    assert_close(again, whole)


def test_sigterm_to_one_saves_all_after_the_same_step(images, features, tmp_path):
    with started(
        images,
        tmp_path / "run",
        **{"teacher.features": features, "schedule.max_steps": 0, "schedule.epochs": 1000},
    ) as pair:
        wait_for(tmp_path / "run" / "checkpoints" / "2")
        pair.processes[1].send_signal(signal.SIGTERM)
        codes, written = pair.ended()
    assert codes == [143, 143], written
    assert "Stopped and saved after step" in written[0][0]
    step = int(written[0][0].partition("after step ")[2].partition(";")[0])
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
    assert metrics_of(tmp_path / "run")[-1]["step"] == step


@pytest.mark.slow
def test_processes_wait_for_one_that_is_late(student, benchmark, tmp_path):
    def late(number, port):
        # More than the 30 seconds after which CPUs give each other up.
        return jax_variables(number, port) | {"LATE_SECONDS": str(45 * number)}

    out = tmp_path / "late.npz"
    words = ["embed", benchmark / "queries", f"--model={student}", f"--out={out}"]
    written = run_pair(*words, variables=late)
    assert "4 descriptors" in written[0][0]


def test_processes_that_do_not_do_the_same_are_refused(student, benchmark, images, tmp_path):
    """Each is given its own list of images, by one name."""
    for number, folder in enumerate((benchmark / "queries", images)):
        (tmp_path / str(number)).mkdir()
        paths = sorted(map(str, folder.glob("*.jpg")))
        (tmp_path / str(number) / "list.txt").write_text("\n".join(paths))
    words = ["embed", "list.txt", f"--model={student}", f"--out={tmp_path / 'x.npz'}"]
    folders = [tmp_path / "0", tmp_path / "1"]
    with Pair(*words, folders=folders) as pair:
        codes, written = pair.ended(timeout=120)
    assert codes == [1, 1]
    for _, err in written:
        assert err.splitlines()[-1].startswith(
            "rdcd-jax: The set of images of process 1 is another than that of process 0; all must"
        )
    assert not list(tmp_path.glob("x.npz*"))


@pytest.mark.parametrize("verb", ["train", "embed"])
def test_a_folder_that_not_all_see_is_refused(toys, student, images, tmp_path, verb):
    """Each has a folder of its own, by one name."""
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    name, fields = command(images)
    words = {
        "train": ["train", f"--config={name[0]}", "--workdir=w", *fields],
        "embed": ["embed", images, f"--model={student}", "--out=w/x.npz"],
    }[verb]
    with Pair(*words, folders=folders) as pair:
        codes, written = pair.ended(timeout=120)
    assert codes == [1, 1]
    for _, err in written:
        assert "rdcd-jax: The folder w of process 1 is another than that of process 0" in err
    assert not [path for folder in folders for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_waits_for_the_others_can_be_ended(tmp_path, number):
    words = ["embed", "sample:queries", "--model=rdcd-effb0-64", f"--out={tmp_path / 'x.npz'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rdcd_jax", *words],
        env=os.environ | jax_variables(0, free_port()),
        stderr=subprocess.PIPE,
        text=True,
    )
    while "Waiting for the other processes" not in (said := process.stderr.readline()):
        assert said
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert said == f"rdcd-jax: ended by signal {number:d}.\n"


def test_embed_and_evaluate_use_all(toys, student, benchmark, tmp_path, capsys):
    out = tmp_path / "two.npz"
    written = run_pair("embed", benchmark / "references", f"--model={student}", f"--out={out}")
    assert "6 descriptors of 8 dimensions" in written[0][0]
    assert "descriptors" not in written[1][0]
    assert "1 images could not be read" in written[0][1]
    assert sorted(path.name for path in tmp_path.glob("two*")) == [
        "two.npz",
        "two.npz.unreadable.txt",
    ]
    assert len(read_descriptors(out).ids) == 6
    results = tmp_path / "results"
    words = [f"--model={student}", f"--data={benchmark}", f"--out={results}"]
    run_pair("evaluate", "disc", *words, variables=slurm_variables)
    evaluate_disc(load_model(str(student)), benchmark, tmp_path / "one")
    names = [
        sorted(p.relative_to(f).as_posix() for p in f.rglob("*"))
        for f in (results, tmp_path / "one")
    ]
    assert names[0] == names[1]
    figures = [json.loads((f / "metrics.json").read_text()) for f in (results, tmp_path / "one")]
    assert figures[0] == figures[1]


@pytest.mark.parametrize(
    ("dtype", "parts"), [("int8", True), pytest.param("float16", False, marks=pytest.mark.slow)]
)
def test_an_index_is_searched_by_all(toys, student, benchmark, images, tmp_path, dtype, parts):
    model = load_model(str(student))
    index = Index.build(tmp_path / "index", images, model=model, dtype=dtype, parts=parts)
    index.add(benchmark / "references")
    words = ["--k=5", "--threshold=-2", "--variants=none", f"--out={tmp_path / 'two.csv'}"]
    queries = benchmark / "queries"
    run_pair("search", queries, f"--index={tmp_path / 'index'}", f"--model={student}", *words)
    one = index.search(queries, k=5, threshold=-2, variants=[])
    one.save(tmp_path / "one.csv")
    assert len(one) == 4 * 5
    assert (tmp_path / "two.csv").read_text() == (tmp_path / "one.csv").read_text()


@pytest.mark.slow
def test_checkpoints_in_a_bucket(images, features, tmp_path, monkeypatch):
    server = pytest.importorskip("gcp_storage_emulator.server")
    port = free_port()
    bucket = server.create_server("localhost", port, in_memory=True, default_bucket="bucket")
    bucket.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://localhost:{port}")
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
    rows = []
    try:
        for steps in (2, 4):
            changes = {
                "teacher.features": features,
                "schedule.max_steps": steps,
                "checkpoint_dir": "gs://bucket/run",
            }
            with started(images, tmp_path / "run", **changes) as pair:
                codes, written = pair.ended()
            assert codes == [0, 0], written
            rows.append(metrics_of(tmp_path / "run"))
    finally:
        bucket.stop()
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert [row["step"] for row in rows[1]] == [1, 2, 3, 4]
    # The second start went on from the bucket: speeds of the first one are still there.
    assert rows[1][:2] == rows[0]


@pytest.mark.parametrize("folder", ["s3://bucket/run", "gs://", "gs://bucket", "gs://bucket/"])
def test_checkpoints_elsewhere_are_refused(toys, images, features, tmp_path, folder):
    config = toy_config(images, features, checkpoint_dir=folder)
    with pytest.raises(UserError, match=f"config.checkpoint_dir is '{folder}'; checkpoints"):
        train_and_evaluate(config, tmp_path)


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, None),
        ({"SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NUM_TASKS"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE"),
        ({"MEGASCALE_NUM_SLICES": "2"}, "MEGASCALE_NUM_SLICES"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_COORDINATOR_ADDRESS"),
    ],
)
def test_a_cluster_is_known_by_its_variables(variables, named):
    assert hosts.named_cluster(variables) == named


def test_a_machine_with_tpus_asks_for_the_others(monkeypatch):
    monkeypatch.setattr(hosts, "_has_tpus", lambda: True)
    assert hosts.named_cluster({}) == "TPU"
    assert hosts.named_cluster({"TPU_SKIP_MDS_QUERY": "1"}) is None


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "the processes did not come together"),
        ({"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"}, "Number of processes must be defined"),
        ({"JAX_COORDINATOR_ADDRESS": "127.0.0.1"}, "is '127.0.0.1', not HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": ""}, "is '', not HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": "localhost:0"}, "is 'localhost:0', not HOST:PORT"),
        (jax_variables(1, 99999), "is '127.0.0.1:99999', not HOST:PORT"),
        (jax_variables(1, 9) | {"JAX_COORDINATOR_ADDRESS": "http://a:9"}, "not HOST:PORT"),
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            "coordinator_address should be defined",
        ),
        ({"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_PROCESS_ID": "0"}, "go together"),
        (
            {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "two"},
            "JAX_NUM_PROCESSES is 'two', not a whole number.",
        ),
    ],
)
def test_a_demanded_cluster_that_is_not_found_is_refused(variables, sentence, tmp_path):
    words = ["embed", tmp_path, "--model=rdcd-effb0-64", f"--out={tmp_path / 'x.npz'}"]
    ended = subprocess.run(
        [sys.executable, "-m", "rdcd_jax", *words, "--distributed"],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("rdcd-jax: ")
    assert sentence in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_port_in_use_is_named(tmp_path):
    if not socket.has_dualstack_ipv6():
        pytest.skip("JAX listens on IPv6")
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        words = ["embed", tmp_path, "--model=rdcd-effb0-64", f"--out={tmp_path / 'x.npz'}"]
        ended = subprocess.run(
            [sys.executable, "-m", "rdcd_jax", *words],
            env=os.environ | jax_variables(0, taken.getsockname()[1]),
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert ended.returncode == 1
    assert "already in use; give another port." in ended.stderr


def wait_for(path, seconds=180):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.05)


def has_ended(pid):
    with contextlib.suppress(FileNotFoundError):
        # A zombie has, though nobody asked for its exit code.
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def children_of(pid):
    with contextlib.suppress(FileNotFoundError):
        return [
            int(each)
            for each in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    return []

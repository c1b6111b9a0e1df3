"""Kills, stops and damages a training run again and again, and compares what it comes to with an undisturbed one.

    python -m experiments.studies.survive OUT [--kills 25] [--steps 120] [--seed 0]

The run is the real command line: EfficientNet-B0 on small views of the bundled images, with queue, bank, a data
worker, a named pipe and a broken image among its data. The killer sends SIGKILL to the whole process group, two times
out of three at a uniformly random moment, else during a save. Every injection is a line of OUT/injections.jsonl; the
result goes to experiments/results/survive.json.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import time

import jax
import numpy as np

from rdcd_jax.core.files import write_json
from rdcd_jax.images.sources import find_images
from rdcd_jax.method.state import TrainState
from rdcd_jax.training.checkpoints import SEAL
from rdcd_jax.training.config import load_config
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.record import environment
from rdcd_jax.training.step_log import SPEEDS

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULT = ROOT / "experiments" / "results" / "survive.json"
STATE = tuple(TrainState.__dataclass_fields__)
SAVE_EVERY = 10
LIMIT_S = 600


class Run:
    """One workdir, and the command that makes or continues it."""

    def __init__(self, out: pathlib.Path, name: str, steps: int, **changes: object):
        self.workdir = out / name
        self.log = out / f"{name}.log"
        self.config = f"{ROOT / 'configs' / 'rdcd.py'}:smoke,dim=32,data={out / 'images'}"
        changes = {
            "teacher.features": out / "features.npz",
            "schedule.max_steps": steps,
            "checkpoint_every": SAVE_EVERY,
            "data.workers": 1,
            "queue.size": 24,
            "schedule.epochs": steps,
        } | {name.replace("__", "."): value for name, value in changes.items()}
        self.changes = [f"--config.{name}={value}" for name, value in changes.items()]

    def start(self) -> subprocess.Popen:
        """The command, in a process group of its own."""
        command = [shutil.which("rdcd-jax"), "train", f"--config={self.config}"]
        with self.log.open("a") as log:
            return subprocess.Popen(
                [*command, *self.changes, f"--workdir={self.workdir}"],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self) -> int:
        """Runs to the end; the exit status."""
        return self.start().wait(LIMIT_S)

    def said(self) -> str:
        """All that its starts printed."""
        return self.log.read_text(errors="replace")

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any((self.workdir / "checkpoints").glob("*tmp*"))

    def steps(self) -> list[int]:
        """Steps of whole lines in `metrics.jsonl`."""
        path = self.workdir / "metrics.jsonl"
        found = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                found.append(json.loads(line)["step"])
            except (ValueError, KeyError):
                continue
        return found

    def metrics(self) -> list[dict]:
        """Lines of `metrics.jsonl` without what the clock says."""
        rows = map(json.loads, (self.workdir / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in row.items() if k not in SPEEDS} for row in rows]

    def state(self):
        """The state that a finished run's newest checkpoint holds."""
        return train_and_evaluate(load_config(self.config, self.changes), self.workdir)

    def saved(self) -> list[int]:
        """Steps of the whole checkpoints."""
        folder = self.workdir / "checkpoints"
        # The digests of its files are written last.
        return sorted(int(path.parent.name) for path in folder.glob(f"[0-9]*/{SEAL}"))


def wait_for(condition, process: subprocess.Popen, what: str) -> bool:
    """Whether `condition()` came true before the process ended."""
    end = time.monotonic() + LIMIT_S
    while process.poll() is None:
        if condition():
            return True
        if time.monotonic() > end:
            raise SystemExit(f"Waited {LIMIT_S} seconds for {what}.")
        time.sleep(0.001)
    return False


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the process group."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def prepare(out: pathlib.Path) -> None:
    """Images to train on, one of them broken and one a pipe, and descriptors that stand for the teacher's."""
    images = find_images("sample:train")
    (out / "images").mkdir(parents=True, exist_ok=True)
    for path in images.paths[:96]:
        shutil.copy(path, out / "images")
    (out / "images" / "broken.jpg").write_bytes(pathlib.Path(images.paths[96]).read_bytes()[:500])
    if not (out / "images" / "pipe.jpg").exists():
        os.mkfifo(out / "images" / "pipe.jpg")
    # Any unit vectors do. The pipe and the broken image have some too, so that the run meets them.
    names = sorted(path.stem for path in (out / "images").iterdir())
    rows = np.random.default_rng(0).normal(size=(len(names), 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.savez(out / "features.npz", ids=np.array(names), descriptors=rows)


@dataclasses.dataclass(frozen=True)
class Trial:
    """What all injections share.

    Attributes:
        out: the folder.
        whole: the undisturbed run that each is compared with.
        steps: of a run.
        seconds: that the undisturbed run took.
        injections: what was done so far.
    """

    out: pathlib.Path
    whole: Run
    steps: int
    seconds: float
    injections: list[dict]

    def run(self, name: str, **changes: object) -> Run:
        """A run of its own."""
        return Run(self.out, name, self.steps, **changes)

    def note(self, **what: object) -> None:
        """Keeps what was done."""
        self.injections.append(what)
        with (self.out / "injections.jsonl").open("a") as file:
            file.write(json.dumps(what) + "\n")
        print(what, flush=True)

    def differing(self, run: Run) -> list[str]:
        """What a finished run and the undisturbed one differ in: parts of the state, the metrics, the export."""
        ours, theirs = run.state(), self.whole.state()
        leaves = [
            [jax.tree.leaves(getattr(each, name)) for each in (ours, theirs)] for name in STATE
        ]
        found = [
            name
            for name, pair in zip(STATE, leaves, strict=True)
            if not all(map(np.array_equal, *pair))
        ]
        if run.metrics() != self.whole.metrics():
            found.append("metrics.jsonl")
        weights = pathlib.Path("export") / "weights.safetensors"
        if (run.workdir / weights).read_bytes() != (self.whole.workdir / weights).read_bytes():
            found.append(str(weights))
        return found


def undisturbed(out: pathlib.Path, steps: int) -> Trial:
    """Makes the run that the others are compared with."""
    whole = Run(out, "whole", steps)
    whole.finish()
    shutil.rmtree(whole.workdir)
    begun = time.monotonic()
    # The second start finds its programs compiled, as those that are killed do.
    status = whole.finish()
    trial = Trial(out, whole, steps, time.monotonic() - begun, [])
    trial.note(what="undisturbed", status=status, seconds=round(trial.seconds, 1))
    assert status == 0, whole.said()[-2000:]
    assert whole.steps() == list(range(1, steps + 1))
    return trial


def killed(trial: Trial, count: int, seed: int) -> dict:
    """Kills a run `count` times, then lets it end."""
    rng, run, done = random.Random(seed), trial.run("killed"), 0
    while done < count:
        process, begun = run.start(), time.monotonic()
        if done % 3 == 2:
            _wait_into_a_save(run, process, rng)
        else:
            pause = rng.uniform(0, trial.seconds)
            wait_for(lambda: time.monotonic() - begun > pause, process, "the kill")
        if process.poll() is not None:
            # It ended before: begin once more, so that every kill has something to kill.
            shutil.rmtree(run.workdir)
            continue
        saving = run.saving()
        kill(process)
        done += 1
        seconds = round(time.monotonic() - begun, 3)
        step = max(run.steps(), default=0)
        trial.note(what="SIGKILL", number=done, after_s=seconds, in_a_save=saving, step=step)
    trial.note(what="the run goes on to its end", status=run.finish())
    return {
        "kills": done,
        "in a save": sum(each.get("in_a_save", False) for each in trial.injections),
        "differs in": trial.differing(run),
        "every step once": run.steps() == trial.whole.steps(),
    }


def _wait_into_a_save(run: Run, process: subprocess.Popen, rng: random.Random) -> None:
    for _ in range(rng.randint(0, 2)):
        wait_for(run.saving, process, "a save")
        wait_for(lambda: not run.saving(), process, "the end of a save")
    wait_for(run.saving, process, "a save")
    time.sleep(rng.uniform(0, 0.15))


def stopped(trial: Trial) -> dict:
    """Stops a run by SIGTERM."""
    run = trial.run("stopped")
    process = _at_ten_steps(run)
    os.kill(process.pid, signal.SIGTERM)
    status = process.wait(LIMIT_S)
    trial.note(what="SIGTERM", status=status, step=max(run.steps()))
    assert status == 128 + signal.SIGTERM, run.said()[-2000:]
    return {
        "status": status,
        "last step saved": run.saved()[-1] == max(run.steps()),
        "status of the rest": run.finish(),
        "differs in": trial.differing(run),
    }


def damaged(trial: Trial, name: str) -> dict:
    """Spoils the largest file of a run's newest checkpoint."""
    run = trial.run(name.replace(" ", "-"))
    process = run.start()
    wait_for(lambda: len(run.saved()) == 2, process, "two checkpoints")
    kill(process)
    newest = run.workdir / "checkpoints" / str(run.saved()[-1])
    path = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    DAMAGE[name](path)
    status = run.finish()
    trial.note(what=f"checkpoint {name}", file=str(path.relative_to(trial.out)), status=status)
    return {
        "status": status,
        "named": f"{newest} is damaged" in run.said(),
        "differs in": trial.differing(run),
    }


def without_room(trial: Trial) -> dict:
    """Lets no file of a run grow beyond a megabyte for a while: to Orbax, a full disk."""
    run = trial.run("full-disk")
    process = _at_ten_steps(run)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
    wait_for(lambda: "could not be saved" in run.said(), process, "a failed save")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    status = process.wait(LIMIT_S)
    trial.note(what="full disk during a save", status=status)
    return {
        "status": status,
        "told": "could not be saved" in run.said(),
        "differs in": trial.differing(run),
    }


def bereft(trial: Trial) -> dict:
    """Kills a run's data worker."""
    run = trial.run("worker-dies")
    process = _at_ten_steps(run)
    workers = data_workers(process.pid)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    status = process.wait(LIMIT_S)
    trial.note(what="data worker killed", workers=len(workers), status=status)
    return {
        "workers": len(workers),
        "status": status,
        "told": "A data worker process died" in run.said(),
        "differs in": trial.differing(run),
    }


def diverging(trial: Trial) -> dict:
    """Trains at a rate at which no loss stays finite."""
    run = trial.run("diverges", optimizer__learning_rate=1e30)
    status = run.finish()
    sentence = next(line for line in run.said().splitlines() if line.startswith("rdcd-jax: "))
    trial.note(what="divergence", status=status, sentence=sentence)
    return {"status": status, "sentence": sentence.replace(str(trial.out), "OUT")}


def _at_ten_steps(run: Run) -> subprocess.Popen:
    process = run.start()
    wait_for(lambda: max(run.steps(), default=0) >= 10, process, "ten steps")
    return process


def main() -> None:
    """Injects everything, and writes what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out = options.out.resolve()
    if shutil.which("rdcd-jax") is None:
        raise SystemExit(
            "rdcd-jax is not on the PATH; activate the environment it is installed in."
        )
    shutil.rmtree(out, ignore_errors=True)
    prepare(out)
    trial = undisturbed(out, options.steps)
    results: dict[str, object] = {
        "killed": killed(trial, options.kills, options.seed),
        "SIGTERM": stopped(trial),
        **{f"checkpoint {name}": damaged(trial, name) for name in DAMAGE},
        "full disk": without_room(trial),
        "data worker killed": bereft(trial),
        "divergence": diverging(trial),
    }
    everything = "".join(path.read_text(errors="replace") for path in out.glob("*.log"))
    unreadable = (trial.whole.workdir / "unreadable.txt").read_text()
    results["tracebacks"] = everything.count("Traceback")
    results["pipe and broken image listed"] = all(
        name in unreadable for name in ("pipe.jpg", "broken.jpg")
    )
    found = {
        "environment": environment(),
        "settings": {"kills": options.kills, "steps": options.steps, "seed": options.seed},
        "seconds of an undisturbed run": round(trial.seconds, 1),
        "results": results,
        "injections": trial.injections,
    }
    write_json(RESULT, found)
    print(json.dumps(results, indent=2))


def flip(path: pathlib.Path) -> None:
    """Flips a bit in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def data_workers(pid: int) -> list[int]:
    """The processes that Python spawned below `pid` to read data."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_text()
            except (OSError, ValueError):
                continue
            if parent == pid and "spawn_main" in command:
                found.append(int(entry.name))
    return found


DAMAGE = {
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one bit flipped": flip,
    "deleted": os.unlink,
}


if __name__ == "__main__":
    main()

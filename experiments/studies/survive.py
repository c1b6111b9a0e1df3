"""Kills, stops and damages a training run again and again, and compares what it comes to with an undisturbed one.

    python -m experiments.studies.survive OUT [--kills 25] [--steps 120] [--seed 0]

The run is the real command line: EfficientNet-B0 on small views of the bundled images, with queue, bank, a data
worker, a named pipe and a broken image among its data. The killer sends SIGKILL to the whole process group, two times
out of three at a uniformly random moment, else during a save. Every injection is a line of OUT/injections.jsonl; the
result goes to experiments/results/survive.json.
"""

import argparse
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
from rdcd_jax.training.checkpoints import SEAL
from rdcd_jax.training.config import load_config
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.record import environment
from rdcd_jax.training.step_log import SPEEDS

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULT = ROOT / "experiments" / "results" / "survive.json"
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


def differing(run: Run, whole: Run) -> list[str]:
    """What two finished runs differ in: parts of the state, lines of the metrics, files of the export."""
    ours, theirs = run.state(), whole.state()
    found = [
        name
        for name in ours.__dataclass_fields__
        if not all(
            np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves(getattr(ours, name)),
                jax.tree.leaves(getattr(theirs, name)),
                strict=True,
            )
        )
    ]
    if run.metrics() != whole.metrics():
        found.append("metrics.jsonl")
    weights = pathlib.Path("export") / "weights.safetensors"
    if (run.workdir / weights).read_bytes() != (whole.workdir / weights).read_bytes():
        found.append(str(weights))
    return found


def prepare(out: pathlib.Path) -> None:
    """Images to train on, one of them broken and one a pipe, and descriptors that stand for the teacher's."""
    images = find_images("sample:train")
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    for path in images.paths[:96]:
        shutil.copy(path, out / "pictures")
    (out / "pictures" / "broken.jpg").write_bytes(pathlib.Path(images.paths[96]).read_bytes()[:500])
    if not (out / "pictures" / "pipe.jpg").exists():
        os.mkfifo(out / "pictures" / "pipe.jpg")
    # Any unit vectors do. The pipe and the broken image have some too, so that the run meets them.
    names = sorted(path.stem for path in (out / "pictures").iterdir())
    rows = np.random.default_rng(0).normal(size=(len(names), 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.savez(out / "features.npz", ids=np.array(names), descriptors=rows)


def kills(run: Run, count: int, duration: float, seed: int, note) -> None:
    """Kills the run `count` times, then lets it end."""
    rng = random.Random(seed)
    done = 0
    while done < count:
        process, begun = run.start(), time.monotonic()
        during_save = done % 3 == 2
        if during_save:
            for _ in range(rng.randint(0, 2)):
                wait_for(run.saving, process, "a save")
                wait_for(lambda: not run.saving(), process, "the end of a save")
            wait_for(run.saving, process, "a save")
            time.sleep(rng.uniform(0, 0.15))
        else:
            pause = rng.uniform(0, duration)
            wait_for(lambda: time.monotonic() - begun > pause, process, "the kill")
        if process.poll() is not None:
            # It ended before: begin once more, so that every kill has something to kill.
            shutil.rmtree(run.workdir)
            continue
        saving = run.saving()
        kill(process)
        done += 1
        note(
            what="SIGKILL",
            number=done,
            after_s=round(time.monotonic() - begun, 3),
            in_a_save=saving,
            step=max(run.steps(), default=0),
        )
    note(what="the run goes on to its end", status=run.finish())


def main() -> None:
    """Injects everything, and writes what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
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
    injections: list[dict] = []

    def note(**what) -> None:
        injections.append(what)
        with (out / "injections.jsonl").open("a") as file:
            file.write(json.dumps(what) + "\n")
        print(what, flush=True)

    results: dict[str, object] = {}
    whole = Run(out, "whole", options.steps)
    status = whole.finish()
    shutil.rmtree(whole.workdir)
    begun = time.monotonic()
    # The second start finds its programs compiled, as those that are killed do.
    status = whole.finish()
    duration = time.monotonic() - begun
    note(what="undisturbed", status=status, seconds=round(duration, 1))
    assert status == 0, whole.said()[-2000:]
    expected = list(range(1, options.steps + 1))
    assert whole.steps() == expected

    killed = Run(out, "killed", options.steps)
    kills(killed, options.kills, duration, options.seed, note)
    results["killed"] = {
        "kills": sum(each["what"] == "SIGKILL" for each in injections),
        "in a save": sum(each.get("in_a_save", False) for each in injections),
        "differs in": differing(killed, whole),
        "every step once": killed.steps() == expected,
    }

    stopped = Run(out, "stopped", options.steps)
    process = stopped.start()
    wait_for(lambda: max(stopped.steps(), default=0) >= 10, process, "ten steps")
    os.kill(process.pid, signal.SIGTERM)
    status = process.wait(LIMIT_S)
    note(what="SIGTERM", status=status, step=max(stopped.steps()))
    kept = stopped.saved()[-1] == max(stopped.steps())
    results["SIGTERM"] = {
        "status": status,
        "last step saved": kept,
        "status of the rest": stopped.finish(),
        "differs in": differing(stopped, whole),
    }

    damage = {
        "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
        "one bit flipped": flip,
        "deleted": os.unlink,
    }
    for name, spoil in damage.items():
        spoilt = Run(out, name.replace(" ", "-"), options.steps)
        process = spoilt.start()
        wait_for(lambda: len(spoilt.saved()) == 2, process, "two checkpoints")
        kill(process)
        newest = spoilt.workdir / "checkpoints" / str(spoilt.saved()[-1])
        path = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        spoil(path)
        status = spoilt.finish()
        note(what=f"checkpoint {name}", file=str(path.relative_to(out)), status=status)
        results[f"checkpoint {name}"] = {
            "status": status,
            "named": f"{newest} is damaged" in spoilt.said(),
            "differs in": differing(spoilt, whole),
        }

    full = Run(out, "full-disk", options.steps)
    process = full.start()
    wait_for(lambda: max(full.steps(), default=0) >= 10, process, "ten steps")
    # No file may grow beyond a megabyte: to orbax, a full disk.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2**20, resource.RLIM_INFINITY))
    wait_for(lambda: "could not be saved" in full.said(), process, "a failed save")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    status = process.wait(LIMIT_S)
    note(what="full disk during a save", status=status)
    results["full disk"] = {
        "status": status,
        "told": "could not be saved" in full.said(),
        "differs in": differing(full, whole),
    }

    bereft = Run(out, "worker-dies", options.steps)
    process = bereft.start()
    wait_for(lambda: max(bereft.steps(), default=0) >= 10, process, "ten steps")
    workers = data_workers(process.pid)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    status = process.wait(LIMIT_S)
    note(what="data worker killed", workers=len(workers), status=status)
    results["data worker killed"] = {
        "workers": len(workers),
        "status": status,
        "told": "a data worker process died" in bereft.said(),
        "differs in": differing(bereft, whole),
    }

    wild = Run(out, "diverges", options.steps, optimizer__learning_rate=1e30)
    status = wild.finish()
    sentence = next(line for line in wild.said().splitlines() if line.startswith("rdcd-jax: "))
    note(what="divergence", status=status, sentence=sentence)
    results["divergence"] = {"status": status, "sentence": sentence.replace(str(out), "OUT")}

    everything = "".join(path.read_text(errors="replace") for path in out.glob("*.log"))
    results["tracebacks"] = everything.count("Traceback")
    unreadable = (whole.workdir / "unreadable.txt").read_text()
    results["pipe and broken picture listed"] = (
        "pipe.jpg" in unreadable and "broken.jpg" in unreadable
    )
    write_json(
        RESULT,
        {
            "environment": environment(),
            "settings": {"kills": options.kills, "steps": options.steps, "seed": options.seed},
            "seconds of an undisturbed run": round(duration, 1),
            "results": results,
            "injections": injections,
        },
    )
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


if __name__ == "__main__":
    main()

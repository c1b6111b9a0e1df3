"""Gives the command line hostile input, a thousand times, and tells what it did not bear.

    python -m experiments.fuzz OUT [--cases 1000] [--seed 0] [--result JSON] [--only N]

Mutated images, weight files, export folders, ground truths, descriptor files, settings, configs, workdirs and indexes
go through `rdcd_jax.cli.main`, each in a forked process of its own (images 25 at a time). Checked from outside: the
exit code is 0, 1 or 2; no traceback; a refusal is one sentence that names what it refuses; time and memory stay within
limits; nothing changes but the given output; no code in the input ran. OUT gets `cases.jsonl` and the folders of the
cases that failed; the summary goes to `results/fuzz.json` or JSON. A case depends on the seed and its number alone.
"""

import argparse
import collections
import json
import os
import pathlib
import re
import shutil
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np

# Imported before the fork, though the command line would only do so when it is needed.
import rdcd_jax.training.loop  # noqa: F401
from experiments.fuzz import server
from experiments.fuzz.damage import Case, Place
from experiments.fuzz.images import add_image
from experiments.fuzz.indexes import index_case, verbs_case
from experiments.fuzz.runs import train_case, workdir_case
from experiments.fuzz.seeds import make_seeds, shrink_networks
from experiments.fuzz.tables import csv_case, descriptor_case, settings_case
from experiments.fuzz.weights import export_case, onnx_case, torch_case
from rdcd_jax.core.files import write_json
from rdcd_jax.embedding.descriptors import read_descriptors
from rdcd_jax.training.record import environment

RESULT = pathlib.Path(__file__).parents[1] / "results" / "fuzz.json"
GROUP = 25
# What a hundred cases consist of, besides images.
KINDS = {
    "torch": (11, torch_case),
    "onnx": (5, onnx_case),
    "export": (7, export_case),
    "csv": (6, csv_case),
    "descriptors": (6, descriptor_case),
    "settings": (2, settings_case),
    "train": (4, train_case),
    "workdir": (2, workdir_case),
    "index": (4, index_case),
    "verbs": (3, verbs_case),
}
_OTHERS = [kind for kind, (count, _) in KINDS.items() for _ in range(count)]
assert len(_OTHERS) == 50
_IMAGES = ["picture"] * GROUP
PLAN = [*_IMAGES, *_OTHERS[::2], *_IMAGES, *_OTHERS[1::2]]
# Lines on stderr besides the sentence of a refusal; libtiff prints the last kind by itself.
HARMLESS = re.compile(
    r".*, \d+:\d\d:\d\d left|(Warning|left out): .*|\d+ images could not be read .*"
    r"|((JPEG|TIFF|LZW|ZIP|Fax)\w*|tempfile.tif): .*"
)
LONGEST_SENTENCE = 2000


def main() -> None:
    """Runs the cases and writes what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path, help="folder for the cases; it must not exist")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=pathlib.Path, default=RESULT, metavar="JSON")
    parser.add_argument("--only", type=int, metavar="N", help="run case N alone")
    options = parser.parse_args()
    start = time.monotonic()
    fuzzer = Fuzzer(options.out.resolve(), options.seed)
    rows = []
    with (options.out / "cases.jsonl").open("w", encoding="utf-8") as log:
        for numbers in units(options.cases) if options.only is None else [[options.only]]:
            for row in fuzzer.rows(numbers):
                rows.append(row)
                log.write(json.dumps(row) + "\n")
                log.flush()
                if row["faults"]:
                    print(json.dumps(row, indent=2), flush=True)
    if options.only is None:
        write_json(options.result, summary(rows, options.seed, time.monotonic() - start))
    faulty = sum(bool(row["faults"]) for row in rows)
    print(f"{len(rows)} cases, {faulty} with faults, {time.monotonic() - start:.0f} s")
    sys.exit(1 if faulty else 0)


def units(cases: int) -> list[list[int]]:
    """The case numbers of each command line: one, or the images of a group."""
    found: list[list[int]] = []
    for number in range(cases):
        joins = PLAN[number % 100] == "picture" and number % GROUP
        if joins:
            found[-1].append(number)
        else:
            found.append([number])
    return found


def summary(rows: list[dict], seed: int, seconds: float) -> dict:
    """What the result file says."""
    counts: dict[str, collections.Counter] = {}
    for row in rows:
        counts.setdefault(row["kind"], collections.Counter())[row["outcome"]] += 1
    return {
        "cases": len(rows),
        "seed": seed,
        "outcomes": {kind: dict(sorted(each.items())) for kind, each in sorted(counts.items())},
        "faulty_cases": [row["case"] for row in rows if row["faults"]],
        "limits": {"seconds": server.SECONDS, "peak_mib": server.PEAK_MIB},
        "most": {
            "seconds": max(row["seconds"] for row in rows),
            "peak_mib": max(row["peak_mib"] for row in rows),
        },
        "seconds": round(seconds),
        "environment": environment(),
    }


class Fuzzer:
    """Makes cases, runs them and judges them.

    Args:
        folder: made here; gets the seeds, and the cases while they run.
        seed: of all choices.
    """

    def __init__(self, folder: pathlib.Path, seed: int):
        self._folder, self._seed = folder, seed
        folder.mkdir(parents=True)
        shrink_networks()
        pid = os.fork()
        if pid == 0:
            try:
                make_seeds(folder / "seeds")
                os._exit(0)
            finally:
                os._exit(1)
        if os.waitpid(pid, 0)[1]:
            raise SystemExit("The seeds could not be made.")
        for name in ("cases", "failed"):
            (folder / name).mkdir()

    def rows(self, numbers: list[int]) -> list[dict]:
        """Runs cases that share a command line.

        Args:
            numbers: one case, or images.

        Returns:
            For each: case, kind, injected, outcome, faults, seconds, peak_mib, sentence.
        """
        rows = self._run(numbers)
        if len(numbers) > 1 and any(row["faults"] for row in rows):
            # Which of them it was.
            alone = [self._run([number])[0] for number in numbers]
            rows = alone if any(row["faults"] for row in alone) else rows
        return rows

    def _run(self, numbers: list[int]) -> list[dict]:
        kind = PLAN[numbers[0] % 100]
        position = Place(self._folder / "cases" / f"{numbers[0]:04d}", self._folder / "seeds")
        for name in ("given/in", "cwd", "home", "cache", "tmp"):
            (position.root / name).mkdir(parents=True)
        random = {number: np.random.default_rng([self._seed, number]) for number in numbers}
        if kind == "picture":
            added = {number: add_image(position, number, random[number]) for number in numbers}
            case = _embedding(position, added, numbers[0])
        else:
            case = KINDS[kind][1](position, random[numbers[0]])
            added = {numbers[0]: (None, case.injected)}
        before = self._listing(position)
        root = position.root
        environment = {
            "HOME": root / "home",
            "XDG_CACHE_HOME": root / "cache",
            "TMPDIR": root / "tmp",
        }
        environment["RDCD_JAX_CACHE"] = root / "given" / "weights"
        environment = {name: str(value) for name, value in environment.items()}
        outcome = server.run_forked(case.argv, root, environment)
        faults = judged(outcome, case)
        faults += [f"changed: {path}" for path in sorted(before ^ self._listing(position))]
        faults += [f"left behind: {path}" for path in root.rglob("out*/**/.*-*") if path.is_file()]
        rows = []
        for number, (name, injected) in added.items():
            fate = {0: "accepted", 1: "refused", 2: "usage error"}.get(outcome.code, "failed")
            lost = []
            if kind == "picture" and not faults:
                fate = _fate(position, name)
                lost = ["neither described nor listed as unreadable"] if fate is None else []
            rows.append(
                {
                    "case": number,
                    "kind": kind,
                    "injected": injected,
                    "outcome": "failed" if faults or lost else fate,
                    "faults": faults + lost,
                    "code": outcome.code,
                    "seconds": round(outcome.seconds, 2),
                    "peak_mib": outcome.peak_mib,
                    "told": outcome.err[-3000:] if faults else outcome.err[-300:],
                }
            )
        if any(row["faults"] for row in rows):
            (root / "argv.json").write_text(json.dumps(case.argv))
            shutil.rmtree(self._folder / "failed" / root.name, ignore_errors=True)
            root.rename(self._folder / "failed" / root.name)
        else:
            shutil.rmtree(root)
        return rows

    def _listing(self, position: Place) -> set[tuple]:
        """Everything around the case that must not change: its own folder but for the output, and beside it."""
        found = set()
        positions = [self._folder, self._folder / "cases", self._folder / "seeds"]
        paths = [path for folder in positions for path in folder.iterdir()]
        allowed = (str(position.out), str(position.root / "given" / "weights"))
        for folder, folders, files in os.walk(position.root):
            paths += [pathlib.Path(folder, name) for name in (*folders, *files)]
        for path in paths:
            own = path.parent == position.root and path.name in ("stdout", "stderr")
            if not own and not str(path).startswith(allowed):
                stored = path.lstat()
                is_folder = path.is_dir() and not path.is_symlink()
                changing = (0, 0) if is_folder else (stored.st_size, stored.st_mtime_ns)
                found.add((str(path), stored.st_mode, *changing))
        return found


def judged(outcome: server.Outcome, case: Case) -> list[str]:
    """What is wrong with how a case ended."""
    faults = []
    if outcome.code is None:
        faults.append(f"still running after {server.SECONDS} s")
    elif outcome.code not in (0, 1, 2):
        faults.append(f"exit code {outcome.code}")
    if "Traceback (most recent call last)" in outcome.err:
        faults.append("a traceback")
    if outcome.peak_mib > server.PEAK_MIB:
        faults.append(f"{outcome.peak_mib} MiB of memory")
    lines = [line for line in outcome.err.splitlines() if not HARMLESS.fullmatch(line)]
    sentence = lines[-1] if lines else ""
    if outcome.code == 0 and lines:
        faults.append("unexplained lines on stderr")
    if outcome.code == 1 and (len(lines) != 1 or not re.match(r"rdcd-jax: .*\S.*[.?]$", sentence)):
        faults.append("not one sentence on stderr")
    if outcome.code == 2 and sum(": error: " in line for line in lines) != 1:
        faults.append("not one error on stderr")
    if outcome.code in (1, 2) and not any(name in sentence for name in case.stored):
        faults.append(f"the sentence names none of {case.stored}")
    if outcome.code != 2 and len(sentence) > LONGEST_SENTENCE:
        faults.append(f"a sentence of {len(sentence)} characters")
    if not sentence.isprintable():
        faults.append("control characters on stderr")
    return faults


def _embedding(position: Place, added: dict[int, tuple[str, str]], number: int) -> Case:
    """One `embed` of all images, and a good one; every other time by a list instead of the folder."""
    good = position.written("good.jpg", (position.seeds / "pictures" / "plain.jpg").read_bytes())
    source = position.inside
    if number // GROUP % 2:
        listed = [name for name, _ in added.values() if len(name.splitlines()) == 1]
        source = position.written("list.txt", "\n".join([good.name, *listed]) + "\n")
    argv = [
        "embed",
        f"--model={position.seeds / 'export'}",
        f"--images={source}",
        f"--out={position.out}.npz",
    ]
    return Case(argv, "", (str(source),))


def _fate(position: Place, name: str) -> str | None:
    """What became of an image; None where nothing tells."""
    path = position.inside / name
    image_id = os.path.splitext(os.path.basename(name))[0]
    if image_id in read_descriptors(f"{position.out}.npz").ids:
        return "described"
    listing = pathlib.Path(f"{position.out}.npz.unreadable.txt")
    listed = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    if any(line.startswith(f"{position.inside}/{image_id[:5]}") for line in listed):
        return "listed as unreadable"
    # A folder's name or another suffix says that it is no image.
    return "passed over" if path.is_dir() or path.suffix in ("", ".txt") else None


if __name__ == "__main__":
    main()

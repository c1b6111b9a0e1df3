"""Runs what waits for an accelerator, most valuable first, in a call of minutes.

    python -m experiments.accelerator OUT [--seconds 480] [--images PACKED] [--only NAME] [--small]

| part | seconds | what |
|---|---|---|
| networks | 120 | every network in float32 and bfloat16 against the CPU, one step of every config |
| steps | 180 | the paper's step against PyTorch's, eager and compiled |
| views | 60 | what making views inside the step adds to it |
| students | the rest | the students' trunk by the gpu recipe, on the packed images of --images |

Each part is a program with a time of its own and a result in OUT; the same command goes on with what is missing.
--small tries all of it on a CPU, with ten times the time.
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import NamedTuple

# Seconds that a part has to end after it was asked to.
GRACE = 30


class Part(NamedTuple):
    """A piece of the list.

    Attributes:
        name: it is called by.
        seconds: at most; 0 for all that is left.
        words: what is run, after `python -m`.
    """

    name: str
    seconds: float
    words: list[str]


def parts(options: argparse.Namespace) -> list[Part]:
    """The list, most valuable first."""
    small = ["--small"] if options.small else []
    patience = 10 if options.small else 1

    def own(name: str, seconds: int) -> Part:
        made = str(options.out / f"{name}.json")
        limit = patience * seconds
        words = [f"experiments.accelerator.{name}", made, "--seconds", str(limit), *small]
        return Part(name, limit, words)

    sizes = ["--batch", "256", "--rounds", "10", "--bfloat16"]
    if options.small:
        sizes = ["--batch", "4", "--size", "32", "--rounds", "1"]
    made = str(options.out / "views.json")
    views = Part("views", 60 * patience, ["experiments.benchmarks.views", *sizes, "--result", made])
    listed = [own("networks", 120), own("steps", 180), views]
    if options.images is not None:
        words = ["train", str(options.images), str(options.out / "students"), "--recipe", "gpu"]
        listed.append(Part("students", 0, ["experiments.studies.students", *words]))
    return listed


def run(part: Part, seconds: float, out: pathlib.Path) -> str:
    """Runs a part; says how it ended."""
    log = out / f"{part.name}.log"
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *part.words],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )
        try:
            return f"ended with {process.wait(seconds)}"
        except subprocess.TimeoutExpired:
            # A training run saves its state then.
            os.killpg(process.pid, signal.SIGTERM)
        try:
            return f"stopped after {seconds:.0f} s with {process.wait(GRACE)}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"killed after {seconds + GRACE:.0f} s"


def main() -> int:
    """Runs the parts one after the other, as long as there is time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=480, help="for all of it")
    parser.add_argument("--images", type=pathlib.Path, help="packed training images")
    parser.add_argument("--only", help="this part alone")
    parser.add_argument("--small", action="store_true", help="a trial on a CPU")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.seconds
    for part in parts(options):
        left = deadline - time.monotonic() - GRACE
        if options.only not in (None, part.name) or left <= 0:
            continue
        ended = run(part, min(part.seconds or left, left), options.out)
        print(f"{part.name}: {ended}; {options.out / part.name}.log", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

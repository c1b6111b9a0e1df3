"""What a user waits for at first: an import, a search for one image, the first step of a training run.

    python -m experiments.benchmarks.first_touch [--rounds 5]

Every figure is of a process of its own, in seconds: the median of some rounds, or, with an empty cache of compiled
programs, the first time on a machine. The training run is the paper's step at 224 pixels, in batches of 32, on the
bundled sample; it ends after one step, which is evaluated on nothing. Written to experiments/results/first_touch.json.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from rdcd_jax.core.files import write_json
from rdcd_jax.training.record import environment

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULT = ROOT / "experiments" / "results" / "first_touch.json"
MODEL = "rdcd-effb0-128"
QUERY = ROOT / "rdcd_jax" / "sample" / "queries"


def seconds(cache: pathlib.Path, *arguments: str | os.PathLike) -> float:
    """Runs Python with those arguments to its end, with a cache of its own."""
    variables = {**os.environ, "RDCD_JAX_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, *map(str, arguments)], env=variables, check=True, capture_output=True
    )
    return time.perf_counter() - begun


def first_and_later(folder: pathlib.Path, rounds: int, *arguments: str | os.PathLike) -> dict:
    """Seconds with an empty cache, and the median once the machine knows the command."""
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    first = seconds(cache, *arguments)
    later = [seconds(cache, *arguments) for _ in range(rounds)]
    return {"first": round(first, 2), "later": round(statistics.median(later), 2)}


def trained(folder: pathlib.Path) -> dict:
    """The first step of a training run, on a machine that has not compiled it and on one that has."""
    cache, found = folder / "cache", {}
    shutil.rmtree(cache, ignore_errors=True)
    for name in ("first", "later"):
        run = folder / f"run-{name}"
        taken = seconds(
            cache,
            *("-m", "rdcd_jax", "train", "--config=rdcd:data=sample:train", f"--workdir={run}"),
            *("--config.batch_size=32", "--config.schedule.max_steps=1"),
            "--config.student.background=0",
        )
        found[name] = round(taken, 1)
    return found


def table(seconds_of: dict[str, dict[str, float]]) -> str:
    """The result in Markdown."""
    lines = ["| seconds | the first time on a machine | later |", "|---|---|---|"]
    lines += [
        f"| {name} | {each['first']} | {each['later']} |" for name, each in seconds_of.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Measures all, and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        # What Python itself takes is not the import's.
        nothing = first_and_later(folder, options.rounds, "-c", "pass")
        imported = first_and_later(folder, options.rounds, "-c", "import rdcd_jax")
        index, query = folder / "index", sorted(QUERY.iterdir())[0]
        build = ("-m", "rdcd_jax", "index", "build", "sample:references", f"--out={index}")
        seconds(folder / "cache", *build, f"--model={MODEL}")
        found = {
            "import rdcd_jax": {
                name: round(imported[name] - nothing[name], 3) for name in imported
            },
            "search for one image": first_and_later(
                folder, options.rounds, "-m", "rdcd_jax", "search", index, query
            ),
            "one step of training": trained(folder),
        }
    write_json(
        RESULT,
        {"cores": os.cpu_count(), "model": MODEL, "environment": environment(), "seconds": found},
    )
    print(found)


if __name__ == "__main__":
    main()

"""What a user waits for at first: an import, a search for one image, the first step of a training run.

    python -m experiments.benchmarks.first_touch [--rounds 5]

Every figure is of a whole process, in seconds: the first with an empty cache of compiled programs, then the median of
some rounds. The training run is the paper's, at 224 pixels in batches of 32 on the bundled sample; it ends after one
step, its checkpoint and its export. Written to experiments/results/first_touch.json.
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
TRAIN = (
    *("-m", "rdcd_jax", "train", "--config=rdcd:data=sample:train", "--workdir=RUN/run"),
    *("--config.batch_size=32", "--config.schedule.max_steps=1", "--config.student.background=0"),
)
QUERY = ROOT / "rdcd_jax" / "sample" / "queries"


def seconds(cache: pathlib.Path, *arguments: str | os.PathLike) -> float:
    """Runs Python with those arguments to its end, with a cache of its own."""
    variables = {**os.environ, "RDCD_JAX_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    # It would win over the cache of its own.
    variables.pop("JAX_COMPILATION_CACHE_DIR", None)
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, *map(str, arguments)], env=variables, check=True, capture_output=True
    )
    return time.perf_counter() - begun


def first_and_later(folder: pathlib.Path, rounds: int, *arguments: str | os.PathLike) -> dict:
    """Seconds with an empty cache, and the median once the machine knows the command.

    Args:
        folder: for what the commands leave.
        rounds: of the median.
        *arguments: of Python; `RUN` in one stands for a folder that is new each time.
    """
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    taken = []
    for _ in range(1 + rounds):
        with tempfile.TemporaryDirectory(dir=folder) as run:
            taken.append(seconds(cache, *(str(each).replace("RUN", run) for each in arguments)))
    return {"first": round(taken[0], 2), "later": round(statistics.median(taken[1:]), 2)}


def table(found: dict) -> str:
    """What a user waits for, in seconds."""
    lines = ["| seconds | at first | later |", "|---|---|---|"]
    for name, row in found.items():
        first = "" if row["first"] is None else row["first"]
        lines.append(f"| {name} | {first} | {row['later']} |")
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
        # What Python itself takes is not the import's, which compiles nothing.
        nothing, imported = (
            first_and_later(folder, options.rounds, "-c", code)["later"]
            for code in ("pass", "import rdcd_jax")
        )
        index, query = folder / "index", sorted(QUERY.iterdir())[0]
        build = ("-m", "rdcd_jax", "index", "build", "sample:references", f"--out={index}")
        seconds(folder / "cache", *build, f"--model={MODEL}")
        search = ("-m", "rdcd_jax", "search", f"--index={index}", query)
        found = {
            "`import rdcd_jax`": {"first": None, "later": round(imported - nothing, 3)},
            "`rdcd-jax search` for one image": first_and_later(folder, options.rounds, *search),
            "`rdcd-jax train` for one step": first_and_later(folder, options.rounds, *TRAIN),
        }
    write_json(
        RESULT,
        {"cores": os.cpu_count(), "model": MODEL, "environment": environment(), "seconds": found},
    )
    print(found)


if __name__ == "__main__":
    main()

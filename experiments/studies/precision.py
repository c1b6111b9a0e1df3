"""Whether trunks in bfloat16 train as those in float32 do: short runs of three seeds each.

    python -m experiments.studies.precision BENCHMARK OUT [--steps 60]

The paper's objective on the benchmark's training images, at 64 pixels, from an ImageNet-trained student; student and
teacher compute in float32, or in bfloat16 with float32 parameters, statistics, heads and losses. Two runs of one seed
see the same views. A difference within the spread of the seeds is called none. The same command goes on with what is
missing.
"""

import argparse
import json
import pathlib
import statistics
import sys

from rdcd_jax.core.files import write_json
from rdcd_jax.training.config import load_config
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.record import environment

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULT = ROOT / "experiments" / "results" / "precision.json"
SEEDS, DTYPES = (0, 1, 2), ("float32", "bfloat16")
# Steps at the end whose losses are averaged.
LAST = 10


def run(benchmark: pathlib.Path, workdir: pathlib.Path, seed: int, dtype: str, steps: int) -> dict:
    """Trains one student; its losses and figures."""
    fields = {
        "seed": seed,
        "batch_size": 64,
        "image_size": 64,
        "queue.size": 2048,
        "bank.size": 2048,
        "student.dtype": dtype,
        "teacher.dtype": dtype,
        "init_from": "efficientnet-lite0",
        "optimizer.learning_rate": 0.02,
        "schedule.max_steps": steps,
        "schedule.epochs": 1,
        "schedule.warmup_epochs": 0,
        "evaluate.image_size": 96,
        "evals.pairs.queries": benchmark / "queries",
        "evals.pairs.references": benchmark / "references",
        "evals.pairs.ground_truth": benchmark / "ground_truth.csv",
    }
    words = [f"--config.{name}={value}" for name, value in fields.items()]
    config = load_config(f"rdcd:dim=64,data={benchmark / 'train'}", words)
    train_and_evaluate(config, workdir)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    figures = next(row for row in rows if "loss" not in row)
    return {
        "losses": losses,
        "last_loss": statistics.mean(losses[-LAST:]),
        "uAP": figures["evaluate/pairs/Flat/None/uAP"],
        "images_per_second": statistics.median(r["images_per_second"] for r in rows if "loss" in r),
    }


def summary(runs: dict[str, dict]) -> dict:
    """Means and deviations over the seeds, and the mean difference of runs of one seed."""
    found = {}
    for figure in ("last_loss", "uAP"):
        values = {d: [runs[f"{d}-{seed}"][figure] for seed in SEEDS] for d in DTYPES}
        pairs = zip(*values.values(), strict=True)
        found[figure] = {
            **{d: [statistics.mean(v), statistics.stdev(v)] for d, v in values.items()},
            "bfloat16 - float32": statistics.mean(b - a for a, b in pairs),
        }
    return found


def main() -> int:
    """Runs what is missing, and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    runs = {
        f"{dtype}-{seed}": run(
            options.benchmark, options.out / f"{dtype}-{seed}", seed, dtype, options.steps
        )
        for seed in SEEDS
        for dtype in DTYPES
    }
    found = {
        "environment": environment(),
        "steps": options.steps,
        "summary": summary(runs),
        "runs": runs,
    }
    write_json(RESULT, found)
    print(json.dumps(found["summary"], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The first trained student, a starting point: random weights, then SSCD's objective on small views, without a teacher.

    python experiments/first_student.py BENCHMARK OUT [--epochs 14]

BENCHMARK is a DISC-shaped folder (minidisc); only its training pictures are trained on. OUT keeps the runs, which
continue where they were stopped; the result goes to experiments/results/first_student.json. The figures are µAP in
percent at the evaluation size, whitening and score normalisation fitted to every third training picture (3,000).
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import warm_start  # noqa: E402
from rdcd_jax.data.sources import find_images  # noqa: E402
from rdcd_jax.evaluation.runs import evaluate_disc_run  # noqa: E402
from rdcd_jax.files import write_json, write_text  # noqa: E402
from rdcd_jax.train.finish import calibrate_batch_norm  # noqa: E402
from rdcd_jax.train.loop import make_student, train_and_evaluate  # noqa: E402
from rdcd_jax.train.record import environment  # noqa: E402
from rdcd_jax.weights.library import Model, evaluation_mode, load_model  # noqa: E402

DIM = 128
SIZES = (96, 128)
CODECS = f"Flat;PCAW{DIM},L2norm,Flat"
RESULT = ROOT / "experiments" / "results" / "first_student.json"


def start_config(training: pathlib.Path, epochs: int):
    """SSCD's objective on 64-pixel views."""
    config = warm_start.get_config(f"dim={DIM},image_size=64,epochs={epochs},data={training}")
    config.data.workers = 1
    return config


def figures(
    model: Model, benchmark: pathlib.Path, training: pathlib.Path, out: pathlib.Path
) -> dict:
    """µAP in percent by codec and normalisation."""
    rows, _, _ = evaluate_disc_run(model, benchmark, out, training=training, codecs=CODECS)
    return {
        f"{row.codec} SN {row.score_norm}": round(100 * row.metrics.average_precision, 2)
        for row in rows
    }


def curve(workdir: pathlib.Path) -> list[dict]:
    """Every hundredth line of a run's metrics."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[99::100]]


def main() -> None:
    """Runs what is not done yet, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--epochs", type=int, default=14)
    options = parser.parse_args()
    training = options.benchmark / "train"
    images = find_images(training)
    some = options.out / "train3000.txt"
    write_text(some, "".join(f"{path}\n" for path in images.paths[::3][:3000]))

    config = start_config(training, options.epochs)
    random = make_student(config, 512)
    random = Model("random", "efficientnet_b0", evaluation_mode(random), config.evaluate.image_size)
    calibrate_batch_norm(random, images, config.student.calibrate)
    result = {"random": figures(random, options.benchmark, some, options.out / "eval_random")}
    train_and_evaluate(config, options.out / "start")
    for size in SIZES:
        model = load_model(str(options.out / "start" / "export")).at_size(size)
        out = options.out / f"eval_{size}"
        result[f"start at {size}"] = figures(model, options.benchmark, some, out)
    write_json(
        RESULT,
        {
            "benchmark": options.benchmark.name,
            "environment": environment(),
            "figures": result,
            "config": config.to_dict() | {"data": {**config.data.to_dict(), "train": "train"}},
            "curve": curve(options.out / "start"),
        },
    )


if __name__ == "__main__":
    main()

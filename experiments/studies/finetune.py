"""What fine-tuning on clip art gives there, and costs elsewhere: the example of docs/finetune.md.

    python -m experiments.studies.finetune COLLECTION BENCHMARK OUT
        [--training SOME] [--start rdcd-effb0-128] [--dim 128]

COLLECTION is a DISC-shaped folder, of which `train` is trained on: the clip art of studies/clipart.py. BENCHMARK is
another, of images as the student was trained on, whose scores are normalised by SOME, or by its own training set.
Runs go on where they were stopped; the result goes to experiments/results/finetune.json.
"""

import argparse
import pathlib

from configs import finetune
from rdcd_jax.benchmarks.disc_runs import evaluate_disc
from rdcd_jax.core.files import write_json
from rdcd_jax.images.sources import find_images
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.record import environment
from rdcd_jax.training.results import training_seconds
from rdcd_jax.weights.library import load_model

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULT = ROOT / "experiments" / "results" / "finetune.json"


def figures(
    model: str, folder: pathlib.Path, out: pathlib.Path, image_size: int, training: str | None
) -> dict:
    """µAP and recall at 90% precision in percent, without and with score normalisation."""
    rows, _, _ = evaluate_disc(
        load_model(model).at_size(image_size), folder, out / folder.name, training=training
    )
    found = {}
    for row in rows:
        recall = row.metrics.recall_at_p90
        found[row.score_norm] = {
            "µAP": round(100 * row.metrics.average_precision, 2),
            "recall at 90% precision": recall and round(100 * recall, 2),
        }
    return found


def main() -> None:
    """Runs what is not done yet, and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("collection", type=pathlib.Path)
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--training")
    parser.add_argument("--start", default="rdcd-effb0-128")
    parser.add_argument("--dim", type=int, default=128)
    options = parser.parse_args()
    images = options.collection / "train"
    config = finetune.get_config(f"data={images},start={options.start},dim={options.dim}")
    workdir = options.out / "run"
    train_and_evaluate(config, workdir)
    result = {}
    for when, model in (("before", options.start), ("after", str(workdir / "export"))):
        result[when] = {
            folder.name: figures(
                model, folder, options.out / when, config.evaluate.image_size, training
            )
            for folder, training in (
                (options.collection, None),
                (options.benchmark, options.training),
            )
        }
    write_json(
        RESULT,
        {
            "start": options.start,
            "pictures": len(find_images(str(images))),
            "environment": environment(),
            "minutes": round(training_seconds(workdir) / 60, 1),
            "figures": result,
            "config": {k: v for k, v in config.to_dict().items() if k not in ("data", "evaluate")},
        },
    )


if __name__ == "__main__":
    main()

"""What fine-tuning on clip art gives there, and costs elsewhere: the example of docs/finetune.md.

    python -m experiments.studies.finetune COLLECTION BENCHMARK OUT
        [--training SOME] [--start rdcd-effb0-128] [--dim 128]

COLLECTION is a DISC-shaped folder, of which `train` is trained on: the clip art of studies/clipart.py. BENCHMARK is
another, of images as the student was trained on, whose scores are normalised by SOME, or by its own training set.
Each model's own calibration is judged too: what a search reports by default, and how much of that is right. That of the
shipped student was measured on labelled photographs, that of the fine-tuned one on views of its training images.
Runs go on where they were stopped; the result goes to experiments/results/finetune.json.
"""

import argparse
import pathlib

from configs import finetune
from experiments.studies.percent import HEADING, cells, in_percent
from rdcd_jax.benchmarks.calibrating import best_matches
from rdcd_jax.benchmarks.disc_runs import evaluate_disc
from rdcd_jax.benchmarks.ground_truth import find_disc_layout, read_ground_truth
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_json
from rdcd_jax.embedding.descriptors import read_descriptors
from rdcd_jax.images.sources import find_images
from rdcd_jax.search.scoring import scoring_of
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.record import environment
from rdcd_jax.training.results import training_seconds
from rdcd_jax.weights.library import load_model
from rdcd_jax.weights.model import Model

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULT = ROOT / "experiments" / "results" / "finetune.json"


def figures(
    model: str, folder: pathlib.Path, out: pathlib.Path, image_size: int, training: str | None
) -> dict:
    """As `in_percent`, without and with score normalisation; and as `reported`."""
    loaded = load_model(model).at_size(image_size)
    rows, _, _ = evaluate_disc(loaded, folder, out / folder.name, training=training)
    found = in_percent(rows, ("", " with SN"))
    return found | reported(loaded, folder, out / folder.name / "descriptors")


def reported(model: Model, folder: pathlib.Path, described: pathlib.Path) -> dict[str, float]:
    """The copies above the model's own threshold of 90 % precision, and their share of all above it, in percent."""
    queries, references = (
        read_descriptors(described / f"{part}.npz") for part in ("queries", "references")
    )
    truth = read_ground_truth(find_disc_layout(folder).ground_truth)
    scoring = scoring_of(model.background, model.card.get("calibration"))
    threshold = scoring.threshold(0.9, len(references))
    if threshold is None:
        raise UserError(
            f"{model.name} has no calibration; give a COLLECTION with more images to train on."
        )
    scores, correct = best_matches(queries, references, truth, scoring.background)
    above = scores >= threshold
    right = (correct & above).sum()
    return {
        "copies found": round(100 * right / len(truth.pairs), 1),
        "of what is found, right": round(100 * right / max(1, above.sum()), 1),
    }


def table(figures: dict[str, dict]) -> str:
    """The result in Markdown."""
    lines = [f"| | {HEADING} | by its own threshold: found, right |", "|---|---|---|---|---|"]
    for place, label in zip(figures["before"], ("clip art", "BENCHMARK"), strict=True):
        for when, sets in figures.items():
            *measured, found, right = sets[place].items()
            by_itself = f"{found[1]}, {right[1]}"
            lines.append(f"| {label}, {when} | {cells(dict(measured))} | {by_itself} |")
    return "\n".join(lines)


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
            "images": len(find_images(str(images))),
            "environment": environment(),
            "minutes": round(training_seconds(workdir) / 60, 1),
            "figures": result,
            "config": {k: v for k, v in config.to_dict().items() if k not in ("data", "evaluate")},
        },
    )


if __name__ == "__main__":
    main()

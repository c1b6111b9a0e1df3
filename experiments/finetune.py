"""What fine-tuning on a collection unlike photographs gives: the example of docs/finetune.md.

    python experiments/finetune.py COLLECTION OUT [--start rdcd-effb0-128] [--epochs 5]

COLLECTION is a DISC-shaped folder, of which `train` is trained on: the clip art of experiments/clipart.py. Runs go on
where they were stopped; the result goes to experiments/results/finetune.json.
"""

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import finetune  # noqa: E402
from rdcd_jax.data.sources import find_images  # noqa: E402
from rdcd_jax.evaluation.runs import evaluate_disc_run  # noqa: E402
from rdcd_jax.files import write_json  # noqa: E402
from rdcd_jax.train.loop import train_and_evaluate  # noqa: E402
from rdcd_jax.train.record import environment  # noqa: E402
from rdcd_jax.train.results import training_seconds  # noqa: E402
from rdcd_jax.weights.library import load_model  # noqa: E402

RESULT = ROOT / "experiments" / "results" / "finetune.json"
# What each run is told beyond the pictures.
RUNS = {"without a teacher": "", "with the teacher": "teacher=onnxruntime"}


def figures(model: str, collection: pathlib.Path, out: pathlib.Path, image_size: int) -> dict:
    """µAP in percent on the collection, without and with score normalisation."""
    rows, _, _ = evaluate_disc_run(load_model(model).at_size(image_size), collection, out)
    plain, normalised = (round(100 * row.metrics.average_precision, 2) for row in rows)
    return {"µAP": plain, "µAP with SN": normalised}


def main() -> None:
    """Runs what is not done yet, and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("collection", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--start", default="rdcd-effb0-128")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    collection = options.collection
    counts = {
        part: len(find_images(str(collection / part)))
        for part in ("queries", "references", "train")
    }
    result = {}
    for name, arg in RUNS.items():
        config = finetune.get_config(
            f"data={collection / 'train'},start={options.start},epochs={options.epochs},{arg}"
        )
        config.data.workers = 1
        workdir = options.out / name.replace(" ", "_")
        size = config.evaluate.image_size
        if not result:
            before = figures(options.start, collection, options.out / "eval_before", size)
            result["before"] = before
        train_and_evaluate(config, workdir)
        minutes = round(training_seconds(workdir) / 60, 1)
        after = figures(str(workdir / "export"), collection, workdir / "evaluation", size)
        result[name] = {**after, "minutes": minutes}
    settings = {key: v for key, v in config.to_dict().items() if key not in ("data", "evaluate")}
    write_json(
        RESULT,
        {
            "collection": collection.name,
            "pictures": counts,
            "environment": environment(),
            "figures": result,
            "config": settings,
        },
    )


if __name__ == "__main__":
    main()

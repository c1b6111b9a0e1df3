"""The first trained student: an ImageNet-trained trunk, distilled from SSCD's ResNet-50 on a CPU, in two stages.

    python experiments/first_student.py BENCHMARK OUT [--epochs 20 5] [--features FILE]

BENCHMARK is a DISC-shaped folder (minidisc); only its training pictures are trained on. OUT keeps the runs, which
continue where they were stopped; the result goes to experiments/results/first_student.json, and the student into the
package as `rdcd-effb0-start`. The figures are µAP in percent, whitening and score normalisation fitted to every third
training picture (3,000). FILE is the teacher's descriptors of the training pictures (`rdcd-jax embed --model=sscd`),
where they are at hand already.
"""

import argparse
import dataclasses
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import distill, warm_start  # noqa: E402
from rdcd_jax.data.sources import find_images  # noqa: E402
from rdcd_jax.evaluation.runs import evaluate_disc_run  # noqa: E402
from rdcd_jax.files import write_json, write_text  # noqa: E402
from rdcd_jax.train.finish import calibrate_batch_norm  # noqa: E402
from rdcd_jax.train.loop import make_student, train_and_evaluate  # noqa: E402
from rdcd_jax.train.record import TEACHER_FEATURES, environment  # noqa: E402
from rdcd_jax.weights.library import (  # noqa: E402
    Model,
    evaluation_mode,
    export_model,
    load_model,
)
from rdcd_jax.weights.store import KINDS  # noqa: E402

DIM = 128
TRUNK = "efficientnet-lite0"
# Training and evaluation side of each stage: a student does best on pictures somewhat larger than its training views.
STAGES = ((64, 96), (96, 128))
CODECS = f"Flat;PCAW{DIM},L2norm,Flat"
SHIPPED = ROOT / "rdcd_jax" / "students" / "rdcd-effb0-start"
RESULT = ROOT / "experiments" / "results" / "first_student.json"


def stage_config(options: argparse.Namespace, stage: int):
    """The config of a stage; the second starts from the first's export, at a lower rate."""
    size, evaluation_size = STAGES[stage]
    epochs = options.epochs[stage]
    config = distill.get_config(
        f"dim={DIM},image_size={size},epochs={epochs},data={options.benchmark / 'train'}"
    )
    config.init_from = TRUNK if stage == 0 else str(options.out / "stage1" / "export")
    first_features = options.out / "stage1" / TEACHER_FEATURES
    config.teacher.features = str(options.features or (first_features if stage else "cached"))
    if stage:
        config.optimizer.learning_rate /= 4
    config.data.workers = 1
    config.checkpoint_every = 250
    config.evaluate.data = str(options.benchmark)
    config.evaluate.training = str(options.out / "train3000.txt")
    config.evaluate.every = 700
    config.evaluate.image_size = evaluation_size
    config.evaluate.codecs = CODECS
    return config


def figures(model: Model, options: argparse.Namespace, name: str) -> dict:
    """µAP in percent by codec and normalisation."""
    rows, _, _ = evaluate_disc_run(
        model,
        options.benchmark,
        options.out / name,
        training=options.out / "train3000.txt",
        codecs=CODECS,
    )
    return {
        f"{row.codec} SN {row.score_norm}": round(100 * row.metrics.average_precision, 2)
        for row in rows
    }


def curve(workdir: pathlib.Path) -> list[dict]:
    """Every hundredth step of a run, and its evaluations."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "loss" not in row or row["step"] % 100 == 0]


def ship(model: Model, measured: dict, pictures: int) -> None:
    """Puts the student into the package, with its card."""
    card = {
        "trained": {
            "recipe": "experiments/first_student.py",
            "data": f"{pictures} pictures of free software packages (Debian main), no labels",
            "teacher": "SSCD ResNet-50, from the quantised sscd.onnx",
            "started from": "EfficientNet-Lite0, trained on ImageNet",
        },
        "licences": [KINDS["sscd-torchvision"].licence, KINDS[TRUNK].licence],
        "figures": {"µAP in percent on the benchmark of experiments/results": measured},
    }
    export_model(SHIPPED, dataclasses.replace(model, name=SHIPPED.name), half=True, about=card)


def main() -> None:
    """Runs what is not done yet, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--epochs", type=int, nargs=2, default=(20, 5))
    parser.add_argument("--features", type=pathlib.Path)
    options = parser.parse_args()
    images = find_images(options.benchmark / "train")
    write_text(
        options.out / "train3000.txt", "".join(f"{path}\n" for path in images.paths[::3][:3000])
    )

    result = {}
    config = warm_start.get_config(f"dim={DIM}")
    for name, start in {"random": "", TRUNK: TRUNK}.items():
        config.init_from = start
        student = evaluation_mode(make_student(config, 512))
        model = Model(name, "efficientnet_b0", student, config.evaluate.image_size)
        calibrate_batch_norm(model, images, config.student.calibrate)
        result[name] = figures(model, options, f"eval_{name}")
    configs, curves = {}, {}
    for stage in range(len(STAGES)):
        name = f"stage{stage + 1}"
        config = stage_config(options, stage)
        train_and_evaluate(config, options.out / name)
        model = load_model(str(options.out / name / "export"))
        for _, size in STAGES:
            result[f"{name} at {size}"] = figures(
                model.at_size(size), options, f"eval_{name}_{size}"
            )
        paths = ("data", "evaluate", "teacher", "init_from")
        configs[name] = {key: v for key, v in config.to_dict().items() if key not in paths}
        curves[name] = curve(options.out / name)
    # The last stage's student, at the size it was evaluated at last.
    ship(model, result[f"{name} at {model.image_size}"], len(images))
    write_json(
        RESULT,
        {
            "benchmark": options.benchmark.name,
            "environment": environment(),
            "figures": result,
            "configs": configs,
            "curves": curves,
        },
    )


if __name__ == "__main__":
    main()

"""The first trained student: random weights, a warm start on small views, then RDCD from the real teacher.

    python experiments/first_student.py BENCHMARK OUT [--stage1-epochs 14] [--stage2-epochs 8]

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

from configs import rdcd, warm_start  # noqa: E402
from rdcd_jax.data.sources import find_images  # noqa: E402
from rdcd_jax.evaluation.runs import evaluate_disc_run  # noqa: E402
from rdcd_jax.files import write_json, write_text  # noqa: E402
from rdcd_jax.train.finish import calibrate_batch_norm  # noqa: E402
from rdcd_jax.train.loop import make_student, train_and_evaluate  # noqa: E402
from rdcd_jax.train.record import environment  # noqa: E402
from rdcd_jax.weights.library import Model, evaluation_mode, load_model  # noqa: E402

DIM = 128
CODECS = f"Flat;PCAW{DIM},L2norm,Flat"
RESULT = ROOT / "experiments" / "results" / "first_student.json"


def stage1_config(training: pathlib.Path, epochs: int):
    """SSCD's objective on 64-pixel views."""
    config = warm_start.get_config(f"dim={DIM},image_size=64,epochs={epochs},data={training}")
    config.data.workers = 1
    return config


def stage2_config(training: pathlib.Path, epochs: int, start: pathlib.Path):
    """RDCD on 96-pixel views, the teacher's descriptors cached."""
    config = rdcd.get_config(f"dim={DIM},data={training}")
    config.init_from = str(start)
    config.student.dropout = False
    config.student.calibrate = 2048
    config.teacher.features = "cached"
    config.data.policy = "MILD"
    config.data.workers = 1
    config.image_size = 96
    config.batch_size = 64
    config.queue.size = 8192
    config.bank.size = 4096
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.weight_decay = 0.05
    config.schedule.epochs, config.schedule.warmup_epochs = epochs, 1
    config.checkpoint_every = 200
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
    parser.add_argument("--stage1-epochs", type=int, default=14)
    parser.add_argument("--stage2-epochs", type=int, default=8)
    parser.add_argument(
        "--teacher-features", default="cached", help="a descriptor file, if there is one"
    )
    options = parser.parse_args()
    training = options.benchmark / "train"
    images = find_images(training)
    some = options.out / "train3000.txt"
    write_text(some, "".join(f"{path}\n" for path in images.paths[::3][:3000]))

    config = stage1_config(training, options.stage1_epochs)
    random = make_student(config, 512)
    random = Model("random", "efficientnet_b0", evaluation_mode(random), config.evaluate.image_size)
    calibrate_batch_norm(random, images, config.student.calibrate)
    result = {"random": figures(random, options.benchmark, some, options.out / "eval_random")}
    print(result, flush=True)
    train_and_evaluate(config, options.out / "stage1")
    configs = {"stage1": config}
    config = stage2_config(training, options.stage2_epochs, options.out / "stage1" / "export")
    config.teacher.features = options.teacher_features
    configs["stage2"] = config
    for size in (96, 128, 160):
        model = load_model(str(options.out / "stage1" / "export")).at_size(size)
        out = options.out / f"eval_stage1_{size}"
        result[f"stage1 at {size}"] = figures(model, options.benchmark, some, out)
        print(result, flush=True)
    train_and_evaluate(config, options.out / "stage2")
    for size in (96, 128, 160):
        model = load_model(str(options.out / "stage2" / "export")).at_size(size)
        out = options.out / f"eval_stage2_{size}"
        result[f"stage2 at {size}"] = figures(model, options.benchmark, some, out)
        print(result, flush=True)
    write_json(
        RESULT,
        {
            "command": " ".join(sys.argv),
            "environment": environment(),
            "figures": result,
            "configs": {name: config.to_dict() for name, config in configs.items()},
            "curves": {name: curve(options.out / name) for name in configs},
        },
    )


if __name__ == "__main__":
    main()

"""Whether SSCD's entropy term prevents collapse: one student, trained with it at several weights.

    python -m experiments.studies.collapse BENCHMARK OUT [--train SOURCE] [--weights 0 3 10 30] [--steps 100]

BENCHMARK is a DISC-shaped folder (minidisc); only its training images are trained on. SOURCE is the same images
where they are read faster (packed shards). OUT keeps the runs, which continue where they were stopped. Everything but
the weight is the same: an EfficientNet-B0 from an ImageNet-trained trunk, SSCD's objective within small batches of
small, mildly edited views, no teacher.

Written to experiments/results/collapse.json and .png: the singular values of the centred descriptors of the references,
how many directions hold 90% and 99% of their variance, the effective rank (exp of the entropy of the variance's
shares), and µAP in percent, normalised by every third training image (3,000) and not. `start` is the student before
its training.
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable

import matplotlib
import numpy as np

from configs import sscd
from experiments.studies.spectra import spectrum
from experiments.studies.students import some_training_images
from rdcd_jax.benchmarks.disc_runs import evaluate_disc
from rdcd_jax.core.files import write_aside, write_json
from rdcd_jax.embedding.descriptors import read_descriptors
from rdcd_jax.images.sources import find_images
from rdcd_jax.training.fitting import recalibrate_batch_norm
from rdcd_jax.training.loop import run_training
from rdcd_jax.training.record import environment
from rdcd_jax.training.student import make_student
from rdcd_jax.weights.library import load_model
from rdcd_jax.weights.model import Model, evaluation_mode

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = pathlib.Path(__file__).resolve().parents[2]

DIM = 128
RESULT = ROOT / "experiments" / "results" / "collapse.json"


def run_config(options: argparse.Namespace, weight: float):
    """SSCD's objective at that entropy weight, at a size that a CPU trains in minutes."""
    config = sscd.get_config(
        f"student=efficientnet_b0,dim={DIM},entropy={weight},data={options.train}"
    )
    config.init_from = "efficientnet-lite0"
    config.student.dropout = False
    config.student.recalibrate = 1024
    config.image_size = 48
    config.batch_size = 64
    config.data.policy = "MILD"
    config.data.mixup = config.data.cutmix = 0.0
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 8e-3
    config.optimizer.weight_decay = 0.05
    steps_per_epoch = len(find_images(options.train)) // config.batch_size
    config.schedule.epochs = -(-options.steps // steps_per_epoch)
    config.schedule.warmup_epochs = 0
    config.schedule.max_steps = options.steps
    config.log_every = 10
    config.checkpoint_every = 50
    config.evaluate.image_size = 64
    return config


def untrained(config) -> Model:
    """The student before its training."""
    module = evaluation_mode(make_student(config, DIM).module)
    model = Model("start", config.student.network, module, config.evaluate.image_size)
    recalibrate_batch_norm(model, find_images(config.data.train), config.student.recalibrate)
    return model


def trained(config, workdir: pathlib.Path) -> Model:
    """The student after it, or after what was left of it."""
    _, finished = run_training(config, workdir)
    if not finished:
        raise SystemExit(f"{workdir} was stopped; start again to continue it.")
    return load_model(str(workdir / "export"))


def evaluated(made: Callable[[], Model], folder: pathlib.Path, options) -> pathlib.Path:
    """Evaluates a model into the folder, unless that is done."""
    # The last file of an evaluation.
    if not (folder / "predictions.csv").is_file():
        training = options.out / "train3000.txt"
        evaluate_disc(made(), options.benchmark, folder, training=training, codecs="Flat")
    return folder


def figures(folder: pathlib.Path) -> dict:
    """What an evaluation left: how the references' descriptors are spread, and µAP in percent."""
    references = read_descriptors(folder / "descriptors" / "references.npz").descriptors
    rows = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {
        "uAP": {row["score_norm"]: round(100 * row["uAP"], 2) for row in rows},
        **spectrum(references),
    }


def draw(found: dict[str, dict]) -> None:
    """Plots the spectra, each beside its effective rank and µAP."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name, each in found.items():
        spectrum = np.asarray(each["singular_values"])
        plain, normalised = each["uAP"].values()
        label = f"{name}: effective rank {each['effective_rank']:.0f}, µAP {plain:.1f} (SN {normalised:.1f})"
        axes.semilogy(np.arange(1, len(spectrum) + 1), spectrum, label=label)
    axes.set_xlabel("direction")
    axes.set_ylabel("singular value of the references' descriptors")
    axes.legend(fontsize="small")
    with write_aside(RESULT.with_suffix(".png")) as aside:
        figure.savefig(aside, format="png", dpi=120)


def main() -> None:
    """Runs what is not done yet, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--train", help="default: the benchmark's training images")
    parser.add_argument("--weights", type=float, nargs="+", default=(0.0, 3.0, 10.0, 30.0))
    parser.add_argument("--steps", type=int, default=100, help="of each run")
    options = parser.parse_args()
    options.train = options.train or str(options.benchmark / "train")
    some_training_images(options.benchmark, options.out)

    configs = {
        f"entropy weight {weight:g}": run_config(options, weight) for weight in options.weights
    }
    first = next(iter(configs.values()))
    folders = {"start": evaluated(lambda: untrained(first), options.out / "start", options)}
    for name, config in configs.items():
        workdir = options.out / name.replace(" ", "_")
        made = functools.partial(trained, config, workdir)
        folders[name] = evaluated(made, workdir / "judged", options)
    found = {name: figures(folder) for name, folder in folders.items()}
    config = config.to_dict()
    write_json(
        RESULT,
        {
            "benchmark": options.benchmark.name,
            "environment": environment(),
            "figures": found,
            "steps": options.steps,
            # The runs differ in objective.entropy_lambda alone.
            "config": {key: v for key, v in config.items() if key not in ("data", "evaluate")},
            "policy": config["data"]["policy"],
            "sides": {
                "training": config["image_size"],
                "evaluation": config["evaluate"]["image_size"],
            },
        },
    )
    draw(found)
    for name, each in found.items():
        print(f"{name}: { ({key: v for key, v in each.items() if key != 'singular_values'}) }")


if __name__ == "__main__":
    main()

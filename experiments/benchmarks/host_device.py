"""Compares views made on the device with the host's: what the teacher sees in them, and what training makes of them.

    python -m experiments.benchmarks.host_device OUT [--seeds 3] [--epochs 12]

Teacher: similarity of many ADVANCED views to their image, made either way. Training: a student of 64 dimensions from
random weights, by SSCD's objective and the teacher's relations, on small views of the bundled images; each seed once
with either kind of views, evaluated on the bundled benchmark. The result goes to experiments/results/host_device.json;
finished runs are not repeated.
"""

import argparse
import json
import pathlib
import statistics
import time

import jax
import numpy as np

from configs import warm_start
from rdcd_jax.augment.device.overlay import draw_atlas
from rdcd_jax.augment.device.views import make_device_view
from rdcd_jax.augment.policies import make_view
from rdcd_jax.benchmarks.disc_runs import evaluate_disc
from rdcd_jax.core.files import write_json
from rdcd_jax.images.sources import find_images
from rdcd_jax.training.kept import keep_images
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.record import environment
from rdcd_jax.weights.library import load_model

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULT = ROOT / "experiments" / "results" / "host_device.json"
SAMPLE = ROOT / "rdcd_jax" / "sample"
IMAGES, VIEWS, SIZE = 48, 16, 160


def teacher_similarities() -> dict[str, np.ndarray]:
    """[IMAGES, VIEWS] cosines of views with their image, of either kind."""
    images = find_images("sample:train")
    images = images.subset(range(0, len(images), len(images) // IMAGES)[:IMAGES])
    teacher = load_model("sscd").at_size(SIZE)
    kept = keep_images(images, 2 * SIZE, on_device=False)
    whole = teacher.embed_batch(keep_images(images, SIZE, on_device=False).pixels)
    device = jax.jit(make_device_view("ADVANCED", SIZE))
    host, atlas, rng = make_view("ADVANCED", SIZE), draw_atlas(), np.random.default_rng(0)
    pixels = [images.decode(position) for position in range(len(images))]
    found = {"host": [], "device": []}
    for number in range(VIEWS):
        views = {
            "host": np.stack([host(each, rng) for each in pixels]),
            "device": device(kept.pixels, kept.aspects, atlas, jax.random.key(number)),
        }
        for name, batch in views.items():
            embedded = teacher.embed_batch(np.asarray(batch))
            found[name].append(np.sum(embedded * whole, axis=1))
    return {name: np.stack(rows, axis=1) for name, rows in found.items()}


def compared(similarities: dict[str, np.ndarray]) -> dict:
    """Means, spreads and deciles, and how far the means are apart in standard errors over images."""
    host, device = (similarities[name] for name in ("host", "device"))
    difference = device.mean(1) - host.mean(1)
    return {
        "pictures": IMAGES,
        "views of each": VIEWS,
        **{
            f"{what} {name}": np.round(value(rows), 4).tolist()
            for name, rows in similarities.items()
            for what, value in {
                "mean": np.mean,
                "standard deviation": np.std,
                "deciles": lambda x: np.quantile(x, np.arange(0.1, 1, 0.1)),
            }.items()
        },
        "difference of the means": round(float(difference.mean()), 4),
        "in standard errors": round(
            float(difference.mean() / (difference.std(ddof=1) / len(difference) ** 0.5)), 2
        ),
    }


def run_config(features: pathlib.Path, views: str, seed: int, epochs: int):
    """A student from random weights, at a size that a CPU trains in minutes."""
    config = warm_start.get_config(f"dim=64,image_size=64,epochs={epochs},data={SAMPLE / 'train'}")
    config.seed = seed
    config.teacher.features = str(features)
    config.objective.kld_lambda = 0.1
    config.bank.size = 512
    config.student.recalibrate = 800
    config.data.workers = 1
    config.data.views = views
    if views == "device":
        config.data.keep = "device"
    return config


def trained(out: pathlib.Path, views: str, seed: int, epochs: int) -> dict:
    """µAP and accuracy of one run, in percent."""
    done = out / "result.json"
    if done.is_file():
        return json.loads(done.read_text())
    begun = time.monotonic()
    train_and_evaluate(run_config(out.parent / "teacher.npz", views, seed, epochs), out)
    seconds = time.monotonic() - begun
    rows, _, _ = evaluate_disc(load_model(str(out / "export")), SAMPLE, out / "evaluation")
    result = {
        "seconds": round(seconds, 1),
        **{f"uAP {row.score_norm}": round(100 * row.metrics.average_precision, 2) for row in rows},
    }
    write_json(done, result)
    return result


def main() -> None:
    """Runs all, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    similarities = compared(teacher_similarities())
    print(json.dumps(similarities, indent=2))
    if not (options.out / "teacher.npz").is_file():
        from rdcd_jax.embedding.service import embed_to_file

        embed_to_file(load_model("sscd"), find_images("sample:train"), options.out / "teacher.npz")
    runs = {
        views: [
            trained(options.out / f"{views}-{seed}", views, seed, options.epochs)
            for seed in range(options.seeds)
        ]
        for views in ("host", "device")
    }
    figures = {views: [run["uAP None"] for run in found] for views, found in runs.items()}
    summary = {
        "difference of the mean uAP, device - host": round(
            statistics.mean(figures["device"]) - statistics.mean(figures["host"]), 2
        ),
        "standard deviations over seeds": {
            views: round(statistics.stdev(found), 2) for views, found in figures.items()
        },
    }
    result = {
        "environment": environment(),
        "settings": {"seeds": options.seeds, "epochs": options.epochs},
        "teacher's similarity of ADVANCED views to their image": similarities,
        "runs": runs,
        "summary": summary,
    }
    write_json(RESULT, result)
    print(json.dumps({"runs": runs, "summary": summary}, indent=2))


if __name__ == "__main__":
    main()

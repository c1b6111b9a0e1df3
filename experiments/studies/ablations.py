"""What each part of the method does: runs that differ in one setting, at three sizes of descriptor, with three seeds.

    python -m experiments.studies.ablations STUDY BENCHMARK OUT [--seeds 3]

BENCHMARK is a DISC-shaped folder (minidisc); only its training images are trained on. STUDY is a name of `STUDIES`,
each of which has one of two budgets:

    descriptor  the trunk of `rdcd-effb0-256` stays as it is, its projector starts from whitening and is trained on
                cached features of views (`configs/descriptor.py`): a minute a run on two cores
    small       a student from ImageNet's trunk, all of it trained for six epochs of 64-pixel views
                (`configs/baselines.py`): ten minutes a run

The first 64, 128 and 256 dimensions of one descriptor are each trained, so a run has figures for three sizes. OUT keeps
the runs and what they share; the same command goes on where it ended.

Written to experiments/results/ablations/STUDY.json: for each setting, seed and size µAP and recall at 90 % precision in
percent, without and with score normalisation by every third training image (3,000), and the spectrum of the references'
descriptors. `experiments.studies.findings` makes a page of these.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping

import ml_collections
import numpy as np

from configs import baselines, descriptor
from experiments.studies.spectra import spectrum
from experiments.studies.students import some_training_images
from rdcd_jax.benchmarks.disc import evaluate_descriptors
from rdcd_jax.benchmarks.ground_truth import find_disc_layout, read_ground_truth
from rdcd_jax.benchmarks.settings import Settings
from rdcd_jax.core.files import write_json
from rdcd_jax.core.progress import Reporter
from rdcd_jax.embedding.descriptors import Descriptors, read_descriptors
from rdcd_jax.embedding.service import embed_to_file
from rdcd_jax.images.pack import pack_images
from rdcd_jax.images.sources import find_images
from rdcd_jax.training.fitting import featured, whitened_projector
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.record import environment
from rdcd_jax.training.results import portable, training_seconds
from rdcd_jax.weights.library import export_model, load_model
from rdcd_jax.weights.model import Model

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results" / "ablations"

DIMS = (64, 128, 256)
TRUNK = "rdcd-effb0-256"
Fields = Mapping[str, int | float | bool | str]


@dataclasses.dataclass(frozen=True)
class Study:
    """A question, and the settings that answer it.

    Attributes:
        question: what a page of findings puts above the table.
        budget: "descriptor" or "small".
        settings: the config's fields of each, by what the setting is called. Others are compared with the first.
    """

    question: str
    budget: str
    settings: Mapping[str, Fields]


def _hard_negatives(weight: float) -> Fields:
    # In the form within a batch the entropy term is half the hard negatives', up to constants.
    return {"objective.entropy_lambda": 2 * weight}


def _framed(probability: float) -> Fields:
    """ADVANCED with borders of one colour round some views."""
    framed = f"frame {probability:g} scale=0.2,0.9 ratio=0.5,2"
    return {
        "data.policy": (
            "hflip 0.5; rotate_by_one_of 0.05 degrees=90,180,270; overlay_text 0.1 size=0.1,0.3 opacity=0.1,1;"
            " overlay_emoji 0.2 size=0.1,0.5 opacity=0.7,1; rotate 0.05 degrees=0,359;"
            f" resized_crop 1 scale=0.08,1 ratio=0.75,1.3333; {framed};"
            " jitter 0.8 brightness=0.2,1.8 contrast=0.2,1.8 saturation=0.2,1.8 hue=-0.2,0.2; grey 0.2;"
            " blur 0.5 radius=1,5; jpeg 0.2 quality=0,100"
        )
    }


QUEUED = {"objective.sscd_lambda": 0.0, "objective.moco_lambda": 1.0}
STUDIES = {
    "terms": Study(
        "What do relational distillation and hard negatives each add, where the whole student is trained?",
        "small",
        {
            "both": {},
            "no relational distillation": {"objective.kld_lambda": 0.0},
            "no hard negatives": {"objective.hn_lambda": 0.0},
            "neither": {"objective.kld_lambda": 0.0, "objective.hn_lambda": 0.0},
        },
    ),
    "hard_negatives": Study(
        "How much should hard negatives weigh, where the descriptor alone is trained?",
        "descriptor",
        {
            f"weight {weight:g}": _hard_negatives(weight)
            for weight in (5.0, 0.0, 1.0, 2.5, 10.0, 20.0)
        },
    ),
    "temperature": Study(
        "At what temperature should the descriptor tell images apart?",
        "descriptor",
        {
            f"temperature {value:g}": {"objective.sscd_temperature": value}
            for value in (0.07, 0.03, 0.05, 0.1, 0.2)
        },
    ),
    "frames": Study(
        "Do borders round some training views help with framed copies, such as screenshots?",
        "descriptor",
        {f"a frame round {share:.0%} of views": _framed(share) for share in (0.0, 0.2)},
    ),
    "negatives": Study(
        "Where should negatives come from: the batch, or a queue of past keys?",
        "descriptor",
        {
            "batch of 1,024": {},
            "batch of 256": {"batch_size": 256},
            "batch of 2,048": {"batch_size": 2048},
            "queue of 1,024": QUEUED,
            "queue of 4,096": {**QUEUED, "queue.size": 4096},
            "queue of 8,192": {**QUEUED, "queue.size": 8192},
            "queue of 4,096, keys by the student itself": {
                **QUEUED,
                "queue.size": 4096,
                "objective.key_momentum": 0.0,
            },
        },
    ),
}


class Bench:
    """What the runs of a study share: the training images, the benchmark, and where everything lies."""

    def __init__(self, study: Study, benchmark: pathlib.Path, out: pathlib.Path) -> None:
        self.frozen = study.budget == "descriptor"
        self.layout = find_disc_layout(benchmark)
        self.truth = read_ground_truth(self.layout.ground_truth)
        self.out = out
        self.sets = {
            "queries": self.layout.queries,
            "references": self.layout.references,
            "training": some_training_images(benchmark, out),
        }
        self.training = self.layout.training if self.frozen else out / "pictures"
        if not self.frozen:
            pack_images(self.layout.training, self.training, short_side=192)

    def config(self, fields: Fields, seed: int) -> ml_collections.ConfigDict:
        """The config of a run."""
        if self.frozen:
            start = whitened_start(self.out / "start", self.sets["training"])
            config = descriptor.get_config(
                f"dim={DIMS[-1]},nested,init_from={start},data={self.training}"
            )
            config.data.cache = str(self.out / "features")
        else:
            images = len(find_images(self.training))
            config = baselines.get_config(
                f"images={images},image_size=64,epochs=6,start=efficientnet-lite0,dim={DIMS[-1]},data={self.training}"
            )
            config.objective.nested_dims = DIMS
        config.evals.disc.data = ""
        config.seed = seed
        config.update_from_flattened_dict(fields)
        if "data.policy" in fields:
            # Features are of a policy's views.
            digest = hashlib.sha256(config.data.policy.encode()).hexdigest()[:8]
            config.data.cache = str(self.out / f"features-{digest}")
        config.bank.size = max(config.bank.size, config.batch_size)
        config.queue.size = max(config.queue.size, config.batch_size)
        return config

    def descriptors(self, model: Model, folder: pathlib.Path) -> dict[str, Descriptors]:
        """The benchmark's descriptors, from features of the trunk that lie in `folder` or are computed now."""
        made = {}
        for name, source in self.sets.items():
            path = folder / f"{name}.npz"
            if not path.exists():
                with Reporter(f"Features of {name}", len(find_images(source))) as reporter:
                    embed_to_file(
                        featured(model),
                        str(source),
                        path,
                        on_progress=lambda _, done, total: reporter.update(done),
                    )
            found = read_descriptors(path)
            made[name] = dataclasses.replace(found, descriptors=projected(model, found.descriptors))
        return made


def whitened_start(folder: pathlib.Path, images: pathlib.Path) -> pathlib.Path:
    """The shipped trunk with the whitening of its features as projector, as untrained as a descriptor can be."""
    if not folder.exists():
        model = load_model(TRUNK)
        whitened_projector(model, find_images(images))
        export_model(folder, dataclasses.replace(model, background=None))
    return folder


def projected(model: Model, features: np.ndarray) -> np.ndarray:
    """What a model's projector makes of features [N, F], [N, D] before their normalisation."""
    projector = model.module.projector
    return features @ np.asarray(projector.kernel[...]) + np.asarray(projector.bias[...])


def shortened(descriptors: Descriptors, dim: int) -> Descriptors:
    """The first dimensions, at unit length."""
    rows = descriptors.descriptors[:, :dim]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return dataclasses.replace(descriptors, descriptors=rows)


def figures(sets: dict[str, Descriptors], bench: Bench) -> dict[str, dict]:
    """By size of descriptor what a run came to."""
    found = {}
    for dim in DIMS:
        queries, references, training = (
            shortened(sets[name], dim) for name in ("queries", "references", "training")
        )
        rows, _ = evaluate_descriptors(
            queries, references, training, bench.truth, Settings.written(True)
        )
        measured = {}
        for row, suffix in zip(rows, ("", " with SN"), strict=True):
            measured[f"µAP{suffix}"] = round(100 * row.metrics.average_precision, 2)
            recall = row.metrics.recall_at_p90
            measured[f"recall at P90{suffix}"] = None if recall is None else round(100 * recall, 2)
        found[str(dim)] = {**measured, **spectrum(references.descriptors)}
    return found


def run(bench: Bench, name: str, fields: Fields, seed: int) -> dict | None:
    """Trains and measures a run, or finds that done; None where it was stopped."""
    workdir = bench.out / f"{name}+seed={seed}".replace(" ", "_").replace(",", "")
    path = workdir / "figures.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    config = bench.config(fields, seed)
    state = train_and_evaluate(config, workdir)
    if not (workdir / "export").exists():
        return None
    model = load_model(str(workdir / "export"))
    sets = bench.descriptors(model, bench.out / "benchmark" if bench.frozen else workdir)
    found = {
        "seed": seed,
        "fields": dict(fields),
        "steps": int(state.step),
        "seconds": training_seconds(workdir),
        "dims": figures(sets, bench),
    }
    write_json(path, found)
    return found


def main() -> None:
    """Runs what is not done yet of a study, and writes its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    study = STUDIES[options.study]
    bench = Bench(study, options.benchmark, options.out)
    runs: dict[str, list[dict]] = {name: [] for name in study.settings}
    for seed in range(options.seeds):
        for name, fields in study.settings.items():
            found = run(bench, name, fields, seed)
            if found is None:
                raise SystemExit("Stopped; the same command goes on.")
            runs[name].append(found)
            stored = {dim: each["µAP"] for dim, each in found["dims"].items()}
            print(f"{name}, seed {seed}: µAP {stored}", flush=True)
    write_json(
        RESULTS / f"{options.study}.json",
        {
            "question": study.question,
            "budget": study.budget,
            "benchmark": options.benchmark.resolve().name,
            "environment": environment(),
            # Of the first setting; the others' fields stand beside their runs.
            "config": portable(bench.config(next(iter(study.settings.values())), 0).to_dict()),
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()

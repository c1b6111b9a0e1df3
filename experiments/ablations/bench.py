"""A study's runs: what they share, how each is trained, and what it comes to."""

import dataclasses
import hashlib
import json
import pathlib

import ml_collections
import numpy as np

from configs import baselines, descriptor
from experiments.ablations.studies import Fields, Study
from experiments.studies.percent import in_percent
from experiments.studies.spectra import spectrum
from experiments.studies.students import some_training_images
from rdcd_jax.benchmarks.disc import evaluate_descriptors
from rdcd_jax.benchmarks.ground_truth import find_disc_layout, read_ground_truth
from rdcd_jax.benchmarks.settings import Settings
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_json
from rdcd_jax.core.progress import Reporter
from rdcd_jax.embedding.codecs import unit_rows
from rdcd_jax.embedding.descriptors import Descriptors, read_descriptors
from rdcd_jax.embedding.service import embed_to_file
from rdcd_jax.images.pack import pack_images
from rdcd_jax.images.sources import find_images
from rdcd_jax.search.bits import rounded
from rdcd_jax.search.int8 import quantised
from rdcd_jax.training.fitting import featured, whitened_projector
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.record import environment
from rdcd_jax.training.results import portable, training_seconds
from rdcd_jax.weights.library import export_model, load_model
from rdcd_jax.weights.model import Model

TRUNK = "rdcd-effb0-256"
# Where runs of a descriptor keep what they start from.
START = "start"
# How descriptors are compared: as they are, and whitened by the training images.
COMPARED = ("", " with SN", " whitened", " whitened, with SN")


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much a run may cost, and who teaches.

    Attributes:
        full: whether students are trained as the paper trains them, on an accelerator; else for minutes on a CPU.
        teacher: the teacher's model; empty for the config's own.
    """

    full: bool = False
    teacher: str = ""


class Bench:
    """What the runs of a study share: the training images, the benchmark, and where everything lies.

    Raises:
        UserError: a full budget for a study of the descriptor alone, which has one budget.
    """

    def __init__(
        self, study: Study, benchmark: pathlib.Path, out: pathlib.Path, budget: Budget
    ) -> None:
        self.study, self.budget = study, budget
        self.frozen = study.trains == "descriptor"
        if self.frozen and budget.full:
            raise UserError("This study trains the descriptor alone; leave --full out.")
        out = out / benchmark.resolve().name
        out.mkdir(parents=True, exist_ok=True)
        self.layout = find_disc_layout(benchmark)
        self.truth = read_ground_truth(self.layout.ground_truth)
        self.out = out
        self.sets = {
            "queries": self.layout.queries,
            "references": self.layout.references,
            "training": some_training_images(benchmark, out),
        }
        self.training = self.layout.training
        if not (self.frozen or budget.full):
            self.training = out / "pictures"
            pack_images(self.layout.training, self.training, short_side=192)

    def config(self, fields: Fields, seed: int) -> ml_collections.ConfigDict:
        """The config of a run."""
        shared = f"dim={self.study.dims[-1]},data={self.training}"
        if self.frozen:
            start = whitened_start(self.out / START, self.sets["training"])
            config = descriptor.get_config(f"init_from={start},epochs=25,{shared}")
            config.data.cache = str(self.out / "features")
        elif self.budget.full:
            config = baselines.get_config(shared)
            config.data.views = config.data.keep = "device"
            config.student.dtype = "bfloat16"
        else:
            images = len(find_images(self.training))
            config = baselines.get_config(
                f"images={images},image_size=64,epochs=6,start=efficientnet-lite0,{shared}"
            )
            config.teacher.model = "onnxruntime"
        config.objective.nested_dims = self.study.dims
        config.evals.disc.data = ""
        config.seed = seed
        config.update_from_flattened_dict(fields)
        config.teacher.model = self.budget.teacher or config.teacher.model
        if "data.policy" in fields:
            # Features are of a policy's views.
            config.data.cache = str(self.out / f"features-{short_name(config.data.policy)}")
        if config.teacher.features == "cached":
            config.teacher.features = str(self.teacher_features(config.teacher.model))
        config.bank.size = max(config.bank.size, config.batch_size)
        config.queue.size = max(config.queue.size, config.batch_size)
        return config

    def run_of(self, setting: str, seed: int) -> tuple[ml_collections.ConfigDict, pathlib.Path]:
        """The config of a setting's run, and its workdir."""
        fields = dict(self.study.settings[setting])
        if first := self.study.after.get(setting):
            fields["init_from"] = str(self.run_of(first, seed)[1] / "export")
        config = self.config(fields, seed)
        # Not by where things lie, so that OUT can be moved.
        known_by = json.dumps(portable(config.to_dict()), sort_keys=True, default=list)
        return config, self.out / "runs" / short_name(known_by)

    def teacher_features(self, spec: str) -> pathlib.Path:
        """The teacher's features of the training images, for all runs."""
        path = self.out / f"teacher-{short_name(spec)}.npz"
        if not path.exists():
            embed_to_file(load_model(spec), str(self.training), path)
        return path

    def descriptors(self, model: Model, workdir: pathlib.Path) -> dict[str, Descriptors]:
        """The benchmark's descriptors by a run's model, from features that are there or are computed now."""
        trunk, folder = model, workdir
        if self.frozen:
            # The features are those of the start, for all runs.
            trunk, folder = load_model(str(self.out / START)), self.out / "benchmark"
        made = {}
        for name, source in self.sets.items():
            path = folder / f"{name}.npz"
            if not path.exists():
                with Reporter(f"Features of {name}", len(find_images(source))) as reporter:
                    embed_to_file(
                        featured(trunk),
                        str(source),
                        path,
                        on_progress=lambda _, done, total: reporter.update(done),
                    )
            found = read_descriptors(path)
            made[name] = dataclasses.replace(found, descriptors=projected(model, found.descriptors))
        return made


def short_name(text: str) -> str:
    """A name of twelve digits for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


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
    return dataclasses.replace(descriptors, descriptors=unit_rows(descriptors.descriptors[:, :dim]))


def as_int8(descriptors: Descriptors) -> Descriptors:
    """Rounded to 255 levels, as an index of int8 holds them."""
    levels, scales = quantised(descriptors.descriptors)
    return dataclasses.replace(descriptors, descriptors=levels * scales[:, None])


def as_bits(descriptors: Descriptors) -> Descriptors:
    """The signs alone; their inner product is 1 - 2 / D times the Hamming distance."""
    return dataclasses.replace(descriptors, descriptors=rounded(descriptors.descriptors))


STORED = {" int8": as_int8, " binary": as_bits}


def figures(sets: dict[str, Descriptors], bench: Bench) -> dict[str, dict]:
    """By size of descriptor what a run came to."""
    found = {}
    for dim in bench.study.dims:
        queries, references, training = (
            shortened(sets[name], dim) for name in ("queries", "references", "training")
        )
        settings = Settings.written(True, codecs=f"Flat;PCAW{dim},L2norm,Flat")
        rows, _ = evaluate_descriptors(queries, references, training, bench.truth, settings)
        measured = in_percent(rows, COMPARED)
        for form, stored in STORED.items():
            rows, _ = evaluate_descriptors(stored(queries), stored(references), None, bench.truth)
            measured |= in_percent(rows, (form,))
        found[str(dim)] = {**measured, **spectrum(references.descriptors)}
    return found


def run(bench: Bench, setting: str, seed: int) -> dict | None:
    """Trains and measures a run, or finds that done, maybe by another study; None where it was stopped."""
    study = bench.study
    first = study.after.get(setting)
    if first is not None and run(bench, first, seed) is None:
        return None
    config, workdir = bench.run_of(setting, seed)
    path = workdir / "figures.json"
    asked = {"seed": seed, "fields": dict(study.settings[setting])}
    if first is not None:
        asked["after"] = first
    if path.exists():
        return asked | json.loads(path.read_text(encoding="utf-8"))
    state = train_and_evaluate(config, workdir)
    if not (workdir / "export").exists():
        return None
    model = load_model(str(workdir / "export"))
    sets = bench.descriptors(model, workdir)
    found = {
        "batch_size": config.batch_size,
        "steps": int(state.step),
        "seconds": training_seconds(workdir),
        "environment": environment(),
        "dims": figures(sets, bench),
    }
    write_json(path, found)
    return asked | found

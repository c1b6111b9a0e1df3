"""What a run would be, without running it: fields, images, steps, parameters, memory, and what is wrong."""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterator

import jax
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.mesh import make_mesh
from rdcd_jax.core.options import flat
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.method.objective import Objective
from rdcd_jax.models.counts import parameter_count
from rdcd_jax.training.config import load_config
from rdcd_jax.training.evaluators import evaluations
from rdcd_jax.training.record import require_same_run
from rdcd_jax.training.schema import defaults, known_option
from rdcd_jax.training.setup import (
    inputs,
    optimization,
    require_enough_to_whiten,
    warn_of_past_keys,
)
from rdcd_jax.training.student import make_student
from rdcd_jax.training.teacher import Teacher, make_teacher
from rdcd_jax.training.tracing import trace_step


@dataclasses.dataclass(frozen=True)
class PlannedField:
    """A field of the config.

    Attributes:
        name: dotted.
        value: what the run would use.
        set_by: "default", "config" (file or argument) or "command line".
        help: what it is.
    """

    name: str
    value: object
    set_by: str
    help: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run would be.

    Attributes:
        fields: every field; evaluations that nothing is given for are left out.
        facts: lines about images, steps, parameters and memory.
        problems: sentences about what would stop the run; empty where nothing would.
    """

    fields: list[PlannedField]
    facts: list[str]
    problems: list[str]


def make_plan(config: str, overrides: list[str], workdir: pathlib.Path) -> Plan:
    """Plans a run; nothing is written to its workdir.

    Args:
        config: `CONFIG[:ARG]`, see `load_config`.
        overrides: see `load_config`.
        workdir: the run's folder.

    Raises:
        UserError: the config cannot be loaded.
    """
    loaded = load_config(config, overrides)
    facts: list[str] = []
    problems: list[str] = []
    found = None
    with _noted(problems):
        found = inputs(loaded)
    with _noted(problems):
        training_set = None if found is None else found[0].fingerprint()
        if require_same_run(workdir, loaded.to_dict(), training_set):
            facts.append(f"{workdir} holds a run, which would be continued.")
    if found is not None:
        with _noted(problems):
            _add_facts(loaded, *found, facts)
    return Plan(_fields(loaded, overrides), facts, problems)


@contextlib.contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except (UserError, OSError) as error:
        problems.append(str(error))


def _fields(config: ml_collections.ConfigDict, overrides: list[str]) -> list[PlannedField]:
    base = defaults()
    said = {word.removeprefix("--config.").partition("=")[0] for word in overrides}
    used = evaluations(config)
    fields = []
    for name, value in flat(config.to_dict()).items():
        if name.startswith("evals.") and name.split(".")[1] not in used:
            continue
        by = "default" if value == base.get(name) else "config"
        known = known_option(name)
        about = "" if known is None else known.help
        fields.append(PlannedField(name, value, "command line" if name in said else by, about))
    return fields


def _add_facts(
    config: ml_collections.ConfigDict, images: ImageSet, mesh: Mesh, facts: list[str]
) -> None:
    """Adds facts one after another, so that those before a problem stay."""
    warn_of_past_keys(config, images)
    facts.append(f"{len(images)} images in {images.source}; {mesh.size} device(s).")
    _, steps, optimizer = optimization(config, len(images))
    per_epoch = len(images) // config.batch_size
    facts.append(f"{steps} steps, {per_epoch} an epoch, of {config.batch_size} images each.")
    for name, options in evaluations(config).items():
        facts.append(
            f"evaluation '{name}' every {config.evaluate.every} steps and at the end, by {options.protocol}."
        )
    objective = Objective(**config.objective)
    with tempfile.TemporaryDirectory() as folder:
        teacher = _teacher(config, objective, images, pathlib.Path(folder))
    start = make_student(config, teacher.feature_dim)
    require_enough_to_whiten(config, images, start)
    student = start.module
    counts = f"{parameter_count(student) / 1e6:.2f} M parameters in the student"
    if teacher.arrays is not None:
        size = sum(leaf.size for leaf in jax.tree.leaves(teacher.arrays))
        counts += f", {size / 1e6:.1f} M in the teacher"
    facts.append(f"{counts}.")
    if config.student.trainable == "projector":
        facts.append(
            "The trunk's features would be computed once; the step itself needs little memory."
        )
        return
    facts.append(_memory(config, teacher, student, optimizer))


def _teacher(config, objective: Objective, images, workdir: pathlib.Path) -> Teacher:
    """The run's teacher; of a cached one nothing but its size, since embedding all images is no part of a plan."""
    if not objective.needs_teacher or config.teacher.features != "cached":
        return make_teacher(config, objective, images, workdir)
    live = config.copy_and_resolve_references()
    live.teacher.features = "live"
    found = make_teacher(live, objective, images, workdir)
    features = np.zeros((1, found.feature_dim), np.float32)
    return Teacher(images, found.feature_dim, features_of=lambda batch: features)


def _memory(config, teacher: Teacher, student: nnx.Module, optimizer) -> str:
    """The step's memory on one device, as XLA compiles it."""
    compiled = trace_step(config, student, teacher, optimizer, make_mesh(1)).lower().compile()
    found = compiled.memory_analysis()
    whole = (
        found.argument_size_in_bytes
        + found.temp_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
    )
    return (
        f"One step of the whole batch on one device needs {whole / 1e9:.2f} GB:"
        f" {found.argument_size_in_bytes / 1e9:.2f} GB of state, teacher and batch,"
        f" {found.temp_size_in_bytes / 1e9:.2f} GB for what lies between; more devices share the latter."
    )

"""What comes before the first step: everything that a run needs, made of its config."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator

import jax
import ml_collections
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from rdcd_jax.core import hosts
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import is_address
from rdcd_jax.core.locks import held
from rdcd_jax.core.mesh import make_mesh, replicate
from rdcd_jax.core.rng import stream
from rdcd_jax.images.passed_over import find_all_images
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.method.objective import Objective
from rdcd_jax.method.state import TrainState, Tree, init_state, split
from rdcd_jax.method.step import Batch, make_train_step
from rdcd_jax.models.descriptor import DescriptorHead
from rdcd_jax.training import feed, record
from rdcd_jax.training.check import check_config, check_training_set
from rdcd_jax.training.finish import Finish
from rdcd_jax.training.fitting import whiten
from rdcd_jax.training.frozen import ViewFeatures, view_features
from rdcd_jax.training.optim import Schedule, learning_rate_schedule, make_optimizer
from rdcd_jax.training.student import Start, make_student
from rdcd_jax.training.teacher import Teacher, make_teacher

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's parts.

    Attributes:
        config: its config.
        workdir: its folder, which all processes see.
        results: for what is written once: the same to the first process.
        mesh: its devices.
        training_set: what tells the images of `config.data.train` from others.
        images: those of them that it trains on.
        views: features of the images' views, where the trunk is frozen.
        teacher: what it learns from.
        schedule: step -> learning rate.
        total_steps: where it ends.
        initial_state: makes the state before the first step, on the mesh; nothing else holds on to it.
        step: the step, see `make_train_step`.
        teacher_arrays: the teacher's weights on the mesh; None where the step does not embed by it.
        dropout: the run's dropout key.
        finish: makes models of states, evaluates and exports them.
    """

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    results: pathlib.Path
    mesh: Mesh
    training_set: dict[str, str | int]
    images: ImageSet
    views: ViewFeatures | None
    teacher: Teacher
    schedule: Schedule
    total_steps: int
    initial_state: Callable[[], TrainState]
    step: Callable
    teacher_arrays: Tree
    dropout: jax.Array
    finish: Finish

    def advance(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """The state after one more step, and the step's metrics; the state before it is used up."""
        # Only here: what a process does by itself, such as an evaluation, must not be spread over all of them.
        with jax.set_mesh(self.mesh):
            return self.step(state, self.teacher_arrays, batch, self.dropout)

    def evaluates_at(self, step: int) -> bool:
        """Whether the student of that step is evaluated."""
        due = step >= self.total_steps or (step and step % self.config.evaluate.every == 0)
        return bool(due and self.finish.evaluates)

    def batches(self, stack: contextlib.ExitStack, start_step: int) -> Iterator[Batch]:
        """Batches from a step on; the stack closes what reads them."""
        kept = self.views or feed.kept_images(self.config, self.images)
        host = jax.process_index(), jax.process_count()
        batches = stack.enter_context(
            feed.read_batches(self.config, self.images, kept, start_step, host)
        )
        return feed.on_devices(
            batches,
            self.config,
            self.images,
            kept,
            self.teacher.features_of,
            self.mesh,
            self.workdir,
        )


def set_up(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, stack: contextlib.ExitStack
) -> Run:
    """Makes a run's parts, and writes its `run.json`.

    Args:
        config: of the run.
        workdir: its folder, which no other process may train in until `stack` is closed.
        stack: see `workdir`.

    Raises:
        UserError: see `loop.train_and_evaluate`.
    """
    images, mesh = inputs(config)
    hosts.require_same("The run", lambda: [config.to_dict(), images.fingerprint()])
    workdir.mkdir(parents=True, exist_ok=True)
    hosts.require_shared(workdir)
    _lock(config, workdir, stack)
    results = stack.enter_context(hosts.written_by_first(workdir))
    training_set = images.fingerprint()
    record.begin(results, config.to_dict(), training_set)
    objective = Objective(**config.objective)
    start, teacher, views = networks(config, objective, images, workdir, results)
    student = start.module
    images = teacher.images
    # Some may have turned out to be unreadable.
    _require_a_batch(images, config.batch_size)
    schedule, total_steps, optimizer = optimization(config, len(images))
    feature_dim = teacher.feature_dim or student.projector.in_features
    warn_of_past_keys(config, images)
    # What learns.
    learner = student if views is None else DescriptorHead(student.projector)
    step = make_train_step(
        training_graph(learner, config),
        optimizer,
        objective,
        teacher.embed,
        feed.make_views(config) if views is None else None,
    )
    return Run(
        config=config,
        workdir=workdir,
        results=results,
        mesh=mesh,
        training_set=training_set,
        images=images,
        views=views,
        teacher=teacher,
        schedule=schedule,
        total_steps=total_steps,
        initial_state=lambda: replicate(first_state(config, learner, optimizer, feature_dim), mesh),
        step=hosts.compiled_together(jax.jit(step, donate_argnums=0)),
        teacher_arrays=replicate(teacher.arrays, mesh),
        dropout=replicate(stream(config.seed, "dropout"), mesh),
        finish=Finish(
            config, student, images, workdir, results, views, (*start.licences, *teacher.licences)
        ),
    )


def _lock(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, stack: contextlib.ExitStack
) -> None:
    """Keeps other processes from training in the workdir, or into the same checkpoints, until the stack is closed."""
    busy = f"{workdir}: another process trains in it; wait until it has ended, or give another workdir."
    stack.enter_context(held(workdir / f".lock{jax.process_index()}", busy))
    folder = record.checkpoint_folder(workdir, config)
    if config.checkpoint_dir and not is_address(config.checkpoint_dir) and hosts.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        busy = (
            f"{folder}: another process writes its checkpoints there; wait until it has ended, or give"
            " config.checkpoint_dir a folder of this run's own."
        )
        stack.enter_context(held(pathlib.Path(folder), busy))


def inputs(config: ml_collections.ConfigDict) -> tuple[ImageSet, Mesh]:
    """The checked config's training images, those of its share, and its devices.

    Raises:
        UserError: for a config, images or devices that cannot work.
    """
    check_config(config)
    images = find_all_images(config.data.train)
    check_training_set(images, config)
    images = share_of(images, config.data.share, config.seed)
    mesh = make_mesh(config.devices)
    if config.batch_size % mesh.size:
        raise UserError(
            f"config.batch_size is {config.batch_size}, not a multiple of the {mesh.size} devices; make it one"
            f" (--config.batch_size={mesh.size * max(1, config.batch_size // mesh.size)}), or set config.devices lower."
        )
    _require_a_batch(images, config.batch_size)
    # Tells of a schedule that cannot be.
    optimization(config, len(images))
    return images, mesh


def share_of(images: ImageSet, share: float, seed: int) -> ImageSet:
    """A share of the images, at least one, in their order; with one seed a smaller share lies within a larger."""
    drawn = np.random.default_rng(seed).permutation(len(images))
    return images.subset(sorted(drawn[: max(1, round(share * len(images)))].tolist()))


def networks(
    config: ml_collections.ConfigDict,
    objective: Objective,
    images: ImageSet,
    workdir: pathlib.Path,
    results: pathlib.Path,
) -> tuple[Start, Teacher, ViewFeatures | None]:
    """The student's start, its teacher with the images trained on, and the views' features on a frozen trunk."""
    views = None
    if config.student.trainable == "projector":
        start = make_student(config, None)
        record.pin(results, "init_from", start.fingerprint)
        require_enough_to_whiten(config, images, start)
        untrained = Finish(config, start.module, images, workdir, results).untrained
        views = view_features(config, images, untrained, workdir)
        if not start.own_projector:
            whiten(start.module.projector, views.unedited)
            # Processors of several kinds may differ in the last bits.
            nnx.update(start.module.projector, hosts.from_first(nnx.state(start.module.projector)))
        images = views.images
    teacher = make_teacher(config, objective, images, workdir)
    record.pin(results, "teacher", teacher.fingerprint)
    if views is not None:
        return start, teacher, views.of(teacher.images)
    start = make_student(config, teacher.feature_dim)
    record.pin(results, "init_from", start.fingerprint)
    require_enough_to_whiten(config, teacher.images, start)
    return start, teacher, None


def optimization(
    config: ml_collections.ConfigDict, images: int
) -> tuple[Schedule, int, optax.GradientTransformation]:
    """The learning rate's schedule, the run's last step, and the optimiser."""
    steps_per_epoch = images // config.batch_size
    schedule = learning_rate_schedule(
        config.optimizer.learning_rate * config.batch_size / 256,
        steps_per_epoch,
        config.schedule.epochs,
        config.schedule.warmup_epochs,
    )
    total_steps = config.schedule.epochs * steps_per_epoch
    if config.schedule.max_steps:
        total_steps = min(total_steps, config.schedule.max_steps)
    optimizer = make_optimizer(
        config.optimizer.name,
        schedule,
        weight_decay=config.optimizer.weight_decay,
        momentum=config.optimizer.momentum,
    )
    return schedule, total_steps, optimizer


def first_state(
    config: ml_collections.ConfigDict,
    learner: nnx.Module,
    optimizer: optax.GradientTransformation,
    feature_dim: int,
) -> TrainState:
    """The state before the first step, of what learns from features of F = `feature_dim` dimensions."""
    return init_state(
        learner,
        optimizer,
        queue_size=config.queue.size,
        bank_size=config.bank.size,
        dim=config.student.dim,
        feature_dim=feature_dim,
        rng=stream(config.seed, "memory"),
    )


def training_graph(learner: nnx.Module, config: ml_collections.ConfigDict) -> nnx.GraphDef:
    """The structure of what learns, in training mode."""
    view = nnx.view(
        learner,
        deterministic=not config.student.dropout,
        use_running_average=config.student.bn == "running",
        raise_if_not_found=False,
    )
    return split(view)[0]


def _require_a_batch(images: ImageSet, batch_size: int) -> None:
    if len(images) < batch_size:
        raise UserError(
            f"{images.source}: {len(images)} images do not fill one batch of {batch_size}; lower it"
            f" (--config.batch_size={1 << (len(images).bit_length() - 1)}), or give more."
        )


def require_enough_to_whiten(
    config: ml_collections.ConfigDict, images: ImageSet, start: Start
) -> None:
    """Refuses too few images for a projector that whitens features, at the end or at the start."""
    ways_out = []
    if config.student.projector == "whitened":
        ways_out.append("set config.student.projector to 'learned'")
    if config.student.trainable == "projector" and not start.own_projector:
        ways_out.append(f"start from a student of config.student.dim = {config.student.dim}")
    if ways_out and len(images) < (feature_dim := start.module.projector.in_features):
        raise UserError(
            f"{images.source}: {len(images)} images are too few to whiten {feature_dim} dimensions; use more, or"
            f" {ways_out[0]}."
        )


def warn_of_past_keys(config: ml_collections.ConfigDict, images: ImageSet) -> None:
    """Warns of a queue so long that images meet their own past keys."""
    if Objective(**config.objective).moco_lambda > 0 and config.queue.size > len(images) // 2:
        _log.warning(
            "config.queue.size is %d for %d training images, so many an image meets its own past keys as negatives; a"
            " quarter of the images, %d, is better.",
            config.queue.size,
            len(images),
            len(images) // 4,
        )

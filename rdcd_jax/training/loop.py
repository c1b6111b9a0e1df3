"""A training run from its config to its export; read top to bottom."""

import contextlib
import dataclasses
import math
import pathlib
import signal
import sys
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from rdcd_jax import models
from rdcd_jax.benchmarks.disc_runs import evaluate_disc_run
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.mesh import make_mesh, replicate
from rdcd_jax.core.progress import Reporter
from rdcd_jax.core.rng import stream
from rdcd_jax.embedding.stream import embed_images
from rdcd_jax.images.sources import ImageSet, find_images
from rdcd_jax.method.objective import Objective
from rdcd_jax.method.state import TrainState, init_state, split
from rdcd_jax.method.step import make_train_step
from rdcd_jax.models.descriptor import DescriptorHead
from rdcd_jax.training import feed, record
from rdcd_jax.training.check import check_config, check_training_set
from rdcd_jax.training.checkpoints import Checkpoints
from rdcd_jax.training.finish import calibrate_batch_norm, whiten, whitened_projector
from rdcd_jax.training.frozen import ViewFeatures, view_features
from rdcd_jax.training.optim import learning_rate_schedule, make_optimizer
from rdcd_jax.training.teacher import Teacher, make_teacher
from rdcd_jax.weights.library import export_model, load_model
from rdcd_jax.weights.model import Model, evaluation_mode

# Fields that say how a run is watched and stored, not what comes of it.
WATCHING = (
    "devices",
    "data.workers",
    "data.keep",
    "data.cache",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "evaluate.every",
)
# Fields that may change when a run is continued: these, how far it goes, and what it is judged by.
FREE = (
    *WATCHING,
    "schedule.max_steps",
    "evaluate.data",
    "evaluate.training",
    "evaluate.image_size",
    "evaluate.codecs",
)


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str | pathlib.Path
) -> TrainState:
    """Trains a student, or continues the run that `workdir` holds.

    Args:
        config: see configs/common.py.
        workdir: gets `run.json`, `metrics.jsonl`, `checkpoints/`, `export/`, and `evaluations/` where there is an
            evaluation set.

    Returns:
        The state after the last step.

    Raises:
        UserError: for a config, pictures or a workdir that cannot work, before training; or when the loss is no longer
            finite.
    """
    workdir = pathlib.Path(workdir)
    check_config(config)
    images = find_images(config.data.train)
    check_training_set(images, config)
    images = share_of(images, config.data.share, config.seed)
    mesh = make_mesh(config.devices)
    if config.batch_size % mesh.size:
        raise UserError(
            f"config.batch_size is {config.batch_size}, not a multiple of the {mesh.size} devices."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    record.begin(workdir, config.to_dict(), FREE, images.fingerprint())

    objective = Objective(**config.objective)
    views = None
    _require_a_batch(images, config.batch_size)
    if config.student.trainable == "projector":
        student, own_projector = _made_student(config, None)
        untrained = Evaluator(config, student, images, workdir).untrained
        views = view_features(config, images, untrained, mesh, workdir)
        if not own_projector:
            whiten(student.projector, views.unedited)
        images = views.images
    if objective.needs_teacher:
        teacher = make_teacher(config.teacher, images, workdir, config.image_size)
    elif config.student.projector == "none":
        teacher = Teacher(images, config.student.dim)
    else:
        teacher = Teacher(images)
    images = teacher.images
    if views is not None:
        views = views.of(images)

    # Some may have turned out to be unreadable.
    _require_a_batch(images, config.batch_size)
    steps_per_epoch = len(images) // config.batch_size
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

    if views is None:
        student = make_student(config, teacher.feature_dim)
    feature_dim = teacher.feature_dim or student.projector.in_features
    if config.student.projector == "whitened" and len(images) < feature_dim:
        raise UserError(
            f"{images.source}: {len(images)} pictures are too few to whiten {feature_dim} numbers; use more, or"
            " set config.student.projector to 'learned'."
        )
    # What learns.
    learner = DescriptorHead(student.projector) if views is not None else student
    graph = split(
        nnx.view(
            learner,
            deterministic=not config.student.dropout,
            use_running_average=config.student.bn == "running",
            raise_if_not_found=False,
        )
    )[0]
    state = init_state(
        learner,
        optimizer,
        queue_size=config.queue.size,
        bank_size=config.bank.size,
        dim=config.student.dim,
        feature_dim=feature_dim,
        rng=stream(config.seed, "memory"),
    )
    make_views = feed.make_views(config) if views is None else None
    step_function = jax.jit(
        make_train_step(graph, optimizer, objective, teacher.describe, make_views),
        donate_argnums=0,
    )
    evaluator = Evaluator(config, student, images, workdir, views)

    if objective.moco_lambda > 0 and config.queue.size > len(images) // 2:
        print(
            f"Warning: config.queue.size is {config.queue.size} for {len(images)} training pictures, so many a picture"
            f" meets its own past keys as negatives; a quarter of the pictures, {len(images) // 4}, is better.",
            file=sys.stderr,
        )

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        state = replicate(state, mesh)
        teacher_arrays = replicate(teacher.arrays, mesh)
        checkpoints = Checkpoints(workdir / "checkpoints", keep=config.keep_checkpoints)
        stack.callback(checkpoints.close)
        state = checkpoints.restore(state) or state
        step = int(state.step)
        metrics = record.Metrics(workdir, step)
        stack.callback(metrics.close)
        kept = feed.kept_pictures(config, images) if views is None else views
        batches = stack.enter_context(feed.read_batches(config, images, kept, step))
        device_batches = feed.on_devices(
            batches, config, images, kept, teacher.features_of, mesh, workdir
        )
        reporter = stack.enter_context(Reporter("Training", total_steps, step))
        stop = stack.enter_context(stop_on_sigterm())
        dropout = replicate(stream(config.seed, "dropout"), mesh)
        log = StepLog(metrics, schedule, config.batch_size)

        while not stop:
            done = step >= total_steps
            if done or (step and config.evaluate.data and step % config.evaluate.every == 0):
                model = evaluator.model(state)
                if config.evaluate.data:
                    metrics.write([{"step": step, **evaluator.evaluate(model, step)}])
                    log.restart_clock()
            if done:
                evaluator.export(model, step)
                checkpoints.require(step)
                break
            state, scalars = step_function(state, teacher_arrays, next(device_batches), dropout)
            step += 1
            log.add(step, scalars)
            last = step == total_steps
            if step % config.log_every == 0 or last:
                # Waits for the device; the only place that does.
                row = log.flush(checkpoints.latest)
                reporter.update(
                    step, f"loss {row['loss']:.4g}, {row['images_per_second']:.1f} images/s"
                )
            if step % config.checkpoint_every == 0 or last:
                log.flush(checkpoints.latest)
                checkpoints.save(state)
        else:
            log.flush(checkpoints.latest)
            checkpoints.save(state)
            checkpoints.require(step)
    return state


def _require_a_batch(images: ImageSet, batch_size: int) -> None:
    if len(images) < batch_size:
        raise UserError(
            f"{images.source}: {len(images)} pictures do not fill one batch of {batch_size}; lower config.batch_size."
        )


def share_of(images: ImageSet, share: float, seed: int) -> ImageSet:
    """A share of the pictures, at least one, in their order; with one seed a smaller share lies within a larger."""
    drawn = np.random.default_rng(seed).permutation(len(images))
    return images.subset(sorted(drawn[: max(1, round(share * len(images)))].tolist()))


def make_student(config: ml_collections.ConfigDict, feature_dim: int | None) -> nnx.Module:
    """See `_made_student`; the student alone."""
    return _made_student(config, feature_dim)[0]


def _made_student(
    config: ml_collections.ConfigDict, feature_dim: int | None
) -> tuple[nnx.Module, bool]:
    """The student at the start of a run: `init_from`'s weights, or fresh ones.

    A starting model of another descriptor size, or without a projector, keeps its trunk and gets a fresh projector,
    unless config.student.projector is to be its own.

    Args:
        config: of the run.
        feature_dim: F, the teacher's; None, without one, takes that of `init_from`, else the network's own.

    Returns:
        The student, and whether its projector is that of `init_from`.

    Raises:
        UserError: for sizes or a starting model that do not fit.
    """
    bare = config.student.projector == "none"
    if bare and config.student.dim != feature_dim:
        raise UserError(
            f"config.student.projector is 'none', so the descriptor is the feature that the teacher's {feature_dim}"
            f" numbers teach, but config.student.dim is {config.student.dim}; set dim to {feature_dim}, or projector to"
            " 'learned'."
        )
    start = _starting_model(config, feature_dim) if config.init_from else None
    if start is not None and feature_dim is None:
        feature_dim = start.feature_dim
    dtype = None if config.student.dtype == "float32" else jnp.dtype(config.student.dtype)
    rngs = nnx.Rngs(params=stream(config.seed, "student"))
    student = models.build(
        config.student.network,
        dim=None if bare else config.student.dim,
        feature_dim=feature_dim,
        rngs=rngs,
        dtype=dtype,
    )
    projector = None if start is None else start.module.projector
    fits = projector is not None and projector.out_features == config.student.dim
    if config.student.projector == "start" and not fits:
        raise UserError(
            f"config.student.projector is 'start', but config.init_from = {config.init_from!r} has no projector to"
            f" config.student.dim = {config.student.dim} numbers; start from a student that has, or use 'whitened'."
        )
    if start is not None:
        nnx.update(student.backbone, nnx.state(start.module.backbone))
    if fits and not bare:
        nnx.update(student.projector, nnx.state(projector))
    return student, fits and not bare


def _starting_model(config: ml_collections.ConfigDict, feature_dim: int | None) -> Model:
    start = load_model(config.init_from, trunk=True, feature_dim=feature_dim)
    if start.network != config.student.network:
        raise UserError(
            f"config.init_from = {config.init_from} is a {start.network}, but config.student.network is"
            f" {config.student.network}; make them agree."
        )
    if start.feature_dim != (feature_dim or start.feature_dim):
        whose = "config.student.dim" if config.student.projector == "none" else "this teacher"
        raise UserError(
            f"config.init_from = {config.init_from} has not the feature of {feature_dim} numbers that {whose} needs,"
            f" but one of {start.feature_dim}; start from another model, or from a trunk, which takes any size."
        )
    return start


class StepLog:
    """Collects the metrics of steps on the device, and writes them when asked.

    Args:
        metrics: where to.
        schedule: step -> learning rate.
        batch_size: pictures in a step.
    """

    def __init__(self, metrics: record.Metrics, schedule, batch_size: int):
        self._metrics, self._schedule, self._batch_size = metrics, schedule, batch_size
        self._pending: list[tuple[int, dict]] = []
        self._row: dict = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves out of the next speed what took time since the last flush."""
        self._since = time.monotonic()

    def add(self, step: int, scalars: dict) -> None:
        """Notes the metrics of the step that made the state `step`."""
        self._pending.append((step, scalars))

    def flush(self, last_checkpoint: int | None) -> dict:
        """Writes one line for each step; gives the newest.

        Raises:
            UserError: naming the step and the terms that are not finite.
        """
        if not self._pending:
            return self._row
        pending, self._pending = jax.device_get(self._pending), []
        now = time.monotonic()
        speed = len(pending) * self._batch_size / max(now - self._since, 1e-9)
        self._since = now
        rates = np.asarray(self._schedule(np.asarray([step - 1 for step, _ in pending])))
        rows = []
        for (step, scalars), rate in zip(pending, rates, strict=True):
            values = {name: float(value) for name, value in scalars.items()}
            bad = {name: value for name, value in values.items() if not math.isfinite(value)}
            if bad:
                self._metrics.write(rows)
                told = ", ".join(f"{name} is {value}" for name, value in bad.items())
                raise UserError(
                    f"Step {step}: {told}. The last good checkpoint is of step {last_checkpoint};"
                    " lower config.optimizer.learning_rate and start again in another --workdir."
                )
            rows.append(
                {
                    "step": step,
                    **values,
                    "learning_rate": float(rate),
                    "images_per_second": speed,
                }
            )
        self._metrics.write(rows)
        self._row = rows[-1]
        return self._row


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Turns states into models: evaluates and exports them.

    Attributes:
        config: of the run.
        student: gives the structure.
        images: the training pictures, for what is fitted to them after training.
        workdir: where results go.
        views: features of the pictures, where the trunk is frozen.
    """

    config: ml_collections.ConfigDict
    student: nnx.Module
    images: ImageSet
    workdir: pathlib.Path
    views: ViewFeatures | None = None

    @property
    def untrained(self) -> Model:
        """The student as it is at the start, at the evaluation's size."""
        return Model(
            name=self.workdir.resolve().name,
            network=self.config.student.network,
            module=evaluation_mode(self.student),
            image_size=self.config.evaluate.image_size,
        )

    def model(self, state: TrainState) -> Model:
        """The student of a state as it would be exported, with weights of its own."""
        module = nnx.clone(self.student)
        # The host's copy: one process's whole weights, free of the mesh.
        nnx.update(module, jax.device_get(state.params), jax.device_get(state.batch_stats))
        if self.config.student.projector == "start":
            # Weight decay moves what no gradient reaches.
            nnx.update(module.projector, nnx.state(self.student.projector))
        model = dataclasses.replace(self.untrained, module=evaluation_mode(module))
        if self.config.student.calibrate:
            calibrate_batch_norm(model, self.images, self.config.student.calibrate)
        if self.config.student.projector == "whitened":
            whitened_projector(model, self.images)
        return model

    def evaluate(self, model: Model, step: int) -> dict:
        """Metrics on the evaluation set of the model after that step, by name."""
        settings = self.config.evaluate
        rows, _, _ = evaluate_disc_run(
            model,
            settings.data,
            self.workdir / "evaluations" / str(step),
            training=settings.training or None,
            codecs=settings.codecs,
        )
        return {
            f"evaluate/{row.codec}/{row.score_norm}/{name}": value
            for row in rows
            for name, value in row.cells().items()
            if name not in ("codec", "score_norm")
        }

    def export(self, model: Model, step: int) -> None:
        """Writes `export/`."""
        about = {"trained": {"steps": step, "pictures": len(self.images)}}
        count = min(self.config.student.background, len(self.images))
        if count:
            model = dataclasses.replace(model, background=self._background(model, count))
        export_model(self.workdir / "export", model, about=about)

    def _background(self, model: Model, count: int) -> np.ndarray:
        """Descriptors of so many training pictures, evenly spread, unedited."""
        places = np.linspace(0, len(self.images) - 1, count).round().astype(int)
        if self.views is not None:
            head = DescriptorHead(model.module.projector)
            return np.asarray(head(jnp.asarray(self.views.unedited[places]))[1])
        return embed_images(model, self.images.subset(places))[0].descriptors


@contextlib.contextmanager
def stop_on_sigterm():
    """Gives a list that is empty until SIGTERM comes."""
    received: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    except ValueError:
        # Not in the main thread: whoever started the thread handles signals.
        yield received
        return
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)

"""A training run from its config to its export; read top to bottom."""

import contextlib
import logging
import os
import pathlib
import signal
from collections.abc import Iterator

import ml_collections

from rdcd_jax.core import hosts
from rdcd_jax.core.heap import keep_memory_of_steps
from rdcd_jax.core.progress import Reporter
from rdcd_jax.method.state import TrainState
from rdcd_jax.training.checkpoints import Checkpoints
from rdcd_jax.training.profile import profiled
from rdcd_jax.training.record import Metrics, checkpoint_folder, claim_checkpoints
from rdcd_jax.training.setup import Run, set_up
from rdcd_jax.training.step_log import StepLog

_log = logging.getLogger(__name__)


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike,
    *,
    profile: tuple[int, int] | None = None,
) -> TrainState:
    """Trains a student, or continues the run that `workdir` holds.

    SIGTERM ends it after the step in work, which is saved.

    Args:
        config: see docs/config.md.
        workdir: gets `run.json`, `metrics.jsonl`, `checkpoints/`, `export/`, and `evaluations/` where the config names
            evaluations.
        profile: the number, from 0, of the first of some steps that JAX's profiler is to trace into `profile/`, and how
            many.

    Returns:
        The state after the last step done.

    Raises:
        UserError: for a config, images or a workdir that cannot work, before training; or when the loss is no longer
            finite.

    Examples:
        >>> import tempfile
        >>> import rdcd_jax as rdcd
        >>> from rdcd_jax.training.config import load_config
        >>> config = load_config("sscd:smoke,student=efficientnet_b0", ["--config.schedule.max_steps=1"])
        >>> int(rdcd.train_and_evaluate(config, tempfile.mkdtemp()).step)
        1
    """
    return run_training(config, pathlib.Path(workdir), profile=profile)[0]


def run_training(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    profile: tuple[int, int] | None = None,
) -> tuple[TrainState, bool]:
    """As `train_and_evaluate`.

    Returns:
        The state; and whether the run came to its end, rather than to a signal's.
    """
    keep_memory_of_steps()
    with contextlib.ExitStack() as stack:
        run = set_up(config, workdir, stack)
        hosts.wait("set up")
        folder = checkpoint_folder(run.workdir, config)
        checkpoints = stack.enter_context(Checkpoints(folder, keep=config.keep_checkpoints))
        if config.checkpoint_dir:
            claim_checkpoints(folder, config.to_dict(), run.training_set)
        state = run.initial_state()
        state = checkpoints.restore(state) or state
        step = int(state.step)
        _warn_where_past(step, run)
        metrics = stack.enter_context(Metrics(run.results, step, evaluates=run.evaluates_at(step)))
        batches = run.batches(stack, step)
        reporter = stack.enter_context(Reporter("Training", run.total_steps, step))
        received = stack.enter_context(stop_on_sigterm())
        log = StepLog(metrics, run.schedule, config.batch_size)
        before_step = stack.enter_context(profiled(run.workdir, profile))

        while not hosts.preempted(step, received):
            last = step >= run.total_steps
            if last or run.evaluates_at(step):
                log.flush(checkpoints.latest)
                model = run.finish.model(state)
                if last:
                    # What comes to the evaluation must not cost the weights.
                    run.finish.export(model, step)
                metrics.write(run.finish.evaluate(model, step, last=last))
                log.restart_clock()
            if last:
                checkpoints.require(step)
                return state, True
            before_step(step, state)
            with log.waiting():
                batch = next(batches)
            state, scalars = run.advance(state, batch)
            step += 1
            log.add(step, scalars)
            if step % config.log_every == 0 or step == run.total_steps:
                reporter.update(step, log.flush(checkpoints.latest))
            if step % config.checkpoint_every == 0 or step == run.total_steps:
                # Nothing that is not finite is kept.
                log.flush(checkpoints.latest)
                checkpoints.save(state)
        log.flush(checkpoints.latest)
        checkpoints.save(state)
        checkpoints.require(step)
    return state, False


def _warn_where_past(step: int, run: Run) -> None:
    if step > run.total_steps and hosts.is_first():
        _log.warning(
            "%s has come to step %d already, past config.schedule.max_steps = %d; the export is of that step.",
            run.workdir,
            step,
            run.total_steps,
        )


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[list[int]]:
    """Gives a list that is empty until SIGTERM comes to a process that works alone."""
    received: list[int] = []
    if hosts.count() > 1:
        # JAX sees to it, see `hosts.preempted`.
        yield received
        return
    try:
        before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    except ValueError:
        # Not in the main thread: whoever started the thread handles signals.
        yield received
        return
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)

"""A window of steps, traced by JAX's profiler."""

import contextlib
import logging
import pathlib
from collections.abc import Callable, Iterator

import jax

FOLDER = "profile"
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def profiled(workdir: pathlib.Path, window: tuple[int, int] | None) -> Iterator[Callable]:
    """Gives what is to be called before each step with its number, and the arrays that the step before made.

    The trace goes to `profile/` in the workdir, of each process a file; TensorBoard's profile plugin (xprof) shows it.

    Args:
        workdir: of the run.
        window: the first step's number, counted from 0, and how many steps; None for none.
    """
    first, count = window or (-1, 0)
    running, begun = False, window is None

    def stop() -> None:
        nonlocal running
        if running:
            jax.profiler.stop_trace()
        running = False

    def before(step: int, made: object) -> None:
        nonlocal running, begun
        if step == first and count:
            jax.block_until_ready(made)
            jax.profiler.start_trace(workdir / FOLDER)
            running = begun = True
        elif step == first + count:
            # The device may be behind.
            jax.block_until_ready(made)
            stop()

    try:
        yield before
    finally:
        stop()
        if not begun:
            _log.warning(
                "Nothing was traced: step %d, where the profile was to begin, was not done.", first
            )

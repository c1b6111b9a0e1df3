"""The metrics of steps, from the device to `metrics.jsonl`."""

import collections
import contextlib
import math
import time
from collections.abc import Iterator

import jax
import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.training.optim import Schedule
from rdcd_jax.training.record import Metrics

# What the machine has to do with, not the run.
SPEEDS = {"images_per_second", "input_wait_seconds", "device_peak_bytes"}
# Steps that the host may be ahead of the device: enough to keep it busy, so few that a signal is soon obeyed.
_AHEAD = 2


class StepLog:
    """Collects the metrics of steps on the device, and writes them when asked.

    Args:
        metrics: where to.
        schedule: step -> learning rate.
        batch_size: images in a step.
    """

    def __init__(self, metrics: Metrics, schedule: Schedule, batch_size: int):
        self._metrics, self._schedule, self._batch_size = metrics, schedule, batch_size
        self._pending: list[tuple[int, float, dict]] = []
        self._waited = 0.0
        self._running: collections.deque = collections.deque()
        self._note = ""
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves out of the next speed what took time since the last flush."""
        self._since = time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Times the block, in which the next batch is waited for."""
        since = time.monotonic()
        yield
        self._waited = time.monotonic() - since

    def add(self, step: int, scalars: dict) -> None:
        """Notes the metrics of the step that made the state `step`; waits where the device is too far behind."""
        self._pending.append((step, self._waited, scalars))
        self._running.append(scalars)
        if len(self._running) > _AHEAD:
            jax.block_until_ready(self._running.popleft())

    def flush(self, last_checkpoint: int | None) -> str:
        """Writes one line for each step, and waits for the device to do so.

        Returns:
            The newest loss and the speed, for people.

        Raises:
            UserError: naming the step and the terms that are not finite.
        """
        if not self._pending:
            return self._note
        pending, self._pending = jax.device_get(self._pending), []
        self._running.clear()
        now = time.monotonic()
        speed = len(pending) * self._batch_size / max(now - self._since, 1e-9)
        self._since = now
        rates = np.asarray(self._schedule(np.asarray([step - 1 for step, *_ in pending])))
        speeds = {"images_per_second": speed, **_memory()}
        rows = []
        for (step, waited, scalars), rate in zip(pending, rates, strict=True):
            values = {name: float(value) for name, value in scalars.items()}
            bad = {name: value for name, value in values.items() if not math.isfinite(value)}
            if bad:
                self._metrics.write(rows)
                broken = ", ".join(f"{name} is {value}" for name, value in bad.items())
                raise UserError(
                    f"Step {step}: {broken}. The last good checkpoint is of step {last_checkpoint};"
                    " lower config.optimizer.learning_rate and start again in another workdir."
                )
            more = {"learning_rate": float(rate), "input_wait_seconds": waited}
            rows.append({"step": step, **values, **more, **speeds})
        self._metrics.write(rows)
        self._note = f"loss {rows[-1]['loss']:.4g}, {speed:.1f} images/s"
        return self._note


def _memory() -> dict[str, int]:
    """The most that one of this process's devices has held so far, where they tell."""
    told = [device.memory_stats() or {} for device in jax.local_devices()]
    most = max(each.get("peak_bytes_in_use", 0) for each in told)
    return {"device_peak_bytes": most} if most else {}

"""Progress for people: a bar on a terminal, a plain line now and then elsewhere; of several processes, the first's."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rdcd_jax.core import hosts

# Seconds between plain lines.
INTERVAL = 15.0


class Reporter:
    """Reports how far a piece of work has come; use it in a `with`.

    Args:
        label: what is being done.
        total: units of work in all.
        done: units done before this process began.
    """

    def __init__(self, label: str, total: int, done: int = 0):
        self._label, self._total, self._first = label, total, done
        self._start = self._last = time.monotonic()
        self._bar = None
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=console,
            )
            self._task = self._bar.add_task(label, total=total, completed=done, note="")

    def __enter__(self) -> "Reporter":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """Says that `done` of all units are done; `note` is a few words more."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        if not hosts.is_first() or (now - self._last < INTERVAL and done < self._total):
            return
        self._last = now
        rate = (done - self._first) / max(now - self._start, 1e-9)
        left = (self._total - done) / rate if rate > 0 else float("inf")
        left = left if done < self._total else 0.0
        parts = [f"{self._label}: {done}/{self._total}", note, f"{_clock(left)} left"]
        print(", ".join(part for part in parts if part), file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"

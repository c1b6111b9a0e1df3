"""Runs the command line in a forked child, within limits, and tells how it ended.

Starting Python and JAX takes seconds, so the parent imports everything once and forks for each case. It never starts a
JAX backend: XLA's threads would not survive the fork, so every child starts its own.
"""

import contextlib
import dataclasses
import os
import pathlib
import resource
import select
import signal
import sys
import tempfile
import time
import traceback

from rdcd_jax.cli.main import main

SECONDS = 60
# Judged by the peak of what is resident, as the kernel reports it when the child is reaped: XLA and thread stacks
# reserve far more addresses than they use, so a limit on these would have to be wide.
PEAK_MIB = 3072
# It still is set, so that a lie about a size ends the child and not the machine.
ADDRESSES_MIB = 16 * 1024
_UNCAUGHT = 70


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a child ended.

    Attributes:
        code: its exit code; minus the signal's number where a signal ended it, None where it was out of time.
        seconds: how long it ran.
        peak_mib: most memory resident at a time.
        out: what it printed.
        err: what it printed on stderr.
    """

    code: int | None
    seconds: float
    peak_mib: int
    out: str
    err: str


def run_forked(argv: list[str], root: pathlib.Path, environment: dict[str, str]) -> Outcome:
    """Runs `rdcd-jax` with `argv` in a child.

    Args:
        argv: its arguments.
        root: folder whose `cwd` is its working folder, and that gets `stdout` and `stderr`.
        environment: what is set besides this process's own variables.

    Returns:
        How it ended. Processes that it left running are killed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(argv, root, environment)
    watch = os.pidfd_open(pid)
    try:
        in_time = bool(select.select([watch], [], [], SECONDS)[0])
    finally:
        os.close(watch)
        # Its whole group: data workers may outlive it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    stored = [(root / name).read_text(errors="backslashreplace") for name in ("stdout", "stderr")]
    code = os.waitstatus_to_exitcode(status) if in_time else None
    return Outcome(code, time.monotonic() - start, usage.ru_maxrss // 1024, *stored)


def _child(argv: list[str], root: pathlib.Path, environment: dict[str, str]) -> None:
    code = _UNCAUGHT
    try:
        os.setsid()
        os.environ.update(environment)
        tempfile.tempdir = None
        os.chdir(root / "cwd")
        for number, name in enumerate(("/dev/null", root / "stdout", root / "stderr")):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(name, flags), number)
        limit = ADDRESSES_MIB * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.argv = ["rdcd-jax", *argv]
        code = main(argv)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else _UNCAUGHT
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)

"""Several processes, mostly one a host, as one program: they join, wait for each other, and end together.

Every process does the same, each on its part of the data. What is written once is written by the first; what the others
write instead goes nowhere.
"""

import contextlib
import errno
import glob
import hashlib
import importlib.util
import json
import logging
import os
import pathlib
import secrets
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from rdcd_jax.core.errors import UserError

Tree = TypeVar("Tree")
_log = logging.getLogger(__name__)
# Meetings so far; their names must differ.
_waits = 0

# Seconds without a sign of life after which a process counts as dead, and those to wait for all at the start.
HEARTBEAT_S, START_S = 40, 300
# Seconds of waiting at the start after which people are told.
_SILENT_S = 15
# Seconds until a network drive tells every process of a file that another one wrote.
_LOOKS = 10
# A CPU's collectives give up after so many seconds, 30 by default: less than the first process may take to evaluate.
_CPU_PATIENCE = "--xla_cpu_collective_timeout_seconds"
_PATIENCE_S = 24 * 3600
_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# Where a guarded process says that it has joined.
_joined: int | None = None
NOT_TOGETHER = (
    "the processes did not come together. On a TPU slice, under Slurm or Open MPI nothing need be said; elsewhere set"
    f" {_ADDRESS} (HOST:PORT of the first process), {_COUNT}, and {_INDEX}, another one in each, from 0. All are waited"
    f" for {START_S} seconds."
)
ENDED = (
    "another process of this run has ended, or does not answer; start all of them again with the same command, and the"
    " work goes on from what is kept."
)


def named_cluster(environment: dict[str, str] = os.environ) -> str | None:
    """The variable that tells that this process is one of several; None where nothing does."""
    for variable in (_ADDRESS, _COUNT, _INDEX):
        if variable in environment:
            return variable
    # Also a step of one task has these.
    for count in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if int(environment.get(count) or 1) > 1:
            return count
    if "MEGASCALE_NUM_SLICES" in environment:
        return "MEGASCALE_NUM_SLICES"
    # A TPU machine may know of the others by asking only, which JAX does.
    return "TPU" if _has_tpus() and "TPU_SKIP_MDS_QUERY" not in environment else None


def _has_tpus() -> bool:
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def guarded() -> None:
    """Goes on as a child process, while this one waits for it and then ends as it did; before JAX is imported.

    JAX ends a process whose fellows are gone by an abort, which nothing within it can catch. The parent says what it
    means.
    """
    global _joined
    parent, (told, _joined) = os.getpid(), os.pipe()
    child = os.fork()
    if not child:
        threading.Thread(target=_leave_without, args=(parent,), daemon=True).start()
        return
    os.close(_joined)
    came: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        if not select.select([told], [], [], 0)[0]:
            # Nothing reaches a process that waits for the others.
            came.append(number)
            os.kill(child, signal.SIGKILL)
        elif number == signal.SIGTERM:
            # A terminal sends Ctrl-C to both.
            os.kill(child, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    _, status = os.waitpid(child, 0)
    code = -came[0] if came else os.waitstatus_to_exitcode(status)
    if code == -signal.SIGABRT:
        # A process that is killed while it still waits for the others writes nothing here.
        print(f"rdcd-jax: {ENDED if os.read(told, 1) else NOT_TOGETHER}", file=sys.stderr)
        code = 1
    elif code < 0:
        print(f"rdcd-jax: ended by signal {-code}.", file=sys.stderr)
        code = 128 - code
    sys.stdout.flush()
    os._exit(code)


def _leave_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def join(*, preemptible: bool) -> None:
    """Joins the other processes of this cluster, before any device is asked for.

    Args:
        preemptible: SIGTERM is to be seen by `preempted` alone, by all processes after the same step.

    Raises:
        UserError: no cluster is found, its variables contradict each other, or not all processes come in time.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _CPU_PATIENCE not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_CPU_PATIENCE}={_PATIENCE_S}".strip()
    import jax

    jax.config.update("jax_enable_preemption_service", preemptible)
    count, index = _number(_COUNT), _number(_INDEX)
    if (count is None) != (index is None):
        raise UserError(f"{_COUNT} and {_INDEX} go together; set both, or neither.")
    _check_address(os.environ.get(_ADDRESS), index)
    waiting = threading.Timer(_SILENT_S, _log.warning, ["Waiting for the other processes."])
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            num_processes=count,
            process_id=index,
            initialization_timeout=START_S,
            heartbeat_timeout_seconds=HEARTBEAT_S,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{NOT_TOGETHER} ({reason:.300})") from error
    finally:
        waiting.cancel()
    if _joined is not None:
        os.write(_joined, b"1")
    if jax.process_count() > 1:
        shown = sys.excepthook
        sys.excepthook = lambda *error: (shown(*error), leave(1))
    require_same("The command", lambda: sys.argv[1:])


def _check_address(address: str | None, index: int | None) -> None:
    """Refuses what JAX would crash on."""
    if address is None:
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"{_ADDRESS} is {address!r}, not HOST:PORT of the first process.")
    if index == 0:
        try:
            with socket.socket(socket.AF_INET6) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(("::", int(port)))
        except (OSError, OverflowError) as error:
            if getattr(error, "errno", None) not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise UserError(
                    f"{_ADDRESS} is {address!r}: {error}; give another port."
                ) from error


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise UserError(f"{name} is {text!r}, not a whole number.")
    return int(text)


def count() -> int:
    """How many processes there are; 1 as long as JAX has not been imported."""
    jax = sys.modules.get("jax")
    return jax.process_count() if jax is not None and jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes what is written once; alone, it is."""
    return count() == 1 or sys.modules["jax"].process_index() == 0


def wait(name: str) -> None:
    """Returns when all processes have come to the point of that name."""
    global _waits
    if count() > 1:
        # Not by a collective of the devices: between CPUs the first of these must be met within 30 seconds.
        from orbax.checkpoint import multihost

        _waits += 1
        meet = multihost.get_barrier_sync_fn()
        meet(key=f"{name} {_waits}", timeout_ms=1000 * _PATIENCE_S)


def from_first(tree: Tree) -> Tree:
    """The first process's arrays, of the same shapes in all; unchanged where there is one process."""
    if count() == 1:
        return tree
    from jax.experimental import multihost_utils

    wait("from first")
    return multihost_utils.broadcast_one_to_all(tree)


def require_same(what: str, value: Callable[[], object]) -> None:
    """Refuses, in all processes, that one does not do the same.

    Args:
        what: a subject, such as "The config".
        value: gives JSON values, the same in all; called only where there are several processes.

    Raises:
        UserError: naming the first process whose value is not that of process 0.
    """
    if count() == 1:
        return
    import numpy as np
    from jax.experimental import multihost_utils

    digest = hashlib.sha256(json.dumps(value(), sort_keys=True, default=str).encode()).digest()
    wait("same")
    every = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    others = np.flatnonzero((every != every[0]).any(axis=1))
    if len(others):
        raise UserError(
            f"{what} of process {others[0]} is another than that of process 0; all must be given the same, and see the"
            " same files."
        )


def require_shared(folder: pathlib.Path) -> None:
    """Refuses, in all processes, a folder that not all of them see: each would wait for files that never come.

    Raises:
        UserError: naming the first process that sees another folder than process 0.
    """
    if count() == 1:
        return
    mark = folder / ".joined"
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(secrets.token_hex(), encoding="utf-8")
    wait("marked")

    def seen() -> str:
        # Network drives tell of a new file late.
        for _ in range(_LOOKS):
            if mark.is_file():
                return mark.read_text(encoding="utf-8")
            time.sleep(1)
        return ""

    try:
        require_same(f"The folder {folder}", seen)
    finally:
        if is_first():
            mark.unlink(missing_ok=True)


def compiled_together(function: Callable) -> Callable:
    """A jitted function that begins, the first time, when all processes have compiled it; see `wait`."""
    if count() == 1:
        return function
    met = False

    def call(*arguments):
        nonlocal met
        if not met:
            function.lower(*arguments).compile()
            wait("compiled")
            met = True
        return function(*arguments)

    return call


def preempted(step: int, received: list[int]) -> bool:
    """Whether to save and end after this step, the same in all processes.

    Args:
        step: the number of steps done, from which all go on by one.
        received: the signals that this process got, where it is alone.
    """
    if count() == 1:
        return bool(received)
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def written_by_first(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives the folder to the first process, and one that is removed in the end to each other."""
    if is_first():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="rdcd-jax-") as elsewhere:
        yield pathlib.Path(elsewhere)


def is_end_of_another(error: RuntimeError) -> bool:
    """Whether an error is XLA's, of a computation that another process has left."""
    return count() > 1 and type(error).__name__ == "JaxRuntimeError"


def leave(code: int) -> None:
    """Ends this process at once where others still work: they would wait for it, and it for them."""
    if count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

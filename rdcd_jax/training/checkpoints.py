"""Checkpoints of a run; the only file that imports orbax."""

import concurrent.futures
import contextlib
import errno
import itertools
import json
import logging
import pathlib
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from rdcd_jax.core import hosts
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import file_sha256, is_address, write_json
from rdcd_jax.method.state import TrainState

# In each checkpoint, the digests of its files.
SEAL = "sha256.json"

# Errors of the operating system that tell of what lies there, not of the machine.
_OF_FILES = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
# How XLA's and tensorstore's errors tell of a machine, a network or rights; they are of no type of their own.
_OF_MACHINE = re.compile(
    r"RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED"
    rf"|OS error (?!({errno.ENOENT}|{errno.ENOTDIR}|{errno.EISDIR})\b)\d"
)

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints below one folder, one per step, written in the background, the newest `keep` kept.

    On a disk each gets a list of its files' digests, since orbax itself takes a flipped bit for a number. A bucket
    looks after its objects by itself.

    Args:
        folder: made where missing; may lie in a bucket.
        keep: how many of the newest to keep.
    """

    def __init__(self, folder: epath.Path, *, keep: int):
        self._is_remote = is_address(str(folder))
        self._folder = folder if self._is_remote else folder.resolve()
        self._make_folder()
        logging.getLogger("absl").addFilter(_not_orbax)
        self._keep = keep
        self._checkpointer = self._opened()
        self._background = concurrent.futures.ThreadPoolExecutor(1)
        self._pending: concurrent.futures.Future | None = None
        self._saving = 0

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except Exception as error:
            if not self._is_remote:
                raise
            # What a bucket's client raises is of nearly any kind.
            raise UserError(
                f"{self._folder} cannot be written ({_told(error)}); make the bucket, or sign in to it."
            ) from error

    def _opened(self) -> ocp.training.Checkpointer:
        return ocp.training.Checkpointer(
            self._folder,
            # The loop says when; orbax must not think otherwise.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
            cleanup_tmp_directories=True,
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, state: TrainState) -> None:
        """Saves `state` under its step, in the background; waits for the save before, if still going on.

        A save that fails, as on a full disk, is reported on stderr and leaves the checkpoints before it as they are.
        """
        self.wait()
        step = int(state.step)
        if self.latest == step:
            return
        # The next step is given this state's buffers, and on a CPU orbax would write from those very buffers.
        arrays = _arrays(jax.tree.map(jnp.copy, state))
        self._saving = step
        try:
            written = self._checkpointer.save_async(step, arrays)
            self._pending = self._background.submit(self._seal, written, step)
        except Exception as error:
            self._give_up(error)

    def restore(self, like: TrainState) -> TrainState | None:
        """The newest sound state, placed and sharded as `like` is; None where there is none.

        A damaged checkpoint is named on stderr and moved to a folder beside this one, called as it is and `-damaged`.

        Raises:
            UserError: naming the first array that differs, if the checkpoint is of another network or size; if the
                newest one cannot be read now, or is damaged and the only one.
        """
        while (step := self.latest) is not None:
            reason = self._fault(step, like) if hosts.is_first() else "the first process says why"
            # All go on from the same one.
            if not hosts.from_first(np.array(bool(reason))):
                try:
                    return self._restored(step, like)
                except Exception as error:
                    # What a broken file makes orbax raise is of nearly any kind, and one of several processes may meet
                    # it alone.
                    if hosts.count() > 1:
                        raise
                    reason = self._damage(step, error)
            self._set_aside(step, reason)
        return None

    def _fault(self, step: int, like: TrainState) -> str:
        """What is wrong with a checkpoint's files; empty where nothing is.

        Raises:
            UserError: see `restore`.
        """
        try:
            self._verify(step)
            self._require_shapes(step, like)
        except UserError:
            raise
        except Exception as error:
            return self._damage(step, error)
        return ""

    def _damage(self, step: int, error: Exception) -> str:
        """What an error of reading a checkpoint says of its files.

        Raises:
            UserError: it says nothing of them, but of the machine, so that they may be sound.
        """
        if _is_of_machine(error):
            raise UserError(
                f"{self._folder / str(step)} cannot be read ({_told(error):.200}), which need not be its own fault, so"
                " it stays where it is; run the same command again when it can be read."
            ) from error
        return _told(error)

    def _set_aside(self, step: int, reason: str) -> None:
        damaged = self._folder / str(step)
        if len(self._checkpointer.checkpoints) == 1:
            raise UserError(
                f"The checkpoint {damaged} is damaged ({reason:.200}), and there is none before it; put a sound copy of"
                " it there, or move it away to train from the start."
            )
        aside = self._place_aside(step)
        if hosts.is_first():
            aside.parent.mkdir(exist_ok=True)
            damaged.rename(aside)
        hosts.wait("checkpoint set aside")
        self._checkpointer.reload()
        if hosts.is_first():
            _log.warning(
                "The checkpoint %s is damaged (%.200s). It was moved to %s; the run goes on from step %d.",
                damaged,
                reason,
                aside,
                self.latest,
            )

    def _place_aside(self, step: int) -> epath.Path:
        """Where a damaged checkpoint may lie; what lies there of a step already stays."""
        folder = self._folder.with_name(f"{self._folder.name}-damaged")
        names = itertools.chain([str(step)], (f"{step}-{number}" for number in itertools.count(2)))
        return next(folder / name for name in names if not (folder / name).exists())

    def _seal(self, written, step: int) -> None:
        """Waits for a checkpoint, then lists the digests of its files."""
        written.result()
        if self._is_remote or not hosts.is_first():
            return
        folder = pathlib.Path(self._folder / str(step))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        write_json(
            folder / SEAL,
            {path.relative_to(folder).as_posix(): file_sha256(path) for path in files},
        )

    def _verify(self, step: int) -> None:
        folder = pathlib.Path(self._folder / str(step))
        # Killed between the two, a checkpoint is whole without a seal: orbax names it last, when all is written.
        if (folder / SEAL).exists():
            for name, digest in json.loads((folder / SEAL).read_text()).items():
                if not (folder / name).is_file():
                    raise ValueError(f"{name} is missing")
                if file_sha256(folder / name) != digest:
                    raise ValueError(f"{name} is not as it was written")

    def _require_shapes(self, step: int, like: TrainState) -> None:
        saved = _shapes(self._checkpointer.metadata(step).metadata)
        if not saved:
            raise ValueError("its list of arrays is missing")
        wanted = _shapes(_arrays(like))
        for path in sorted(saved.keys() | wanted.keys()):
            if saved.get(path) != wanted.get(path):
                raise UserError(
                    f"{self._folder / str(step)}: the checkpoint has {path} of shape {saved.get(path)}, this config"
                    f" {wanted.get(path)}; continue with the config it was made with, or give another workdir."
                )

    def _restored(self, step: int, like: TrainState) -> TrainState:
        return TrainState(**self._checkpointer.load(step, _arrays(like)))

    def wait(self) -> None:
        """Returns when nothing is being written any more."""
        pending, self._pending = self._pending, None
        if pending is not None:
            try:
                pending.result()
            except Exception as error:
                self._give_up(error)

    def require(self, step: int) -> None:
        """Waits, and makes sure that the checkpoint of that step is there.

        Raises:
            UserError: if it could not be saved.
        """
        self.wait()
        if self.latest != step:
            raise UserError(
                f"The checkpoint of step {step} could not be saved in {self._folder}; the last good one is of step"
                f" {self.latest}. Make room there and run the same command again."
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Finishes what is being written."""
        self.wait()
        self._background.shutdown()
        self._checkpointer.close()
        logging.getLogger("absl").removeFilter(_not_orbax)

    def _give_up(self, error: Exception) -> None:
        # The next save of this checkpointer would raise the same error again, so it is replaced; and what was written
        # only takes the room that the next checkpoint needs. Orbax's other threads may still be writing it.
        with contextlib.suppress(Exception):
            self._checkpointer.close()
        deadline = time.monotonic() + 30
        while parts := list(self._folder.glob(f"{self._saving}.*tmp*")):
            for part in parts:
                # Whoever still writes there may put another file in meanwhile.
                with contextlib.suppress(OSError):
                    part.rmtree(missing_ok=True)
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        self._checkpointer = self._opened()
        _log.warning(
            "The checkpoint of step %d could not be saved in %s (%.300s); the last good one is of step %s.",
            self._saving,
            self._folder,
            error,
            self.latest,
        )


def _not_orbax(record: logging.LogRecord) -> bool:
    # Orbax logs a failure in every thread that sees it, with its stack; here it is reported once, in a sentence.
    return "orbax" not in record.pathname


def _is_of_machine(error: Exception) -> bool:
    """Whether an error tells of the machine or the way to the files, and not of what is in them."""
    if isinstance(error, OSError):
        return error.errno not in _OF_FILES
    return isinstance(error, MemoryError) or _OF_MACHINE.search(str(error)) is not None


def _told(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _arrays(state: TrainState) -> dict:
    return {name: getattr(state, name) for name in state.__dataclass_fields__}


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }

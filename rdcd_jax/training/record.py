"""What a run writes down: `run.json`, `metrics.jsonl`, TensorBoard events."""

import contextlib
import datetime
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping

import jax
from etils import epath

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_json, write_text
from rdcd_jax.core.options import flat
from rdcd_jax.images.sources import changed
from rdcd_jax.training.schema import is_free, present

RECORD = "run.json"
# The teacher's descriptors of the training images, in the workdir of a run that keeps them.
TEACHER_FEATURES = "teacher_features.npz"
PACKAGES = (
    "rdcd-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "pillow",
    "scann",
)

_log = logging.getLogger(__name__)


def environment() -> dict:
    """Versions, devices and source revision of this process, for a result that can be traced."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "versions": versions,
        "devices": [device.device_kind for device in jax.devices()],
        "platform": jax.default_backend(),
        "git_revision": _git_revision(),
    }


def _git_revision() -> str | None:
    """Revision of the checkout this package lies in, with `+` where it was changed; None outside one."""
    folder = pathlib.Path(__file__).parents[1]

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def begin(
    workdir: pathlib.Path, config: dict, training_set: dict[str, str | int] | None = None
) -> None:
    """Writes `run.json`, or checks that the one there is of the same run.

    Args:
        workdir: the run's folder.
        config: the resolved config, JSON values only.
        training_set: what tells the training images from others (`sources.ImageSet.fingerprint`).

    Raises:
        UserError: naming the first field that differs, or what is another about the images.
    """
    path = workdir / RECORD
    starts, weights = [], {}
    if (before := _before(workdir, config)) is not None:
        theirs, starts, images, weights = before
        ours = _comparable(config)
        for name in sorted(theirs.keys() | ours.keys()):
            if not is_free(name) and theirs.get(name) != ours.get(name):
                raise UserError(
                    f"{workdir} holds a run with config.{name} = {theirs.get(name)!r}, and this config has"
                    f" {ours.get(name)!r}; give another workdir, or set the field back to continue that run."
                )
        # Which image a step shows follows from the list of all.
        if change := changed(images, training_set or {}):
            raise UserError(
                f"{workdir} holds a run whose training set was another: {change}; bring that set back to continue the"
                " run, or give another workdir."
            )
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    start = {"time": now, "command": sys.argv, **environment()}
    record = {"config": config, "training_set": training_set, "weights": weights}
    write_json(path, record | {"starts": [*starts, start]})


def pin(workdir: pathlib.Path, name: str, fingerprint: str | None) -> None:
    """Notes the weights that a run starts from or learns from; a continued run must have the same.

    Args:
        workdir: the run's folder, after `begin`.
        name: the config's field that names them: "teacher" or "init_from".
        fingerprint: see `Model.fingerprint`; None where there are none.

    Raises:
        UserError: the run began with others.
    """
    path = workdir / RECORD
    record = json.loads(path.read_text(encoding="utf-8"))
    before = record["weights"].get(name, fingerprint)
    if before != fingerprint:
        raise UserError(
            f"{workdir} holds a run whose config.{name} had other weights than what it names now; bring the former ones"
            " back to continue the run, or give another workdir."
        )
    if name not in record["weights"]:
        record["weights"][name] = fingerprint
        write_json(path, record)


def _before(workdir: pathlib.Path, config: Mapping) -> tuple[dict, list, dict, dict] | None:
    """The run that a folder holds: its flat config under today's names, starts, training set and weights."""
    path = workdir / RECORD
    # A start that failed before it made anything binds nobody to its config.
    if not path.is_file() or not _has_results(workdir, config):
        return None
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        return (
            _comparable(before["config"]),
            list(before["starts"]),
            dict(before.get("training_set") or {}),
            dict(before.get("weights") or {}),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a run's record ({type(error).__name__}: {error}); give another workdir."
        ) from error


def _comparable(config: dict) -> dict[str, object]:
    """A config as JSON tells it, flat, under today's names, defaults filled in."""
    return flat(json.loads(json.dumps(present(flat(config)))))


def checkpoint_folder(workdir: pathlib.Path, config: Mapping) -> epath.Path:
    """Where a run's checkpoints lie."""
    return epath.Path(config.get("checkpoint_dir") or workdir / "checkpoints")


def _has_results(workdir: pathlib.Path, config: Mapping) -> bool:
    checkpoints = checkpoint_folder(workdir, config)
    cached = workdir / TEACHER_FEATURES
    return cached.exists() or (checkpoints.is_dir() and any(checkpoints.iterdir()))


class Metrics:
    """`metrics.jsonl`, one line a step, and the same as TensorBoard events where tensorboardX is installed.

    Args:
        workdir: the run's folder.
        step: the step that the run continues from; what comes after it, lines of work that was lost and that step's own
            evaluation, is dropped, since the run will write it again.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            if not self._path.is_file():
                raise UserError(f"{self._path} is not a file; give another workdir.")
            _drop_lines_after(self._path, step)
        self._file = self._path.open("a", encoding="utf-8")
        self._whole = self._file.tell()
        self._waiting: list[str] = []
        try:
            import tensorboardX
        except ImportError:
            self._events = None
        else:
            self._events = tensorboardX.SummaryWriter(
                str(workdir / "tensorboard"), purge_step=step + 1
            )

    def write(self, rows: list[dict]) -> None:
        """Appends rows, each with `step` and JSON numbers.

        Where the disk has no room, training goes on and the rows wait for the next call.
        """
        self._waiting += [json.dumps(row) + "\n" for row in rows]
        try:
            self._file.write("".join(self._waiting))
            self._file.flush()
        except OSError as error:
            _log.warning("%s cannot be written (%s); its lines wait in memory.", self._path, error)
            self._begin_again()
            return
        self._whole, self._waiting = self._file.tell(), []
        self._write_events(rows)

    def _begin_again(self) -> None:
        """Drops what was half written, in the file and in its buffer."""
        with contextlib.suppress(OSError):
            # Closing tries to write the buffer once more.
            self._file.close()
        os.truncate(self._path, self._whole)
        self._file = self._path.open("a", encoding="utf-8")

    def _write_events(self, rows: list[dict]) -> None:
        if self._events is not None:
            for row in rows:
                for name, value in row.items():
                    if name != "step" and value is not None:
                        self._events.add_scalar(name, value, row["step"])
            self._events.flush()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files, after one more try to write what waits."""
        if self._waiting:
            self.write([])
        self._file.close()
        if self._events is not None:
            self._events.close()


def _drop_lines_after(path: pathlib.Path, step: int) -> None:
    kept = []
    for data in path.read_bytes().splitlines():
        try:
            line = data.decode()
            row = json.loads(line)
            done = row["step"] < step or (row["step"] == step and not _is_evaluation(row))
        except (ValueError, KeyError, TypeError, RecursionError):
            # A line cut short by a kill.
            continue
        if done:
            kept.append(line + "\n")
    write_text(path, "".join(kept))


def _is_evaluation(row: dict) -> bool:
    return any(name.startswith("evaluate/") for name in row)

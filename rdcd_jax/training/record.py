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
from collections.abc import Iterable, Mapping

import jax
from etils import epath

from rdcd_jax.core import hosts
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import is_address, write_json, write_text
from rdcd_jax.core.options import flat
from rdcd_jax.images.sources import ImageSet, changed
from rdcd_jax.training.events import Events
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
        # What is installed may lie in the checkout of another project.
        git("ls-files", "--error-unmatch", __file__)
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def begin(
    workdir: pathlib.Path, config: dict, training_set: dict[str, str | int] | None = None
) -> None:
    """Writes `run.json`, or adds a start to the one there.

    Args:
        workdir: the run's folder.
        config: the resolved config, JSON values only.
        training_set: what tells the training images from others (`sources.ImageSet.fingerprint`).

    Raises:
        UserError: see `require_same_run`.
    """
    before = require_same_run(workdir, config, training_set) or {}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    start = {"time": now, "command": sys.argv, **environment()}
    folder = config.get("checkpoint_dir", "")
    if folder and not is_address(folder):
        # Relative, it would be elsewhere for a start in another folder.
        config = {**config, "checkpoint_dir": os.path.abspath(os.path.expanduser(folder))}
    record = {
        "config": config,
        "training_set": training_set,
        "weights": before.get("weights", {}),
        "starts": [*before.get("starts", []), start],
    }
    write_json(workdir / RECORD, record)


def require_same_run(
    workdir: pathlib.Path, config: dict, training_set: dict[str, str | int] | None = None
) -> dict | None:
    """Refuses to continue the run that a folder holds by another config, on other images or without its checkpoints.

    Args:
        workdir: the run's folder.
        config: see `begin`.
        training_set: see `begin`.

    Returns:
        The run's record; None where the folder holds no run.

    Raises:
        UserError: naming the first field that differs, or what is another about the images.
    """
    if (before := _before(workdir, config)) is None:
        return None
    remedy = "give another workdir, or set the field back to continue that run"
    _require_same_config(workdir, before["config"], config, remedy)
    # Which image a step shows follows from the list of all.
    if change := changed(before["training_set"], training_set or {}):
        raise UserError(
            f"{workdir} holds a run whose training set was another: {change}; bring that set back to continue the"
            " run, or give another workdir."
        )
    return before


def claim_checkpoints(
    folder: epath.Path, config: dict, training_set: dict[str, str | int] | None = None
) -> None:
    """Notes beside checkpoints that lie apart from a workdir of what run they are, or checks that it is this one.

    Args:
        folder: where they lie; may be in a bucket.
        config: see `begin`.
        training_set: see `begin`.

    Raises:
        UserError: naming the first field that differs, or what is another about the images.
    """
    path = folder / RECORD
    own = "give config.checkpoint_dir a folder of this run's own"
    if path.exists():
        before = read_record(path)
        remedy = f"{own}, or set the field back to continue that run"
        _require_same_config(folder, before["config"], config, remedy)
        if change := changed(before["training_set"], training_set or {}):
            raise UserError(
                f"{folder} holds checkpoints of a run whose training set was another: {change}; {own}, or bring that"
                " set back to continue that run."
            )
    elif hosts.is_first():
        record = {"config": config, "training_set": training_set, "starts": []}
        if is_address(str(folder)):
            # An object in a bucket is whole or not there.
            path.write_text(json.dumps(record))
        else:
            write_json(path, record)


def _require_same_config(holder: os.PathLike, theirs: dict, ours: dict, remedy: str) -> None:
    theirs, ours = _comparable(theirs), _comparable(ours)
    for name in sorted(theirs.keys() | ours.keys()):
        if not is_free(name) and theirs.get(name) != ours.get(name):
            raise UserError(
                f"{holder} holds a run with config.{name} = {theirs.get(name)!r}, and this config has"
                f" {ours.get(name)!r}; {remedy}."
            )


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


def _before(workdir: pathlib.Path, config: Mapping) -> dict | None:
    """The record of the run that a folder holds."""
    path = workdir / RECORD
    if not path.is_file():
        return None
    begun = _has_results(workdir, config)
    try:
        before = read_record(path)
    except UserError:
        # A start that failed before it made anything binds nobody to its config.
        if begun:
            raise
        return None
    left = checkpoint_folder(workdir, before["config"])
    if not begun and _holds_checkpoints(left):
        raise UserError(
            f"{workdir} holds a run whose checkpoints lie in {left}, and there are none where config.checkpoint_dir ="
            f" {config.get('checkpoint_dir')!r} says; set it back to continue that run, or give another workdir."
        )
    return before if begun else None


def read_record(path: pathlib.Path | epath.Path) -> dict:
    """What a file holds of a run: its config, starts, training set and weights; the last two may be empty.

    Raises:
        UserError: it is something else.
    """
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        _comparable(before["config"])
        return {
            "config": before["config"],
            "starts": list(before["starts"]),
            "training_set": dict(before.get("training_set") or {}),
            "weights": dict(before.get("weights") or {}),
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a run's record ({type(error).__name__}: {error}); give another workdir."
        ) from error


def _comparable(config: dict) -> dict[str, object]:
    """A config as JSON tells it, flat, under today's names, defaults filled in."""
    return flat(json.loads(json.dumps(present(flat(config)))))


def checkpoint_folder(workdir: pathlib.Path, config: Mapping) -> epath.Path:
    """Where a run's checkpoints lie."""
    if folder := config.get("checkpoint_dir"):
        # A shell leaves the ~ in --config.checkpoint_dir=~/x as it is.
        return epath.Path(os.path.expanduser(folder))
    return epath.Path(workdir / "checkpoints")


def _has_results(workdir: pathlib.Path, config: Mapping) -> bool:
    cached = workdir / TEACHER_FEATURES
    return cached.exists() or _holds_checkpoints(checkpoint_folder(workdir, config))


def _holds_checkpoints(folder: epath.Path) -> bool:
    return folder.is_dir() and any(path.name != RECORD for path in folder.iterdir())


class UnreadableList:
    """`unreadable.txt` of a run: paths of training images that cannot be read, each once.

    Processes but the first have an `unreadable-NUMBER.txt`.

    Args:
        workdir: the run's folder.
    """

    def __init__(self, workdir: pathlib.Path):
        number = "" if hosts.is_first() else f"-{jax.process_index()}"
        self.path = workdir / f"unreadable{number}.txt"
        there = self.path.exists()
        self._listed = set(self.path.read_text(encoding="utf-8").splitlines() if there else ())

    def add(self, paths: Iterable[str]) -> None:
        """Adds paths; those that cannot be written are left to a later call, as they come by again."""
        new = sorted(set(paths) - self._listed)
        if not new:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{path}\n" for path in new)
            self._listed.update(new)
        except OSError as error:
            _log.warning("%s cannot be written (%s).", self.path, error)


def list_left_out(workdir: pathlib.Path, images: ImageSet, kept: ImageSet) -> None:
    """Lists the training images that are not among those kept, since they cannot be read, and warns of them."""
    if len(kept) == len(images):
        return
    listing = UnreadableList(workdir)
    listing.add(set(images.paths) - set(kept.paths))
    if hosts.is_first():
        _log.warning(
            "%d of the %d training images are left out, since they cannot be read; %s lists them.",
            len(images) - len(kept),
            len(images),
            listing.path,
        )


class Metrics:
    """`metrics.jsonl`, one line a step, and the same as TensorBoard events where tensorboardX is installed.

    Args:
        workdir: the run's folder.
        step: the step that the run continues from; what comes after it, lines of work that was lost, is dropped, since
            the run will write it again.
        evaluates: whether it will write that step's evaluation again too.
    """

    def __init__(self, workdir: pathlib.Path, step: int, *, evaluates: bool):
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            if not self._path.is_file():
                raise UserError(f"{self._path} is not a file; give another workdir.")
            _drop_lines_after(self._path, step, evaluates)
        self._file = self._path.open("a", encoding="utf-8")
        self._whole = self._file.tell()
        self._waiting: list[dict] = []
        self._events = Events(workdir / "tensorboard", step)

    def write(self, rows: list[dict]) -> None:
        """Appends rows, each with `step` and JSON numbers.

        Where the disk has no room, training goes on and the rows wait for the next call.
        """
        self._waiting += rows
        try:
            self._file.write("".join(json.dumps(row) + "\n" for row in self._waiting))
            self._file.flush()
        except OSError as error:
            _log.warning("%s cannot be written (%s); its lines wait in memory.", self._path, error)
            self._begin_again()
            return
        written, self._waiting = self._waiting, []
        self._whole = self._file.tell()
        self._events.write(written)

    def _begin_again(self) -> None:
        """Drops what was half written, in the file and in its buffer."""
        with contextlib.suppress(OSError):
            # Closing tries to write the buffer once more.
            self._file.close()
        os.truncate(self._path, self._whole)
        self._file = self._path.open("a", encoding="utf-8")

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files, after one more try to write what waits."""
        if self._waiting:
            self.write([])
        self._file.close()
        self._events.close()


def _drop_lines_after(path: pathlib.Path, step: int, evaluates: bool) -> None:
    kept = []
    for data in path.read_bytes().splitlines():
        try:
            line = data.decode()
            row = json.loads(line)
            again = evaluates and _is_evaluation(row)
            done = row["step"] < step or (row["step"] == step and not again)
        except (ValueError, KeyError, TypeError, RecursionError):
            # A line cut short by a kill.
            continue
        if done:
            kept.append(line + "\n")
    write_text(path, "".join(kept))


def _is_evaluation(row: dict) -> bool:
    return any(name.startswith("evaluate/") for name in row)

"""What a run writes down: `run.json`, `metrics.jsonl`, TensorBoard events."""

import datetime
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys

import jax

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_json, write_text
from rdcd_jax.images.sources import changed

# The teacher's descriptors of the training pictures, in the workdir of a run that keeps them.
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
    workdir: pathlib.Path,
    config: dict,
    free: tuple[str, ...],
    training_set: dict[str, str | int] | None = None,
) -> None:
    """Writes `run.json`, or checks that the one there is of the same run.

    Args:
        workdir: the run's folder.
        config: the resolved config, JSON values only.
        free: dotted names of fields that may change when a run is continued.
        training_set: what tells the training pictures from others (`sources.ImageSet.fingerprint`).

    Raises:
        UserError: naming the first field that differs, or what is another about the pictures.
    """
    path = workdir / "run.json"
    starts = []
    # A start that failed before it made anything binds nobody to its config.
    if path.is_file() and _has_results(workdir):
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            theirs, starts = flat(before["config"]), list(before["starts"])
            pictures = dict(before.get("training_set") or {})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{path} is not a run's record ({type(error).__name__}: {error}); give another --workdir."
            ) from error
        ours = flat(json.loads(json.dumps(config)))
        for name in sorted(theirs.keys() | ours.keys()):
            if name not in free and theirs.get(name) != ours.get(name):
                raise UserError(
                    f"{workdir} holds a run with config.{name} = {theirs.get(name)!r}, and this config has"
                    f" {ours.get(name)!r}; give another --workdir, or set the field back to continue that run."
                )
        # Which picture a step shows follows from the list of all.
        if change := changed(pictures, training_set or {}):
            raise UserError(
                f"{workdir} holds a run whose training set was another: {change}; bring that set back to continue the"
                " run, or give another --workdir."
            )
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    start = {"time": now, "command": sys.argv, **environment()}
    record = {"config": config, "training_set": training_set, "starts": [*starts, start]}
    write_json(path, record)


def _has_results(workdir: pathlib.Path) -> bool:
    checkpoints = workdir / "checkpoints"
    cached = workdir / TEACHER_FEATURES
    return cached.exists() or (checkpoints.is_dir() and any(checkpoints.iterdir()))


def flat(tree: dict, prefix: str = "") -> dict:
    """A nested dict as {"a.b": value}."""
    result = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = value
    return result


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
                raise UserError(f"{self._path} is not a file; give another --workdir.")
            _drop_lines_after(self._path, step)
        self._file = self._path.open("a", encoding="utf-8")
        try:
            import tensorboardX
        except ImportError:
            self._events = None
        else:
            self._events = tensorboardX.SummaryWriter(
                str(workdir / "tensorboard"), purge_step=step + 1
            )

    def write(self, rows: list[dict]) -> None:
        """Appends rows, each with `step` and JSON numbers."""
        self._file.write("".join(json.dumps(row) + "\n" for row in rows))
        self._file.flush()
        if self._events is not None:
            for row in rows:
                for name, value in row.items():
                    if name != "step" and value is not None:
                        self._events.add_scalar(name, value, row["step"])
            self._events.flush()

    def close(self) -> None:
        """Closes the files."""
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

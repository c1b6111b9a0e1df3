"""The runs that a config file's `sweep(add)` lists, as in big_vision.

    def sweep(add):
        for seed in range(3):
            add("method=moco", seed=seed)
            add(**{"objective.kld_lambda": 0.0, "seed": seed})

Each call of `add` is a run: first the config's argument, as on the command line, then fields of the config by dotted
names.
"""

import dataclasses
import hashlib
import importlib.util
import logging
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import ml_collections

from rdcd_jax.core.errors import UserError, one_line
from rdcd_jax.core.options import flat
from rdcd_jax.training.config import config_path, importable, load_config
from rdcd_jax.training.loop import run_training
from rdcd_jax.training.results import portable, require_same, run_result

_log = logging.getLogger(__name__)
Value = str | int | float | bool

# A name is a folder's and a file's, so it holds little but letters, and is not long.
_UNSAFE = re.compile(r"[^A-Za-z0-9._=-]")
_LONGEST = 100


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        stem: the config file's name without its ending.
        arg: what the run adds to the config's argument, such as "method=moco,dim=64".
        fields: the config's fields that the run sets, by dotted name.
    """

    stem: str
    arg: str
    fields: Mapping[str, Value]

    @property
    def name(self) -> str:
        """A name from what the run sets: the same for the same settings, safe for files, at most 100 characters."""
        whole = [self.stem, *(f"{name}={value}" for name, value in self._settings().items())]
        short = [self.stem, *(f"{name}={portable(v)}" for name, v in self._settings().items())]
        name = "+".join(_UNSAFE.sub("_", part) for part in short)
        if name == "+".join(whole) and len(name) <= _LONGEST:
            return name
        # What was left out of the name still tells two runs apart.
        digest = hashlib.sha256("\n".join(whole).encode()).hexdigest()[:8]
        return f"{name[: _LONGEST - 9]}-{digest}"

    def config(
        self, base: str, overrides: list[str]
    ) -> tuple[ml_collections.ConfigDict, dict[str, Value]]:
        """The run's config.

        Args:
            base: `FILE[:ARG]`, what all runs of the sweep share.
            overrides: `--config.a.b=VALUE`, likewise; the run's own settings go over them.

        Returns:
            The resolved config; and everything that was set, shared or not, by the name it was set by.

        Raises:
            UserError: see `load_config`.
        """
        path, _, arg = base.partition(":")
        arg = ",".join(filter(None, (arg, self.arg)))
        own = [f"--config.{name}={value}" for name, value in self.fields.items()]
        config = load_config(f"{path}:{arg}", [*overrides, *own])
        resolved = flat(config.to_dict())
        words = [word.removeprefix("--config.").partition("=")[0] for word in [*overrides, *own]]
        return config, _items(arg) | {name: resolved[name] for name in words}

    def _settings(self) -> dict[str, Value]:
        return _items(self.arg) | dict(self.fields)


def load_sweep(config: str) -> list[Run]:
    """The runs of a config file, in its order; one run without settings where it defines no `sweep`.

    Args:
        config: `FILE[:ARG]`.

    Raises:
        UserError: a missing or broken file or `sweep`, or two runs of one name.
    """
    load_config(config, [])  # Tells what is wrong with the file.
    path = config_path(config)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    runs: dict[str, Run] = {}

    def add(arg: str = "", /, **fields: Value) -> None:
        run = Run(path.stem, arg, fields)
        if run.name in runs:
            raise ValueError(f"adds the run {run.name} twice")
        runs[run.name] = run

    try:
        with importable(path):
            spec.loader.exec_module(module)
            getattr(module, "sweep", lambda add: add())(add)
    except Exception as error:
        # A config file is a program of the user's, and may raise anything.
        raise UserError(f"{path}: sweep(add): {error}.") from error
    return list(runs.values())


def _items(arg: str) -> dict[str, str]:
    """A config's argument by name, the bare names as "true"."""
    parts = (item.partition("=") for item in filter(None, arg.split(",")))
    return {name: text if equals else "true" for name, equals, text in parts}


def run_sweep(
    runs: Sequence[Run],
    base: str,
    overrides: list[str],
    out: pathlib.Path,
    *,
    on_result: Callable[[str], None],
    on_failure: Callable[[str], None],
) -> tuple[list[str], bool]:
    """Finishes runs one after another; one that fails stops no other, one that is stopped ends the sweep.

    SIGTERM to a run that trains stops it; at any other time it ends the process, as nothing is lost then.

    Args:
        runs: of `load_sweep`.
        base: `FILE[:ARG]`, what all share.
        overrides: `--config.a.b=VALUE`, likewise.
        out: OUT/NAME becomes a run's workdir, OUT/results/NAME.json its result.
        on_result: called with a line about each run.
        on_failure: called with a line about each that fails.

    Returns:
        Names of the runs that failed; and whether one was stopped.
    """
    failed: list[str] = []
    known: dict[str, str] = {}
    for number, run in enumerate(runs, 1):
        on_result(f"[{number}/{len(runs)}] {run.name}")
        try:
            config, settings = run.config(base, overrides)
            first = known.setdefault(config.to_json(sort_keys=True), run.name)
            if first != run.name:
                # With some overrides a setting is what was the default.
                on_result(f"    the same config as {first}")
                continue
            outcome = finish_run(run.name, config, settings, out)
        except Exception as error:
            # Whatever it was, the other runs may do.
            if not isinstance(error, UserError | OSError):
                _log.exception("The run %s failed.", run.name)
            on_failure(f"{run.name} failed: {one_line(str(error))}")
            failed.append(run.name)
            continue
        if outcome is None:
            on_result(f"{run.name} was stopped and saved.")
            return failed, True
        on_result(f"    {outcome}")
    return failed, False


def finish_run(
    name: str, config: ml_collections.ConfigDict, settings: Mapping[str, Value], out: pathlib.Path
) -> str | None:
    """Trains and evaluates a run and writes its result, or finds that done.

    Args:
        name: the run's.
        config: see `Run.config`.
        settings: see `Run.config`.
        out: see `run_sweep`.

    Returns:
        What came of it, in a few words; None where the run was stopped.

    Raises:
        UserError: for a config that cannot work.
    """
    path, workdir = out / "results" / f"{name}.json", out / name
    if config.checkpoint_dir:
        # Each run's lie apart.
        config.checkpoint_dir = f"{config.checkpoint_dir.rstrip('/')}/{name}"
    if path.is_file():
        require_same(path, workdir, config.to_dict())
        return "done before"
    if not config.evals.disc.data:
        raise UserError(
            "config.evals.disc.data is empty; give a benchmark, as --config.evals.disc.data=FOLDER."
        )
    state, finished = run_training(config, workdir)
    if not finished:
        return None
    result = run_result(workdir, int(state.step), settings)
    result.write(path)
    best = max((row["uAP"] for row in result.figures if row["uAP"] is not None), default=0)
    return f"{result.steps} steps, best µAP {100 * best:.2f}, in {path}"

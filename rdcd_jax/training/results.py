"""The result of a finished run as one file, from which alone tables and plots are made."""

import dataclasses
import json
import os
import pathlib

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_json
from rdcd_jax.core.options import flat
from rdcd_jax.training.record import RECORD, read_record
from rdcd_jax.training.schema import OPTIONS, present

# Fields that say how a run is watched and stored, not what comes of it.
WATCHING = {name for name, known in OPTIONS.items() if known.free} - {
    "schedule.max_steps",
    "evaluate.image_size",
    *(name for name in OPTIONS if name.startswith("evals.")),
}


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run came to; without the folders of the machine it ran on.

    Attributes:
        name: the run's.
        overrides: what was set of its config, by the name it was set by.
        seed: the run's; None of what has none.
        config: everything resolved.
        training_pictures: images trained on.
        steps: steps done.
        training_seconds: what the steps took over all starts, compilation included; without the teacher's descriptors
            and evaluations.
        benchmark: name of the evaluation set.
        figures: one row for each codec and score normalisation, as `evaluate disc` writes them; fractions of 1.
        commits: source revisions of the run's starts, each once.
        environment: versions and devices of the last start, see `record.environment`.
    """

    name: str
    overrides: dict[str, str | int | float | bool]
    seed: int | None
    config: dict
    training_pictures: int
    steps: int
    training_seconds: float
    benchmark: str
    figures: list[dict]
    commits: list[str | None]
    environment: dict

    def write(self, path: pathlib.Path) -> None:
        """Writes the result as JSON."""
        write_json(path, dataclasses.asdict(self))


def read_result(path: pathlib.Path) -> Result:
    """Reads what `Result.write` wrote.

    Raises:
        UserError: the file is something else.
    """
    try:
        result = Result(**json.loads(path.read_text(encoding="utf-8")))
        # What tables rest on.
        dict(result.overrides), [(row["codec"], row["score_norm"]) for row in result.figures]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{path} is not a run's result ({error}); remove it from the folder of results."
        ) from error
    return result


def read_results(folder: pathlib.Path) -> list[Result]:
    """All results of a folder, by file name.

    Raises:
        UserError: there are none, or a file is something else.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise UserError(f"{folder}: there are no result files; `rdcd-jax sweep` writes them.")
    return [read_result(path) for path in paths]


def require_same(path: pathlib.Path, workdir: pathlib.Path, config: dict) -> None:
    """Refuses a result file of a run with another config, as far as the figures depend on it.

    Args:
        path: the result file, which knows no folders.
        workdir: the run's folder; if it is still there, its record knows them.
        config: the resolved config of the run that the file would belong to.

    Raises:
        UserError: naming the first field that differs.
    """
    config = json.loads(json.dumps(config))
    compared = [(read_result(path).config, portable(config))]
    if (record := workdir / RECORD).is_file():
        compared.append((read_record(record)["config"], config))
    for pair in compared:
        theirs, ours = (json.loads(json.dumps(present(flat(each)))) for each in pair)
        for name in sorted((theirs.keys() | ours.keys()) - WATCHING):
            if theirs.get(name) != ours.get(name):
                raise UserError(
                    f"{path} is of a run with config.{name} = {theirs.get(name)!r}, and this config has"
                    f" {ours.get(name)!r}; remove the file to go on with that run, or give another folder."
                )


def run_result(
    workdir: pathlib.Path, step: int, overrides: dict[str, str | int | float | bool]
) -> Result:
    """The result of a finished run with an evaluation set, from what its workdir holds.

    Args:
        workdir: of `train_and_evaluate`.
        step: the step it came to.
        overrides: what was set of its config.
    """
    trained = _read(workdir / "export" / "model.json")["trained"]
    figures = workdir / "evaluations" / str(step) / "disc" / "metrics.json"
    run = _read(workdir / RECORD)
    config, starts = run["config"], run["starts"]
    commits = dict.fromkeys(start.pop("git_revision") for start in starts)
    environment = {k: v for k, v in starts[-1].items() if k not in ("time", "command")}
    return Result(
        name=workdir.name,
        overrides={k: portable(v) for k, v in overrides.items() if k not in WATCHING},
        seed=config["seed"],
        config=portable(config),
        # Version 0.1 wrote it by another name.
        training_pictures=trained.get("images", trained.get("pictures")),
        steps=step,
        training_seconds=training_seconds(workdir),
        benchmark=portable(os.path.abspath(config["evals"]["disc"]["data"])),
        figures=_read(figures),
        commits=list(commits),
        environment=environment,
    )


def training_seconds(workdir: pathlib.Path) -> float:
    """What a run's steps took over all its starts, compilation included."""
    batch_size = _read(workdir / RECORD)["config"]["batch_size"]
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    speeds = [row["images_per_second"] for row in map(json.loads, lines) if "loss" in row]
    return round(sum(batch_size / speed for speed in speeds), 1)


def portable(value):
    """A value, or a dict of them, in which a path keeps only its last part: one that is absolute, or exists."""
    if isinstance(value, dict):
        return {name: portable(each) for name, each in value.items()}
    if not isinstance(value, str):
        return value
    # KIND:PATH names a model, too.
    kind, colon, path = value.rpartition(":")
    if not os.path.isabs(path) and not (os.sep in path and os.path.exists(path)):
        return value
    parts = pathlib.PurePath(path).parts
    # Of all exports the last part is the same.
    return kind + colon + "/".join(parts[-2:] if parts[-1] == "export" else parts[-1:])


def _read(path: pathlib.Path):
    return json.loads(path.read_text(encoding="utf-8"))

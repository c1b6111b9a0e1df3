"""What an evaluation keeps beside its tables, so that a report can be made of its folder at any time."""

import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rdcd_jax.benchmarks.copydays import CopydaysRow
from rdcd_jax.benchmarks.disc import DiscRow, Predictions
from rdcd_jax.benchmarks.ground_truth import HEADER, GroundTruth
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import file_sha256, write_csv, write_json
from rdcd_jax.embedding.descriptors import Descriptors

FORMAT = 1
FIGURES = ("uAP", "accuracy-at-1", "recall-at-10", "recall-at-p90", "score-at-p90")
# Of Copydays alone.
STRONG_MAP = "strong-mAP"
RECORD, PAIRS, CURVES, PREDICTIONS = "evaluation.json", "pairs.csv", "curves.csv", "predictions.csv"
# Points of a precision-recall curve that are kept.
_POINTS = 300
_BLOCK = 65_536


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of an evaluation's table.

    Attributes:
        codec: the codec's name.
        score_norm: the normalisation, or "None".
        figures: by the names in `FIGURES` and `STRONG_MAP`, 0 to 1 but for `score-at-p90`; None where one does not
            exist.
        curve: [P, 3] float64, score, precision and recall, best score first, at up to 300 of the copies found.
    """

    codec: str
    score_norm: str
    figures: Mapping[str, float | None]
    curve: np.ndarray


@dataclasses.dataclass(frozen=True)
class Record:
    """An evaluation as its folder holds it.

    Attributes:
        model: what its descriptors are called by; empty where a foreign file did not tell.
        dim: D, of a descriptor.
        image_size: side of the images embedded; None where the evaluation was of descriptor files.
        short_edge: whether it is the short side's of images that kept their aspect.
        measured_on: name of the data.
        images: sources of the `queries` and `references`, or of `copydays` and its `distractors`; empty where the
            evaluation was of descriptor files.
        queries: how many.
        references: how many.
        rows: the table.
        singular_values: [D] of the references' centred descriptors, descending.
        truth: the true pairs.
        predictions: those behind the last row.
    """

    model: str
    dim: int
    image_size: int | None
    short_edge: bool
    measured_on: str
    images: Mapping[str, str]
    queries: int
    references: int
    rows: tuple[Row, ...]
    singular_values: np.ndarray
    truth: GroundTruth
    predictions: Predictions


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an evaluation was made on.

    Attributes:
        on: the data's folder or ground truth.
        images: sources, as in `Record`; none where descriptor files were evaluated.
        image_size: side of the images that were embedded.
        short_edge: whether it is the short side's of images that kept their aspect.
    """

    on: str | os.PathLike
    images: Mapping[str, str | os.PathLike] = dataclasses.field(default_factory=dict)
    image_size: int | None = None
    short_edge: bool = False


def require_apart(out: str | os.PathLike, ground_truth: str | os.PathLike) -> None:
    """Refuses a ground truth that the record of its own evaluation would overwrite.

    Args:
        out: folder of the evaluation.
        ground_truth: the file.

    Raises:
        UserError: it would.
    """
    path = pathlib.Path(ground_truth).resolve()
    if path in {pathlib.Path(out).resolve() / name for name in (PAIRS, CURVES, PREDICTIONS)}:
        raise UserError(
            f"{ground_truth} is the ground truth, and the evaluation writes a file of that name into {out}; give"
            " another --out."
        )


def write_record(
    folder: str | os.PathLike,
    rows: Sequence[DiscRow | CopydaysRow],
    truth: GroundTruth,
    references: Descriptors,
    *,
    queries: int,
    measured: Measured,
) -> None:
    """Writes `pairs.csv` (true pairs with their edits), `curves.csv`, and last `evaluation.json`.

    Args:
        folder: of the evaluation; its `predictions.csv` is there already.
        rows: the table, whose last row the predictions belong to.
        truth: the true pairs.
        references: the references' descriptors as the model gives them.
        queries: how many there are.
        measured: the data, and how its images were embedded.
    """
    folder = pathlib.Path(folder)
    edits = {query: "+".join(made) for query, made in truth.edits.items()}
    pairs = [*truth.pairs, *((query, "") for query in truth.distractors)]
    write_csv(
        folder / PAIRS, (*HEADER, "edits"), ((*pair, edits.get(pair[0], "")) for pair in pairs)
    )
    names = ("codec", "score_norm", "score", "precision", "recall")
    different = {(row.codec, row.score_norm): curve(row).tolist() for row in rows}
    points = ((*name, *point) for name, points in different.items() for point in points)
    write_csv(folder / CURVES, names, points)
    values = singular_values(references.descriptors)
    write_json(
        folder / RECORD,
        {
            "format": FORMAT,
            "model": references.model,
            "numbers": references.descriptors.shape[1],
            "image_size": measured.image_size,
            "short_edge": measured.short_edge,
            "measured_on": pathlib.Path(os.path.abspath(measured.on)).name,
            "pictures": {name: _absolute(source) for name, source in measured.images.items()},
            "queries": queries,
            "references": len(references),
            "rows": [
                {"codec": row.codec, "score_norm": row.score_norm, **_figures(row)} for row in rows
            ],
            "singular_values": [float(f"{value:.6g}") for value in values],
            # An evaluation that is cut short leaves the record of the one before, which must not pass for its own.
            "sha256": {name: file_sha256(folder / name) for name in (PAIRS, CURVES, PREDICTIONS)},
        },
    )


def read_record(folder: str | os.PathLike) -> Record:
    """Reads what `write_record` wrote, and the predictions.

    Args:
        folder: of an evaluation.

    Returns:
        The record.

    Raises:
        UserError: no such folder, no record or one of a newer version, damaged files, or files of two evaluations.
    """
    folder = pathlib.Path(folder)
    path = folder / RECORD
    if not folder.is_dir():
        raise UserError(
            f"{folder}: there is no such folder; give one that `rdcd-jax evaluate` wrote."
        )
    if not path.is_file():
        raise UserError(
            f"{folder}: holds no {RECORD}, which `rdcd-jax evaluate` writes; evaluate again with this"
            " version (descriptors that are there already can be given as files)."
        )
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if int(stored["format"]) > FORMAT:
            raise UserError(
                f"{path}: was written by a newer version of rdcd_jax; install that one."
            )
        for name in (PAIRS, CURVES, PREDICTIONS):
            if file_sha256(folder / name) != stored["sha256"][name]:
                raise UserError(
                    f"{folder / name}: is not the file that {RECORD} was written with (it was changed, or an"
                    " evaluation cut short); evaluate again."
                )
        return _record(folder, stored)
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        csv.Error,
    ) as error:
        raise UserError(
            f"{path}: cannot be read as an evaluation ({error}); evaluate again."
        ) from error


def curve(row: DiscRow | CopydaysRow) -> np.ndarray:
    """Returns [P, 3] float64, score, precision and recall at the copies found, at most 300 spread evenly over them."""
    figures = row.metrics
    found = np.flatnonzero(np.diff(figures.recalls, prepend=0.0) > 0)
    kept = np.unique(np.linspace(0, len(found) - 1, min(_POINTS, len(found))).round().astype(int))
    positions = found[kept]
    return np.stack(
        [figures.thresholds[positions], figures.precisions[positions], figures.recalls[positions]],
        axis=1,
    )


def singular_values(rows: np.ndarray) -> np.ndarray:
    """Returns the singular values [D] float64 of centred rows [N, D], descending, in memory that N does not bound."""
    mean = np.mean(rows, axis=0, dtype=np.float64)
    blocks = (rows[i : i + _BLOCK] - mean for i in range(0, len(rows), _BLOCK))
    values = np.linalg.eigvalsh(sum(block.T @ block for block in blocks))
    return np.sqrt(np.maximum(values[::-1], 0))


def _figures(row: DiscRow | CopydaysRow) -> dict[str, float | None]:
    found = row.metrics
    values = (
        found.average_precision,
        found.recall_at_1,
        found.recall_at_10,
        found.recall_at_p90,
        found.threshold_at_p90,
    )
    stored = dict(zip(FIGURES, values, strict=True))
    # Copydays' own average precision is of trapezoids.
    return (
        stored | {"uAP": row.overall, STRONG_MAP: row.strong}
        if isinstance(row, CopydaysRow)
        else stored
    )


def _record(folder: pathlib.Path, stored: dict) -> Record:
    curves: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for codec, norm, *point in _read_csv(folder / CURVES):
        curves.setdefault((codec, norm), []).append(tuple(map(float, point)))
    rows = []
    for row in stored["rows"]:
        codec, norm = str(row["codec"]), str(row["score_norm"])
        known = {name: row[name] for name in FIGURES} | {STRONG_MAP: row.get(STRONG_MAP)}
        figures = {name: None if x is None else float(x) for name, x in known.items()}
        points = np.asarray(curves.get((codec, norm), []), np.float64).reshape(-1, 3)
        rows.append(Row(codec, norm, figures, points))
    if not rows:
        raise ValueError("its table is empty")
    pairs = list(_read_csv(folder / PAIRS))
    truth = GroundTruth(
        str(folder / PAIRS),
        tuple((query, reference) for query, reference, _ in pairs if reference),
        tuple(query for query, reference, _ in pairs if not reference),
        {query: tuple(edits.split("+")) for query, _, edits in pairs if edits},
    )
    columns = list(zip(*_read_csv(folder / PREDICTIONS), strict=True)) or [(), (), ()]
    queries, references = (np.asarray(ids, np.str_) for ids in columns[:2])
    size = stored["image_size"]
    return Record(
        model=str(stored["model"]),
        dim=int(stored["numbers"]),
        image_size=None if size is None else int(size),
        short_edge=bool(stored["short_edge"]),
        measured_on=str(stored["measured_on"]),
        images={str(name): str(source) for name, source in stored["pictures"].items()},
        queries=int(stored["queries"]),
        references=int(stored["references"]),
        rows=tuple(rows),
        singular_values=np.asarray(stored["singular_values"], np.float64),
        truth=truth,
        predictions=Predictions(queries, references, np.asarray(columns[2], np.float32)),
    )


def _absolute(source: str | os.PathLike) -> str:
    """The source as it can be found from any folder; a data set's or the sample's name stays."""
    return os.path.abspath(source) if os.path.exists(source) else os.fspath(source)


def _read_csv(path: pathlib.Path) -> Iterator[list[str]]:
    """The lines after the header."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        next(lines)
        yield from lines

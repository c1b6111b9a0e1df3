"""The tables of a report: cells with the values they sort by and the texts they show."""

import dataclasses
import re
from collections.abc import Sequence

from rdcd_jax.benchmarks.record import STRONG_MAP
from rdcd_jax.core.errors import one_line
from rdcd_jax.report.charts import COLOURS
from rdcd_jax.report.runs import Run

# (name in the record, heading, whether it is reported in percent); of what is not, more is not better.
FIGURES = (
    (STRONG_MAP, "Strong mAP", True),
    ("uAP", "µAP", True),
    ("accuracy-at-1", "Accuracy@1", True),
    ("recall-at-10", "Recall@10", True),
    ("recall-at-p90", "Recall@P90", True),
    ("score-at-p90", "Score there", False),
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        value: what it is sorted by; None, a figure that does not exist, goes last.
        text: what it shows.
        best: whether it is the best of its column.
        colour: of a bar as long as its value, 0 to 1; None for no bar.
    """

    value: float | str | None
    text: str
    best: bool = False
    colour: int | None = None

    @property
    def is_number(self) -> bool:
        """Whether it stands at the right."""
        return not isinstance(self.value, str)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose first column names its rows.

    Attributes:
        headings: of all columns.
        rows: [rows][columns]
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def are_comparable(runs: Sequence[Run]) -> bool:
    """Whether all runs looked for the same copies among as many references."""
    return len({(run.record.truth.pairs, run.record.references) for run in runs}) == 1


def has_copydays(runs: Sequence[Run]) -> bool:
    """Whether a run is of Copydays, which has a figure of its own."""
    return any(row.figures[STRONG_MAP] is not None for run in runs for row in run.record.rows)


def metrics_table(runs: Sequence[Run]) -> Table:
    """Every row of every run. The best of a column is marked where the runs are comparable."""
    rows = [(run, row) for run in runs for row in run.record.rows]
    mark = len(rows) > 1 and are_comparable(runs)
    figures = [each for each in FIGURES if each[0] != STRONG_MAP or has_copydays(runs)]
    columns = []
    for name, _, percent in figures:
        values = [row.figures[name] for _, row in rows]
        best = max((value for value in values if value is not None), default=None)
        texts = [_shown(value, percent) for value in values]
        columns.append(
            [
                Cell(value, text, best=mark and percent and value is not None and value == best)
                for value, text in zip(values, texts, strict=True)
            ]
        )
    lines = [
        [
            *(_word(run.name), _word(row.codec), _word(row.score_norm)),
            *cells,
            Cell(run.record.dim, str(run.record.dim)),
            _pixels(run),
            _word(run.record.measured_on),
        ]
        for (run, row), cells in zip(rows, zip(*columns, strict=True), strict=True)
    ]
    headings = (heading for _, heading, _ in figures)
    return Table(["Run", "Codec", "Score norm", *headings, "Numbers", "Pixels", "Data"], lines)


def edit_table(runs: Sequence[Run]) -> Table:
    """Recall by kind of edit: copies that have it, and which shares were found first and above the threshold."""
    found = [run.by_edit() for run in runs]
    kinds = sorted({kind for each in found for kind in each}, key=natural_order)
    copies = [{kind: each[kind].copies for kind in each} for each in found]
    named = [f": {run.name}" if len(runs) > 1 else "" for run in runs]
    # Each run's columns of one figure stand beside the others'.
    columns = [(f"Copies{name}", each, None) for name, each in zip(named, copies, strict=True)]
    if all(each == copies[0] for each in copies):
        columns = [("Copies", copies[0], None)]
    for word, part in (("First", "first"), ("Above", "above")):
        for position, (name, each) in enumerate(zip(named, found, strict=True)):
            counts = {kind: (getattr(recall, part), recall.copies) for kind, recall in each.items()}
            shares = {kind: n / of for kind, (n, of) in counts.items() if n is not None}
            columns.append((f"{word}{name}", shares, position % COLOURS))
    rows = []
    for kind in kinds:
        cells = [_word(kind)]
        for _, values, colour in columns:
            value = values.get(kind)
            text = str(value) if colour is None and value is not None else _shown(value, True, 1)
            cells.append(Cell(value, text, colour=colour))
        rows.append(cells)
    return Table(["Edit", *(heading for heading, _, _ in columns)], rows)


def natural_order(text: str) -> list[tuple[bool, int, str]]:
    """A key that sorts numbers in names by their value."""
    parts = filter(None, re.split(r"([0-9]+)", text))
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def _shown(value: float | None, percent: bool, digits: int = 2) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.{digits}f}" if percent else f"{value:.3f}"


def _pixels(run: Run) -> Cell:
    size = run.record.image_size
    return Cell(size, f"{size or '-'}{' short edge' if run.record.short_edge else ''}")


def _word(text: str) -> Cell:
    return Cell(one_line(text), one_line(text))

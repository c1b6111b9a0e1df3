"""Charts as positions on a small canvas, which the page draws as SVG in its own colours."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from rdcd_jax.report.runs import Run

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 48
# Of each, a page has so many that can be told apart; see the page's style.
COLOURS, DASHES = 6, 4
_BINS = 40


@dataclasses.dataclass(frozen=True)
class Axis:
    """One direction of a chart.

    Attributes:
        label: what it measures.
        low: value at its beginning.
        high: value at its end.
        log: whether equal lengths are equal ratios.
        percent: whether values are reported in percent.
    """

    label: str
    low: float
    high: float
    log: bool = False
    percent: bool = False

    def share(self, values: np.ndarray | float) -> np.ndarray:
        """How far along the axis values lie, 0 to 1."""
        low, high, values = self.low, self.high, np.asarray(values, np.float64)
        if self.log:
            low, high, values = np.log(low), np.log(high), np.log(np.maximum(values, self.low))
        return np.clip((values - low) / (high - low), 0, 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values on the axis, and how they are written."""
        locator = (
            LogLocator(subs=(1, 2, 5)) if self.log else MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
        )
        slack = 1e-9 * abs(self.high - self.low)
        values = [
            value
            for value in locator.tick_values(self.low, self.high)
            if self.low - slack <= value <= self.high + slack
        ]
        texts = (f"{100 * value if self.percent else value:.4g}" for value in values)
        return list(zip(values, texts, strict=True))


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: for the legend.
        points: [P, 2] values along x and y.
        notes: [P] what is reported of each point.
        colour: 0 to `COLOURS` - 1.
        dash: 0 to `DASHES` - 1.
        area: whether the ground below it is tinted.
    """

    name: str
    points: np.ndarray
    notes: Sequence[str]
    colour: int
    dash: int = 0
    area: bool = False


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: above it.
        description: in a sentence, for those who do not see it.
        x: the axis to the right.
        y: the axis upwards.
        lines: what it shows.
        at_x: a value of x that is marked; None for none.
        at_y: likewise of y.
    """

    title: str
    description: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    at_x: float | None = None
    at_y: float | None = None

    def across(self, value: float) -> float:
        """Where a value of x lies on the canvas."""
        return round(float(LEFT + self.x.share(value) * (WIDTH - LEFT - RIGHT)), 1)

    def down(self, value: float) -> float:
        """Where a value of y lies on the canvas."""
        return round(float(HEIGHT - BOTTOM - self.y.share(value) * (HEIGHT - TOP - BOTTOM)), 1)

    def positions(self, line: Line) -> list[tuple[float, float]]:
        """Where a line's points lie on the canvas."""
        return [(self.across(x), self.down(y)) for x, y in line.points.tolist()]

    def path(self, line: Line) -> str:
        """A line as SVG draws it."""
        return "M" + "L".join(f"{x:g} {y:g}" for x, y in self.positions(line))

    def hover(self) -> list[dict]:
        """What is reported at which positions, line by line."""
        return [
            {
                "name": line.name,
                "points": [
                    (x, y, note)
                    for (x, y), note in zip(self.positions(line), line.notes, strict=True)
                    if note
                ],
            }
            for line in self.lines
        ]


def precision_recall(runs: Sequence[Run]) -> Chart:
    """Precision over recall, of every row of every run that found a copy."""
    lines = []
    for position, run in enumerate(runs):
        for number, row in enumerate(reversed(run.record.rows)):
            notes = [
                f"recall {100 * recall:.1f} %, precision {100 * precision:.1f} %, score {score:.3f}"
                for score, precision, recall in row.curve.tolist()
            ]
            if notes:
                points = row.curve[:, [2, 1]]
                lines.append(
                    Line(
                        run.title(row),
                        points,
                        notes,
                        position % COLOURS,
                        (number + position // COLOURS) % DASHES,
                    )
                )
    stored = "; ".join(
        f"{run.title(row)}: µAP {100 * row.figures['uAP']:.1f} %"
        for run in runs
        for row in run.record.rows
    )
    axes = [Axis(label, 0, 1, percent=True) for label in ("Recall, %", "Precision, %")]
    return Chart(
        "Precision and recall", f"Precision over recall. {stored}.", *axes, lines, at_y=0.9
    )


def score_histogram(run: Run) -> Chart | None:
    """How the scores of copies and of other candidates are spread, each kind as shares of its own number."""
    kinds = dict(zip(("copies", "not copies"), run.copies_and_others, strict=True))
    everything = np.concatenate(list(kinds.values()))
    if not len(everything):
        return None
    low, high = float(everything.min()), float(everything.max())
    # One score alone has no width.
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    counts = {kind: np.histogram(scores, edges)[0] for kind, scores in kinds.items()}
    lines = []
    for position, (kind, of_kind) in enumerate(counts.items()):
        share = of_kind / max(1, of_kind.sum())
        points = np.stack([np.repeat(edges, 2)[1:-1], np.repeat(share, 2)], axis=1)
        points = np.concatenate([[[edges[0], 0]], points, [[edges[-1], 0]]])
        notes = [""] * len(points)
        # Of a bin's two corners the left one speaks.
        notes[1:-1:2] = [
            f"score {a:.3f} to {b:.3f}: {n} of {of_kind.sum()} {kind} ({100 * s:.1f} %)"
            for a, b, n, s in zip(
                edges[:-1], edges[1:], of_kind.tolist(), share.tolist(), strict=True
            )
        ]
        # Not the colours of the first runs, which mean something else.
        lines.append(
            Line(f"{kind}: {of_kind.sum()}", points, notes, 2 + position, dash=position, area=True)
        )
    top = max(float(line.points[:, 1].max()) for line in lines)
    threshold = run.threshold
    stored = "" if threshold is None else f" The threshold is {threshold:.3f}."
    return Chart(
        run.title(run.shown),
        f"Scores of {len(kinds['copies'])} copies and of {len(kinds['not copies'])} other candidates.{stored}",
        Axis("Score", float(edges[0]), float(edges[-1])),
        Axis("Share of its kind, %", 0, 1.05 * top, percent=True),
        lines,
        at_x=threshold,
    )


def spectrum(runs: Sequence[Run]) -> Chart:
    """The singular values of each run's reference descriptors, as shares of its largest."""
    lines = []
    for position, run in enumerate(runs):
        values = run.record.singular_values
        values = values / (values[0] or 1)
        order = np.arange(1, len(values) + 1)
        notes = [f"direction {i}: {v:.3g} of the largest" for i, v in enumerate(values.tolist(), 1)]
        name = f"{run.name}: effective rank {effective_rank(values):.0f} of {len(values)}"
        points = np.stack([order, values], axis=1)
        lines.append(Line(name, points, notes, position % COLOURS, position // COLOURS % DASHES))
    positive = [float(line.points[line.points[:, 1] > 1e-4, 1].min(initial=1)) for line in lines]
    low = 0.8 * min(0.5, *positive)
    longest = max(len(line.points) for line in lines)
    return Chart(
        "Singular values",
        f"Singular values of the references' descriptors. {'; '.join(line.name for line in lines)}.",
        Axis("Direction", 1, max(2, longest)),
        Axis("Singular value, of the largest", low, 1, log=True),
        lines,
    )


def effective_rank(values: np.ndarray) -> float:
    """exp of the entropy of the variance's shares, 1 to D.

    Args:
        values: [D] singular values, not negative.

    Source: Roy and Vetterli, The effective rank, 2007 (here of the squared singular values).
    """
    share = values[values > 0] ** 2
    share = share / share.sum()
    return float(np.exp(-np.sum(share * np.log(share))))

import re

import numpy as np
import pytest
from report_support import evaluate

from rdcd_jax.report import charts
from rdcd_jax.report.runs import read_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluations")
    for name, noise in [("good", 0.2), ("bad", 0.35)]:
        evaluate(root / name, model=name, noise=noise)
    return read_runs([root / "good", root / "bad"])


def test_charts_keep_to_their_canvas(runs):
    histograms = [charts.score_histogram(run) for run in runs]
    for chart in [charts.precision_recall(runs), *histograms, charts.spectrum(runs)]:
        assert chart.lines
        for line in chart.lines:
            assert len(line.points) == len(line.notes)
            x, y = np.asarray(chart.positions(line)).T
            assert (x >= charts.LEFT).all() and (x <= charts.WIDTH - charts.RIGHT).all()
            assert (y >= charts.TOP).all() and (y <= charts.HEIGHT - charts.BOTTOM).all()
            assert (np.diff(x) >= 0).all()
        for axis in (chart.x, chart.y):
            assert 2 <= len(axis.ticks()) <= 12
            assert all(axis.low - 1e-6 <= value <= axis.high + 1e-6 for value, _ in axis.ticks())


def test_charts_report_what_was_measured(runs):
    curve = charts.precision_recall(runs).lines[0]
    last = runs[0].metrics
    assert curve.points[-1].tolist() == pytest.approx(
        [last.recalls.max(), runs[0].shown.curve[-1, 1]]
    )
    chart = charts.score_histogram(runs[1])
    copies, others = runs[1].copies_and_others
    assert [line.name for line in chart.lines] == [
        f"copies: {len(copies)}",
        f"not copies: {len(others)}",
    ]
    assert len(copies) + len(others) == len(runs[1].record.predictions.scores)
    assert chart.at_x == runs[1].threshold
    for line, scores in zip(chart.lines, (copies, others), strict=True):
        stored = [int(re.search(r": (\d+) of", note)[1]) for note in line.notes if note]
        assert sum(stored) == len(scores)
    lines = charts.spectrum(runs).lines
    assert all(line.points[0].tolist() == [1, 1] for line in lines)


def test_effective_rank():
    assert charts.effective_rank(np.ones(7)) == pytest.approx(7)
    assert charts.effective_rank(np.asarray([3.0, 0, 0])) == pytest.approx(1)

"""Writes docs/findings.md and its plot from the result files of `experiments.ablations` alone.

python -m experiments.ablations.findings
"""

import argparse
import json
import pathlib
import statistics
import sys

import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.studies import STUDIES
from rdcd_jax.core.files import write_aside, write_text

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results" / "ablations"
PAGE = ROOT / "docs" / "findings.md"
PLOT = ROOT / "docs" / "spectra.png"

TITLE = """# Findings

What each part of the method does: runs that differ in one setting. `python -m experiments.ablations.findings` makes
this page from the files of `experiments/results/ablations`, which come of
`python -m experiments.ablations STUDY BENCHMARK OUT`.

A cell is a mean ± the sample standard deviation over seeds, in percent, then the difference from the first row.
*Same* means that the seeds of the two rows overlap: the worst of the higher is not above the best of the lower. By
chance alone two equal settings do not overlap in one cell of ten at three seeds, and in one of three at two. Where
the descriptor alone is trained, seeds differ in the order of images and in the views that meet, not in the views
themselves. And the benchmark is small (400 copies among 600 queries, 1,600 references): other copies would move a
recall of 74 % by 2 points, though two rows by much less, since they see the same ones. So a row that is higher in
every column says more than any one cell.

µAP and recall at 90 % precision (*recall at P90*; 0 where it is never reached) are without score normalisation. The
effective rank says over how many directions descriptors are spread, at most their dimensions.
"""
# The study whose singular values are drawn.
SPECTRA = "collapse"
BUDGETS = {
    "descriptor": "The trunk stays as it is, and the projector is trained on cached features of views",
    "student": "The whole student is trained on small views",
}


def main() -> int:
    """Writes the page and the plot."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    found = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for name in STUDIES
        for path in sorted(RESULTS.glob(f"{name}*.json"))
        if path.stem.partition("-")[0] == name
    }
    sections = [section(name, result) for name, result in found.items()]
    lacking = [name for name in STUDIES if name not in found]
    if lacking:
        sections.append(unanswered(lacking))
    if SPECTRA in found:
        sections.append(f"## How descriptors are spread\n\n![Singular values]({PLOT.name})\n")
        draw(found[SPECTRA])
    write_text(PAGE, "\n".join([TITLE, *sections]))
    return 0


def unanswered(names: list[str]) -> str:
    """The questions that no result file answers yet."""
    lines = [f"- {STUDIES[name].question} `{name}`" for name in names]
    return "\n".join(["## Asked, and not measured yet", "", *lines, ""])


def section(name: str, result: dict) -> str:
    """A study's question, budget and tables."""
    runs = result["runs"]
    each = [run for some in runs.values() for run in some]
    # Some run waited for other jobs of their machine.
    seconds = statistics.median(run["seconds"] for run in each)
    budgets = [
        f"{steps:,} steps of {size:,}" for steps, size in sorted({_steps(run) for run in each})
    ]
    about = (
        f"{BUDGETS[result['trains']]}: {' or '.join(budgets)} images, {len(next(iter(runs.values())))} seeds,"
        f" {seconds / 60:.1f} minutes a run on two cores, the median (`ablations {name}`)."
    )
    measures = STUDIES[name.partition("-")[0]].measures
    tables = [table(runs, measure) for measure in measures]
    return "\n\n".join([f"## {result['question']}", about, *tables]) + "\n"


def _steps(run: dict) -> tuple[int, int]:
    return run["steps"], run["batch_size"]


def table(runs: dict[str, list[dict]], measure: str) -> str:
    """One measure of all settings at all sizes."""
    base = next(iter(runs))
    dims = runs[base][0]["dims"]
    lines = [
        "| " + " | ".join([measure.replace("_", " "), *(f"{dim}-d" for dim in dims)]) + " |",
        "|---" * (1 + len(dims)) + "|",
    ]
    for name, some in runs.items():
        cells = [name]
        for dim in dims:
            values, against = (
                [run["dims"][dim][measure] or 0.0 for run in each] for each in (some, runs[base])
            )
            cells.append(spread(values) + ("" if name == base else f", {effect(values, against)}"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean, and the sample standard deviation of several."""
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def effect(values: list[float], against: list[float]) -> str:
    """The difference of the means, or *same* where the seeds overlap."""
    lower, higher = sorted((values, against), key=statistics.mean)
    if min(higher) <= max(lower):
        return "*same*"
    return f"{statistics.mean(values) - statistics.mean(against):+.1f}"


def draw(result: dict) -> None:
    """Draws the singular values of every size of descriptor, averaged over seeds, one panel a size."""
    runs = result["runs"]
    dims = next(iter(runs.values()))[0]["dims"]
    figure = Figure(figsize=(3 * len(dims), 3.2), layout="constrained")
    panels = figure.subplots(1, len(dims), sharey=True, squeeze=False)[0]
    for axes, dim in zip(panels, dims, strict=True):
        for name, some in runs.items():
            mean = np.mean([run["dims"][dim]["singular_values"] for run in some], axis=0)
            axes.semilogy(np.arange(1, len(mean) + 1), mean, label=name)
        axes.set(title=f"{dim}-d", xlabel="direction")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("singular value")
    panels[0].legend(title="hard negatives", fontsize="small")
    with write_aside(PLOT) as aside:
        figure.savefig(aside, format="png", dpi=90)


if __name__ == "__main__":
    sys.exit(main())

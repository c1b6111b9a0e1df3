"""Writes docs/findings.md and its plot from the result files of `experiments.studies.ablations` alone.

python -m experiments.studies.findings
"""

import json
import pathlib
import statistics
import sys

import numpy as np
from matplotlib.figure import Figure

from experiments.studies.ablations import DIMS, RESULTS, STUDIES
from rdcd_jax.core.files import write_aside, write_text

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "findings.md"
PLOT = ROOT / "docs" / "spectra.png"

TITLE = """# Findings

What each part of the method does: runs that differ in one setting. `python -m experiments.studies.findings` makes this
page from the files of `experiments/results/ablations`, which come of
`python -m experiments.studies.ablations STUDY BENCHMARK OUT`.

A cell is a mean ± the sample standard deviation over seeds, in percent, then the difference from the first row. *Same*
means that the seeds of the two rows overlap: the worst of the higher is not above the best of the lower. µAP and recall
at 90 % precision are without score normalisation. The effective rank says over how many directions descriptors are
spread, at most their dimensions.
"""
BUDGETS = {
    "descriptor": "The trunk stays as it is, and the projector is trained on cached features of views",
    "small": "The whole student is trained, from ImageNet's trunk, on small views",
}


def main() -> int:
    """Writes the page and the plot."""
    found = {}
    for name in STUDIES:
        path = RESULTS / f"{name}.json"
        if path.exists():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    sections = [section(name, result) for name, result in found.items()]
    plot = f"## How descriptors are spread\n\n![Singular values of descriptors]({PLOT.name})\n"
    write_text(PAGE, "\n".join([TITLE, *sections, plot]))
    draw(found)
    return 0


def section(name: str, result: dict) -> str:
    """A study's question, budget and tables."""
    runs = result["runs"]
    each = [run for some in runs.values() for run in some]
    seconds = statistics.mean(run["seconds"] for run in each)
    first = next(iter(runs.values()))
    about = (
        f"{BUDGETS[result['budget']]}: {first[0]['steps']} steps of {result['config']['batch_size']} images,"
        f" {len(first)} seeds, {seconds / 60:.1f} minutes a run (`ablations {name}`)."
    )
    tables = [table(runs, measure) for measure in ("µAP", "recall at P90", "effective_rank")]
    return "\n\n".join([f"## {result['question']}", about, *tables]) + "\n"


def table(runs: dict[str, list[dict]], measure: str) -> str:
    """One measure of all settings at all sizes."""
    shown = measure.replace("_", " ")
    lines = [
        "| " + " | ".join([shown, *(f"{dim}-d" for dim in DIMS)]) + " |",
        "|---" * (1 + len(DIMS)) + "|",
    ]
    base = next(iter(runs))
    for name, some in runs.items():
        cells = [name]
        for dim in map(str, DIMS):
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


def draw(found: dict[str, dict]) -> None:
    """Draws the singular values of the widest descriptor, averaged over seeds, one panel a study."""
    figure = Figure(figsize=(9, 3.6 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), squeeze=False)[:, 0]
    for axes, result in zip(panels, found.values(), strict=True):
        for name, some in result["runs"].items():
            rows = [run["dims"][str(DIMS[-1])]["singular_values"] for run in some]
            mean = np.mean(rows, axis=0)
            axes.semilogy(np.arange(1, len(mean) + 1), mean, label=name)
        axes.set(title=result["question"], ylabel="singular value")
        axes.title.set_size("small")
        axes.legend(fontsize="x-small")
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("direction")
    with write_aside(PLOT) as aside:
        figure.savefig(aside, format="png", dpi=90)


if __name__ == "__main__":
    sys.exit(main())

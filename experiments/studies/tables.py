"""Makes a table and plots from result files alone.

    python -m experiments.studies.tables RESULTS_DIR

RESULTS_DIR holds the files of `rdcd-jax sweep` and studies/whitened_teacher.py. `table.md` there gets a row for
each codec of runs that differ in their seed alone, with means and sample standard deviations in percent;
`uap_by_pictures.png`, `uap_by_steps.png` and `uap_by_seconds.png` show µAP, score-normalised where it can be,
where the files vary in these.
"""

import argparse
import json
import pathlib
import statistics
import sys
from collections.abc import Iterable

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_aside, write_text
from rdcd_jax.core.options import flat
from rdcd_jax.training.results import WATCHING, Result, read_results

ROOT = pathlib.Path(__file__).resolve().parents[2]

NO_NORM = "None"
# What is set to train on more images, and to train longer.
DATA = {"data", "data.train", "data.share", "pictures"}
LENGTH = {"epochs", "schedule.epochs", "schedule.max_steps"}


def setting(result: Result, name: str) -> str:
    """What a result's run had for a name that some run set; empty where it has no such thing."""
    fields = flat(result.config)
    return str(result.overrides.get(name, fields.get(name, "")))


def settings(results: list[Result]) -> tuple[dict[str, str], list[str]]:
    """What was set for all runs alike, and the names of what varies; seeds apart."""
    names = dict.fromkeys(name for result in results for name in result.overrides)
    names.pop("seed", None)
    # What was not trained has no such settings, but those it tells of.
    values = {
        name: {setting(each, name) for each in results if each.steps or name in each.overrides}
        for name in names
    }
    alike = {name: found.pop() for name, found in values.items() if len(found) == 1}
    return alike, [name for name in names if name not in alike]


def groups(results: list[Result]) -> list[list[Result]]:
    """Results of runs that differ in nothing but the seed."""
    found: dict[str, list[Result]] = {}
    for result in results:
        config = {k: v for k, v in flat(result.config).items() if k not in ("seed", *WATCHING)}
        overrides = {k: v for k, v in result.overrides.items() if k != "seed"}
        same = [config, overrides, result.training_pictures, result.steps, result.benchmark]
        found.setdefault(json.dumps(same, sort_keys=True), []).append(result)
    return list(found.values())


def figure(result: Result, codec: str, norm: str) -> float | None:
    """A result's µAP in percent, where it has one of that codec and normalisation."""
    for row in result.figures:
        if (row["codec"], row["score_norm"]) == (codec, norm) and row["uAP"] is not None:
            return 100 * row["uAP"]
    return None


def spread(values: Iterable[float | None]) -> str:
    """Mean, and the sample standard deviation of several; "-" of none."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{statistics.mean(known):.2f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.2f}"


def norms_of(results: list[Result]) -> list[str]:
    """The score normalisations of all results."""
    return list(dict.fromkeys(row["score_norm"] for each in results for row in each.figures))


def table(results: list[Result]) -> str:
    """The Markdown table, with a line above of what is the same in all."""
    alike, names = settings(results)
    norms = norms_of(results)
    several = len({result.benchmark for result in results}) > 1
    header = [*names, "codec", "seeds", "images", "steps", "minutes"]
    header += ["benchmark"] * several
    header += ["µAP" if norm == NO_NORM else f"µAP, SN {norm}" for norm in norms]
    lines = []
    for same in groups(results):
        first = same[0]
        minutes = statistics.mean(result.training_seconds for result in same) / 60
        for codec in dict.fromkeys(row["codec"] for row in first.figures):
            cells = [setting(first, name) for name in names]
            cells += [codec, len(same), first.training_pictures, first.steps, f"{minutes:.1f}"]
            cells += [first.benchmark] * several
            cells += [spread(figure(each, codec, norm) for each in same) for norm in norms]
            lines.append(cells)
    rows = [header, ["---"] * len(header), *lines]
    stored = ", ".join(f"{name} = {value}" for name, value in alike.items())
    about = "µAP in percent: mean ± sample standard deviation over seeds."
    about += f" The same in all: {stored}." if stored else ""
    return about + "\n\n" + "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def curves(
    results: list[Result], axis: str, ignored: set[str]
) -> dict[str, list[tuple[float, float, float]]]:
    """Lines of a plot, by label: x, mean of µAP and its deviation over seeds, of each setting with several x.

    Args:
        results: all.
        axis: the result's attribute along x.
        ignored: what is set to get another x, and does not make another line.
    """
    _, names = settings(results)
    names = [name for name in names if name not in ignored]
    norm = norms_of(results)[-1]
    lines: dict[str, dict[float, tuple[int, list[float]]]] = {}
    for same in groups(results):
        first = same[0]
        # Seeds take their own time.
        x = statistics.mean(getattr(result, axis) for result in same)
        for codec in dict.fromkeys(row["codec"] for row in first.figures):
            values = [v for each in same if (v := figure(each, codec, norm)) is not None]
            label = ", ".join([*(f"{name}={setting(first, name)}" for name in names), codec])
            points = lines.setdefault(label, {})
            # Of runs of several lengths on the same images, the longest.
            if values and x > 0 and (x not in points or points[x][0] < first.steps):
                points[x] = first.steps, values
    return {
        label: [
            (x, statistics.mean(found), statistics.stdev(found) if len(found) > 1 else 0.0)
            for x, (_, found) in sorted(points.items())
        ]
        for label, points in lines.items()
        if len(points) > 1
    }


def plot(lines: dict[str, list[tuple[float, float, float]]], what: str, path: pathlib.Path) -> None:
    """Draws lines with their deviations."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(7, 4.5), layout="constrained")
    axes = drawing.add_subplot()
    for label, points in lines.items():
        x, mean, deviation = zip(*points, strict=True)
        axes.errorbar(x, mean, deviation, marker="o", capsize=3, label=label)
    axes.set_xscale("log")
    axes.set(xlabel=what, ylabel="µAP in percent")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    with write_aside(path) as aside:
        drawing.savefig(aside, dpi=150)


def main(argv: list[str] | None = None) -> int:
    """Writes the table and the plots."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=pathlib.Path)
    folder = parser.parse_args(argv).results
    try:
        results = read_results(folder)
    except UserError as error:
        print(f"tables: {error}", file=sys.stderr)
        return 1
    text = table(results)
    write_text(folder / "table.md", text)
    print(text)
    for axis, what, ignored, name in (
        ("training_pictures", "training pictures", DATA | LENGTH, "uap_by_pictures"),
        ("steps", "steps", LENGTH, "uap_by_steps"),
        ("training_seconds", "seconds of training", LENGTH, "uap_by_seconds"),
    ):
        if lines := curves(results, axis, ignored):
            plot(lines, what, folder / f"{name}.png")
            print(f"{folder / name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Writes what README and the documentation show of result files, so that it cannot drift from them.

    python -m experiments.studies.readme           the tables, from files of experiments/results; and of these
                                                   bench_search.md and .png from bench_search.json
    python -m experiments.studies.readme --draw    also docs/found.jpg, from the bundled sample, and docs/peers.png

Tables stand between `<!-- NAME: ... -->` and `<!-- end of NAME -->`.
"""

import argparse
import importlib.resources
import json
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable

from matplotlib.figure import Figure
from PIL import Image, ImageOps

from experiments.benchmarks import cost, first_touch, projection, search_plot
from experiments.benchmarks.projection import compiled_rows
from experiments.studies import (
    calibration,
    disc_dry_run,
    documents,
    finetune,
    networks,
    parts,
    robustness,
    stored,
    test_time,
    variants,
)
from rdcd_jax.benchmarks.disc_runs import evaluate_disc
from rdcd_jax.benchmarks.ground_truth import find_disc_layout, read_ground_truth
from rdcd_jax.core.files import write_text
from rdcd_jax.images.sources import find_images
from rdcd_jax.report.matches import match_rows
from rdcd_jax.search.scoring import scoring_of
from rdcd_jax.weights.library import load_model

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"
PEERS = RESULTS / "peers.json"
STUDENT = "rdcd-effb0-128"
# Of the table of thresholds.
SIZES = (1_600, 100_000, 1_000_000)
# Of the picture: images, their side and frame, and what lies between, in pixels.
SHOWN, SIDE, FRAME, GAP = 9, 132, 4, 8
RIGHT, WRONG = "#0a8a3a", "#d1361c"
# The order of README's table.
NAMES = {
    "rdcd-effb0-64": "`rdcd-effb0-64`",
    "rdcd-effb0-128": "`rdcd-effb0-128`",
    "rdcd-effb0-256": "`rdcd-effb0-256`",
    "sscd_distilled, 512-d": "`sscd_distilled`, a peer",
    "SSCD ResNet-50, 512-d": "SSCD ResNet-50, the teacher",
    "pHash 64": "pHash",
    "pHash 256": "pHash, 256 bits",
    "dHash 64": "dHash",
    "PDQ": "PDQ",
}


def models_table(contenders: dict) -> str:
    """Size, speed and what is found, of every contender."""
    lines = [
        "| | dimensions or bits | bytes an image | µAP | recall at P90 | both, scores normalised | images/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, shown in NAMES.items():
        found = contenders[name]
        plain, normalised = (found["figures"].get(kind) for kind in ("plain", "normalised"))
        cells = [
            shown,
            found["dim"],
            found["bytes"],
            _percent(plain["uAP"]),
            _percent(plain.get("recall-at-p90")),
            ", ".join(_percent(normalised.get(key)) for key in ("uAP", "recall-at-p90"))
            if normalised
            else "",
            f"{found['images_per_second']:.0f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def kinds_table(contenders: dict) -> str:
    """The share of copies found at 90 % precision, by kind of edit."""
    kinds = list(contenders[STUDENT]["recall_by_kind"])
    lines = [f"| | {' | '.join(kinds)} |", f"|---{'|---' * len(kinds)}|"]
    for name, shown in NAMES.items():
        found = contenders[name]["recall_by_kind"]
        lines.append(f"| {shown} | {' | '.join(_percent(found.get(kind)) for kind in kinds)} |")
    return "\n".join(lines)


def faults_table(killed: dict, full: dict) -> str:
    """What kills and full disks did to what was written."""
    lines = [
        "| | killed at random moments | disk full at so many amounts of room | faults |",
        "|---|---|---|---|",
    ]
    for verb, kills in killed.items():
        name = verb if verb == "embed" else f"index {verb}"
        faults = [*kills["faults"], *kills["left"], *full[verb]["faults"]]
        lines.append(f"| `{name}` | {kills['kills']} | {full[verb]['full']} | {len(faults)} |")
    return "\n".join(lines)


def engines_table(models: dict) -> str:
    """What onnxruntime in 8-bit integers costs in what is found, and gains in time."""
    lines = [
        "| | images a second: JAX, 8 bits | cosine of an image's two: mean, least | found from the threshold on: JAX,"
        " 8 bits, mixed | of these right | µAP |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in models.items():
        found = row["found"].values()
        cells = [
            f"`{name}`",
            f"{', '.join(map(str, row['images a second'].values()))} ({row['ratio']} times)",
            f"{row['cosine']['mean']:.3f}, {row['cosine']['least']:.3f}",
            *(
                ", ".join(f"{each[key]:.1f}" for each in found)
                for key in (
                    "recall from the threshold on",
                    "precision from the threshold on",
                    "µAP",
                )
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compiled_table(rows: dict[str, dict]) -> str:
    """What a chip needs of each step, as XLA compiled it."""
    lines = [
        "| slice | images a chip | trunks in | GFLOP | main memory moved, GB | of an image, GB | all accesses, GB"
        " | held beside the state, GB | collectives | MB in them, at least | floor, ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        images, floor = row["images_per_chip"], row["floor_ms"]
        cells = [
            f"{row['chips']} x {row['topology'].partition(':')[0]}",
            str(images),
            row["dtype"],
            f"{row['flop'] / 1e9:,.0f}",
            f"{row['memory_bytes'] / 1e9:.1f}",
            f"{row['memory_bytes'] / 1e9 / images:.3f}",
            f"{row['bytes_per_image'] / 1e9:.3f}",
            f"{row['temporary_bytes'] / 1e9:.2f}",
            str(row["collective_count"]),
            f"{row['collective_bytes'] / 1e6:.1f}, {row['least_collective_bytes'] / 1e6:.1f}",
            f"{max(floor.values()):.1f} by {max(floor, key=floor.get)}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def thresholds_table() -> str:
    """From which score on 90 % of what is found are copies, by the number of images."""
    lines = [
        f"| model | {' | '.join(f'{size:,} images' for size in SIZES)} |",
        "|---" * (1 + len(SIZES)) + "|",
    ]
    for name in list(NAMES)[:3]:
        model = load_model(name)
        scoring = scoring_of(model.background, model.card["calibration"])
        cells = [f"{scoring.threshold(0.9, size):.2f}" for size in SIZES]
        lines.append(f"| {NAMES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "never" if value is None else f"{100 * value:.1f}"


def filled(text: str, tables: dict[str, str]) -> str:
    """The text with each table between its marks."""
    for name, table in tables.items():
        pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end of {name} -->)"
        text = re.sub(
            pattern, lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text, flags=re.S
        )
    return text


def minidisc() -> dict:
    """The contenders' figures on the benchmark of README."""
    return json.loads(PEERS.read_text(encoding="utf-8"))["minidisc"]["contenders"]


def tables() -> dict[str, str]:
    """All tables by name."""
    contenders = minidisc()
    killed, full = (_result(name)["verbs"] for name in ("survive_index", "full_disk"))
    costs = _result("cost")
    return {
        "models": models_table(contenders),
        "kinds": kinds_table(contenders),
        "faults": faults_table(killed, full),
        "compiled": compiled_table(compiled_rows()),
        "projected": projection.table(compiled_rows()),
        "reproduced": projection.reproduction_table(
            compiled_rows(), _result("bench_input")["medians"]["decode"]["here"]
        ),
        "thresholds": thresholds_table(),
        "variants": variants.table(_result("variants")["percent"]),
        "parts": parts.table(_result("parts")["percent"]),
        "test_time": test_time.table(_result("test_time")["percent"]),
        "calibrated": calibration.table(_result("calibration")["figures"]),
        "finetuned": finetune.table(_result("finetune")["figures"]),
        "dry_run": disc_dry_run.table(_result("disc_dry_run")),
        "robust": robustness.table(*(_result("robustness")[key] for key in ("contenders", "axes"))),
        "stored": stored.table(_result("stored")["models"]),
        "networks": networks.table(_result("networks")["networks"]),
        "documents": documents.table(_result("documents")["models"]),
        "engines": engines_table(_result("engines")["models"]),
        "searched": search_plot.summary_table(_result("bench_search")["summary"]),
        "first_touch": first_touch.table(_result("first_touch")["seconds"]),
        "cost": cost.table(costs["networks"], costs["settings"]["size"]),
    }


def _result(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def pages() -> list[pathlib.Path]:
    """Where tables may stand."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def draw(path: pathlib.Path) -> None:
    """Draws queries of the bundled sample, evenly chosen, each above the image that a shipped student finds first."""
    sample = importlib.resources.files("rdcd_jax") / "sample"
    with importlib.resources.as_file(sample) as folder, tempfile.TemporaryDirectory() as out:
        layout = find_disc_layout(folder)
        found = evaluate_disc(load_model(STUDENT), folder, out, score_norm="None")
        truth = read_ground_truth(layout.ground_truth)
        rows = match_rows(found.predictions, truth, n_queries=SHOWN, n_found=1)
        queries, references = (image_by_id(each) for each in (layout.queries, layout.references))
        sheet = Image.new("RGB", (SHOWN * (SIDE + GAP) - GAP, 2 * SIDE + GAP), "white")
        for column, row in enumerate(rows):
            (first,) = row.found
            pair = queries(row.query), references(first.id)
            for line, (image, colour) in enumerate(
                zip(pair, ("white", RIGHT if first.is_right else WRONG), strict=True)
            ):
                tile = ImageOps.pad(image, (SIDE - 2 * FRAME, SIDE - 2 * FRAME), color="white")
                tile = ImageOps.expand(tile, FRAME, colour)
                sheet.paste(tile, (column * (SIDE + GAP), line * (SIDE + GAP)))
        sheet.save(path, quality=88, optimize=True)


def plot(path: pathlib.Path, contenders: dict) -> None:
    """Draws what each contender finds at 90 % precision over its bytes, by a plain threshold."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, shown in NAMES.items():
        found = contenders[name]
        recall = found["figures"]["plain"].get("recall-at-p90") or 0.0
        colour = "#0b62a8" if name.startswith("rdcd") else "#6b6f76"
        axes.plot(found["bytes"], 100 * recall, "o", color=colour, markersize=8)
        ours = name.startswith("rdcd")
        axes.annotate(
            shown.replace("`", ""),
            (found["bytes"], 100 * recall),
            # Where none of them lies on another.
            xytext=(-8, 4) if ours else (8, 5 if name == "pHash 256" else -4),
            ha="right" if ours else "left",
            textcoords="offset points",
            color=colour,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes := [8, 32, 64, 128, 256, 512], [str(size) for size in sizes])
    axes.set_xlim(6, 5000)
    axes.set_ylim(0, 100)
    axes.set_xlabel("bytes an image (descriptors as int8)")
    axes.set_ylabel("copies found at 90 % precision, %")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110, facecolor="white")


def image_by_id(source: str | os.PathLike) -> Callable[[str], Image.Image]:
    """What gives an image of a source by its id."""
    images = find_images(source)
    positions = {id_: position for position, id_ in enumerate(images.ids)}
    return lambda id_: images.decode(positions[id_])


def main(argv: list[str] | None = None) -> int:
    """Fills the pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args(argv)
    made = tables()
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if filled(text, made) != text:
            write_text(page, filled(text, made))
    search_plot.draw(_result("bench_search")["cells"], RESULTS / "bench_search.json")
    if options.draw:
        draw(ROOT / "docs" / "found.jpg")
        plot(ROOT / "docs" / "peers.png", minidisc())
    return 0


if __name__ == "__main__":
    sys.exit(main())

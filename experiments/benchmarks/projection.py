"""Projects the RDCD step to 1 to 1,024 chips, from what XLA compiled for some of them.

    python -m experiments.benchmarks.projection

Nothing is measured here. A step takes at least as long as its arithmetic at the chip's peak, as the bytes of its main
memory at the chip's bandwidth, and as its collectives at the links' bandwidth; the projection adds the larger of the
first two and the third, as if nothing overlapped. Arithmetic and bytes grow with the images of a chip along the line
through the compiled rows (experiments/results/compile_tpu.json). A ring of N chips brings each byte that is reduced
2 (N - 1) / N times over a chip's links, and each that is gathered (N - 1) / N times; groups of chips form a ring of
rings.
"""

import json
import pathlib
import sys
from typing import NamedTuple

from experiments.benchmarks.tpu import PEAKS

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMPILED = ROOT / "experiments" / "results" / "compile_tpu.json"
CHIPS = (1, 4, 16, 64, 256, 1024)
# Global batches of the table: the second is as long as half of the queue.
BATCHES = (4096, 32768)
# The paper's run: DISC2021's training images, so many times, on these.
IMAGES, EPOCHS = 1_000_000, 100
IMAGES_A_CHIP = 128
REPRODUCED = (("H100", 8), ("v5e", 16))


class Chip(NamedTuple):
    """A chip by its maker's data sheet.

    Attributes:
        flops: bfloat16 arithmetic a second.
        memory: bytes a second of its main memory.
        link: bytes a second that it sends to others of its group.
        near: chips of a group, which these links reach.
        far: bytes a second that each sends to other groups.
    """

    flops: float
    memory: float
    link: float
    near: int
    far: float


KINDS = {
    # 1,600 and 4,800 Gbit/s between the chips of a slice; between hosts of slices 100 Gbit/s for 4 chips.
    "v5e": Chip(*PEAKS["v5e"], link=200e9, near=256, far=3.1e9),
    "v5p": Chip(*PEAKS["v5p"], link=600e9, near=8960, far=6.2e9),
    # NVLink among 8, 400 Gbit/s of InfiniBand for each GPU beyond.
    "H100": Chip(989e12, 3350e9, link=450e9, near=8, far=50e9),
}


class Line(NamedTuple):
    """What grows with a chip's images: a part that is there without any, and one for each."""

    fixed: float
    each: float

    def at(self, images: float) -> float:
        """Its value for so many."""
        return self.fixed + self.each * images


class Step(NamedTuple):
    """A step's needs, as lines through compiled rows.

    Attributes:
        flop: arithmetic of a chip.
        memory: bytes of a chip's main memory.
        reduced: bytes that are all-reduced.
        gathered: bytes that are gathered for each image of the global batch.
    """

    flop: Line
    memory: Line
    reduced: float
    gathered: float


def step_of(rows: dict[str, dict]) -> Step:
    """The step's needs from two compiled rows, of many images a chip on few chips and of few on many."""
    many, few = rows["v5e-4"], rows["v5e-256"]
    batches = [row["chips"] * row["images_per_chip"] for row in (many, few)]
    collective = _line(batches, [row["collective_bytes"] for row in (many, few)])
    images = [row["images_per_chip"] for row in (many, few)]
    return Step(
        flop=_line(images, [row["flop"] for row in (many, few)]),
        memory=_line(images, [row["memory_bytes"] for row in (many, few)]),
        reduced=collective.fixed,
        gathered=collective.each,
    )


def _line(x: list[float], y: list[float]) -> Line:
    each = (y[0] - y[1]) / (x[0] - x[1])
    return Line(y[0] - each * x[0], each)


def step_ms(step: Step, chip: Chip, chips: int, batch: int) -> float:
    """The least time of a step."""
    images = batch / chips
    compute = max(step.flop.at(images) / chip.flops, step.memory.at(images) / chip.memory)
    sent = 2 * step.reduced + step.gathered * batch
    near, groups = min(chips, chip.near), max(1, chips / chip.near)
    # Within a group each chip passes all on; between groups its chips share that.
    within = (near - 1) / near * sent / chip.link
    between = (groups - 1) / groups * sent / (near * chip.far)
    return 1e3 * (compute + within + between)


def table(rows: dict[str, dict]) -> str:
    """Images a second at most, and the share of what as many chips alone would do, as Markdown."""
    step = step_of(rows)
    columns = [(kind, batch) for kind in KINDS for batch in BATCHES]
    lines = [
        "| chips | " + " | ".join(f"{kind}, batch {batch:,}" for kind, batch in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for chips in CHIPS:
        cells = []
        for kind, batch in columns:
            alone, together = (
                n * 1e3 * size / (n * step_ms(step, KINDS[kind], m, size))
                for n, m, size in ((chips, 1, batch / chips), (1, chips, batch))
            )
            share = together / (chips * alone)
            cells.append(f"{together:,.0f} ({100 * share:.0f} %)")
        lines.append(f"| {chips:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def reproduction_table(rows: dict[str, dict], decoded: float) -> str:
    """What the paper's run asks of the machines of `REPRODUCED` at the least, as Markdown.

    Args:
        rows: the compiled ones.
        decoded: images that a core decodes in a second.
    """
    step = step_of(rows)
    lines = [
        "| | batch | images a second, at most | hours, at least | cores that decode so many |",
        "|---|---|---|---|---|",
    ]
    for kind, chips in REPRODUCED:
        batch = chips * IMAGES_A_CHIP
        speed = 1e3 * batch / step_ms(step, KINDS[kind], chips, batch)
        hours = IMAGES * EPOCHS / speed / 3600
        lines.append(
            f"| {chips} x {kind} | {batch:,} | {speed:,.0f} | {hours:.2f} | {speed / decoded:.0f} |"
        )
    return "\n".join(lines)


def compiled_rows() -> dict[str, dict]:
    """The compiled rows by name."""
    return {row["name"]: row for row in json.loads(COMPILED.read_text(encoding="utf-8"))["rows"]}


def main() -> int:
    """Prints the table, and how far the collectives' line is from rows that it was not drawn through."""
    rows = compiled_rows()
    step = step_of(rows)
    print(table(rows))
    for name, row in rows.items():
        images, batch = row["images_per_chip"], row["chips"] * row["images_per_chip"]
        told = {
            "collective_bytes": step.reduced + step.gathered * batch,
            "memory_bytes": step.memory.at(images),
            "flop": step.flop.at(images),
        }
        shares = ", ".join(f"{what} {value / row[what]:.2f}" for what, value in told.items())
        print(f"{name}: projected / compiled: {shares}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

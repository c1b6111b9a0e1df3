"""How much of an edit each model and hash bears: copies found, by kind of edit and its strength.

    pip install imagehash pdqhash onnxruntime
    python -m experiments.studies.robustness BENCHMARK OUT [--images 100]

Of some references of BENCHMARK, a DISC-shaped folder, copies are made with one edit each. A copy counts as found where
its similarity to its original reaches the contender's threshold of 90 % precision on BENCHMARK, without score
normalisation. Contenders are some of `studies.peers`, and OUT may be that study's: descriptors there are not made
again. Written to experiments/results/robustness.json, and drawn to docs/robustness.png.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageFilter

from experiments.studies.peers import Contender, contenders, embedded
from rdcd_jax.augment.host import edits
from rdcd_jax.benchmarks.disc import evaluate_descriptors
from rdcd_jax.benchmarks.ground_truth import find_disc_layout, read_ground_truth
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_aside, write_json
from rdcd_jax.embedding.descriptors import read_descriptors
from rdcd_jax.images.sources import ImageSet, find_images
from rdcd_jax.training.record import environment

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULT = ROOT / "experiments" / "results" / "robustness.json"
PLOT = ROOT / "docs" / "robustness.png"
SEED = 0
CONTENDERS = (
    *("rdcd-effb0-64", "rdcd-effb0-128", "rdcd-effb0-256"),
    *("sscd_distilled, 512-d", "SSCD ResNet-50, 512-d", "pHash 256", "PDQ"),
)
GREY = (128, 128, 128)
# An edit is borne where this percentage of copies is found, and so are all that are milder.
BORNE = 80.0


@dataclasses.dataclass(frozen=True)
class Edit:
    """A kind of edit.

    Attributes:
        axis: what its strength says.
        strengths: the mildest first.
        make: gives the copy of an image at a strength; another image and a generator serve what needs them.
    """

    axis: str
    strengths: tuple[float, ...]
    make: Callable[[Image.Image, float, Image.Image, np.random.Generator], Image.Image]


def _box(image: Image.Image, share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Somewhere in the image, of its shape: left, top, right and bottom of a share of its area."""
    width, height = (max(1, round(side * share**0.5)) for side in image.size)
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    return left, top, left + width, top + height


def _crop(image: Image.Image, share: float, _, rng: np.random.Generator) -> Image.Image:
    return image.crop(_box(image, share, rng))


def _border(image: Image.Image, share: float, _, rng: np.random.Generator) -> Image.Image:
    """The image on a page of one colour, of whose area it covers the share."""
    page = Image.new(
        "RGB",
        tuple(round(side / share**0.5) for side in image.size),
        tuple(rng.integers(256, size=3)),
    )
    page.paste(image, ((page.width - image.width) // 2, (page.height - image.height) // 2))
    return page


def _overlay(
    image: Image.Image, share: float, other: Image.Image, rng: np.random.Generator
) -> Image.Image:
    """The image with another over a share of its area."""
    left, top, right, bottom = _box(image, share, rng)
    copy = image.copy()
    copy.paste(other.resize((right - left, bottom - top), Image.Resampling.BICUBIC), (left, top))
    return copy


def _blur(image: Image.Image, percent: float, *_) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(percent / 100 * min(image.size)))


def _rotate(image: Image.Image, degrees: float, *_) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=GREY)


EDITS: Mapping[str, Edit] = {
    "crop": Edit("share of the area that stays", (0.8, 0.6, 0.4, 0.25, 0.15), _crop),
    "border": Edit("share of the page that the image covers", (0.8, 0.6, 0.4, 0.25, 0.15), _border),
    "overlay": Edit("share of the image that is covered", (0.1, 0.2, 0.35, 0.5, 0.7), _overlay),
    "rotation": Edit("degrees", (2, 5, 10, 20, 45), _rotate),
    "blur": Edit("radius in percent of the shorter side", (0.5, 1, 2, 4, 8), _blur),
    "JPEG": Edit(
        "quality", (40, 20, 10, 5, 1), lambda image, quality, *_: edits.jpeg(image, quality)
    ),
}


def make_copies(references: ImageSet, count: int, folder: pathlib.Path) -> list[str]:
    """Writes every edit of some references as `KIND+STRENGTH+ID.png`; gives the originals' ids."""
    chosen = np.linspace(0, len(references) - 1, count).astype(int).tolist()
    folder.mkdir(parents=True, exist_ok=True)
    for number, position in enumerate(chosen):
        image = references.decode(position)
        other = references.decode(chosen[number - 1])
        for kind, edit in EDITS.items():
            for strength in edit.strengths:
                path = folder / f"{kind}+{strength:g}+{references.ids[position]}.png"
                if not path.exists():
                    rng = np.random.default_rng((SEED, position))
                    with write_aside(path) as aside:
                        edit.make(image, strength, other, rng).save(aside, "png", compress_level=1)
    return [references.ids[position] for position in chosen]


def found_by(
    folder: pathlib.Path, contender: Contender, benchmark: pathlib.Path, copies: pathlib.Path
) -> dict:
    """A contender's threshold, and the percentage of copies found by kind and strength."""
    layout = find_disc_layout(benchmark)
    sources = {"queries": layout.queries, "references": layout.references, copies.name: copies}
    embedded(folder, contender, sources)
    queries, references, made = (read_descriptors(folder / f"{name}.npz") for name in sources)
    (row,), _ = evaluate_descriptors(
        queries, references, None, read_ground_truth(layout.ground_truth)
    )
    threshold = row.metrics.threshold_at_p90
    if threshold is None:
        raise UserError(f"{folder.name} never reaches 90 % precision on {benchmark}.")
    original = dict(zip(references.ids.tolist(), references.descriptors, strict=True))
    hits: dict[str, dict[str, list[bool]]] = {}
    for name, descriptor in zip(made.ids.tolist(), made.descriptors, strict=True):
        kind, strength, reference = name.split("+", 2)
        # Rounding must not lose a hash that is as far as the threshold.
        similar = float(descriptor @ original[reference]) >= threshold - 1e-6
        hits.setdefault(kind, {}).setdefault(strength, []).append(similar)
    percent = {
        kind: {
            f"{strength:g}": round(100 * float(np.mean(hits[kind][f"{strength:g}"])), 1)
            for strength in edit.strengths
        }
        for kind, edit in EDITS.items()
    }
    return {"threshold": round(threshold, 4), "found": percent}


def table(contended: Mapping[str, dict], axes: Mapping[str, str]) -> str:
    """The strongest edit of each kind that each contender bears, in Markdown."""
    lines = [
        "| | " + " | ".join(f"{kind}: {axis}" for kind, axis in axes.items()) + " |",
        "|---" * (1 + len(axes)) + "|",
    ]
    for name, result in contended.items():
        cells = [name]
        for kind in axes:
            borne = "none"
            for strength, percent in result["found"][kind].items():
                if percent < BORNE:
                    break
                borne = strength
            cells.append(borne)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(contended: Mapping[str, dict]) -> None:
    """One panel for each kind of edit, one line for each contender."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True)
    for axes, (kind, edit) in zip(panels.flat, EDITS.items(), strict=True):
        labels = [f"{strength:g}" for strength in edit.strengths]
        for name, result in contended.items():
            heights = [result["found"][kind][label] for label in labels]
            # Hashes apart from models.
            style = "--" if result["hash"] else "-"
            axes.plot(labels, heights, style, marker="o", markersize=3, label=name)
        axes.set(title=kind, xlabel=edit.axis, ylim=(-3, 103))
        axes.grid(alpha=0.3)
    for axes in panels[:, 0]:
        axes.set_ylabel("copies found, percent")
    panels[0, 0].legend(fontsize="x-small")
    with write_aside(PLOT) as aside:
        figure.savefig(aside, format="png", dpi=90)


def main() -> int:
    """Makes the copies, looks for them with every contender, and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--images", type=int, default=100)
    options = parser.parse_args()
    copies = options.out / f"copies-{options.images}"
    references = find_images(find_disc_layout(options.benchmark).references)
    originals = make_copies(references, options.images, copies)
    made, found = contenders(), {}
    for name in CONTENDERS:
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        result = found_by(folder, made[name], options.benchmark, copies)
        found[name] = {"hash": not made[name].normalised, **result}
        print(name, found[name], flush=True)
    write_json(
        RESULT,
        {
            "benchmark": options.benchmark.resolve().name,
            "copies of each": len(originals),
            "environment": environment(),
            "axes": {kind: edit.axis for kind, edit in EDITS.items()},
            "contenders": found,
        },
    )
    draw(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Whether a second look at each image, at its mirror image, finds more: the mean of both descriptors.

    python -m experiments.studies.test_time BENCHMARK OUT

BENCHMARK is a DISC-shaped folder. A second look costs as much as the first: for queries alone, or for references too.
OUT keeps the descriptors. Written to experiments/results/test_time.json: µAP and recall at 90 % precision in percent,
without and with score normalisation by every third training image (3,000).
"""

import argparse
import dataclasses
import pathlib

import numpy as np
from PIL import Image, ImageOps

from experiments.studies.percent import HEADING, cells, in_percent
from experiments.studies.students import some_training_images
from rdcd_jax.benchmarks.disc import evaluate_descriptors
from rdcd_jax.benchmarks.ground_truth import find_disc_layout, read_ground_truth
from rdcd_jax.benchmarks.settings import Settings
from rdcd_jax.core.files import write_json
from rdcd_jax.embedding.codecs import unit_rows
from rdcd_jax.embedding.descriptors import Descriptors, read_descriptors, write_descriptors
from rdcd_jax.embedding.stream import embed_images
from rdcd_jax.images.sources import ImageSet, find_images
from rdcd_jax.training.record import environment
from rdcd_jax.weights.library import load_model

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULT = ROOT / "experiments" / "results" / "test_time.json"
# The other students are the first dimensions of this one.
MODELS = ("rdcd-effb0-256", "onnxruntime")
# Which sets are looked at twice.
LOOKS = {
    "once": (),
    "queries twice": ("queries",),
    "all twice": ("queries", "references", "training"),
}


class Mirrored(ImageSet):
    """Images seen in a mirror."""

    def decode(self, position: int, *, min_side_hint: int | None = None) -> Image.Image:
        """As `ImageSet.decode`."""
        return ImageOps.mirror(super().decode(position, min_side_hint=min_side_hint))


def looks(name: str, source: str, folder: pathlib.Path) -> tuple[Descriptors, Descriptors]:
    """A model's descriptors of a set's images, and of their mirror images."""
    found = []
    for kind in (ImageSet, Mirrored):
        path = folder / f"{kind.__name__}.npz"
        if not path.exists():
            images = find_images(source)
            fields = {
                field.name: getattr(images, field.name) for field in dataclasses.fields(images)
            }
            folder.mkdir(parents=True, exist_ok=True)
            write_descriptors(path, embed_images(load_model(name), kind(**fields))[0])
        found.append(read_descriptors(path))
    return tuple(found)


def table(percent: dict[str, dict]) -> str:
    """The result in Markdown."""
    lines = [f"| | looked at | {HEADING} |", "|---|---|---|---|---|"]
    for name, rows in percent.items():
        for number, (look, row) in enumerate(rows.items()):
            lines.append(f"| {'' if number else f'`{name}`'} | {look} | {cells(row)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures the models, and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    options = parser.parse_args()
    layout = find_disc_layout(options.benchmark)
    truth = read_ground_truth(layout.ground_truth)
    options.out.mkdir(parents=True, exist_ok=True)
    sources = {
        "queries": layout.queries,
        "references": layout.references,
        "training": some_training_images(options.benchmark, options.out),
    }
    result: dict[str, dict] = {}
    for name in MODELS:
        seen = {
            part: looks(name, str(source), options.out / name / part)
            for part, source in sources.items()
        }
        for look, twice in LOOKS.items():
            sets = {}
            for part, (once, mirrored) in seen.items():
                rows = once.descriptors + mirrored.descriptors * np.float32(part in twice)
                sets[part] = dataclasses.replace(once, descriptors=unit_rows(rows))
            rows, _ = evaluate_descriptors(*sets.values(), truth, Settings.written(True))
            figures = result.setdefault(name, {})
            figures[look] = in_percent(rows, ("", " with SN"))
            print(name, look, figures[look], flush=True)
    write_json(
        RESULT,
        {
            "benchmark": options.benchmark.resolve().name,
            "environment": environment(),
            "percent": result,
        },
    )


if __name__ == "__main__":
    main()

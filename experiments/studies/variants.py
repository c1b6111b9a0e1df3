"""What `search --variants=trim,crops` finds of framed copies and of crops, and what it costs.

    python -m experiments.studies.variants BENCHMARK [--models rdcd-effb0-128 ...]

Of every third image of the bundled references three copies are made: with wide white borders, as a phone's screenshot
shows it, and a quarter of its area. They are looked for among all references; and the queries of BENCHMARK, a
DISC-shaped folder, among its references. Thresholds are the models' own, of 90 % precision. The result goes to
experiments/results/variants.json.
"""

import argparse
import pathlib
import tempfile
import time

from PIL import Image, ImageDraw, ImageFont

from experiments.studies.found import found_by
from experiments.studies.recorded import record
from rdcd_jax.benchmarks.ground_truth import find_disc_layout, read_ground_truth
from rdcd_jax.images.sources import find_images
from rdcd_jax.index import Index
from rdcd_jax.training.record import environment
from rdcd_jax.weights.shipped import list_models

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULT = ROOT / "experiments" / "results" / "variants.json"
CHOICES = ((), ("trim",), ("trim", "crops"))


def bordered(image: Image.Image) -> Image.Image:
    """The image in the middle of a white page, whose half it covers."""
    page = Image.new("RGB", (round(1.13 * image.width), round(2 * image.height)), "white")
    page.paste(image, ((page.width - image.width) // 2, (page.height - image.height) // 2))
    return page


def screenshot(image: Image.Image) -> Image.Image:
    """The image as wide as a phone's screen, below a bar with words in it."""
    screen = Image.new("RGB", (1080, 1920), (24, 24, 28))
    draw = ImageDraw.Draw(screen)
    draw.rectangle((0, 0, 1080, 90), fill=(50, 50, 60))
    draw.text((40, 30), "12:40   album", fill="white", font=ImageFont.load_default(36))
    height = min(1400, round(1080 * image.height / image.width))
    screen.paste(image.resize((1080, height)), (0, 300))
    return screen


def quarter(image: Image.Image) -> Image.Image:
    """The middle, of half the width and height."""
    width, height = image.size
    return image.crop((width // 4, height // 4, width // 4 + width // 2, height // 4 + height // 2))


KINDS = {"bordered": bordered, "screenshot": screenshot, "1/4 of the area": quarter}


def make_copies(folder: pathlib.Path) -> int:
    """Writes the copies as `KIND/ID.jpg`; gives how many of each kind."""
    originals = find_images("sample:references")
    positions = range(0, len(originals), 3)
    for kind, change in KINDS.items():
        (folder / kind).mkdir(parents=True)
        for position in positions:
            change(originals.decode(position)).save(
                folder / kind / f"{originals.ids[position]}.jpg"
            )
    return len(positions)


def table(percent: dict[str, dict]) -> str:
    """The result in Markdown."""
    lines = [
        "| | `--variants` | borders | screenshot | 1/4 of the area | benchmark: found, right |",
        "|---|---|---|---|---|---|",
    ]
    for name in sorted(percent, key=lambda name: int(name.rpartition("-")[2])):
        for number, (variants, row) in enumerate(percent[name].items()):
            found, right = row["benchmark's copies found"], row["benchmark's precision"]
            cells = ["" if number else f"`{name}`", f"`{variants}`", *(row[kind] for kind in KINDS)]
            lines.append(f"| {' | '.join(map(str, cells))} | {found}, {right} |")
    return "\n".join(lines)


def main() -> None:
    """Measures every model with every choice of variants, and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("--models", nargs="+", default=list_models())
    options = parser.parse_args()
    layout = find_disc_layout(options.benchmark)
    pairs = read_ground_truth(layout.ground_truth).pairs
    queries = find_images(layout.queries)
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        count = make_copies(folder / "copies")
        for model in options.models:
            sample = Index.build(folder / model / "sample", "sample:references", model=model)
            large = Index.build(folder / model / "large", layout.references, model=model)
            for variants in CHOICES:
                row = {}
                for kind in KINDS:
                    matches = sample.search(folder / "copies" / kind, k=1, variants=variants)
                    right = [match for match in matches if match.query == match.reference]
                    row[kind] = round(100 * len(right) / count, 1)
                start = time.monotonic()
                found = found_by(large, queries, pairs, variants)
                row["seconds"] = round(time.monotonic() - start, 1)
                row["benchmark's copies found"] = round(found.recall, 1)
                row["benchmark's precision"] = round(found.precision, 1)
                row["distractors with a match"] = found.distractors
                print(model, ",".join(variants) or "none", row, flush=True)
                result.setdefault(model, {})[",".join(variants) or "none"] = row
    record(
        RESULT,
        {
            "copies of each kind": count,
            "distractors": len(queries) - len({query for query, _ in pairs}),
            "environment": environment(),
            "percent": result,
        },
    )


if __name__ == "__main__":
    main()

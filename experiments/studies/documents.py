"""What the descriptors make of pages of text and of drawings, for which they were not trained.

    python -m experiments.studies.documents DRAWINGS

120 pages of random words in one layout are the references. The queries are half of them, blurred, compressed and
cropped at the margin, and as many other pages. DRAWINGS is a DISC-shaped folder of clip art
(`python -m experiments.studies.clipart`); of its queries those count that `seen.is_plain` takes for drawings. Of each
student by each engine: how many matches reach the model's own threshold, and which share of them are copies; how many
copies are found first; and how similar the most similar two unlike pages are. Written to
experiments/results/documents.json.
"""

import argparse
import io
import pathlib
import tempfile

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from rdcd_jax.benchmarks.ground_truth import find_disc_layout, read_ground_truth
from rdcd_jax.core.files import write_json
from rdcd_jax.images.given import images_of
from rdcd_jax.images.seen import is_plain
from rdcd_jax.index import Index
from rdcd_jax.training.record import environment
from rdcd_jax.weights.model import INT8, JAX
from rdcd_jax.weights.shipped import list_models

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULT = ROOT / "experiments" / "results" / "documents.json"
PAGES = 120
WORDS = (
    "copy index query train model image score batch noise layer match pixel crop paper table curve"
)


def page(seed: int) -> Image.Image:
    """A page of words that follow from the seed."""
    random = np.random.default_rng(seed)
    sheet = Image.new("RGB", (600, 800), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for y in range(40, 760, 24):
        draw.text((40, y), " ".join(random.choice(WORDS.split(), 9)), fill="black", font=font)
    return sheet


def copied(sheet: Image.Image) -> Image.Image:
    """A page as it comes back: cropped a little, blurred and compressed."""
    sheet = sheet.crop((15, 20, 590, 790)).filter(ImageFilter.GaussianBlur(1))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=60)
    return Image.open(file)


def measured(index: Index, queries: dict[str, object], truth: set[tuple[str, str]]) -> dict:
    """Figures of queries by their names, of which pairs (query, reference) are copies."""
    names, images = list(queries), list(queries.values())
    matches = index.search(images, k=10)
    of = dict(zip(matches.queries, names, strict=True))
    found = [(of[match.query], match.reference) for match in matches]
    firsts = dict(reversed(found))
    right = sum(pair in truth for pair in found)
    return {
        "queries": len(names),
        "copies": len({query for query, _ in truth}),
        "matches": len(found),
        "copies_among_matches": right,
        "copies_found_first": sum(pair in truth for pair in firsts.items()),
    }


def of_pages(model: str, engine: str, folder: str) -> dict:
    """What a model makes of the pages."""
    pages = [page(i) for i in range(PAGES)]
    index = Index.build(f"{folder}/pages-{model}-{engine}", pages, model=model, engine=engine)
    similarity = index.contents().rows @ index.contents().rows.T
    np.fill_diagonal(similarity, -1)
    copies = {f"copy{i}": copied(page(i)) for i in range(0, PAGES, 2)}
    others = {f"other{i}": page(PAGES + i) for i in range(0, PAGES, 2)}
    truth = {(f"copy{i}", f"#{i}") for i in range(0, PAGES, 2)}
    found = measured(index, copies | others, truth)
    return {**found, "most_similar_unlike_pages": round(float(similarity.max()), 4)}


def of_drawings(model: str, engine: str, folder: str, data: pathlib.Path) -> dict:
    """What a model makes of the plain ones among a benchmark's queries."""
    layout = find_disc_layout(data)
    out = f"{folder}/drawings-{model}-{engine}"
    index = Index.build(out, layout.references, model=model, engine=engine)
    queries = images_of(layout.queries).seen()
    plain = [i for i in range(len(queries)) if is_plain(queries.decode(i))]
    named = {queries.ids[i]: queries.paths[i] for i in plain}
    pairs = {pair for pair in read_ground_truth(layout.ground_truth).pairs if pair[0] in named}
    return measured(index, named, pairs)


def table(models: dict[str, dict]) -> str:
    """The result in Markdown."""
    lines = [
        "| | `--engine` | pages: found first, of 60 | right of what is reported | clip art: found | right of what is"
        " reported |",
        "|---|---|---|---|---|---|",
    ]
    for name, engines in models.items():
        for number, (engine, of) in enumerate(engines.items()):
            pages, drawings = of["pages"], of["drawings"]
            cells = [
                "" if number else f"`{name}`",
                f"`{engine}`",
                pages["copies_found_first"],
                f"{pages['copies_among_matches']} of {pages['matches']:,}",
                f"{drawings['copies_among_matches']} of {drawings['copies']}",
                f"{drawings['copies_among_matches']} of {drawings['matches']}",
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Measures every shipped student."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("drawings", type=pathlib.Path)
    data = parser.parse_args().drawings
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in list_models():
            found[model] = {
                engine: {
                    "pages": of_pages(model, engine, folder),
                    "drawings": of_drawings(model, engine, folder, data),
                }
                for engine in (JAX, INT8)
            }
            print(model, found[model], flush=True)
    write_json(RESULT, {"models": found, "environment": environment()})


if __name__ == "__main__":
    main()

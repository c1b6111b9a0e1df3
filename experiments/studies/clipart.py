"""Makes a DISC-shaped benchmark of clip art, unlike the photographs and screenshots that the shipped students know.

    apt-get download openclipart-png
    dpkg -x openclipart-png_*.deb PACKAGES/openclipart-png
    dpkg-deb -f openclipart-png_*.deb Version > PACKAGES/openclipart-png/VERSION
    python -m experiments.studies.clipart PACKAGES OUT --apart-from=BENCHMARK

Drawings of Debian's openclipart-png (public domain) that BENCHMARK has not: references, copies of some of them edited
as the bundled sample's queries are, distractors, and the rest to train on. What the teacher takes for a likeness of a
reference or a query is in no other set. Needs onnxruntime and the teacher's package.
"""

import argparse
import csv
import pathlib
import re
import warnings

import numpy as np
from PIL import Image

from experiments.sample.edits import edited
from experiments.sample.make import reduced
from experiments.sample.sources import open_image
from rdcd_jax.core.files import write_text
from rdcd_jax.core.progress import Reporter
from rdcd_jax.embedding.stream import embed_images
from rdcd_jax.images.sources import find_images
from rdcd_jax.weights.library import load_model

PACKAGE = "openclipart-png"
REFERENCES, COPIES, DISTRACTORS = 300, 200, 100
SIDE = 128
# Above this cosine two drawings are taken for versions of each other.
ALIKE = 0.6
# Series of hundreds that differ in a number or a colour.
SERIES = re.compile(r".*/png/(?:shapes|special|buttons|signs_and_symbols/flags|computer/icons)/.*")


def main() -> None:
    """Chooses, edits and writes the images."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--apart-from", type=pathlib.Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    paths = render(options.packages / PACKAGE, known(options.apart_from), options.out / "drawings")
    references, distractors, training = choose(paths)
    rng = np.random.default_rng(0)
    truth = {}
    originals = [(path, path.stem) for path in references[:COPIES]]
    originals += [(path, "") for path in distractors]
    for position, (path, copied) in enumerate(originals):
        query = f"Q{position:05d}"
        other = Image.open(training[rng.integers(len(training))])
        truth[query] = copied
        save(edited(Image.open(path), rng, other)[0], options.out / "queries" / f"{query}.jpg")
    for path in references:
        link(path, options.out / "references" / path.name)
    for path in training:
        link(path, options.out / "train" / path.name)
    lines = [f"{query},{reference}\n" for query, reference in truth.items()]
    write_text(options.out / "ground_truth.csv", "query_id,reference_id\n" + "".join(lines))
    print(f"{len(references)} references, {len(truth)} queries, {len(training)} to train on")


def known(benchmark: pathlib.Path) -> set[str]:
    """Paths of the package's drawings that the benchmark has in any of its sets."""
    with (benchmark / "sources.tsv").open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return {row["path"] for row in rows if row["package"] == PACKAGE}


def render(root: pathlib.Path, known: set[str], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the drawings that show enough as JPEG, on white; gives the files."""
    files = []
    for file in sorted(root.rglob("*.png")):
        path = file.relative_to(root).as_posix()
        if file.is_symlink() or path in known or SERIES.fullmatch(f"/{path}"):
            continue
        try:
            image = reduced(open_image(root, path))
        except (ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
            continue  # Posters of more than a hundred million pixels.
        grey = np.asarray(image.convert("L").resize((64, 64)), float)
        if min(image.size) < SIDE or grey.std() < 20 or (grey > 250).mean() > 0.9:
            continue
        # Names in a package repeat.
        files.append(folder / f"C{len(files):05d}.jpg")
        save(image, files[-1])
    return files


def choose(
    paths: list[pathlib.Path],
) -> tuple[list[pathlib.Path], list[pathlib.Path], list[pathlib.Path]]:
    """References, distractors and training images: the first two like nothing else there is."""
    model = load_model("onnxruntime")
    with Reporter("Descriptors", len(paths)) as reporter:
        found, _ = embed_images(
            model.at_size(SIDE),
            find_images(str(paths[0].parent)),
            on_progress=lambda done, total: reporter.update(done),
        )
    embedded = found.descriptors
    likeness = embedded @ embedded.T
    np.fill_diagonal(likeness, -1.0)
    order = np.random.default_rng(0).permutation(len(paths))
    judged = [i for i in order if likeness[i].max() < ALIKE][: REFERENCES + DISTRACTORS]
    training = sorted(set(range(len(paths))) - set(judged))
    references, distractors = judged[:REFERENCES], judged[REFERENCES:]
    return tuple([paths[i] for i in group] for group in (references, distractors, training))


def save(image: Image.Image, path: pathlib.Path) -> None:
    """Writes a JPEG of at most 288 pixels on the short side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    reduced(image).save(path, quality=85)


def link(target: pathlib.Path, path: pathlib.Path) -> None:
    """Puts an image into a set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target.resolve())


if __name__ == "__main__":
    main()

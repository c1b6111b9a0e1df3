"""Measures what rounding the long edge changes, against the exact short-edge resize.

    python -m experiments.studies.short_edge BENCHMARK [--model rdcd-effb0-128] [--size 288]
        [--queries 100] [--others 100]

The model's ONNX export, which onnxruntime runs at any shape, embeds some queries of a DISC-shaped folder, the
references that they are copies of, and other references: resized by their short edge exactly as the reference does,
with the long edge rounded as `rdcd-jax embed --short-edge` does, and to squares. Of rounded and square images: the
cosine to the exact ones; of all three: µAP (Flat, no score normalisation), and how many shapes there are. Written to
experiments/results/short_edge.json.
"""

import argparse
import json
import pathlib
import tempfile

import numpy as np

from rdcd_jax.benchmarks import metrics
from rdcd_jax.benchmarks.ground_truth import find_disc_layout, read_ground_truth
from rdcd_jax.core.files import write_json
from rdcd_jax.embedding.shapes import resized
from rdcd_jax.images.decode import resize_short_edge
from rdcd_jax.images.sources import ImageSet, find_images
from rdcd_jax.search import backends
from rdcd_jax.training.record import environment
from rdcd_jax.weights.export import export_weights
from rdcd_jax.weights.library import load_model
from rdcd_jax.weights.onnx_model import load_onnx_model

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULT = ROOT / "experiments" / "results" / "short_edge.json"
RESIZES = {
    "exact": lambda image, size: np.asarray(resize_short_edge(image, size)),
    "rounded": lambda image, size: resized(image, size, short_edge=True),
    "square": lambda image, size: resized(image, size, short_edge=False),
}


def chosen(
    benchmark: pathlib.Path, n_queries: int, n_others: int
) -> tuple[ImageSet, ImageSet, list[tuple[str, str]]]:
    """Queries that have copies, their references and others, evenly spread, and the true pairs."""
    layout = find_disc_layout(benchmark)
    queries, references = find_images(layout.queries), find_images(layout.references)
    pairs = read_ground_truth(layout.ground_truth).pairs
    copies = {query for query, _ in pairs}
    positions = spread([i for i, name in enumerate(queries.ids) if name in copies], n_queries)
    queries = queries.subset(positions)
    pairs = [pair for pair in pairs if pair[0] in set(queries.ids)]
    wanted = {reference for _, reference in pairs}
    others = spread([i for i, name in enumerate(references.ids) if name not in wanted], n_others)
    kept = [i for i, name in enumerate(references.ids) if name in wanted]
    return queries, references.subset(sorted([*others, *kept])), pairs


def spread(positions: list[int], count: int) -> list[int]:
    """At most `count` of them, evenly spread."""
    return [
        positions[i]
        for i in np.linspace(0, len(positions) - 1, min(count, len(positions))).astype(int)
    ]


def main(argv: list[str] | None = None) -> None:
    """Embeds, compares, and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("--model", default="rdcd-effb0-128")
    parser.add_argument("--size", type=int, default=288)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--others", type=int, default=100)
    options = parser.parse_args(argv)
    queries, references, pairs = chosen(options.benchmark, options.queries, options.others)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.onnx"
        export_weights(load_model(options.model), "onnx", path)
        model = load_onnx_model(options.model, path)
        rows = {name: ([], []) for name in RESIZES}
        shapes = {name: set() for name in RESIZES}
        for part, images in enumerate((queries, references)):
            for position in range(len(images)):
                image = images.decode(position)
                for name, resize in RESIZES.items():
                    pixels = resize(image, options.size)
                    shapes[name].add(pixels.shape)
                    rows[name][part].append(model.embed_batch(pixels[None])[0])
    embedded = {name: [np.stack(part) for part in parts] for name, parts in rows.items()}
    result = {"model": options.model, "size": options.size, "pictures": 0}
    for name, (q, r) in embedded.items():
        k = min(10, len(r))
        scores, positions = backends.knn(q, r, k, backend="numpy")
        found = metrics.evaluate(
            pairs,
            np.repeat(queries.ids, k).tolist(),
            np.asarray(references.ids)[positions.ravel()].tolist(),
            scores.ravel(),
        )
        cosines = np.concatenate([q, r])
        cosines = np.sum(cosines * np.concatenate(embedded["exact"]), axis=1)
        result["pictures"] = len(cosines)
        result[name] = {
            "uAP": found.average_precision,
            "shapes": len(shapes[name]),
            "mean cosine to exact": float(cosines.mean()),
            "lowest percent of cosines": float(np.percentile(cosines, 1)),
        }
    print(json.dumps(result, indent=2))
    write_json(
        RESULT,
        {
            "benchmark": options.benchmark.resolve().name,
            "queries": len(queries),
            "references": len(references),
            **result,
            "environment": environment(),
        },
    )


if __name__ == "__main__":
    main()

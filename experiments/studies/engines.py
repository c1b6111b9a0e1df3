"""What `index build --engine=onnxruntime-int8` costs in what is found and gains in time, against JAX.

    python -m experiments.studies.engines BENCHMARK [--rounds 3] [--models rdcd-effb0-128 ...]

An index of the references of BENCHMARK, a DISC-shaped folder, is built by both engines in turns and searched for its
queries, for every student: as `index build` and `search` do it by default. Measured are the images a second of
the builds, from files and after one that is not counted; the cosine between an image's two descriptors; µAP over the
ten nearest; and what is found from the model's own threshold of 90 % precision on, and how much of it is right.
`mixed` are JAX's queries among descriptors by 8-bit integers, as where an index is searched on a machine without
onnxruntime. The result goes to experiments/results/engines.json.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

import numpy as np

from experiments.studies.found import found_by
from experiments.studies.recorded import record
from rdcd_jax.benchmarks.ground_truth import find_disc_layout, read_ground_truth
from rdcd_jax.images.sources import ImageSet, find_images
from rdcd_jax.index import Index
from rdcd_jax.training.record import environment
from rdcd_jax.weights.engines import INT8, JAX, with_engine
from rdcd_jax.weights.library import load_model
from rdcd_jax.weights.shipped import list_models

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULT = ROOT / "experiments" / "results" / "engines.json"


def measured(name: str, references: str, queries: ImageSet, pairs: list, rounds: int) -> dict:
    """All figures of one model."""
    seconds: dict[str, list[float]] = {JAX: [], INT8: []}
    models = {engine: with_engine(load_model(name), engine) for engine in seconds}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for engine, model in models.items():
                begun = time.perf_counter()
                Index.build(f"{folder}/{engine}{number}", references, model=model, engine=engine)
                seconds[engine].append(time.perf_counter() - begun)
        indexes = {engine: Index(f"{folder}/{engine}0") for engine in models}
        result = {
            engine: found_by(index, queries, pairs).percent() for engine, index in indexes.items()
        }
        ours, theirs = (index.contents().rows for index in indexes.values())
        indexes[INT8].embedder = indexes[JAX].embedder
        result["mixed"] = found_by(indexes[INT8], queries, pairs).percent()
    cosines = np.sum(ours * theirs, axis=1)
    middle = {engine: statistics.median(each[1:]) for engine, each in seconds.items()}
    return {
        "found": result,
        "cosine": {
            "least": round(float(cosines.min()), 4),
            "mean": round(float(cosines.mean()), 4),
        },
        "images a second": {engine: round(len(ours) / each, 1) for engine, each in middle.items()},
        "ratio": round(middle[JAX] / middle[INT8], 2),
    }


def main() -> None:
    """Measures every shipped student, and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=list_models())
    options = parser.parse_args()
    layout = find_disc_layout(options.benchmark)
    pairs = list(read_ground_truth(layout.ground_truth).pairs)
    queries = find_images(layout.queries)
    models = {}
    for name in options.models:
        models[name] = measured(name, layout.references, queries, pairs, options.rounds)
        print(name, models[name], flush=True)
    content = {"benchmark": options.benchmark.name, "environment": environment(), "models": models}
    record(RESULT, content)


if __name__ == "__main__":
    main()

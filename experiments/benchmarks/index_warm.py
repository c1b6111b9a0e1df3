"""How long an index of many descriptors takes to answer one query: the first time, and again.

    python -m experiments.benchmarks.index_warm OUT [--rows 1000000]

Builds indexes of random unit descriptors of 128 dimensions in OUT, one of each dtype, and asks each in a fresh process,
whose first figure counts from before the import of the library, for descriptors that are at hand. Three processes each;
the middle one counts. Written to experiments/results/index_warm.json.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys

import numpy as np

from rdcd_jax.core.files import write_json
from rdcd_jax.embedding.descriptors import Descriptors
from rdcd_jax.index import store
from rdcd_jax.index.made_by import manifest_of
from rdcd_jax.index.manifest import DTYPES
from rdcd_jax.training.record import environment
from rdcd_jax.weights.library import load_model

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULT = ROOT / "experiments" / "results" / "index_warm.json"
MODEL, CHUNK = "rdcd-effb0-128", 65_536
ASKED = """
import sys, time
begun = time.perf_counter()
import numpy as np
import rdcd_jax as rdcd
query = np.random.default_rng(1).standard_normal((1, 128)).astype(np.float32)
query /= np.linalg.norm(query)
index = rdcd.Index.open(sys.argv[1])
index.search_descriptors(query, threshold=-2.0)
print(time.perf_counter() - begun)
for _ in range(20):
    begun = time.perf_counter()
    index.search_descriptors(query, threshold=-2.0)
    print(time.perf_counter() - begun)
"""


def build(folder: pathlib.Path, dtype: str, count: int) -> None:
    """Writes an index of random descriptors, if it is not there."""
    model, random = load_model(MODEL), np.random.default_rng(0)
    new = manifest_of(model, dtype, None, model.background)
    with store.writer(folder, new, model.background) as writer:
        for first in range(len(writer.manifest), count, CHUNK):
            rows = random.standard_normal((min(CHUNK, count - first), model.dim), np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            ids = np.asarray([f"R{first + i:07d}" for i in range(len(rows))])
            writer.add(Descriptors(ids, rows, MODEL), [f"/photos/{name}.jpg" for name in ids])


def asked(folder: pathlib.Path) -> dict:
    """Seconds of a first search, of the one that prepares for more, and of the middle one after it."""
    runs = []
    for _ in range(3):
        command = [sys.executable, "-c", ASKED, str(folder)]
        found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        first, second, *others = map(float, found.stdout.split())
        runs.append((first, second, statistics.median(others)))
    middle = [round(statistics.median(each), 4) for each in zip(*runs, strict=True)]
    return dict(zip(("first", "second", "again"), middle, strict=True))


def main() -> None:
    """Builds, asks, and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    found = {}
    for dtype in DTYPES:
        build(options.out / dtype, dtype, options.rows)
        found[dtype] = asked(options.out / dtype)
    write_json(RESULT, {"rows": options.rows, "seconds": found, "environment": environment()})


if __name__ == "__main__":
    main()

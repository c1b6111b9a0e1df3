"""Measures the product's index with a million int8 descriptors: bytes, memory, recall and time.

    python -m experiments.benchmarks.search_rows IMAGES POOL      (embeds views, once)
    python -m experiments.benchmarks.index_million POOL OUT [--rows 1000000] [--dim 128] [--queries 1000]

Builds the index OUT/index, a chunk at a time as images would be added, then searches it in a fresh process, whose
largest memory the kernel tells, for descriptors and for the bundled images, and compares with exact search among the
float32 rows. The result goes to
experiments/results/index_million.json, one entry for each number of rows and dimensions.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import sys
import time

import numpy as np

from experiments.benchmarks.search_rows import NETWORKS, RULE, read_rows
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_json
from rdcd_jax.weights.shipped import list_models

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULT = ROOT / "experiments" / "results" / "index_million.json"
K = 10
_CHUNK = 65_536


def build(folder: pathlib.Path, rows: np.ndarray) -> float:
    """Writes an int8 index of rows, with ids as a million files of DISC have them; gives the seconds."""
    from rdcd_jax.embedding.descriptors import Descriptors
    from rdcd_jax.index import store
    from rdcd_jax.index.manifest import Manifest
    from rdcd_jax.weights.library import load_model

    begun = time.perf_counter()
    dim = rows.shape[1]
    name = f"rdcd-effb0-{dim}" if NETWORKS[dim][0] == "student" else "onnxruntime"
    model = load_model(name)
    stored = getattr(model, "card", {}).get("calibration")
    new = Manifest(name, model.fingerprint, 224, dim, "int8", stored)
    with store.writer(folder, new) as writer:
        if len(writer.manifest):
            raise UserError(f"{folder} holds an index already; give another OUT.")
        for first in range(0, len(rows), _CHUNK):
            part = rows[first : first + _CHUNK]
            ids = np.asarray([f"R{first + i:06d}" for i in range(len(part))])
            writer.add(Descriptors(ids, part, name), ids.tolist())
    return time.perf_counter() - begun


def searched(folder: pathlib.Path, queries: pathlib.Path, images: str, pipe) -> None:
    """Searches an index in this process: for descriptors twice, then for images, as `rdcd-jax search` does."""
    from rdcd_jax.index import Index

    index, rows, seconds = Index(folder), np.load(queries), []
    for _ in range(2):
        begun = time.perf_counter()
        _, positions = index.nearest(rows, K)
        seconds.append(round(time.perf_counter() - begun, 2))
    stored = {"seconds, first and second": seconds, "peak memory, bytes": _peak()}
    if index.manifest.model in list_models():
        begun = time.perf_counter()
        index.search(images, k=K)
        stored["seconds of a search for pictures"] = round(time.perf_counter() - begun, 2)
        stored["peak memory with images, bytes"] = _peak()
    pipe.send((stored, positions))


def _peak() -> int:
    # Not getrusage's, which begins with what the parent had in memory.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def main() -> int:
    """Builds, searches, compares and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pool", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, choices=tuple(NETWORKS), default=128)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument(
        "--images", default="sample:queries", help="also searched for, by a student's index"
    )
    options = parser.parse_args()
    try:
        result = measured(
            options.pool, options.out, options.rows, options.dim, options.queries, options.images
        )
    except UserError as error:
        print(f"index_million: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=2))
    known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    write_json(RESULT, {**known, f"{options.rows} x {options.dim}": result})
    return 0


def measured(
    pool: pathlib.Path, out: pathlib.Path, n_rows: int, dim: int, n_queries: int, images: str
) -> dict:
    """All figures of one index."""
    from rdcd_jax.index.store import index_bytes
    from rdcd_jax.search.backends import knn, recall_against_exact
    from rdcd_jax.training.record import environment

    data, folder = read_rows(pool, n_rows, dim, n_queries), out / "index"
    seconds = build(folder, data.database)
    queries = out / "queries.npy"
    np.save(queries, data.queries)
    # A fresh process: this one has had all rows in memory.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=searched, args=(folder, queries, images, theirs))
    process.start()
    theirs.close()
    stored, found = ours.recv()
    process.join()
    exact, _ = knn(data.queries, data.database, K)
    # Of the rows that the index names, the scores that they have in float32.
    scores = np.vecdot(data.database[found], data.queries[:, None])
    n_bytes = index_bytes(folder)
    return {
        "rows": n_rows,
        "dimensions": dim,
        "real rows": data.real,
        "other rows": RULE if n_rows > data.real else None,
        "queries": len(data.queries),
        "bytes on disk": n_bytes,
        "bytes a descriptor": round(n_bytes / n_rows, 1),
        "build seconds": round(seconds, 1),
        **stored,
        "recall@1 against float32": recall_against_exact(scores[:, :1], exact[:, :1]),
        f"recall@{K} against float32": recall_against_exact(scores, exact),
        "cores": os.cpu_count(),
        "load after": round(os.getloadavg()[0], 2),
        "environment": environment(),
    }


if __name__ == "__main__":
    sys.exit(main())

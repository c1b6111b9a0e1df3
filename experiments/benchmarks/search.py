"""Times exact and approximate search of real descriptors, beside FAISS doing the same.

    python -m experiments.benchmarks.search_rows IMAGES POOL      (embeds views, once)
    python -m experiments.benchmarks.search POOL [--sizes 100000 1000000] [--dims 64 128 256 512]

Needs faiss-cpu (`pip install -e .[bench]`). For each number of rows and dimensions every method builds its index; then
each setting is run once, and those that none of the same method beats in both speed and recall take turns for the
other rounds. All use every core and all queries at once. Each cell goes to experiments/results/bench_search.json when
it is done, and the same command goes on with what is missing; the table (.md) and the plot (.png) beside it are drawn
anew each time. A cell of other queries or rounds is measured again; so is any with --again, as it should be after a
change of a method or its settings.
"""

import argparse
import functools
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from experiments.benchmarks import search_plot
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_json
from rdcd_jax.core.huge_pages import restart_with_huge_pages

ROOT = pathlib.Path(__file__).resolve().parents[2]

K = 10
# Which share of the leaves or lists is searched, in rising order.
SHARES = (0.0025, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.035, 0.045)
SHARES += (0.06, 0.07, 0.08, 0.1, 0.12, 0.17, 0.25, 0.35, 0.5)
# How many are scored exactly, as multiples of K.
REORDERED = (1.5, 3, 6)
EF_SEARCH = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# A wider search than one that finds so much would tell nothing, nor one beyond which no more is found.
ENOUGH, GAIN = 0.998, 0.0005
# From queries to the scores of what was found, best first.
Find = Callable[[np.ndarray], np.ndarray]
# A method: seconds to build, bytes of the index, and its settings with what runs each.
Built = tuple[float, int, Iterator[tuple[str, Find]]]


def jax_exact(rows: np.ndarray) -> Built:
    """The exact search of this project on JAX."""
    return _ours(rows, "jax")


def scann_exact(rows: np.ndarray) -> Built:
    """ScaNN's brute force, as this project calls it."""
    return _ours(rows, "scann")


def scann_hashed(rows: np.ndarray) -> Built:
    """ScaNN's tree, hashing and reordering, as this project calls it."""
    from rdcd_jax.search.backends import make_search
    from rdcd_jax.search.scann_backend import dims_per_block, scann_config_for

    begun = time.perf_counter()
    default = scann_config_for(len(rows), K)
    search = make_search(rows, K, "scann_ah", scann_config=default)
    seconds = time.perf_counter() - begun

    def settings():
        yield "default", lambda queries: search(queries)[0]
        for share in SHARES:
            for times in REORDERED:
                stored = default.searching(share, round(times * K))
                run = lambda queries, stored=stored: search(queries, scann_config=stored)[0]  # noqa: E731
                yield (
                    f"{stored.leaves_to_search} of {stored.leaves} leaves, reorder {stored.reorder}",
                    run,
                )

    # Its own file would hold the same: the rows, their codes twice, the centres.
    dim = rows.shape[1]
    n_bytes = rows.nbytes + len(rows) * (dim // dims_per_block(dim) + 8) + default.leaves * 4 * dim
    return seconds, n_bytes, settings()


def faiss_flat(rows: np.ndarray) -> Built:
    """FAISS's exact search."""
    index, seconds, n_bytes = _faiss(rows, "Flat")
    return seconds, n_bytes, iter([("exact", lambda queries: index.search(queries, K)[0])])


def faiss_hnsw(rows: np.ndarray) -> Built:
    """FAISS's graph, 32 links a row, efConstruction 100."""
    import faiss

    index, seconds, n_bytes = _faiss(rows, "HNSW32")

    def settings():
        for ef in EF_SEARCH:
            wide = faiss.SearchParametersHNSW(efSearch=ef)
            yield (
                f"efSearch {ef}",
                lambda queries, wide=wide: index.search(queries, K, params=wide)[0],
            )

    return seconds, n_bytes, settings()


def faiss_ivf(rows: np.ndarray, code: str, times: int = 2) -> Built:
    """FAISS's lists (`times` the root of the rows) with product quantisation and exact scores for the best."""
    import faiss

    lists = times * round(len(rows) ** 0.5)
    index, seconds, n_bytes = _faiss(rows, f"IVF{lists},{code},RFlat")

    def settings():
        for share in SHARES:
            for times in REORDERED:
                probes = max(1, round(share * lists))
                inner = faiss.SearchParametersIVF(nprobe=probes)
                stored = faiss.IndexRefineSearchParameters(k_factor=times, base_index_params=inner)
                run = functools.partial(_searched, index, stored, inner)
                yield f"{probes} of {lists} lists, refine {round(times * K)}", run

    return seconds, n_bytes, settings()


def _searched(index, parameters, _kept, queries: np.ndarray) -> np.ndarray:
    # FAISS holds no reference to the inner parameters.
    return index.search(queries, K, params=parameters)[0]


def methods(dim: int) -> dict[str, Callable[[np.ndarray], Built]]:
    """All methods by name; two bits a number in the fast scan, as ScaNN has, and in the usual codes."""
    return {
        "JAX exact": jax_exact,
        "FAISS Flat": faiss_flat,
        "ScaNN brute force": scann_exact,
        "ScaNN AH": scann_hashed,
        "FAISS HNSW": faiss_hnsw,
        "FAISS IVF-PQ fast scan": functools.partial(faiss_ivf, code=f"PQ{dim // 2}x4fs"),
        "FAISS IVF-PQ fast scan, twice the lists": functools.partial(
            faiss_ivf, code=f"PQ{dim // 2}x4fs", times=4
        ),
        "FAISS IVF-PQ": functools.partial(faiss_ivf, code=f"PQ{dim // 4}"),
    }


def _ours(rows: np.ndarray, backend: str) -> Built:
    from rdcd_jax.search.backends import make_search

    begun = time.perf_counter()
    search = make_search(rows, K, backend)
    seconds = time.perf_counter() - begun
    return seconds, rows.nbytes, iter([("exact", lambda queries: search(queries)[0])])


def _faiss(rows: np.ndarray, factory: str):
    import faiss

    begun = time.perf_counter()
    index = faiss.index_factory(rows.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    if factory.startswith("HNSW"):
        index.hnsw.efConstruction = 100
    index.train(rows)
    index.add(rows)
    seconds = time.perf_counter() - begun
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "index"
        faiss.write_index(index, str(path))
        return index, seconds, path.stat().st_size


def measured_cell(pool: pathlib.Path, n_rows: int, dim: int, n_queries: int, rounds: int) -> dict:
    """All figures for one number of rows and dimensions."""
    import faiss
    from search_rows import RULE, nearest_similarity, read_rows

    from rdcd_jax.search.backends import knn, recall_against_exact
    from rdcd_jax.training.record import environment

    load = os.getloadavg()[0]
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    data = read_rows(pool, n_rows, dim, n_queries)
    rows, queries = data.database, data.queries
    exact, _ = knn(queries, rows, K)
    found, runs = {}, {}
    for name, make in methods(dim).items():
        seconds, n_bytes, settings = make(rows)
        found[name] = {
            "build seconds": round(seconds, 2),
            "bytes a descriptor": round(n_bytes / n_rows, 1),
            "settings": {},
        }
        for setting, run in settings:
            # Once unmeasured, since some compile or start threads.
            run(queries[:64])
            _timed(run, queries)
            took, scores = _timed(run, queries)
            recalls = [recall_against_exact(scores[:, :k], exact[:, :k]) for k in (1, K)]
            found[name]["settings"][setting] = {
                "recall@1": recalls[0],
                f"recall@{K}": recalls[1],
                "times": [took],
            }
            runs[name, setting] = run
            if setting != "default" and _wide_enough(list(found[name]["settings"].values())):
                break
        print(f"{n_rows} x {dim}: {name} built in {seconds:.1f} s", flush=True)
    keep = [
        (name, setting)
        for name, each in found.items()
        for setting in search_plot.unbeaten(each["settings"], K, slack=1.1)
    ]
    for _ in range(rounds - 1):
        for name, setting in keep:
            found[name]["settings"][setting]["times"].append(
                _timed(runs[name, setting], queries)[0]
            )
    for each in found.values():
        for values in each["settings"].values():
            times = values.pop("times")
            values["queries a second"] = round(len(queries) / statistics.median(times), 1)
            values["rounds"] = len(times)
    drawn = min(n_rows, data.real)
    similarity = {"real rows": nearest_similarity(rows[: data.real], queries, drawn)}
    if n_rows > data.real:
        similarity["as many of all rows"] = nearest_similarity(rows, queries, drawn)
    return {
        "rows": n_rows,
        "dimensions": dim,
        "queries": len(queries),
        "real rows": data.real,
        "other rows": RULE if n_rows > data.real else None,
        "similarity of a query to its nearest row, quantiles 0.1, 0.25, 0.5, 0.75, 0.9": similarity,
        "load before": round(load, 2),
        "cores": os.cpu_count(),
        "faiss": faiss.__version__,
        "environment": environment(),
        "methods": found,
    }


def _wide_enough(tried: list[dict]) -> bool:
    """Whether the last setting finds enough, or the last of each `REORDERED` no more than those before them."""
    n, recalls = len(REORDERED), ("recall@1", f"recall@{K}")
    if tried[-1]["recall@1"] >= ENOUGH and tried[-1][f"recall@{K}"] >= 0.99:
        return True
    before, last = tried[-2 * n : -n], tried[-n:]
    return len(before) == n and all(
        new[name] - old[name] < GAIN
        for old, new in zip(before, last, strict=True)
        for name in recalls
    )


def _timed(run: Find, queries: np.ndarray) -> tuple[float, np.ndarray]:
    begun = time.perf_counter()
    scores = run(queries)
    return time.perf_counter() - begun, scores


def _ends_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _cell_process(pipe, *arguments) -> None:
    # A measurement that nobody waits for any more would disturb the next.
    threading.Thread(target=_ends_with_parent, daemon=True).start()
    try:
        pipe.send(measured_cell(*arguments))
    except UserError as error:
        pipe.send(str(error))


def main() -> int:
    """Measures the missing cells, each in a process of its own, and draws all."""
    restart_with_huge_pages()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pool", type=pathlib.Path)
    parser.add_argument("--sizes", type=int, nargs="*", default=(100_000, 1_000_000))
    parser.add_argument(
        "--dims", type=int, nargs="*", choices=(64, 128, 256, 512), default=(64, 128, 256, 512)
    )
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--again", action="store_true")
    parser.add_argument(
        "--out", type=pathlib.Path, default=ROOT / "experiments" / "results" / "bench_search.json"
    )
    options = parser.parse_args()
    cells = (
        json.loads(options.out.read_text(encoding="utf-8"))["cells"]
        if options.out.is_file()
        else {}
    )
    context = multiprocessing.get_context("spawn")
    for n_rows in options.sizes:
        for dim in options.dims:
            name, about = f"{n_rows} x {dim}", [options.queries, options.rounds]
            if name in cells and cells[name]["asked"] == about and not options.again:
                continue
            ours, theirs = context.Pipe()
            begun = time.perf_counter()
            arguments = (theirs, options.pool, n_rows, dim, *about)
            process = context.Process(target=_cell_process, args=arguments)
            process.start()
            # Ours alone, so that a process that is killed is noticed.
            theirs.close()
            try:
                stored = ours.recv()
            except EOFError:
                stored = f"{name}: the measuring process ended; is there memory enough?"
            process.join()
            if isinstance(stored, str):
                print(f"bench_search: {stored}", file=sys.stderr)
                return 1
            minutes = round((time.perf_counter() - begun) / 60, 1)
            cells[name] = {**stored, "asked": about, "minutes": minutes}
            cells = dict(
                sorted(cells.items(), key=lambda item: (item[1]["rows"], item[1]["dimensions"]))
            )
            write_json(options.out, {"cells": cells})
            print(f"{name}: {minutes} minutes", flush=True)
    if cells:
        search_plot.draw(cells, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

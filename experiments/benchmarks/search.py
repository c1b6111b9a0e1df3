"""Times exact and approximate search of real descriptors, beside FAISS, usearch and hnswlib doing the same.

    python -m experiments.benchmarks.search_rows IMAGES POOL      (embeds views, once)
    python -m experiments.benchmarks.search POOL [--sizes 100000 1000000] [--dims 64 128 256 512]

Needs faiss-cpu, usearch and hnswlib (`pip install -e .[bench]`). For each number of rows and dimensions every method
builds its index; each setting is run once, and those that none of the same method beats in both speed and recall take
turns for the other rounds, but for peers far behind the best. All use every core and all queries at once. Each cell
goes to experiments/results/bench_search.json when it is done, and the same command goes on with what is missing; the
table (.md) and the plot (.png) beside it are drawn anew each time. A cell of other queries or rounds is measured again;
so is any with --again, as it should be after a change of a method or its settings. --exact measures the exact methods
alone again, of cells that are there: minutes instead of half an hour.
"""

import argparse
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import pathlib
import platform
import re
import statistics
import sys
import threading
import time

import numpy as np

from experiments.benchmarks import search_plot
from experiments.benchmarks.search_methods import APPROXIMATE, EXACT, REORDERED, Built, Find, K
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_json
from rdcd_jax.core.huge_pages import restart_with_huge_pages
from rdcd_jax.core.processor import instructions

ROOT = pathlib.Path(__file__).resolve().parents[2]

# A wider search than one that finds so much would tell nothing, nor one beyond which no more is found.
ENOUGH, GAIN = 0.998, 0.0005
# Peers that are slower by this than the best are timed once, and leave memory to the others.
BEHIND = 2.0
OURS = "ScaNN AH"
PEERS = ("faiss-cpu", "usearch", "hnswlib")


class Contest:
    """Methods on one set of rows, and their figures so far."""

    def __init__(self, queries: np.ndarray, exact: np.ndarray, rounds: int) -> None:
        self.queries, self.exact, self.rounds = queries, exact, rounds
        self.found: dict[str, dict] = {}
        # What can still be run, by method and setting.
        self._runs: dict[str, dict[str, Find]] = {}

    def enter(self, name: str, built: Built, n_rows: int) -> None:
        """Times each setting of a method on so many rows once."""
        from rdcd_jax.search.backends import recall_against_exact

        seconds, n_bytes, settings = built
        tried: dict[str, dict] = {}
        self._runs[name] = {}
        for setting, run in settings:
            # Once unmeasured, since some compile or start threads.
            run(self.queries[:64])
            _timed(run, self.queries)
            took, scores = _timed(run, self.queries)
            recalls = [recall_against_exact(scores[:, :k], self.exact[:, :k]) for k in (1, K)]
            tried[setting] = {"recall@1": recalls[0], f"recall@{K}": recalls[1], "times": [took]}
            self._runs[name][setting] = run
            if setting != "default" and _wide_enough(list(tried.values())):
                break
        self.found[name] = {
            "build seconds": round(seconds, 2),
            "bytes a descriptor": round(n_bytes / n_rows, 1),
            "settings": tried,
        }

    def let_go(self, own: str) -> None:
        """Frees the indexes of peers that are far behind the best of them."""
        quickest = {
            name: min(
                (
                    min(values["times"])
                    for values in each["settings"].values()
                    if values["recall@1"] >= search_plot.TARGET
                ),
                default=float("inf"),
            )
            for name, each in self.found.items()
            if name != own
        }
        best = min(quickest.values(), default=float("inf"))
        for name, seconds in quickest.items():
            if seconds > BEHIND * best:
                self._runs.pop(name, None)

    def finish(self) -> dict[str, dict]:
        """Times what is still in the running in turns; gives all figures."""
        keep = [
            (self.found[name]["settings"][setting]["times"], runs[setting])
            for name, runs in self._runs.items()
            for setting in search_plot.unbeaten(self.found[name]["settings"], K, slack=1.1)
        ]
        for _ in range(self.rounds - 1):
            for times, run in keep:
                times.append(_timed(run, self.queries)[0])
        self._runs.clear()
        for each in self.found.values():
            for values in each["settings"].values():
                times = values.pop("times")
                values["queries a second"] = round(len(self.queries) / statistics.median(times), 1)
                values["rounds"] = len(times)
        return self.found


def measured_cell(
    pool: pathlib.Path, n_rows: int, dim: int, n_queries: int, rounds: int, only_exact: bool
) -> dict:
    """All figures for one number of rows and dimensions, or those of exact methods."""
    import faiss

    from experiments.benchmarks.search_rows import RULE, nearest_similarity, read_rows
    from rdcd_jax.search.backends import knn

    load = os.getloadavg()[0]
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    data = read_rows(pool, n_rows, dim, n_queries)
    rows, queries = data.database, data.queries
    exact, _ = knn(queries, rows, K)
    found: dict[str, dict] = {}
    for methods in (EXACT,) if only_exact else (EXACT, APPROXIMATE):
        contest = Contest(queries, exact, rounds)
        for name, make in methods.items():
            built = make(rows)
            contest.enter(name, built, n_rows)
            del built
            if methods is APPROXIMATE:
                contest.let_go(own=OURS)
            seconds = contest.found[name]["build seconds"]
            print(f"{n_rows} x {dim}: {name} built in {seconds:.1f} s", flush=True)
        found |= contest.finish()
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
        **_circumstances(load),
        "methods": found,
    }


def _circumstances(load: float) -> dict:
    """Where and with what a cell was measured."""
    from rdcd_jax.training.record import environment

    return {
        "load before": round(load, 2),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "blas kernels": os.environ.get("OPENBLAS_CORETYPE"),
        "peers": {name: importlib.metadata.version(name) for name in PEERS},
        "environment": environment(),
    }


def with_exact(cell: dict, measured: dict) -> dict:
    """A cell whose exact methods were measured again, and in what circumstances."""
    apart = {name: measured[name] for name in ("load before", "processor", "peers", "environment")}
    return {**cell, "methods": cell["methods"] | measured["methods"], "exact methods": apart}


def _processor() -> str:
    found = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.processor()


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


def _in_own_process(*arguments) -> dict:
    """A cell's figures, measured in a process that ends with it.

    Raises:
        UserError: that process could not measure it, or was killed.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_cell_process, args=(theirs, *arguments))
    process.start()
    # Ours alone, so that a process that is killed is noticed.
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        found = "the measuring process ended; is there memory enough?"
    process.join()
    if isinstance(found, str):
        raise UserError(found)
    return found


def choose_blas_kernels() -> None:
    """Has processes that start from now on multiply by the widest kernels of OpenBLAS that the CPU can run.

    That in FAISS's wheel does not know every CPU; on one that it does not know it takes those of 2004, at a fifth of
    the speed.
    """
    for instruction, kernels in (("avx512f", "SkylakeX"), ("avx2", "Haswell")):
        if instruction in instructions():
            os.environ.setdefault("OPENBLAS_CORETYPE", kernels)


def main() -> int:
    """Measures the missing cells, each in a process of its own, and draws all."""
    restart_with_huge_pages()
    choose_blas_kernels()
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
    parser.add_argument("--exact", action="store_true")
    parser.add_argument(
        "--out", type=pathlib.Path, default=ROOT / "experiments" / "results" / "bench_search.json"
    )
    options = parser.parse_args()
    cells = (
        json.loads(options.out.read_text(encoding="utf-8"))["cells"]
        if options.out.is_file()
        else {}
    )
    for n_rows, dim in itertools.product(options.sizes, options.dims):
        name, about = f"{n_rows} x {dim}", [options.queries, options.rounds]
        done = name in cells and cells[name]["asked"] == about
        if options.exact and not done:
            print(f"{name}: not measured yet by these queries and rounds, so left out", flush=True)
        if done != options.exact and not (done and options.again):
            continue
        begun = time.perf_counter()
        try:
            found = _in_own_process(options.pool, n_rows, dim, *about, options.exact)
        except UserError as error:
            print(f"bench_search: {name}: {error}", file=sys.stderr)
            return 1
        minutes = round((time.perf_counter() - begun) / 60, 1)
        if options.exact:
            cells[name] = with_exact(cells[name], found)
        else:
            cells[name] = {**found, "asked": about, "minutes": minutes}
        cells = dict(
            sorted(cells.items(), key=lambda item: (item[1]["rows"], item[1]["dimensions"]))
        )
        summary = [search_plot.summary(cell) for cell in cells.values()]
        write_json(options.out, {"cells": cells, "summary": summary})
        print(f"{name}: {minutes} minutes", flush=True)
    if cells:
        search_plot.draw(cells, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

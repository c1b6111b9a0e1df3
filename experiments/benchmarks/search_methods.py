"""The methods that `experiments.benchmarks.search` compares: this project's, and its peers'.

Each takes rows [M, D] float32 of unit length and all cores, and is given settings from narrow to wide.
"""

import functools
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

K = 10
# Which share of the leaves or lists is searched, in rising order.
SHARES = (0.0025, 0.004, 0.005, 0.006, 0.0075, 0.009, 0.01, 0.0125, 0.015, 0.02, 0.025)
SHARES += (0.03, 0.035, 0.045)
SHARES += (0.06, 0.07, 0.08, 0.1, 0.12, 0.17, 0.25, 0.35, 0.5)
# How many are scored exactly, as multiples of K.
REORDERED = (1.5, 2, 3, 6)
# How many rows a graph's search holds open.
WIDTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# Links of a row in a graph (twice as many in its lowest layer), and how many rows are looked at to choose them.
LINKS, LOOKED_AT = 32, 100
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
    """FAISS's graph."""
    import faiss

    index, seconds, n_bytes = _faiss(rows, f"HNSW{LINKS}")

    def settings():
        for ef in WIDTHS:
            wide = faiss.SearchParametersHNSW(efSearch=ef)
            yield (
                f"efSearch {ef}",
                lambda queries, wide=wide: index.search(queries, K, params=wide)[0],
            )

    return seconds, n_bytes, settings()


def faiss_ivf(rows: np.ndarray, times: int) -> Built:
    """FAISS's lists (`times` the root of the rows) with quantised rows, two bits a number as ScaNN has, scanned by its
    fast scan, and exact scores for the best."""
    import faiss

    lists = times * round(len(rows) ** 0.5)
    index, seconds, n_bytes = _faiss(rows, f"IVF{lists},PQ{rows.shape[1] // 2}x4fs,RFlat")

    def settings():
        for share in SHARES:
            for times in REORDERED:
                probes = max(1, round(share * lists))
                inner = faiss.SearchParametersIVF(nprobe=probes)
                stored = faiss.IndexRefineSearchParameters(k_factor=times, base_index_params=inner)
                run = functools.partial(_searched, index, stored, inner)
                yield f"{probes} of {lists} lists, refine {round(times * K)}", run

    return seconds, n_bytes, settings()


def usearch_graph(rows: np.ndarray) -> Built:
    """usearch's graph over float32 rows."""
    from usearch.index import Index

    begun = time.perf_counter()
    index = Index(
        ndim=rows.shape[1],
        metric="ip",
        dtype="f32",
        connectivity=LINKS,
        expansion_add=LOOKED_AT,
    )
    index.add(np.arange(len(rows)), rows)
    seconds = time.perf_counter() - begun

    def search(queries: np.ndarray, width: int) -> np.ndarray:
        index.expansion_search = width
        # It calls 1 - <q, x> a distance.
        return 1 - index.search(queries, K).distances

    return seconds, index.memory_usage, _graph_settings(search)


def hnswlib_graph(rows: np.ndarray) -> Built:
    """hnswlib's graph."""
    import hnswlib

    begun = time.perf_counter()
    index = hnswlib.Index(space="ip", dim=rows.shape[1])
    index.init_index(max_elements=len(rows), M=LINKS, ef_construction=LOOKED_AT)
    index.add_items(rows)
    seconds = time.perf_counter() - begun

    def search(queries: np.ndarray, width: int) -> np.ndarray:
        index.set_ef(width)
        return 1 - index.knn_query(queries, k=K)[1]

    return seconds, index.index_file_size(), _graph_settings(search)


def _graph_settings(search: Callable[[np.ndarray, int], np.ndarray]):
    for width in WIDTHS:
        yield f"width {width}", functools.partial(search, width=width)


def _searched(index, parameters, _kept, queries: np.ndarray) -> np.ndarray:
    # FAISS holds no reference to the inner parameters.
    return index.search(queries, K, params=parameters)[0]


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
        index.hnsw.efConstruction = LOOKED_AT
    index.train(rows)
    index.add(rows)
    seconds = time.perf_counter() - begun
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "index"
        faiss.write_index(index, str(path))
        return index, seconds, path.stat().st_size


EXACT = {"JAX exact": jax_exact, "FAISS Flat": faiss_flat, "ScaNN brute force": scann_exact}
APPROXIMATE = {
    "ScaNN AH": scann_hashed,
    "FAISS HNSW": faiss_hnsw,
    "usearch": usearch_graph,
    "hnswlib": hnswlib_graph,
    "FAISS IVF-PQ fast scan, lists as the root": functools.partial(faiss_ivf, times=1),
    "FAISS IVF-PQ fast scan, twice the lists": functools.partial(faiss_ivf, times=2),
    "FAISS IVF-PQ fast scan, four times the lists": functools.partial(faiss_ivf, times=4),
}

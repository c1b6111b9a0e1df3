"""An approximate search kept beside an index: ScaNN names candidates, which are then scored exactly.

DIR/ann/ann.json        which segments it was built of, what it found of the nearest rows
DIR/ann/...             ScaNN's own files
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable

import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import remove_folder, write_folder_aside, write_json
from rdcd_jax.index.manifest import Manifest
from rdcd_jax.search import backends
from rdcd_jax.search.scann_backend import LEAST_ROWS, load_scann, save_scann, scann_config_for

FOLDER, MANIFEST = "ann", "ann.json"
# Candidates of each query that are scored exactly.
CANDIDATES = 200
# Rows of the index that stand for queries where the recall is measured, each with so much noise (of length) on it.
_ASKED, _NOISE, _K = 500, 0.3, 10


@dataclasses.dataclass(frozen=True)
class Ann:
    """What was built.

    Attributes:
        segments: of the index that it was built of.
        recall: the share of the ten nearest rows that it finds, 0 to 1.
    """

    segments: tuple[tuple[int, int], ...]
    recall: float


def build_ann(folder: pathlib.Path, manifest: Manifest, rows: np.ndarray) -> Ann:
    """Builds it anew; what was there is replaced when it is whole.

    Args:
        folder: of the index.
        manifest: of the index.
        rows: [N, D] float32, all of its descriptors.

    Raises:
        UserError: there are too few, ScaNN is not installed, or see `require_place`.
    """
    require_place(folder)
    if len(rows) < LEAST_ROWS:
        raise UserError(
            f"{folder} holds {len(rows)} descriptors; an approximate search needs {LEAST_ROWS} at least."
        )
    candidates = min(CANDIDATES, len(rows))
    old = folder / FOLDER
    with write_folder_aside(old) as aside:
        save_scann(rows, candidates, scann_config_for(len(rows), candidates), aside)
        built = Ann(manifest.segments, _recall(load_scann(aside), rows))
        write_json(aside / MANIFEST, dataclasses.asdict(built))
        if old.exists():
            remove_folder(old)
    return built


def require_place(folder: pathlib.Path) -> None:
    """Refuses an index beside which `ann` is something else, such as a folder of photographs.

    Args:
        folder: of the index, which need not be there yet.

    Raises:
        UserError: it is.
    """
    there = folder / FOLDER
    if os.path.lexists(there) and not (there / MANIFEST).is_file():
        raise UserError(
            f"{there} is there already and is no approximate search; move it elsewhere, or give the index a folder of"
            " its own."
        )


def read_ann(folder: pathlib.Path) -> Ann | None:
    """What was built beside an index; None where nothing was.

    Raises:
        UserError: it is damaged.
    """
    path = folder / FOLDER / MANIFEST
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        segments = tuple((int(number), int(rows)) for number, rows in stored["segments"])
        return Ann(segments, float(stored["recall"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}); build it again (index build --ann)."
        ) from error


def nearest_by(
    find: Callable[[np.ndarray], np.ndarray],
    rows_at: Callable[[np.ndarray], np.ndarray],
    queries: np.ndarray,
    k: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The best of the candidates by exact scores.

    Args:
        find: what `load_scann` gave.
        rows_at: gives descriptors [n, D] float32 at positions [n].
        queries: [Q, D] float32.
        k: neighbours of each.

    Returns:
        scores [Q, k] float32, descending, and positions [Q, k] int64; minus infinity where there are fewer candidates.
    """
    scores = np.full((len(queries), k), -np.inf, np.float32)
    positions = np.zeros((len(queries), k), np.int64)
    for number, (query, found) in enumerate(zip(queries, find(queries), strict=True)):
        # ScaNN has a row twice where it lies in two leaves.
        candidates = np.unique(found[found >= 0])
        exact = (rows_at(candidates).astype(np.float64) @ query).astype(np.float32)
        best = np.lexsort((candidates, -exact))[:k]
        scores[number, : len(best)], positions[number, : len(best)] = exact[best], candidates[best]
    return scores, positions


def _recall(find: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> float:
    random = np.random.default_rng(0)
    asked = rows[random.choice(len(rows), min(_ASKED, len(rows)), replace=False)]
    noise = random.standard_normal(asked.shape).astype(np.float32)
    queries = asked + _NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    k = min(_K, len(rows))
    exact, _ = backends.knn(queries, rows, k)
    found, _ = nearest_by(find, rows.__getitem__, queries, k)
    return round(backends.recall_against_exact(found, exact), 4)

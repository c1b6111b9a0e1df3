"""The descriptors of an index, searched exactly."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rdcd_jax.core import hosts
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.mesh import make_mesh
from rdcd_jax.index import ann
from rdcd_jax.index.manifest import Manifest
from rdcd_jax.index.places import BYTES, HEIGHT, WIDTH, whole_path
from rdcd_jax.index.segments import Segment, read_segment
from rdcd_jax.search import backends, exact, sharded
from rdcd_jax.search.scann_backend import load_scann

EXACT, ANN = "exact", "ann"
ENGINES = (EXACT, ANN)
# From more bytes of float32 on, descriptors stay on the disk, and some thousands are in memory at a time.
MOST_BYTES = 2**30
# Queries of a first search that are not worth preparing for a second one.
_FEW = 4
# Descriptors that are then searched at a time: every thread's share of the heap keeps room for as many.
BLOCK = 16_384


class Known(NamedTuple):
    """What an index knows of an image; None where it does not."""

    id: str
    path: str
    width: int | None
    height: int | None
    bytes: int | None


@dataclasses.dataclass
class _Opened:
    """What was made of the segments that one manifest names.

    Threads may search while one of them sees that the index has changed: what each keeps is of its own manifest. Where
    two prepare the same at once it is done twice.
    """

    named: tuple[tuple[int, int], ...]
    segments: list[Segment]
    memory: np.ndarray | None = None
    search: tuple[int, Callable] | None = None
    candidates: Callable | None = None
    spread: list[sharded.Slab] | None = None


class Rows:
    """Descriptors of an index's segments; those that fit stay in memory, and on the devices, from a search to the next.

    Args:
        folder: of the index.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._last = _Opened((), [])

    def _opened(self, manifest: Manifest) -> _Opened:
        opened = self._last
        if opened.named != manifest.segments:
            found = [read_segment(self._folder, manifest, i) for i in range(len(manifest.segments))]
            self._last = opened = _Opened(manifest.segments, found)
        return opened

    def segments(self, manifest: Manifest) -> list[Segment]:
        """The segments that a manifest names, opened once."""
        return self._opened(manifest).segments

    def whole(self, manifest: Manifest) -> np.ndarray:
        """All descriptors [M, D] float32, parts' included."""
        rows = np.empty((manifest.rows, manifest.dim), np.float32)
        first = 0
        for segment in self.segments(manifest):
            segment.copy_to(rows[first : first + len(segment.rows)])
            first += len(segment.rows)
        return rows

    def nearest(
        self, manifest: Manifest, queries: np.ndarray, k: int, engine: str = EXACT
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Index.nearest`, of an index that is not empty.

        Raises:
            UserError: the approximate engine is asked for, and was not built of this very index.
        """
        k, each = min(k, len(manifest)), manifest.per_image
        found = self.nearest_rows(manifest, queries, k, engine)
        return found if each == 1 else _best_of_each(*found, each, k)

    def nearest_rows(
        self, manifest: Manifest, queries: np.ndarray, k: int, engine: str = EXACT
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and positions of the nearest rows, an image's parts among them: of so many that k images are.

        An image has `manifest.per_image` rows that follow each other; the first is its own.

        Raises:
            UserError: as `nearest`.
        """
        k = min(k, len(manifest)) * manifest.per_image
        if engine == ANN:
            return self._approximate(manifest, queries, k)
        if hosts.count() > 1:
            return self._over_all(manifest, queries, k)
        opened = self._opened(manifest)
        if 4 * manifest.rows * manifest.dim > MOST_BYTES:
            return _streamed(opened.segments, queries, k)
        if (rows := opened.memory) is None:
            rows = opened.memory = self.whole(manifest)
            if len(queries) <= _FEW:
                # Who searches once is answered before descriptors could be brought to the devices.
                return backends.knn(queries, rows, k, "numpy")
        search = opened.search
        if search is None or search[0] != k:
            search = opened.search = k, backends.make_search(rows, k)
        return search[1](queries)

    def _over_all(
        self, manifest: Manifest, queries: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of several processes each keeps part of the rows on its devices, as they are stored."""
        hosts.require_same("The index", lambda: [manifest.segments, list(queries.shape), k])
        mesh, wanted = make_mesh(), min(k + exact.MARGIN, manifest.rows)
        by_maxima = sharded.selects_by_maxima(manifest.rows, wanted, mesh)
        opened = self._opened(manifest)
        if (slabs := opened.spread) is None:
            database = _stored_rows(manifest, opened.segments)
            slabs = opened.spread = list(sharded.make_slabs(database, mesh, by_maxima))
        queries = hosts.from_first(np.asarray(queries, np.float32))
        _, found = sharded.nearest_rows(queries, slabs, wanted, mesh, by_maxima=by_maxima)
        return self._scored_again(manifest, lambda _: found, queries, k)

    def _approximate(
        self, manifest: Manifest, queries: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        self.require_ann(manifest, k // manifest.per_image)
        opened = self._opened(manifest)
        if (find := opened.candidates) is None:
            find = opened.candidates = load_scann(self._folder / ann.FOLDER)
        return self._scored_again(manifest, find, queries, k)

    def _scored_again(
        self, manifest: Manifest, find: Callable, queries: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `ann.nearest_by`, by the rows on the disk."""
        return ann.nearest_by(find, lambda positions: self._at(manifest, positions), queries, k)

    def require_ann(self, manifest: Manifest, k: int) -> None:
        """Refuses an approximate search that was not built of this very index, or gives fewer images than `k`."""
        built = ann.read_ann(self._folder)
        if built is None or built.segments != manifest.segments:
            what = "was never built" if built is None else "was built before the index changed"
            raise UserError(
                f"{self._folder}: its approximate search {what}; run `rdcd-jax index ann {self._folder}`, or search"
                " exactly."
            )
        most = ann.CANDIDATES // manifest.per_image
        if k > most:
            raise UserError(f"k is {k}; the approximate search gives {most} images at most.")

    def _at(self, manifest: Manifest, positions: np.ndarray) -> np.ndarray:
        """Descriptors [n, D] float32 at some positions among all, which alone are read."""
        found, first = np.empty((len(positions), manifest.dim), np.float32), 0
        for segment in self.segments(manifest):
            inside = (first <= positions) & (positions < first + len(segment.rows))
            if inside.any():
                found[inside] = segment.descriptors(positions[inside] - first)
            first += len(segment.rows)
        return found

    def known(self, manifest: Manifest, positions: Sequence[int]) -> dict[int, Known]:
        """What the index knows of images, by their positions; of no other segments than theirs names are read."""
        wanted, found, first = np.unique(np.asarray(positions, np.int64)), {}, 0
        for segment in self.segments(manifest):
            inside = wanted[(first <= wanted) & (wanted < first + len(segment))] - first
            if inside.size:
                files = segment.files[inside][:, [WIDTH, HEIGHT, BYTES]].tolist()
                for row, numbers in zip(inside.tolist(), files, strict=True):
                    path = whole_path(segment.paths[row], manifest.root)
                    known = (each or None for each in numbers)
                    found[row + first] = Known(segment.ids[row], path, *known)
            first += len(segment)
        return found


def _best_of_each(
    scores: np.ndarray, rows: np.ndarray, per_image: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first k images, each at the row that comes first.

    Args:
        scores: [Q, R] descending; minus infinity where there is nothing.
        rows: [Q, R] positions of rows, of which an image has `per_image` that follow each other.
        per_image: see `Manifest.per_image`.
        k: images.
    """
    best = np.full((len(scores), k), -np.inf, np.float32)
    positions = np.zeros((len(scores), k), np.int64)
    for query, (own, images) in enumerate(zip(scores, rows // per_image, strict=True)):
        _, first = np.unique(images[own > -np.inf], return_index=True)
        first = np.sort(first)[:k]
        best[query, : len(first)], positions[query, : len(first)] = own[first], images[first]
    return best, positions


def _stored_rows(manifest: Manifest, segments: Sequence[Segment]) -> sharded.StoredRows:
    """The rows of an index as they lie on the disk."""

    def reader(read_part: Callable[[Segment, slice], np.ndarray]) -> Callable:
        def read(start: int, stop: int) -> np.ndarray:
            found, first = [], 0
            for segment in segments:
                inside = slice(max(0, start - first), max(0, stop - first))
                found.append(read_part(segment, inside))
                first += len(segment.rows)
            return np.concatenate(found)

        return read

    scaled = any(segment.scales is not None for segment in segments)
    return sharded.StoredRows(
        manifest.rows,
        manifest.dim,
        reader(Segment.levels),
        reader(lambda segment, part: segment.scales[part]) if scaled else None,
    )


def _streamed(
    segments: Sequence[Segment], queries: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Searches some thousands of rows at a time."""
    scores = np.empty((len(queries), 0), np.float32)
    positions = np.empty((len(queries), 0), np.int64)
    first = 0
    for segment in segments:
        for start in range(0, len(segment.rows), BLOCK):
            block = segment.descriptors(slice(start, start + BLOCK))
            found, rows = backends.knn(queries, block, min(k, len(block)))
            scores, positions = np.hstack([scores, found]), np.hstack([positions, rows + first])
            order = np.lexsort((positions, -scores), axis=1)[:, :k]
            scores, positions = (np.take_along_axis(x, order, 1) for x in (scores, positions))
            first += len(block)
    return scores, positions

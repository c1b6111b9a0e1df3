"""An index in memory's reach: pictures in, the most similar pictures of the index out."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from rdcd_jax.data.sources import ImageSet, find_images
from rdcd_jax.errors import UserError
from rdcd_jax.evaluation import search
from rdcd_jax.evaluation.calibration import Calibration, read_calibration
from rdcd_jax.evaluation.descriptors import Descriptors
from rdcd_jax.evaluation.embed import Describer, Unreadable, described_parts
from rdcd_jax.index import store

# Descriptors that are searched at a time: every thread's share of the heap keeps room for as many.
_BLOCK = 16_384
# Queries that are described at a time: of more the network would need more memory than the search.
_QUERIES = 16
# Of matches that are told where no threshold is given.
PRECISION = 0.9
# Pictures that are described and put into the index at a time: what a build that is killed has to do again.
CHUNK = 4096
# What may be done to a query before it is described, as well as nothing, by name.
VARIANTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "flip": lambda x: x[:, :, ::-1],
    "rotate90": lambda x: np.rot90(x, 1, (1, 2)),
    "rotate180": lambda x: np.rot90(x, 2, (1, 2)),
    "rotate270": lambda x: np.rot90(x, 3, (1, 2)),
}
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Match:
    """A picture of the index that resembles a query.

    Attributes:
        query: the query's id.
        reference: the id of the picture in the index.
        score: inner product of their descriptors, 1 at most.
        precision: estimated probability that the one is a copy of the other; None without a calibration.
        variant: what was done to the query to find it, a key of `VARIANTS`; empty for nothing.
    """

    query: str
    reference: str
    score: float
    precision: float | None = None
    variant: str = ""


class Index:
    """A persistent index of pictures.

        index, _, _ = Index.build("my.index", "PICTURES", model="rdcd-effb0-128")
        for match in index.search("SUSPECTS")[0]:
            print(match.query, match.reference, match.score)

    Args:
        folder: of an index that is there; `build` makes one.

    Raises:
        UserError: there is none, or it is damaged.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(folder)
        self.manifest = store.read_manifest(self.folder)

    @classmethod
    def build(
        cls,
        folder: str | os.PathLike,
        images: str | os.PathLike | ImageSet,
        *,
        model: str,
        dtype: str = "float32",
        image_size: int | None = None,
        calibration: Calibration | None = None,
        on_progress: Progress | None = None,
    ) -> tuple["Index", int, list[Unreadable]]:
        """Makes an index of pictures; the same call goes on with one that was ended.

        Args:
            folder: of the index.
            images: a source of pictures.
            model: see `load_describer`.
            dtype: of the descriptors on disk: float32, float16 or int8.
            image_size: side that pictures are resized to; the model's own for None.
            calibration: what a score means; for None the model's own, if it has one, and an index that is there keeps
                its own.
            on_progress: told pictures done and in all.

        Returns:
            The index, how many pictures were added, and those that cannot be read.

        Raises:
            UserError: for pictures or a model that cannot be read; there is an index of another model or dtype.
        """
        if dtype not in store.DTYPES:
            raise UserError(f"There is no dtype '{dtype}'; use one of {', '.join(store.DTYPES)}.")
        from rdcd_jax.weights.library import absolute_spec, load_describer

        describer = load_describer(model).at_size(image_size)
        meaning = calibration or calibration_of(describer)
        new = store.Manifest(
            model=absolute_spec(model),
            fingerprint=describer.fingerprint,
            image_size=describer.image_size,
            dim=describer.dim,
            dtype=dtype,
            calibration=meaning and dataclasses.asdict(meaning),
        )
        folder = pathlib.Path(folder)
        images = images if isinstance(images, ImageSet) else find_images(images)
        with store.writer(folder, new) as writer:
            there = writer.manifest
            for name in ("model", "image_size", "dim", "dtype"):
                ours, theirs = getattr(new, name), getattr(there, name)
                if ours != theirs:
                    raise UserError(
                        f"{folder} is an index with {name} {theirs}, and this would have {ours}; give another folder."
                    )
            _require_same_model(folder, there, describer)
            if calibration is not None and new.calibration != there.calibration:
                writer.calibrate(new.calibration)
        index = cls(folder)
        index._describer = describer
        return index, *index.add(images, on_progress=on_progress)

    def __len__(self) -> int:
        return len(self.manifest)

    @functools.cached_property
    def _describer(self):
        from rdcd_jax.weights.library import load_describer

        found = load_describer(self.manifest.model).at_size(self.manifest.image_size)
        _require_same_model(self.folder, self.manifest, found)
        return found

    def add(
        self, images: str | os.PathLike | ImageSet, *, on_progress: Progress | None = None
    ) -> tuple[int, list[Unreadable]]:
        """Adds pictures whose ids are not in the index yet; what is done stays if this is ended.

        Args:
            images: a source of pictures.
            on_progress: told pictures done and in all.

        Returns:
            How many were added, and those that cannot be read.
        """
        images = images if isinstance(images, ImageSet) else find_images(images)
        added, unreadable = 0, []
        with store.writer(self.folder) as writer:
            _require_same_model(self.folder, writer.manifest, self._describer)
            there = writer.ids()
            places = [place for place, name in enumerate(images.ids) if name not in there]
            for start in range(0, len(places), CHUNK):
                (part,) = described_parts(
                    self._describer,
                    images.subset(places[start : start + CHUNK]),
                    on_progress=lambda done, _, start=start: _told(
                        on_progress, start + done, len(places)
                    ),
                )
                if part.found is not None:
                    writer.add(part.found)
                    self.manifest = writer.manifest
                    added += len(part.found)
                unreadable += part.unreadable
        return added, unreadable

    def remove(self, ids: Sequence[str]) -> int:
        """Removes pictures by id; gives how many of them there were."""
        with store.writer(self.folder) as writer:
            removed = writer.remove(ids)
            self.manifest = writer.manifest
        return removed

    def search(
        self,
        images: str | os.PathLike | ImageSet,
        *,
        k: int = 10,
        threshold: float | None = None,
        variants: Sequence[str] = (),
        on_progress: Progress | None = None,
    ) -> tuple[list[Match], list[Unreadable]]:
        """Finds the pictures of the index that resemble each query most.

        Args:
            images: the queries, a source of pictures.
            k: pictures for each query; all where the index has fewer.
            threshold: least score; for None that of 90 % precision, see `threshold`, or none where the index has no
                calibration.
            variants: also looks for queries changed so, keys of `VARIANTS`; of the same pair the best score counts.
            on_progress: told pictures done and in all.

        Returns:
            The matches, query by query, best first; and the queries that cannot be read.

        Raises:
            UserError: the index is empty or damaged, k is below 1, or a variant is unknown.
        """
        self.manifest = store.read_manifest(self.folder)
        if not len(self):
            raise UserError(f"{self.folder} is empty; add pictures by `rdcd-jax index add`.")
        if k < 1:
            raise UserError(f"k is {k}; ask for at least 1 picture.")
        for name in variants:
            if name not in VARIANTS:
                raise UserError(f"There is no variant '{name}'; use {', '.join(VARIANTS)}.")
        if threshold is None:
            threshold = self.threshold(variants=variants)
        images = images if isinstance(images, ImageSet) else find_images(images)
        found, unreadable = self._described(images, variants, on_progress)
        if found is None:
            return [], unreadable
        matches = store.consistently(
            self.folder, lambda manifest: self._matches(manifest, found, variants, k, threshold)
        )
        return _ranked(images.ids, matches, k), unreadable

    def _described(
        self, images: ImageSet, variants: Sequence[str], on_progress: Progress | None
    ) -> tuple[Descriptors | None, list[Unreadable]]:
        """Descriptors [N, V * D] of queries as they are and of their variants; None where not one can be read."""
        model = self._describer
        changes = [lambda x: x, *(VARIANTS[name] for name in variants)]

        def describe(pictures: np.ndarray) -> np.ndarray:
            # One at a time: together they would need more memory.
            changed = (np.ascontiguousarray(change(pictures)) for change in changes)
            return np.hstack([model.describe(each) for each in changed])

        (part,) = described_parts(
            Describer(describe, model.image_size, name=model.name),
            images,
            batch_size=_QUERIES,
            on_progress=on_progress,
        )
        return part.found, part.unreadable

    def _matches(
        self,
        manifest: store.Manifest,
        found: Descriptors,
        variants: Sequence[str],
        k: int,
        threshold: float | None,
    ) -> list[Match]:
        """The matches of all queries in no order; of a query and a picture the variant that scores best."""
        # Another index may lie there by now.
        _require_same_model(self.folder, manifest, self._describer)
        self.manifest = manifest
        # Score and variant by query and place.
        best: dict[tuple[str, int], tuple[float, str]] = {}
        rows = np.split(found.descriptors, 1 + len(variants), axis=1)
        for name, queries in zip(("", *variants), rows, strict=True):
            scores, places = self._nearest(manifest, queries, k)
            for query, row, others in zip(found.ids.tolist(), scores, places, strict=True):
                for score, place in zip(row.tolist(), others.tolist(), strict=True):
                    if threshold is not None and score < threshold:
                        break
                    if (query, place) not in best or best[query, place][0] < score:
                        best[query, place] = score, name
        ids = self._ids_of(manifest, [place for _, place in best])
        precisions = [None] * len(best)
        if self.calibration is not None:
            scores = np.asarray([score for score, _ in best.values()])
            precisions = self.calibration.precision(scores, self._compared(variants)).tolist()
        return [
            Match(query, ids[place], score, precision, name)
            for ((query, place), (score, name)), precision in zip(
                best.items(), precisions, strict=True
            )
        ]

    @property
    def calibration(self) -> Calibration | None:
        """What a score means, if that was measured."""
        told = self.manifest.calibration
        return None if told is None else read_calibration(told)

    def threshold(self, precision: float = PRECISION, variants: Sequence[str] = ()) -> float | None:
        """The least score at which matches are right with that probability, see `Calibration.threshold`.

        Args:
            precision: 0 to 1.
            variants: what each query is also searched for as; each is another chance for a likeness.

        Returns:
            None where the index has no calibration.
        """
        return self.calibration and self.calibration.threshold(precision, self._compared(variants))

    def _compared(self, variants: Sequence[str]) -> int:
        """With how many pictures a query is compared, for the calibration."""
        # Among few pictures of one's own copies are rarer than among a benchmark's.
        return max(len(self) * (1 + len(variants)), self.calibration.references)

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Exact search among the descriptors as they are stored, some thousands in memory at a time.

        Args:
            queries: [N, D] float32.
            k: neighbours of each; all where there are fewer.

        Returns:
            scores [N, k] float32, descending, and places in the index [N, k] int64.
        """
        return store.consistently(self.folder, lambda manifest: self._nearest(manifest, queries, k))

    def _nearest(
        self, manifest: store.Manifest, queries: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        scores = np.empty((len(queries), 0), np.float32)
        places = np.empty((len(queries), 0), np.int64)
        first = 0
        for segment in self._segments(manifest):
            for start in range(0, len(segment), _BLOCK):
                block = segment.descriptors(slice(start, start + _BLOCK))
                found, rows = search.knn(queries, block, min(k, len(block)))
                scores, places = np.hstack([scores, found]), np.hstack([places, rows + first])
                order = np.lexsort((places, -scores), axis=1)[:, :k]
                scores, places = (np.take_along_axis(x, order, 1) for x in (scores, places))
                first += len(block)
        return scores, places

    def _segments(self, manifest: store.Manifest):
        for place in range(len(manifest.segments)):
            yield store.read_segment(self.folder, manifest, place)

    def _ids_of(self, manifest: store.Manifest, places: Sequence[int]) -> dict[int, str]:
        """Ids by place, a segment's in memory at a time."""
        wanted, ids, first = np.unique(np.asarray(places, np.int64)), {}, 0
        for segment in self._segments(manifest):
            inside = wanted[(first <= wanted) & (wanted < first + len(segment))]
            ids |= {place: segment.ids[place - first] for place in inside.tolist()}
            first += len(segment)
        return ids


def _require_same_model(folder: pathlib.Path, manifest: store.Manifest, describer) -> None:
    if describer.image_size != manifest.image_size:
        raise UserError(
            f"{folder} has become an index of pictures of {manifest.image_size} pixels, not {describer.image_size};"
            " open it anew."
        )
    if describer.fingerprint != manifest.fingerprint:
        raise UserError(
            f"{folder} was made by other weights of {manifest.model} than those that are there now, whose descriptors"
            " cannot be compared with its own; bring the old ones back, or build another index."
        )


def calibration_of(model) -> Calibration | None:
    """The calibration in a model's card, if it has one."""
    told = getattr(model, "card", {}).get("calibration")
    return told and read_calibration(told)


def _told(on_progress: Progress | None, done: int, total: int) -> None:
    if on_progress is not None:
        on_progress(done, total)


def _ranked(queries: Sequence[str], matches: Sequence[Match], k: int) -> list[Match]:
    """Query by query in their order, best first, at most k of each."""
    of: dict[str, list[Match]] = {query: [] for query in queries}
    for match in matches:
        of[match.query].append(match)
    return [
        match
        for query in queries
        for match in sorted(of[query], key=lambda match: (-match.score, match.reference))[:k]
    ]

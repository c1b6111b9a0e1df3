"""An index in memory's reach: images in, the most similar images of the index out."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.stream import Unreadable, embedded_parts, has_fingerprint
from rdcd_jax.images.sources import ImageSet, find_images
from rdcd_jax.index import store
from rdcd_jax.index.queries import Looks, embed_queries
from rdcd_jax.search import backends
from rdcd_jax.search.background import BACKGROUND, read_background
from rdcd_jax.search.scoring import Scoring, scoring_of

# Descriptors that are searched at a time: every thread's share of the heap keeps room for as many.
_BLOCK = 16_384
# Of matches that are reported where no threshold is given.
PRECISION = 0.9
# It changes queries with borders alone, and costs the others nothing.
DEFAULT_VARIANTS = ("trim",)
# Images that are embedded and put into the index at a time: what a build that is killed has to do again.
CHUNK = 4096
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Match:
    """An image of the index that resembles a query.

    Attributes:
        query: the query's id.
        reference: the id of the image in the index.
        score: their similarity, less how near the query is to the model's background where the index normalises scores.
        similarity: inner product of their descriptors, 1 at most.
        probability: estimated, that the one is a copy of the other; None without a calibration.
        variant: what was done to the query to find it, a key of `variants.VARIANTS`; empty for nothing.
    """

    query: str
    reference: str
    score: float
    similarity: float
    probability: float | None = None
    variant: str = ""


class Index:
    """A persistent index of images.

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
        calibration: Mapping | None = None,
        normalised: bool = True,
        on_progress: Progress | None = None,
    ) -> tuple["Index", int, list[Unreadable]]:
        """Makes an index of images; the same call goes on with one that was ended.

        Args:
            folder: of the index.
            images: a source of images.
            model: see `load_embedder`.
            dtype: of the descriptors on disk: float32, float16 or int8.
            image_size: side that images are resized to; the model's own for None.
            calibration: what a score means, see `calibration.read_calibration`; for None the model's own, if it has
                one, and an index that is there keeps its own.
            normalised: normalises scores by the model's background, if it has one.
            on_progress: called with images done and in all.

        Returns:
            The index, how many images were added, and those that cannot be read.

        Raises:
            UserError: for images or a model that cannot be read; there is an index of another model or dtype.
        """
        if dtype not in store.DTYPES:
            raise UserError(f"There is no dtype '{dtype}'; use one of {', '.join(store.DTYPES)}.")
        from rdcd_jax.weights.library import absolute_spec, load_embedder_of

        folder = pathlib.Path(folder)
        there = store.read_manifest(folder) if (folder / store.MANIFEST).exists() else None
        embedder = load_embedder_of(model, there and there.fingerprint).at_size(image_size)
        if there is not None and there.normalised and not normalised:
            raise UserError(
                f"{folder} is an index whose scores are normalised; search it with --score-norm=none, or give another"
                " folder."
            )
        background = getattr(embedder, "background", None) if normalised else None
        meaning = calibration or getattr(embedder, "card", {}).get("calibration")
        scoring = scoring_of(background, meaning)  # refuses what is none
        if calibration and background is not None and scoring.calibration is None:
            raise UserError(
                "The calibration given knows nothing of normalised scores; give the calibration.json of `rdcd-jax"
                " evaluate disc --model=...`, or build the index with --score-norm=none."
            )
        new = store.Manifest(
            model=absolute_spec(model),
            fingerprint=embedder.fingerprint,
            image_size=embedder.image_size,
            dim=embedder.dim,
            dtype=dtype,
            calibration=meaning and dict(meaning),
            normalised=background is not None,
        )
        images = images if isinstance(images, ImageSet) else find_images(images)
        with store.writer(folder, new, background) as writer:
            there = writer.manifest
            for name in ("model", "image_size", "dim", "dtype"):
                ours, theirs = getattr(new, name), getattr(there, name)
                if ours != theirs:
                    raise UserError(
                        f"{folder} is an index with {name} {theirs}, and this would have {ours}; give another folder."
                    )
            _require_same_model(folder, there, embedder)
            if calibration is not None and new.calibration != there.calibration:
                writer.calibrate(new.calibration)
        index = cls(folder)
        index._embedder = embedder
        return index, *index.add(images, on_progress=on_progress)

    def __len__(self) -> int:
        return len(self.manifest)

    @functools.cached_property
    def _embedder(self):
        from rdcd_jax.weights.library import load_embedder_of

        manifest = self.manifest
        found = load_embedder_of(manifest.model, manifest.fingerprint).at_size(manifest.image_size)
        _require_same_model(self.folder, self.manifest, found)
        return found

    def add(
        self, images: str | os.PathLike | ImageSet, *, on_progress: Progress | None = None
    ) -> tuple[int, list[Unreadable]]:
        """Adds images whose ids are not in the index yet; what is done stays if this is ended.

        Args:
            images: a source of images.
            on_progress: called with images done and in all.

        Returns:
            How many were added, and those that cannot be read.
        """
        images = images if isinstance(images, ImageSet) else find_images(images)
        added, unreadable = 0, []
        with store.writer(self.folder) as writer:
            _require_same_model(self.folder, writer.manifest, self._embedder)
            there = writer.ids()
            positions = [position for position, name in enumerate(images.ids) if name not in there]
            for start in range(0, len(positions), CHUNK):
                (part,) = embedded_parts(
                    self._embedder,
                    images.subset(positions[start : start + CHUNK]),
                    on_progress=lambda done, _, start=start: _report(
                        on_progress, start + done, len(positions)
                    ),
                )
                if part.found is not None:
                    writer.add(part.found)
                    self.manifest = writer.manifest
                    added += len(part.found)
                unreadable += part.unreadable
        return added, unreadable

    def remove(self, ids: Sequence[str]) -> int:
        """Removes images by id; gives how many of them there were."""
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
        variants: Sequence[str] = DEFAULT_VARIANTS,
        normalised: bool = True,
        on_progress: Progress | None = None,
    ) -> tuple[list[Match], list[Unreadable]]:
        """Finds the images of the index that resemble each query most.

        Args:
            images: the queries, a source of images.
            k: images for each query; all where the index has fewer.
            threshold: least score; for None that of 90 % precision, see `threshold`, or none where the index has no
                calibration.
            normalised: False for similarities as they are, where the index normalises scores.
            variants: also looks for queries changed so, keys of `variants.VARIANTS`; of the same pair the best score
                counts. By default `trim`: queries with borders, such as screenshots, without them as well.
            on_progress: called with images done and in all.

        Returns:
            The matches, query by query, best first; and the queries that cannot be read.

        Raises:
            UserError: the index is empty or damaged, k is below 1, or a variant is unknown.
        """
        self.manifest = store.read_manifest(self.folder)
        if not len(self):
            raise UserError(f"{self.folder} is empty; add images by `rdcd-jax index add`.")
        if k < 1:
            raise UserError(f"k is {k}; ask for at least 1 image.")
        scoring = self.scoring(normalised)
        images = images if isinstance(images, ImageSet) else find_images(images)
        looks = embed_queries(self._embedder, images, variants, on_progress=on_progress)
        if not len(looks.query):
            return [], looks.unreadable
        matches = store.consistently(
            self.folder,
            lambda manifest: self._matches(manifest, looks, images.ids, k, threshold, scoring),
        )
        return _ranked(images.ids, matches, k), looks.unreadable

    def _matches(
        self,
        manifest: store.Manifest,
        looks: Looks,
        names: Sequence[str],
        k: int,
        threshold: float | None,
        scoring: Scoring,
    ) -> list[Match]:
        """The matches of all queries in no order; of a query and an image the variant that scores best."""
        # Another index may lie there by now.
        _require_same_model(self.folder, manifest, self._embedder)
        self.manifest = manifest
        similarities, positions = self._nearest(manifest, looks.descriptors, k)
        scores = scoring.scores(similarities, scoring.adjustment(looks.descriptors)[:, None])
        # Each look is another chance for a likeness.
        compared = len(manifest) * looks.count
        if threshold is None:
            least = {n: scoring.threshold(PRECISION, n) for n in set(compared.tolist())}
            floor = np.asarray([least[n] for n in compared.tolist()], float)
        else:
            floor = np.full(len(compared), threshold)
        # Without a calibration the floor is NaN, and nothing lies below it.
        row, column = np.nonzero(~(scores < floor[:, None]))
        query, position = looks.query[row], positions[row, column]
        order = np.lexsort((-scores[row, column], position, query))
        pair = np.stack([query, position])[:, order]
        first = np.r_[True, (pair[:, 1:] != pair[:, :-1]).any(axis=0)][: len(order)]
        row, column = row[order[first]], column[order[first]]
        ids = self._ids_of(manifest, positions[row, column])
        found = zip(
            looks.query[row].tolist(),
            positions[row, column].tolist(),
            scores[row, column].tolist(),
            similarities[row, column].tolist(),
            scoring.probability(scores[row, column], compared[row]),
            row.tolist(),
            strict=True,
        )
        return [
            Match(names[query], ids[position], score, similarity, probability, looks.variant[i])
            for query, position, score, similarity, probability, i in found
        ]

    def scoring(self, normalised: bool = True) -> Scoring:
        """How similarities become scores here.

        Args:
            normalised: False for similarities as they are, where the index normalises scores.

        Raises:
            UserError: the index's background is damaged.
        """
        background = None
        if normalised and self.manifest.normalised:
            path = self.folder / BACKGROUND
            background = read_background(path, self.manifest.dim)
        return scoring_of(background, self.manifest.calibration)

    def threshold(self, precision: float = PRECISION, looks: int = 1) -> float | None:
        """The score from which on that share of matches are copies, see `Calibration.threshold`.

        Args:
            precision: 0 to 1.
            looks: in how many ways each query is looked at; each is another chance for a likeness.

        Returns:
            None where the index has no calibration.
        """
        return self.scoring().threshold(precision, len(self) * looks)

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Exact search among the descriptors as they are stored, some thousands in memory at a time.

        Args:
            queries: [N, D] float32.
            k: neighbours of each; all where there are fewer.

        Returns:
            scores [N, k] float32, descending, and positions in the index [N, k] int64.
        """
        return store.consistently(self.folder, lambda manifest: self._nearest(manifest, queries, k))

    def _nearest(
        self, manifest: store.Manifest, queries: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        scores = np.empty((len(queries), 0), np.float32)
        positions = np.empty((len(queries), 0), np.int64)
        first = 0
        for segment in self._segments(manifest):
            for start in range(0, len(segment), _BLOCK):
                block = segment.descriptors(slice(start, start + _BLOCK))
                found, rows = backends.knn(queries, block, min(k, len(block)))
                scores, positions = np.hstack([scores, found]), np.hstack([positions, rows + first])
                order = np.lexsort((positions, -scores), axis=1)[:, :k]
                scores, positions = (np.take_along_axis(x, order, 1) for x in (scores, positions))
                first += len(block)
        return scores, positions

    def _segments(self, manifest: store.Manifest):
        for position in range(len(manifest.segments)):
            yield store.read_segment(self.folder, manifest, position)

    def _ids_of(self, manifest: store.Manifest, positions: Sequence[int]) -> dict[int, str]:
        """Ids by position, a segment's in memory at a time."""
        wanted, ids, first = np.unique(np.asarray(positions, np.int64)), {}, 0
        for segment in self._segments(manifest):
            inside = wanted[(first <= wanted) & (wanted < first + len(segment))]
            ids |= {position: segment.ids[position - first] for position in inside.tolist()}
            first += len(segment)
        return ids


def _require_same_model(folder: pathlib.Path, manifest: store.Manifest, embedder) -> None:
    if embedder.image_size != manifest.image_size:
        raise UserError(
            f"{folder} has become an index of images of {manifest.image_size} pixels, not {embedder.image_size};"
            " open it anew."
        )
    if not has_fingerprint(embedder, manifest.fingerprint):
        raise UserError(
            f"{folder} was made by other weights of {manifest.model} than those that are there now, whose descriptors"
            " cannot be compared with its own; bring the old ones back, or build another index."
        )


def _report(on_progress: Progress | None, done: int, total: int) -> None:
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

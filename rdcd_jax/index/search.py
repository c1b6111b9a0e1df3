"""A persistent index: images in, the most similar images of the index out."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.descriptors import require_usable
from rdcd_jax.images.given import Images, images_of
from rdcd_jax.index import store
from rdcd_jax.index.ann import build_ann
from rdcd_jax.index.changes import Changes, find_changes, require_paths
from rdcd_jax.index.made_by import (
    embedder_for,
    embedder_of,
    manifest_of,
    normalises,
    require_like,
    require_same_engine,
    require_same_model,
)
from rdcd_jax.index.manifest import BINARY, DTYPES, Manifest, binding_manifest, read_manifest
from rdcd_jax.index.matching import PRECISION, Asked, matches_of
from rdcd_jax.index.places import COLUMNS, root_of, whole_path
from rdcd_jax.index.queries import Looks, embed_queries
from rdcd_jax.index.results import Added, Match, Matches, Updated
from rdcd_jax.index.rows import ANN, ENGINES, Rows
from rdcd_jax.index.segments import Names, Segment
from rdcd_jax.index.writing import Progress, add_images, listed, moved, update_images
from rdcd_jax.search import bits
from rdcd_jax.search.background import BACKGROUND, read_background
from rdcd_jax.search.scoring import Scoring, scoring_of
from rdcd_jax.weights.engines import AUTO
from rdcd_jax.weights.model import Model
from rdcd_jax.weights.onnx_model import OnnxModel

# It changes queries with borders alone, and costs the others nothing.
DEFAULT_VARIANTS = ("trim",)
# How far a descriptor's length may be from 1: those that were stored as int8 or float16 are not quite of it.
_LENGTH = 0.02


class Index:
    """A persistent index of images.

    Attributes:
        folder: where it lies.
        manifest: what it is and holds, as it was last read.
        added: what the build, or the last addition, came to; None of an index that was opened.

    Args:
        folder: of an index that is there; `build` makes one.
        model: a model that `load_model` gave, or what it takes, where the index's own lies elsewhere by now; its
            weights must be those that made the index.

    Raises:
        UserError: there is none, or it is damaged.

    Examples:
        >>> import importlib.resources, tempfile
        >>> import rdcd_jax as rdcd
        >>> sample = importlib.resources.files("rdcd_jax") / "sample" / "references"
        >>> paths = sorted(str(path) for path in sample.iterdir())[:4]
        >>> folder = tempfile.mkdtemp()
        >>> index = rdcd.Index.build(folder, paths, model="rdcd-effb0-64")
        >>> len(index)
        4
        >>> [match.path == paths[2] for match in rdcd.Index.open(folder).search(paths[2], k=1)]
        [True]
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        model: str | os.PathLike | Model | OnnxModel | None = None,
    ):
        self.folder = pathlib.Path(folder)
        self.manifest = read_manifest(self.folder)
        self._given = os.fspath(model) if isinstance(model, os.PathLike) else model
        self._rows = Rows(self.folder)
        self.added: Added | None = None

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike,
        *,
        model: str | os.PathLike | Model | OnnxModel | None = None,
    ) -> "Index":
        """Opens an index that is there; see the class.

        Raises:
            UserError: there is none, or it is damaged.
        """
        return cls(folder, model=model)

    @classmethod
    def build(
        cls,
        folder: str | os.PathLike,
        images: Images,
        *,
        model: str | os.PathLike | Model | OnnxModel,
        dtype: str = "float32",
        image_size: int | None = None,
        calibration: Mapping | None = None,
        normalised: bool = True,
        parts: bool = False,
        engine: str = AUTO,
        on_progress: Progress | None = None,
    ) -> "Index":
        """Makes an index of images; the same call goes on with one that was ended.

        Args:
            folder: of the index.
            images: see `given.images_of`.
            model: a model that `load_model` gave, or what it takes.
            dtype: of the descriptors on disk: float32, float16, int8, or binary, the signs alone.
            image_size: side that images are resized to, in pixels; the model's own for None.
            calibration: what a score means, see `calibration.read_calibration`; for None the model's own, if it has
                one, and an index that is there keeps its own.
            normalised: normalises scores by the model's background, if it has one.
            parts: also embeds five parts of every image, so that queries which show a part are found; an index of six
                times the size, made in six times as long.
            engine: what computes the descriptors: "jax", "onnxruntime-int8" or "auto", see `engines.load_by`.
            on_progress: called with images done and in all.

        Returns:
            The index; its `added` says what was left out.

        Raises:
            UserError: for images or a model that cannot be read, or a model at a short edge; there is an index of
                another model or dtype, or one with parts where this has none.
        """
        if dtype not in DTYPES:
            raise UserError(f"There is no dtype '{dtype}'; use one of {', '.join(DTYPES)}.")
        folder = pathlib.Path(folder)
        there = binding_manifest(folder)
        embedder = embedder_for(model, there, engine).at_size(image_size)
        if embedder.short_edge:
            raise UserError(
                f"The model {embedder.name} is set to embed at a short edge, which an index does not; give it as"
                f" model.at_size({embedder.image_size})."
            )
        normalised = normalises(folder, there, normalised)
        background = getattr(embedder, "background", None) if normalised else None
        new = manifest_of(embedder, dtype, calibration, background)
        # Listed once, and before anything is written.
        images = images_of(images)
        new = dataclasses.replace(
            new, root=root_of(images), parts=bool(parts), by_path=images.by_path
        )
        with store.writer(folder, new, background) as writer:
            require_like(folder, writer.manifest, new)
            require_same_model(folder, writer.manifest, embedder)
            writer.change(model=new.model)
            if calibration is not None and new.calibration != writer.manifest.calibration:
                writer.change(calibration=new.calibration)
        index = cls(folder)
        index.embedder = embedder
        index.add(images, on_progress=on_progress)
        return index

    def __len__(self) -> int:
        return len(self.manifest)

    @functools.cached_property
    def embedder(self) -> Model | OnnxModel:
        """The model that made it, loaded when it is first needed."""
        found = embedder_of(self.folder, self.manifest, self._given)
        require_same_model(self.folder, self.manifest, found)
        return found

    def add(self, images: Images, *, on_progress: Progress | None = None) -> Added:
        """Adds images that are not in the index yet; what is done stays if this is ended.

        An image is known by where it lies; one in memory by its content, and it is called by the next number: `#3`.
        Images of other folders that have the names of some that are there get ids that tell them apart. What has
        changed since it was added stays as it is; `update` embeds it anew.

        Args:
            images: see `given.images_of`.
            on_progress: called with images done and in all.

        Returns:
            How many were added, were there already, or have changed since; and the images that were left out.

        Raises:
            UserError: for images or a model that cannot be read.
        """
        found = images_of(images).seen()
        with self._writer() as writer:
            self.added = add_images(writer, self.embedder, found, on_progress)
        return self.added

    def changes(self, images: Images | None = None) -> Changes:
        """What `update` would do.

        Args:
            images: as of `update`.

        Returns:
            What is new, changed and gone; nothing is embedded or written.

        Raises:
            UserError: as `update`.
        """

        def compared(manifest: Manifest) -> Changes:
            segments = self._rows.segments(manifest)
            require_paths(self.folder, segments)
            return find_changes(listed(self.folder, manifest, images), segments, manifest.root)

        return store.consistently(self.folder, compared)

    def update(
        self, images: Images | None = None, *, on_progress: Progress | None = None
    ) -> Updated:
        """Adds images that are new, embeds those anew whose files have changed, and drops those that are gone.

        What is done stays if this is ended; the same call goes on. Images in a folder that cannot be opened now stay.

        Args:
            images: all that the index is to hold, see `given.images_of`; for None what it was built from.
            on_progress: called with images done and in all.

        Returns:
            How many were added, embedded anew, removed or left as they are; and the images that were left out.

        Raises:
            UserError: for images or a model that cannot be read, an index that keeps no paths or sources.
        """
        with self._writer() as writer:
            found = listed(self.folder, writer.manifest, images)
            updated = update_images(writer, self.embedder, found, on_progress)
            if images is not None:
                writer.change(sources=found.sources)
        return updated

    def move(self, root: str | os.PathLike) -> None:
        """Says where the folder lies now that the index's images were below when it was built.

        Args:
            root: the folder; paths below the former one are taken from it.

        Raises:
            UserError: the index has no such folder, or there is none at `root`.
        """
        with self._writer() as writer:
            writer.change(**moved(writer, root))

    @contextlib.contextmanager
    def _writer(self) -> Iterator[store.Writer]:
        with store.writer(self.folder) as writer:
            require_same_model(self.folder, writer.manifest, self.embedder)
            require_same_engine(self.folder, writer.manifest, self.embedder)
            if self._given is not None and self.embedder.spec:
                writer.change(model=self.embedder.spec)
            try:
                yield writer
            finally:
                # Of what was done before an error, too.
                self.manifest = writer.manifest

    def remove(self, ids: str | Sequence[str]) -> int:
        """Removes images; their files stay.

        Args:
            ids: of the images, or one; those that the index has not are passed over.

        Returns:
            How many were removed.

        Raises:
            UserError: another process is changing the index, or it is damaged.
        """
        with store.writer(self.folder) as writer:
            removed = writer.remove([ids] if isinstance(ids, str) else ids)
            self.manifest = writer.manifest
        return removed

    def search(
        self,
        images: Images,
        *,
        k: int = 10,
        threshold: float | None = None,
        variants: Sequence[str] = DEFAULT_VARIANTS,
        normalised: bool = True,
        engine: str = "exact",
        on_progress: Progress | None = None,
    ) -> Matches:
        """Finds the images of the index that resemble each query most.

        Args:
            images: the queries, see `given.images_of`.
            k: images for each query; all where the index has fewer.
            threshold: least score; for None that of 90 % precision, see `threshold`, or none where the index has no
                calibration.
            variants: also looks for queries changed so, keys of `variants.VARIANTS`; of the same pair the best score
                counts. By default `trim`: queries with borders, such as screenshots, without them as well.
            normalised: False for similarities as they are, where the index normalises scores.
            engine: "exact", or "ann", what `build_ann` built: ScaNN names candidates, whose scores are exact.
            on_progress: called with images done and in all.

        Returns:
            At most k matches of each query, query by query, the best first; and the queries that could not be read.

        Raises:
            UserError: the index is empty or damaged, k is below 1, the threshold no score, a variant or an engine
                unknown; `build_ann` did not run since the index changed.
        """
        asked = Asked(k, threshold, normalised, engine)
        self._require_images(asked)
        images = images_of(images).seen()
        looks = embed_queries(self.embedder, images, variants, on_progress=on_progress)
        found = self._found(looks, images.ids, asked)
        return dataclasses.replace(found, images=images)

    def search_descriptors(
        self,
        descriptors: np.ndarray,
        *,
        k: int = 10,
        threshold: float | None = None,
        normalised: bool = True,
        engine: str = "exact",
    ) -> Matches:
        """Finds the images of the index whose descriptors are nearest to those given.

        Args:
            descriptors: [N, D] float32 of unit length, by the index's model; their positions are the queries' ids.
            k: as of `search`.
            threshold: as of `search`.
            normalised: as of `search`.
            engine: as of `search`.

        Returns:
            As `search`.

        Raises:
            UserError: descriptors of another size or length, or with NaN; otherwise as `search`.
        """
        asked = Asked(k, threshold, normalised, engine)
        self._require_images(asked)
        rows = np.asarray(descriptors, np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.manifest.dim:
            raise UserError(
                f"Descriptors of shape {list(rows.shape)} cannot be compared with those of {self.folder}; give"
                f" [N, {self.manifest.dim}]."
            )
        names = [str(position) for position in range(len(rows))]
        require_usable(names, rows, "The descriptors given")
        lengths = np.linalg.norm(rows, axis=1)
        if (other := np.flatnonzero(abs(lengths - 1) > _LENGTH)).size:
            raise UserError(
                f"Descriptor {other[0]} has length {lengths[other[0]]:.3g}; give descriptors of length 1, as the model"
                " makes them."
            )
        looks = Looks(np.arange(len(rows)), ("",) * len(rows), rows, [])
        return self._found(looks, names, asked)

    def build_ann(self) -> float:
        """Builds an approximate search beside the index, for `engine="ann"`; to be built again when the index changed.

        Returns:
            The share of the ten nearest descriptors that it finds, measured on descriptors of the index with noise.

        Raises:
            UserError: the index has too few images, or ScaNN is not installed.
        """
        with store.writer(self.folder) as writer:
            return build_ann(self.folder, writer.manifest, self._rows.whole(writer.manifest)).recall

    def _require_images(self, asked: Asked) -> None:
        if not isinstance(asked.k, int | np.integer) or asked.k < 1:
            raise UserError(f"k is {asked.k}; ask for at least 1 image.")
        if asked.engine not in ENGINES:
            raise UserError(
                f"There is no engine '{asked.engine}'; use one of {', '.join(ENGINES)}."
            )
        # Somebody may have changed it since.
        self.manifest = read_manifest(self.folder)
        if not len(self):
            raise UserError(f"{self.folder} is empty; add images to it first.")
        if asked.engine == ANN:
            self._rows.require_ann(self.manifest, min(asked.k, len(self)))

    def _found(self, looks: Looks, names: Sequence[str], asked: Asked) -> Matches:
        left_out = {each.id for each in looks.unreadable}
        readable = [name for name in names if name not in left_out]
        if not len(looks.query):
            return Matches([], readable, looks.unreadable)

        def matched(manifest: Manifest) -> list[Match]:
            # Another index may lie there by now.
            require_same_model(self.folder, manifest, self.embedder)
            self.manifest = manifest
            scoring = self.scoring(asked.normalised)
            compared = _comparable(manifest, looks.descriptors)
            seen = dataclasses.replace(looks, descriptors=compared)
            return matches_of(self._rows, manifest, scoring, seen, names, asked)

        matches = store.consistently(self.folder, matched)
        return Matches(matches, readable, looks.unreadable)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all images."""
        return store.consistently(
            self.folder,
            lambda manifest: tuple(
                name for segment in self._rows.segments(manifest) for name in segment.ids
            ),
        )

    def contents(self) -> Segment:
        """All images and descriptors as one segment, with whole paths; descriptors are in memory, as float32, and those
        of parts are left out."""

        def read(manifest: Manifest) -> Segment:
            self.manifest = manifest
            found = self._rows.segments(manifest)
            files = [np.empty((0, COLUMNS), np.int64), *(each.files for each in found)]
            names = Names(
                tuple(name for each in found for name in each.ids),
                tuple(whole_path(path, manifest.root) for each in found for path in each.paths),
                np.concatenate(files),
            )
            own = self._rows.whole(manifest)[:: manifest.per_image]
            return Segment(own, None, lambda: names)

        return store.consistently(self.folder, read)

    def scoring(self, normalised: bool = True) -> Scoring:
        """How similarities become scores here.

        Args:
            normalised: False for similarities as they are, where the index normalises scores.

        Raises:
            UserError: the index's background is damaged.
        """
        if normalised and self.manifest.normalised:
            return scoring_of(self._background, self.manifest.calibration)
        # Other images come nearer to bits than to what was calibrated; a background of bits sees to that.
        is_binary = self.manifest.dtype == BINARY
        return scoring_of(None, None if is_binary else self.manifest.calibration)

    @functools.cached_property
    def _background(self) -> np.ndarray:
        # It is written once, with the index.
        background = read_background(self.folder / BACKGROUND, self.manifest.dim)
        return self.as_stored(background)

    def as_stored(self, descriptors: np.ndarray) -> np.ndarray:
        """Descriptors [N, D] float32 as they would come back from this index, where that changes what is near them:
        of bits their signs at unit length."""
        return bits.rounded(descriptors) if self.manifest.dtype == BINARY else descriptors

    def threshold(self, precision: float = PRECISION, *, normalised: bool = True) -> float | None:
        """The score from which on that share of matches are copies, see `Calibration.threshold`.

        Args:
            precision: 0 to 1.
            normalised: as of `scoring`.

        Returns:
            None where the index has no calibration of such scores.
        """
        return self.scoring(normalised).threshold(precision, len(self))

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Exact search among the descriptors as they are stored; see `rows.Rows`.

        Args:
            queries: [N, D] float32.
            k: neighbours of each; all where there are fewer.

        Returns:
            scores [N, k] float32, descending, and positions in the index [N, k] int64.

        Raises:
            UserError: the index is empty, or k is below 1.
        """
        self._require_images(Asked(k))
        return store.consistently(
            self.folder,
            lambda manifest: self._rows.nearest(manifest, _comparable(manifest, queries), k),
        )


def _comparable(manifest: Manifest, queries: np.ndarray) -> np.ndarray:
    """Queries [N, D] whose inner product with descriptors as the index holds them is the similarity."""
    queries = np.asarray(queries, np.float32)
    return bits.compared_with_bits(queries) if manifest.dtype == BINARY else queries

"""Copies within one set of images."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import scipy.sparse
from scipy.sparse import csgraph

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import cache_folder, write_csv, write_json
from rdcd_jax.embedding.descriptors import read_descriptors
from rdcd_jax.embedding.parts import ROWS
from rdcd_jax.embedding.service import embed_to_file
from rdcd_jax.embedding.stream import Part, Unreadable, embed_images
from rdcd_jax.images.decode import size_of
from rdcd_jax.images.given import Images, images_of
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.index.results import require_savable
from rdcd_jax.index.search import PRECISION, Progress
from rdcd_jax.report.gallery import Figure, Section, at, size_line, write_gallery
from rdcd_jax.search import backends
from rdcd_jax.search.scoring import Scoring, scoring_of
from rdcd_jax.weights.library import load_model
from rdcd_jax.weights.model import Model
from rdcd_jax.weights.onnx_model import OnnxModel

CSV_COLUMNS = ("group", "id", "path", "width", "height", "score")
# Neighbours looked at of each image; copies of copies join a group through one another.
NEIGHBOURS = 20
# Of an image with more, no further ones are looked at than four times as many as this.
_MOST = 400


@dataclasses.dataclass(frozen=True)
class Group:
    """Images that are copies of each other, each of at least one other.

    Attributes:
        ids: two or more, in the set's order.
        paths: where they lie.
        score: the least score that holds the group together.
        descriptors: [n, D] float32, theirs.
        scoring: how two descriptors become a score.
    """

    ids: tuple[str, ...]
    paths: tuple[str, ...]
    score: float
    descriptors: np.ndarray = dataclasses.field(repr=False, compare=False)
    scoring: Scoring = dataclasses.field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def scores(self) -> np.ndarray:
        """[n, n] float32: the score of every two of them."""
        half = self.scoring.adjustment(self.descriptors) / 2
        similarities = self.descriptors @ self.descriptors.T
        return self.scoring.scores(similarities, half[:, None] + half)

    @property
    def sizes(self) -> list[tuple[int, int] | None]:
        """Width and height in pixels of each as its file says; None of what is no file."""
        return [size_of(path) for path in self.paths]


@dataclasses.dataclass(frozen=True)
class Groups(Sequence[Group]):
    """The groups of copies in a set, the surest first.

    Attributes:
        groups: all of them.
        images: how many images were compared.
        unreadable: images that were left out.
    """

    groups: list[Group]
    images: int
    unreadable: list[Unreadable]

    def __len__(self) -> int:
        return len(self.groups)

    @overload
    def __getitem__(self, position: int) -> Group: ...
    @overload
    def __getitem__(self, position: slice) -> list[Group]: ...
    def __getitem__(self, position: int | slice) -> Group | list[Group]:
        return self.groups[position]

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def save(self, path: str | os.PathLike) -> None:
        """Writes all groups: a .json file, a .csv file with a row for each image, or a page (.html) with the images.

        Raises:
            UserError: a file of another kind.
        """
        require_savable(path)
        suffix = pathlib.Path(path).suffix.lower()
        if suffix == ".html":
            copies = sum(len(group.ids) for group in self.groups)
            summary = f"{copies} of {self.images} images are in {len(self.groups)} groups of copies, the surest first."
            sections = [_shown(number, group) for number, group in enumerate(self.groups, 1)]
            write_gallery(path, "Duplicates", summary, sections)
        elif suffix == ".json":
            keys = ("ids", "paths", "sizes", "score")
            write_json(
                pathlib.Path(path), [{key: getattr(g, key) for key in keys} for g in self.groups]
            )
        else:
            rows = (
                (number, name, where, *(size or (None, None)), group.score)
                for number, group in enumerate(self.groups, 1)
                for name, where, size in zip(group.ids, group.paths, group.sizes, strict=True)
            )
            write_csv(pathlib.Path(path), CSV_COLUMNS, rows)


def find_duplicates(
    images: Images,
    *,
    model: str | Model | OnnxModel = "rdcd-effb0-128",
    threshold: float | None = None,
    normalised: bool = True,
    on_progress: Progress | None = None,
) -> Groups:
    """Groups the copies in a set.

    Args:
        images: a source, or images; see `given.images_of`.
        model: a model that `load_model` gave, or what it takes.
        threshold: least score of two copies; the model's own at 90 % precision for None.
        normalised: takes off a pair's similarity how near the two are to the model's background, where it has one.
        on_progress: called with images done and in all.

    Raises:
        UserError: for images or a model that cannot be read, or a model without a calibration where no threshold is
            given.

    Examples:
        >>> import importlib.resources
        >>> from PIL import Image
        >>> import rdcd_jax as rdcd
        >>> sample = importlib.resources.files("rdcd_jax") / "sample" / "references"
        >>> first, second = (Image.open(path) for path in sorted(sample.iterdir())[:2])
        >>> groups = rdcd.find_duplicates([first, second, first.resize((100, 80))])
        >>> [group.ids for group in groups]
        [('#0', '#2')]
    """
    embedder = load_model(model) if isinstance(model, str) else model
    images = images_of(images).seen()
    background = getattr(embedder, "background", None) if normalised else None
    scoring = scoring_of(background, getattr(embedder, "card", {}).get("calibration"))
    if threshold is None:
        threshold = scoring.threshold(PRECISION, len(images))
    if threshold is None:
        raise UserError(
            f"The model {embedder.name} has no calibration to choose a threshold by; give a threshold, such as 0.7."
        )
    found, unreadable = _embedded(embedder, images, on_progress)
    path_of = dict(zip(images.ids, images.paths, strict=True))
    paths = [path_of[name] for name in found.ids.tolist()]
    groups = groups_of(found.ids.tolist(), paths, found.descriptors, threshold, scoring)
    return Groups(groups, len(images), unreadable)


def _embedded(embedder: Model | OnnxModel, images: ImageSet, on_progress: Progress | None) -> Part:
    """The images' descriptors; many of them through a file in the cache folder, so that who is killed goes on."""
    if len(images) <= ROWS or images.in_memory:
        return embed_images(embedder, images, on_progress=on_progress)
    size = [embedder.image_size, embedder.short_edge]
    key = json.dumps([embedder.fingerprint, size, images.fingerprint()])
    digest = hashlib.sha256(f"{key}{images.paths}".encode()).hexdigest()[:32]
    path = cache_folder() / "duplicates" / f"{digest}.npz"
    done = embed_to_file(
        embedder,
        images,
        path,
        on_progress=None if on_progress is None else lambda _, *count: on_progress(*count),
        process=(0, 1),
    )
    found = read_descriptors(path)
    for leftover in (path, pathlib.Path(f"{path}.unreadable.txt")):
        leftover.unlink(missing_ok=True)
    return Part(found, done.unreadable)


def _shown(number: int, group: Group) -> Section:
    images = zip(group.ids, group.paths, group.sizes, strict=True)
    figures = [Figure(name, [*size_line(size), path], at(path)) for name, path, size in images]
    return Section(f"Group {number}", f"least score {group.score:.3f}", figures)


def groups_of(
    ids: list[str],
    paths: list[str],
    descriptors: np.ndarray,
    threshold: float,
    scoring: Scoring = Scoring(),  # noqa: B008 (it is frozen)
) -> list[Group]:
    """The connected sets of images whose score is at least `threshold`."""
    count = len(ids)
    rows, columns, weights = _links(descriptors, threshold, scoring)
    graph = scipy.sparse.coo_array((weights, (rows, columns)), (count, count)).tocsr()
    # What holds a group together is the weakest link of its strongest tree.
    tree = csgraph.minimum_spanning_tree(-graph.maximum(graph.T))
    _, label = csgraph.connected_components(tree, directed=False)
    links = tree.tocoo()
    weakest: dict[int, float] = {}
    for row, weight in zip(links.row.tolist(), (-links.data).tolist(), strict=True):
        group = int(label[row])
        weakest[group] = min(weight, weakest.get(group, weight))
    members: dict[int, list[int]] = {group: [] for group in weakest}
    for position, group in enumerate(label.tolist()):
        if group in members:
            members[group].append(position)
    groups = [
        Group(
            tuple(ids[i] for i in rows),
            tuple(paths[i] for i in rows),
            weakest[group],
            descriptors[rows],
            scoring,
        )
        for group, rows in members.items()
    ]
    return sorted(groups, key=lambda group: -group.score)


def _links(
    descriptors: np.ndarray, threshold: float, scoring: Scoring
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of rows whose score is at least `threshold`, and it; of each row with its nearest ones.

    A pair's adjustment is the mean of the two: either might be the query.
    """
    half = scoring.adjustment(descriptors) / 2
    ones = np.ones_like(half)
    # The inner product of a row of the one and a row of the other is the pair's score.
    left = np.column_stack([descriptors, half, ones])
    right = np.column_stack([descriptors, ones, half])
    count, k = len(descriptors), NEIGHBOURS + 1
    who, found = np.arange(count), []
    while who.size:
        k = min(k, count)
        normalised, positions = backends.knn(left[who], right, k)
        adjustment = half[who, None] + half[positions]
        scores = scoring.scores(normalised - adjustment, adjustment)
        # Where all are near there may be more; but who has so many need not be linked with each.
        more = (scores[:, -1] >= threshold) & (k < min(count, _MOST))
        rows = np.broadcast_to(who[:, None], positions.shape)
        near = (scores >= threshold) & (rows != positions) & ~more[:, None]
        found.append((rows[near], positions[near], scores[near]))
        who, k = who[more], 4 * k
    return tuple(np.concatenate(each) for each in zip(*found, strict=True))

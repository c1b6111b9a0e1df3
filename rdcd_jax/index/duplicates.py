"""Copies within one set of images."""

import dataclasses
import os

import numpy as np
import scipy.sparse
from scipy.sparse import csgraph

from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.stream import Unreadable, embed_images
from rdcd_jax.images.sources import ImageSet, find_images
from rdcd_jax.index.search import PRECISION, Progress
from rdcd_jax.search import backends
from rdcd_jax.search.scoring import Scoring, scoring_of

# Neighbours looked at of each image; copies of copies join a group through one another.
NEIGHBOURS = 20
# Of an image with more, no further ones are looked at than four times as many as this.
_MOST = 400


@dataclasses.dataclass(frozen=True)
class Group:
    """Images that are copies of each other, each of at least one other.

    Attributes:
        ids: two or more, in the set's order.
        score: the least score that holds the group together.
    """

    ids: tuple[str, ...]
    score: float


def find_groups(
    images: str | os.PathLike | ImageSet,
    *,
    model: str,
    threshold: float | None = None,
    normalised: bool = True,
    on_progress: Progress | None = None,
) -> tuple[list[Group], list[Unreadable]]:
    """Groups the copies in a set.

    Args:
        images: a source of images.
        model: see `load_embedder`.
        threshold: least score of two copies; the model's own at 90 % precision for None.
        normalised: takes off a pair's similarity how near the two are to the model's background, where it has one.
        on_progress: called with images done and in all.

    Returns:
        The groups, the surest first, and the images that cannot be read.

    Raises:
        UserError: for images or a model that cannot be read, or a model without a calibration where no threshold is
            given.
    """
    from rdcd_jax.weights.library import load_embedder

    embedder = load_embedder(model)
    images = images if isinstance(images, ImageSet) else find_images(images)
    background = getattr(embedder, "background", None) if normalised else None
    scoring = scoring_of(background, getattr(embedder, "card", {}).get("calibration"))
    if threshold is None:
        threshold = scoring.threshold(PRECISION, len(images))
    if threshold is None:
        raise UserError(
            f"The model {model} has no calibration to choose a threshold by; give --threshold, such as 0.7."
        )
    found, unreadable = embed_images(embedder, images, on_progress=on_progress)
    return groups_of(found.ids.tolist(), found.descriptors, threshold, scoring), unreadable


def groups_of(
    ids: list[str],
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
    members: dict[int, list[str]] = {group: [] for group in weakest}
    for name, group in zip(ids, label.tolist(), strict=True):
        if group in members:
            members[group].append(name)
    groups = [Group(tuple(names), weakest[group]) for group, names in members.items()]
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

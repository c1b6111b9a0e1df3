"""Groups of copies: which images belong together, and which of them to keep."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse
from scipy.sparse import csgraph

from rdcd_jax.core.errors import UserError
from rdcd_jax.index.places import BYTES, CHANGED, COLUMNS, HEIGHT, WIDTH
from rdcd_jax.search import backends
from rdcd_jax.search.scoring import Scoring

# Neighbours looked at of each image; copies of copies join a group through one another.
NEIGHBOURS = 20
# Of an image with more, no further ones are looked at than four times as many as this.
_MOST = 400
# Images of a group whose scores to all of it are in memory at a time.
_BLOCK = 1024
# Pages of text and drawings resemble each other whatever is on them, so these are told by their ink: unlike pages of
# one layout come to 0.92, the same page in another size or format to 0.999.
SAME_INK = 0.98
# Which image of a group is kept: the one with the largest value, of equal ones the first.
KEEP = {
    "largest": lambda f: (f[:, WIDTH] * f[:, HEIGHT], f[:, BYTES]),
    "least-compressed": lambda f: (
        f[:, BYTES] / np.maximum(f[:, WIDTH] * f[:, HEIGHT], 1),
        f[:, WIDTH] * f[:, HEIGHT],
    ),
    # A time that is not known is no early one.
    "oldest": lambda f: (np.where(f[:, CHANGED] > 0, -f[:, CHANGED].astype(float), -np.inf),),
}


@dataclasses.dataclass(frozen=True)
class Group:
    """Images that are copies of one of them, each by a score of at least the threshold.

    Attributes:
        ids: two or more, in the set's order; against another set, that set's after the image that they resemble.
        paths: where they lie.
        score: the least score of an image to the one that all resemble.
        threshold: the least score of two copies.
        descriptors: [n, D] float32, theirs.
        scoring: how two descriptors become a score.
        files: [n, 4] int64: bytes, time of the last change in nanoseconds, width and height; 0 where not known.
        others: how many of them, the last ones, are of the other set.
    """

    ids: tuple[str, ...]
    paths: tuple[str, ...]
    score: float
    threshold: float
    descriptors: np.ndarray = dataclasses.field(repr=False, compare=False)
    scoring: Scoring = dataclasses.field(repr=False, compare=False)
    files: np.ndarray = dataclasses.field(repr=False, compare=False)
    others: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def scores(self) -> np.ndarray:
        """[n, n] float32: the score of every two of them."""
        return pair_scores(self.descriptors, self.descriptors, self.scoring)

    def scores_to(self, position: int) -> np.ndarray:
        """[n] float32: the score of each with the one at a position."""
        return pair_scores(self.descriptors[[position]], self.descriptors, self.scoring)[0]

    @property
    def least(self) -> float:
        """The least score of any two of them, which may be below the threshold."""
        return float(self._to_others[0].min())

    @property
    def mean(self) -> float:
        """The mean score of two of them."""
        return float(self._to_others[1].mean() / (len(self) - 1))

    @functools.cached_property
    def _to_others(self) -> tuple[np.ndarray, np.ndarray]:
        """[n] of each its least score to another, and [n] the sum of its scores to the others.

        Of some rows at a time: thousands of images may be one group.
        """
        least, total = np.empty(len(self)), np.empty(len(self))
        for start in range(0, len(self), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(self)))
            scores = pair_scores(self.descriptors[rows], self.descriptors, self.scoring)
            scores[rows - start, rows] = 0
            total[rows] = scores.sum(axis=1, dtype=np.float64)
            scores[rows - start, rows] = np.inf
            least[rows] = scores.min(axis=1)
        return least, total

    @property
    def sizes(self) -> list[tuple[int, int] | None]:
        """Width and height in pixels of each as its file says; None where that is not known."""
        return [
            tuple(size) if size[0] else None for size in self.files[:, [WIDTH, HEIGHT]].tolist()
        ]

    def kept(self, rule: str = "largest") -> int:
        """The position of the image to keep; against another set, one of that set.

        Args:
            rule: "largest" (most pixels, then most bytes), "least-compressed" (most bytes a pixel) or "oldest" (by the
                time of the file's last change); of equal ones the first.

        Raises:
            UserError: there is no such rule.
        """
        if rule not in KEEP:
            raise UserError(f"There is no rule '{rule}' for what to keep; use {', '.join(KEEP)}.")
        first = len(self) - self.others if self.others else 0
        values = KEEP[rule](self.files[first:])
        return first + int(np.lexsort([-value for value in reversed(values)])[0])

    def stays(self, rule: str = "largest") -> np.ndarray:
        """[n] whether an image stays where it is when copies are moved away.

        The one to keep does, all of the other set, and whatever is no copy of the one to keep: two images that resemble
        a third need not resemble each other.

        Args:
            rule: see `kept`.
        """
        if self.others:
            return np.arange(len(self)) >= len(self) - self.others
        kept = self.kept(rule)
        stays = self.scores_to(kept) < self.threshold
        stays[kept] = True
        return stays


def without_likes(group: Group, inks: Sequence[np.ndarray | None]) -> list[Group]:
    """A group without pages of text and drawings that only look alike; those with the same ink at the same places stay.

    Args:
        group: the group.
        inks: of each of its images what is drawn on it, see `seen.ink_of`; None of photographs.

    Returns:
        No group, one, or more.
    """
    positions = [i for i, ink in enumerate(inks) if ink is not None]
    if len(positions) < 2:
        return [group]
    found = _grouped(np.stack([inks[i] for i in positions]), SAME_INK, Scoring())
    parts = [[positions[i] for i in rows] for rows, _ in found]
    others = [i for i, ink in enumerate(inks) if ink is None]
    return [part for rows in (*parts, others) for part in groups_within(group, rows)]


def without_unlike_pages(group: Group, inks: Sequence[np.ndarray | None]) -> list[Group]:
    """An image and those of another set, without pages and drawings that only look alike.

    Args:
        group: the group, of two sets.
        inks: as of `without_likes`.

    Returns:
        One group, or none where that is all.
    """
    first, *others = inks
    rows = [
        i
        for i, ink in enumerate(others, 1)
        if first is None or ink is None or float(first @ ink) >= SAME_INK
    ]
    return groups_within(group, [0, *rows])


def groups_within(group: Group, rows: list[int]) -> list[Group]:
    """What is left as groups where only some of a group's images count.

    Where the image that all others resemble is not among them, these need not resemble one another.

    Args:
        group: the group.
        rows: positions of the images that count.

    Returns:
        No group, one, or more.
    """
    if len(rows) < 2 or (group.others and rows[0] > 0):
        # Against another set the first is what all others are compared with.
        return []
    part = part_of(group, rows)
    if group.others or part.score >= group.threshold:
        return [part]
    found = _grouped(part.descriptors, group.threshold, group.scoring)
    return [part_of(part, each.tolist()) for each, _ in found]


def part_of(group: Group, rows: list[int]) -> Group:
    """Some of a group's images, by their positions; of all of them the group itself."""
    if len(rows) == len(group):
        return group
    ids, paths = (tuple(names[i] for i in rows) for names in (group.ids, group.paths))
    others = sum(i >= len(group) - group.others for i in rows)
    part = dataclasses.replace(
        group,
        ids=ids,
        paths=paths,
        descriptors=group.descriptors[rows],
        files=group.files[rows],
        others=others,
    )
    if others:
        return dataclasses.replace(part, score=float(part.scores_to(0)[1:].min()))
    return dataclasses.replace(part, score=float(part._to_others[0].max()))


def pair_scores(first: np.ndarray, second: np.ndarray, scoring: Scoring) -> np.ndarray:
    """[N, M]: the score of each row of [N, D] with each of [M, D]; a pair's adjustment is the mean of the two, since
    either might be the query."""
    halves = scoring.adjustment(first)[:, None] / 2 + scoring.adjustment(second) / 2
    return scoring.scores(first @ second.T, halves)


def groups_of(
    ids: Sequence[str],
    paths: Sequence[str],
    descriptors: np.ndarray,
    threshold: float,
    scoring: Scoring = Scoring(),  # noqa: B008 (it is frozen)
) -> list[Group]:
    """Groups images of one set, the surest group first; each image is in one group at most.

    What is linked through others only is not grouped: of what hangs together, the image with the most links and all
    that reach the threshold with it become a group, then what is left, and so on.

    Args:
        ids: N.
        paths: N.
        descriptors: [N, D] float32.
        threshold: least score.
        scoring: how similarities become scores.
    """
    return [
        _group(rows, score, threshold, ids, paths, descriptors, scoring)
        for rows, score in _grouped(descriptors, threshold, scoring)
    ]


def _grouped(
    descriptors: np.ndarray, threshold: float, scoring: Scoring
) -> list[tuple[np.ndarray, float]]:
    """The groups' positions, ascending, each with its score; the surest group first."""
    count = len(descriptors)
    stands_for = _equal_rows(descriptors, threshold)
    kept = np.flatnonzero(stands_for == np.arange(count))
    rows, columns, _ = _links(descriptors[kept], descriptors[kept], threshold, scoring, same=True)
    equal = np.flatnonzero(stands_for != np.arange(count))
    ends = np.append(kept[rows], stands_for[equal]), np.append(kept[columns], equal)
    graph = scipy.sparse.coo_array((np.ones(len(ends[0]), bool), ends), (count, count)).tocsr()
    graph = graph.maximum(graph.T)
    _, label = csgraph.connected_components(graph, directed=False)
    order = np.argsort(label, kind="stable")
    groups = []
    for members in np.split(order, np.flatnonzero(np.diff(label[order])) + 1):
        if len(members) > 1:
            linked = graph[members][:, members]
            for which, score in _cut(descriptors[members], linked, threshold, scoring):
                groups.append((np.sort(members[which]), score))
    return sorted(groups, key=lambda group: -group[1])


def shared_groups(
    first: tuple[Sequence[str], Sequence[str], np.ndarray],
    second: tuple[Sequence[str], Sequence[str], np.ndarray],
    threshold: float,
    scoring: Scoring,
) -> list[Group]:
    """Groups each image of one set that resembles images of another with these, the surest group first.

    Args:
        first: ids, paths and descriptors [N, D] of the one set.
        second: ids, paths and descriptors [M, D] of the other.
        threshold: least score.
        scoring: how similarities become scores.
    """
    rows, columns, weights = _links(first[2], second[2], threshold, scoring, same=False)
    groups = []
    for row in np.unique(rows).tolist():
        mine = np.flatnonzero(rows == row)
        mine = mine[np.argsort(-weights[mine], kind="stable")]
        found = columns[mine].tolist()
        groups.append(
            Group(
                (first[0][row], *(second[0][i] for i in found)),
                (first[1][row], *(second[1][i] for i in found)),
                float(weights[mine].min()),
                threshold,
                np.concatenate([first[2][[row]], second[2][found]]),
                scoring,
                np.zeros((1 + len(found), COLUMNS), np.int64),
                others=len(found),
            )
        )
    return sorted(groups, key=lambda group: -group.score)


def _group(
    rows: np.ndarray,
    score: float,
    threshold: float,
    ids: Sequence[str],
    paths: Sequence[str],
    descriptors: np.ndarray,
    scoring: Scoring,
) -> Group:
    named = (tuple(names[i] for i in rows.tolist()) for names in (ids, paths))
    files = np.zeros((len(rows), COLUMNS), np.int64)
    return Group(*named, score, threshold, descriptors[rows], scoring, files)


def _equal_rows(descriptors: np.ndarray, threshold: float) -> np.ndarray:
    """[N]: the first row of those that equal a row and are its copies, else the row itself.

    Thousands of images may be one, a placeholder say; all are linked through it, and its neighbours looked for once.
    """
    first: dict[bytes, int] = {}
    stands_for = np.array(
        [
            first.setdefault(hashlib.blake2b(row, digest_size=16).digest(), i)
            for i, row in enumerate(np.ascontiguousarray(descriptors))
        ],
        np.int64,
    )
    equal = np.flatnonzero(stands_for != np.arange(len(descriptors)))
    # Rounding may leave even these below a threshold of 1.
    apart = equal[np.sum(descriptors[equal] ** 2, axis=1) < threshold]
    stands_for[apart] = apart
    return stands_for


def _cut(
    descriptors: np.ndarray, links: scipy.sparse.csr_array, threshold: float, scoring: Scoring
) -> Iterator[tuple[np.ndarray, float]]:
    """Positions of the groups in what hangs together, each with its least score to the image with the most links."""
    left = np.arange(len(descriptors))
    while left.size > 1:
        centre = int(np.argmax(links.sum(axis=1)))
        scores = pair_scores(descriptors[left[[centre]]], descriptors[left], scoring)[0]
        near = scores >= threshold
        near[centre] = True
        if near.sum() > 1:
            others = near & (np.arange(len(left)) != centre)
            yield left[near], float(scores[others].min())
        left, links = left[~near], links[~near][:, ~near]


def _links(
    first: np.ndarray, second: np.ndarray, threshold: float, scoring: Scoring, *, same: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of rows whose score is at least `threshold`, and it; of each row with its nearest ones.

    Args:
        first: [N, D].
        second: [M, D].
        threshold: least score.
        scoring: how similarities become scores.
        same: the two are one, and no row is linked with itself.
    """
    halves = [scoring.adjustment(rows) / 2 for rows in (first, second)]
    # The inner product of a row of the one and a row of the other is the pair's score.
    left = np.column_stack([first, halves[0], np.ones_like(halves[0])])
    right = np.column_stack([second, np.ones_like(halves[1]), halves[1]])
    count, k = len(second), NEIGHBOURS + same
    who, found = np.arange(len(first)), []
    while who.size:
        k = min(k, count)
        normalised, positions = backends.knn(left[who], right, k)
        adjustment = halves[0][who, None] + halves[1][positions]
        scores = scoring.scores(normalised - adjustment, adjustment)
        # Where all are near there may be more; but who has so many need not be linked with each.
        more = (scores[:, -1] >= threshold) & (k < min(count, _MOST))
        rows = np.broadcast_to(who[:, None], positions.shape)
        near = (scores >= threshold) & ~more[:, None]
        if same:
            near &= rows != positions
        found.append((rows[near], positions[near], scores[near]))
        who, k = who[more], 4 * k
    return tuple(np.concatenate(each) for each in zip(*found, strict=True))

"""Which images of a set are the same, and which are in another set too."""

import bisect
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse
from scipy.sparse import csgraph

from rdcd_jax.images.perceptual import near_duplicates
from rdcd_jax.images.sources import ImageSet

# What is kept of an image: 130 bytes, so that a million fit anywhere.
ROW = np.dtype(
    [
        ("readable", "?"),
        ("flat", "?"),
        ("format", "u1"),
        ("width", "i4"),
        ("height", "i4"),
        ("file_bytes", "i8"),
        ("content", "u8", 2),
        ("pixels", "u8", 2),
        ("hash", "u8"),
        ("thumbnail", "u1", 64),
    ]
)


@dataclasses.dataclass(frozen=True)
class Group:
    """Images of the set that are the same.

    Attributes:
        kind: "bytes" where the files are the same, "pixels" where only what they decode to is, "near" where they look
            alike.
        ids: two or more ids, in the set's order.
    """

    kind: str
    ids: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Overlap:
    """An image of the set that is in another set too.

    Attributes:
        kind: as in `Group`.
        id: its id.
        other_source: the other set.
        other_id: the image there that is most like it.
        distance: bits by which their hashes differ; 0 for the same bytes or pixels.
    """

    kind: str
    id: str
    other_source: str
    other_id: str
    distance: int


def find_duplicates(
    sets: Sequence[ImageSet], rows: np.ndarray
) -> tuple[tuple[Group, ...], tuple[Overlap, ...]]:
    """Finds duplicates within the first set, and images of it that are in the others.

    Args:
        sets: the sets.
        rows: [N] ROW, what is known of all their images, one set after another.

    Returns:
        The groups, strictest kind first; the overlaps in the first set's order, each with the strictest kind and then
        the nearest image that was found.
    """
    notes = _Notes(sets)
    readable = np.flatnonzero(rows["readable"])
    for kind, column in (("bytes", "content"), ("pixels", "pixels")):
        _, which = np.unique(rows[column][readable], axis=0, return_inverse=True)
        alike = _Members(readable, which)
        for part in alike.repeated():
            positions = alike.positions(part)
            notes.group(kind, positions)
            notes.overlaps(kind, positions, positions, 0)

    structured = np.flatnonzero(rows["readable"] & ~rows["flat"])
    hashes, first, which = np.unique(
        rows["hash"][structured], return_index=True, return_inverse=True
    )
    alike = _Members(structured, which)
    for part in alike.repeated():
        positions = alike.positions(part)
        notes.overlaps("near", positions, positions, 0)
    one, other, distances = near_duplicates(hashes, rows["thumbnail"][structured[first]])
    own, foreign = np.zeros((2, len(hashes)), bool)
    own[which[structured < len(sets[0])]] = True
    foreign[which[structured >= len(sets[0])]] = True
    crossing = np.flatnonzero(foreign[one] | foreign[other])
    # Nearest first, since what is found first is what is reported.
    for pair in crossing[np.argsort(distances[crossing], kind="stable")].tolist():
        here, there = alike.positions(one[pair]), alike.positions(other[pair])
        notes.overlaps("near", here, there, int(distances[pair]))
        notes.overlaps("near", there, here, int(distances[pair]))
    # Two images of the set are not joined by a third that is elsewhere.
    linked = own[one] & own[other]
    repeated = np.asarray(alike.repeated(), np.int64)
    links = np.append(one[linked], repeated), np.append(other[linked], repeated)
    for parts in _joined(len(hashes), links):
        notes.group("near", [position for part in parts for position in alike.positions(part)])
    return tuple(notes.groups), tuple(notes.found[key] for key in sorted(notes.found))


class _Members:
    """Places by the number of the value that they share."""

    def __init__(self, positions: np.ndarray, which: np.ndarray):
        self._positions = positions[np.argsort(which.ravel(), kind="stable")]
        self._counts = np.bincount(which.ravel())
        self._ends = np.cumsum(self._counts)

    def repeated(self) -> list[int]:
        """Values that several positions share."""
        return np.flatnonzero(self._counts > 1).tolist()

    def positions(self, value: int) -> list[int]:
        """The positions of a value, ascending."""
        end = self._ends[value]
        return self._positions[end - self._counts[value] : end].tolist()


class _Notes:
    """What has been found so far; what is reported first, of the strictest kind and the nearest, stays."""

    def __init__(self, sets: Sequence[ImageSet]):
        self._sets = sets
        self._ends = np.cumsum([len(images) for images in sets]).tolist()
        self.groups: list[Group] = []
        self.found: dict[tuple[int, int], Overlap] = {}
        self._report: set[tuple[int, ...]] = set()

    def is_own(self, position: int) -> bool:
        """Whether a position is the first set's."""
        return position < self._ends[0]

    def group(self, kind: str, positions: list[int]) -> None:
        """The first set's images among these are the same."""
        own = tuple(sorted(position for position in positions if self.is_own(position)))
        if len(own) > 1 and own not in self._report:
            self._report.add(own)
            self.groups.append(Group(kind, tuple(self._sets[0].ids[position] for position in own)))

    def overlaps(self, kind: str, positions: list[int], others: list[int], distance: int) -> None:
        """The first set's images among `positions` are the same as other sets' among `others`."""
        theirs: dict[int, int] = {}
        for other in others:
            if not self.is_own(other):
                theirs.setdefault(bisect.bisect_right(self._ends, other), other)
        for position in filter(self.is_own, positions):
            for number, other in theirs.items():
                images = self._sets[number]
                other_id = images.ids[other - self._ends[number - 1]]
                line = Overlap(kind, self._sets[0].ids[position], images.source, other_id, distance)
                self.found.setdefault((position, number), line)


def _joined(count: int, links: tuple[np.ndarray, np.ndarray]) -> Iterator[list[int]]:
    """Connected parts of a graph of `count` values, of those that have a link, be it to themselves."""
    graph = scipy.sparse.coo_array((np.ones(len(links[0]), bool), links), (count, count))
    _, label = csgraph.connected_components(graph, directed=False)
    values = np.unique(np.concatenate(links))
    values = values[np.argsort(label[values], kind="stable")]
    for part in np.split(values, np.flatnonzero(np.diff(label[values])) + 1):
        if part.size:
            yield part.tolist()

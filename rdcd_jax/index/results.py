"""What building, growing and searching an index gives."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import overload

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_csv, write_json
from rdcd_jax.embedding.stream import Unreadable


@dataclasses.dataclass(frozen=True)
class Added:
    """What a build or an addition came to.

    Attributes:
        added: images that were embedded and are in the index now.
        present: images whose ids were there already.
        unreadable: images that were left out.
    """

    added: int
    present: int
    unreadable: list[Unreadable]


@dataclasses.dataclass(frozen=True)
class Match:
    """An image of the index that resembles a query.

    Attributes:
        query: the query's id.
        reference: the id of the image in the index.
        path: where that image lay when it was added; empty in indexes of version 0.1.
        score: their similarity, less how near the query is to the model's background where the index normalises scores.
        similarity: inner product of their descriptors, 1 at most.
        probability: estimated, that the one is a copy of the other; None without a calibration.
        variant: what was done to the query to find it, a key of `variants.VARIANTS`; empty for nothing.

    >>> import rdcd_jax as rdcd
    >>> rdcd.Match("suspect", "holiday", "photos/holiday.jpg", 0.61, 0.84, 0.98).probability
    0.98
    """

    query: str
    reference: str
    path: str
    score: float
    similarity: float
    probability: float | None = None
    variant: str = ""


@dataclasses.dataclass(frozen=True)
class Matches(Sequence[Match]):
    """Matches, query by query in the queries' order, best first.

    Attributes:
        matches: all of them.
        queries: ids of all queries that could be read, those without a match included.
        unreadable: queries that were left out.
    """

    matches: list[Match]
    queries: list[str]
    unreadable: list[Unreadable]

    def __len__(self) -> int:
        return len(self.matches)

    @overload
    def __getitem__(self, position: int) -> Match: ...
    @overload
    def __getitem__(self, position: slice) -> list[Match]: ...
    def __getitem__(self, position: int | slice) -> Match | list[Match]:
        return self.matches[position]

    def __iter__(self) -> Iterator[Match]:
        return iter(self.matches)

    def of(self, query: str) -> list[Match]:
        """The matches of one query."""
        return [match for match in self.matches if match.query == query]

    def save(self, path: str | os.PathLike) -> None:
        """Writes all matches to a .csv or .json file.

        Raises:
            UserError: a file of another kind.
        """
        require_table(path)
        rows = [dataclasses.asdict(match) for match in self.matches]
        if pathlib.Path(path).suffix.lower() == ".json":
            write_json(pathlib.Path(path), rows)
            return
        names = [field.name for field in dataclasses.fields(Match)]
        write_csv(pathlib.Path(path), names, (row.values() for row in rows))


def require_table(path: str | os.PathLike) -> None:
    """Raises UserError for a path that results cannot be saved to."""
    if pathlib.Path(path).suffix.lower() not in (".csv", ".json"):
        raise UserError(f"{path}: results are written to .csv or .json files; name one of those.")

"""What building, growing and searching an index gives."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import overload

from PIL import Image

from rdcd_jax.core.errors import UnreadableImageError, UserError
from rdcd_jax.core.files import write_csv, write_json
from rdcd_jax.embedding.stream import Unreadable
from rdcd_jax.images.decode import size_of
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.report.gallery import Figure, Section, at, size_line, write_gallery
from rdcd_jax.report.thumbnails import SIDE


@dataclasses.dataclass(frozen=True)
class Added:
    """What a build or an addition came to.

    Attributes:
        added: images that were embedded and are in the index now.
        present: images that were there already.
        unreadable: images that were left out.
        changed: images that are there as they were before their files changed; `Index.update` embeds them anew.
    """

    added: int
    present: int
    unreadable: list[Unreadable]
    changed: int = 0


@dataclasses.dataclass(frozen=True)
class Updated:
    """What an update came to.

    Attributes:
        added: images that are new in the index.
        renewed: images that were embedded anew, since their files had changed.
        removed: images that were dropped, since their files are gone.
        present: images that are as they were.
        unreadable: images that were left out.
        images: all that were listed.
    """

    added: int
    renewed: int
    removed: int
    present: int
    unreadable: list[Unreadable]
    images: ImageSet | None = dataclasses.field(default=None, repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Match:
    """An image of the index that resembles a query.

    Attributes:
        query: the query's id.
        reference: the id of the image in the index.
        path: where that image lay when it was added; empty in indexes of version 0.1.
        score: their similarity, less how near the query is to the model's background where the index normalises scores;
            of a look beside the image as it is, a variant or a part, lowered by the chance of one more likeness.
        similarity: inner product of their descriptors, 1 at most.
        probability: estimated, that the one is a copy of the other; None without a calibration. Of queries that are
            pages of text or drawings one half at most: they resemble each other whatever is on them.
        variant: what was done to the query to find it, a key of `variants.VARIANTS`; empty for nothing.
        width: of that image in pixels, as its file says; None where that is not known.
        height: of that image.
        bytes: of that image's file.

    Examples:
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
    width: int | None = None
    height: int | None = None
    bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Matches(Sequence[Match]):
    """Matches, query by query in the queries' order, best first.

    Attributes:
        matches: all of them.
        queries: ids of all queries that could be read, those without a match included.
        unreadable: queries that were left out.
        images: the queries themselves; None where descriptors were searched for.

    Examples:
        >>> import rdcd_jax as rdcd
        >>> match = rdcd.Match("suspect", "holiday", "photos/holiday.jpg", 0.61, 0.84)
        >>> matches = rdcd.Matches([match], ["suspect", "other"], [])
        >>> len(matches), matches.of("other")
        (1, [])
    """

    matches: list[Match]
    queries: list[str]
    unreadable: list[Unreadable]
    images: ImageSet | None = dataclasses.field(default=None, repr=False, compare=False)

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

    def save(self, path: str | os.PathLike, notes: Mapping[str, str] | None = None) -> None:
        """Writes all matches to a .csv or .json file, or to a page (.html) with each query beside its matches.

        Args:
            path: the file.
            notes: a few words about some of the queries, by id, for the page.

        Raises:
            UserError: a file of another kind.
        """
        require_savable(path)
        suffix = pathlib.Path(path).suffix.lower()
        if suffix == ".html":
            self._save_page(path, notes or {})
            return
        rows = [dataclasses.asdict(match) for match in self.matches]
        if suffix == ".json":
            write_json(pathlib.Path(path), rows)
            return
        names = [field.name for field in dataclasses.fields(Match)]
        write_csv(pathlib.Path(path), names, (row.values() for row in rows))

    def _save_page(self, path: str | os.PathLike, notes: Mapping[str, str]) -> None:
        matches: dict[str, list[Match]] = {}
        for match in self.matches:
            matches.setdefault(match.query, []).append(match)
        positions = {} if self.images is None else {id_: i for i, id_ in enumerate(self.images.ids)}
        sections = [
            Section(
                query,
                notes.get(query, ""),
                [self._query(query, positions.get(query)), *map(_found, found)],
                score=max(match.score for match in found),
            )
            for query, found in matches.items()
        ]
        summary = (
            f"{len(matches)} of {len(self.queries)} queries have matches in the index; each stands left of what"
            " was found for it, best first."
        )
        write_gallery(path, "Copies found", summary, sections)

    def _query(self, query: str, position: int | None) -> Figure:
        images = self.images
        if images is None or position is None:
            return Figure(query, ["query"], _nothing, is_query=True)
        path = images.paths[position]
        lines = ["query", *size_line(size_of(path)), path]
        return Figure(query, lines, lambda: images.decode(position, min_side_hint=SIDE), True)


def _found(match: Match) -> Figure:
    known = match.probability is not None
    lines = [f"{100 * match.probability:.0f} % sure to be a copy"] if known else []
    lines.append(f"score {match.score:.3f}, similarity {match.similarity:.3f}")
    if match.variant:
        lines.append(f"found by {match.variant}")
    size = (match.width, match.height) if match.width else size_of(match.path)
    lines += size_line(size, match.bytes)
    return Figure(match.reference, [*lines, match.path], at(match.path), path=match.path)


def _nothing() -> Image.Image:
    raise UnreadableImageError("Of descriptors there is no image.")


def require_savable(path: str | os.PathLike) -> None:
    """Raises UserError for a path that results cannot be saved to."""
    if pathlib.Path(path).suffix.lower() not in (".csv", ".json", ".html"):
        raise UserError(
            f"{path}: results are written to .csv, .json or .html files; name one of those."
        )

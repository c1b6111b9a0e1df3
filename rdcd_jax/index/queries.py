"""Descriptors of queries, each looked at in one way or several."""

import concurrent.futures
import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence

import numpy as np

from rdcd_jax.core.errors import UnreadableImageError, UserError
from rdcd_jax.core.workers import mapped_ahead
from rdcd_jax.embedding.shapes import batches, resized
from rdcd_jax.embedding.stream import NOTHING, EmbeddingModel, Progress, Unreadable
from rdcd_jax.images.seen import is_plain
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.index.variants import BESIDE, PARTS, PARTS_CHANCES, VARIANTS
from rdcd_jax.search.exact import rows_not_finite

# Images that are embedded at a time: of more the network would need more memory than the search.
_BATCH = 16
_AHEAD = 32


@dataclasses.dataclass(frozen=True)
class Looks:
    """Descriptors of queries.

    Attributes:
        query: [R] int64, the place of each row's query in its set, ascending.
        variant: R names, keys of `VARIANTS`; empty for a query as it is.
        descriptors: [R, D] float32.
        unreadable: queries that were left out.
        plain: places of queries that are pages of text or drawings, see `seen.is_plain`.
    """

    query: np.ndarray
    variant: tuple[str, ...]
    descriptors: np.ndarray
    unreadable: list[Unreadable]
    plain: frozenset[int] = frozenset()

    @property
    def chances(self) -> np.ndarray:
        """[R]: as how many times as many images each row meets those of an index; see `BESIDE`."""
        weight = {"": 0, "crops": PARTS_CHANCES / PARTS}
        each = np.asarray([weight.get(name, 1) for name in self.variant])
        beside = BESIDE * np.bincount(self.query, each).round(6)[self.query]
        return np.where(each, np.maximum(1, beside), 1)


def embed_queries(
    model: EmbeddingModel,
    images: ImageSet,
    variants: Sequence[str] = (),
    *,
    on_progress: Progress | None = None,
) -> Looks:
    """Embeds queries as they are and changed; each is decoded once.

    Args:
        model: what embeds them.
        images: the queries.
        variants: keys of `VARIANTS`; one that is named twice counts once.
        on_progress: called with queries done and in all.

    Raises:
        UserError: an unknown variant, or the model gives NaN.
    """
    if isinstance(variants, str):
        raise UserError(f"variants={variants!r} is a text; give a list of names, such as ['trim'].")
    # Named twice it would be two looks, and each costs.
    variants = tuple(dict.fromkeys(variants))
    for name in variants:
        if name not in VARIANTS:
            raise UserError(
                f"There is no variant '{name}'; use some of {', '.join(VARIANTS)}, or none."
            )
    rows: list[tuple[int, str]] = []
    unreadable: list[Unreadable] = []
    plain: set[int] = set()

    def looks() -> Iterator[tuple[int, np.ndarray]]:
        with contextlib.closing(_decoded(model, images, variants)) as decoded:
            for position, found in enumerate(decoded):
                if isinstance(found, UnreadableImageError):
                    unreadable.append(Unreadable(images.ids[position], str(found)))
                    continue
                if found.is_plain:
                    plain.add(position)
                for name, image in found.images:
                    rows.append((position, name))
                    yield len(rows) - 1, image

    embedded: dict[int, np.ndarray] = {}
    # Of few queries a whole batch would mostly be black.
    expected = len(images) * (1 + len(variants))
    size = min(_BATCH, 1 << (expected - 1).bit_length())
    for positions, batch in batches(looks(), size, max(1, size // 4) if model.short_edge else size):
        found = np.asarray(model.embed_batch(batch), np.float32)[: len(positions)]
        embedded |= zip(positions, found, strict=True)
        if on_progress is not None:
            on_progress(rows[max(positions)][0] + 1, len(images))
    if on_progress is not None:
        # The last ones may all be unreadable.
        on_progress(len(images), len(images))
    # What has no direction resembles nothing.
    kept = [row for row in range(len(rows)) if embedded[row].any()]
    seen = {rows[row][0] for row in kept}
    for position in sorted({position for position, _ in rows} - seen):
        name = images.ids[position]
        unreadable.append(Unreadable(name, f"{name}: {NOTHING}"))
    descriptors = (
        np.stack([embedded[row] for row in kept]) if kept else np.empty((0, 0), np.float32)
    )
    if kept and rows_not_finite(descriptors).size:
        raise UserError(
            f"{images.source}: the model {model.name or 'given'} embeds images by NaN or infinity; its weights are"
            " damaged."
        )
    query = np.asarray([rows[row][0] for row in kept], np.int64)
    variant = tuple(rows[row][1] for row in kept)
    return Looks(query, variant, descriptors, unreadable, frozenset(plain))


@dataclasses.dataclass(frozen=True)
class _Query:
    """A decoded query: its images as the model takes them, by variant, and whether it is a page or a drawing."""

    images: list[tuple[str, np.ndarray]]
    is_plain: bool


def _decoded(
    model: EmbeddingModel, images: ImageSet, variants: Sequence[str]
) -> Iterator[_Query | UnreadableImageError]:
    """Every query's images, the first as it is, some queries being decoded meanwhile."""

    def load(position: int) -> _Query | UnreadableImageError:
        try:
            image = images.decode(position)
        except UnreadableImageError as error:
            return error
        looks = [("", image)]
        looks += [(name, each) for name in variants for each in VARIANTS[name](image)]
        taken = [(name, resized(each, model.image_size, model.short_edge)) for name, each in looks]
        return _Query(taken, is_plain(image))

    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1, "decode")
    return mapped_ahead(pool, load, range(len(images)), _AHEAD)

"""Descriptors of many images: decoding in the background, the model a batch at a time."""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np

from rdcd_jax.core.errors import UnreadableImageError, UserError
from rdcd_jax.core.workers import mapped_ahead
from rdcd_jax.embedding.descriptors import Descriptors, id_array
from rdcd_jax.embedding.shapes import batches, resized
from rdcd_jax.images.given import Images, images_of
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.search.exact import rows_not_finite

_MAX_THREADS = 16
_BATCHES_AHEAD = 2
NOTHING = "the model embeds it by nothing but zeros"

# Images at a time.
_BATCH = 32
# Called with images done and images in all.
Progress = Callable[[int, int], None]


class EmbeddingModel(Protocol):
    """A model ready to embed images.

    Attributes:
        name: what its descriptors are called by.
        fingerprint: what distinguishes it from others of that name, such as a digest of its weights.
        image_size: S, the side of the square images that it takes, or their short edge.
        short_edge: images keep their aspect, see `shapes.rounded_shape`.
    """

    # Properties, since nobody sets them: frozen classes have them too.
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def fingerprint(self) -> str: ...  # noqa: D102
    @property
    def image_size(self) -> int: ...  # noqa: D102
    @property
    def short_edge(self) -> bool: ...  # noqa: D102
    @property
    def embed_batch(self) -> Callable[[np.ndarray], np.ndarray]:
        """Maps uint8 RGB images [B, H, W, 3] to descriptors [B, D] float32."""
        ...


@dataclasses.dataclass(frozen=True)
class Embedder:
    """A function as an `EmbeddingModel`; see there."""

    embed_batch: Callable[[np.ndarray], np.ndarray]
    image_size: int = 288
    short_edge: bool = False
    name: str = ""
    fingerprint: str = ""


def has_fingerprint(model: EmbeddingModel, fingerprint: str) -> bool:
    """Whether a digest that was kept is that of the model's weights; version 0.1 made another one of the same."""
    known = model.fingerprint == fingerprint
    return known or getattr(model, "attribute_fingerprint", None) == fingerprint


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """An image that was left out.

    Attributes:
        id: its id.
        reason: one sentence that names the file.
    """

    id: str
    reason: str


class Part(NamedTuple):
    """What became of some images that follow each other in a set.

    Attributes:
        found: descriptors of those that can be read, in the set's order; None where none can.
        unreadable: the others.
    """

    found: Descriptors | None
    unreadable: list[Unreadable]


def embed_images(
    model: EmbeddingModel,
    images: ImageSet,
    *,
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> Part:
    """Embeds every readable image of a set.

    Args:
        model: what embeds them.
        images: the images.
        batch_size: B, see `embedded_parts`.
        on_progress: reported images done and in all after each batch.

    Returns:
        The descriptors in the set's order, at least one, and the images that could not be read.

    Raises:
        UserError: not one image can be read, or the model gives NaN.
    """
    (part,) = embedded_parts(model, images, batch_size=batch_size, on_progress=on_progress)
    if part.found is None:
        raise UserError(none_embedded(images, model.name, part.unreadable[0].reason))
    return part


class Embeds:
    """What a model that embeds batches can do besides."""

    def embed(self, images: Images) -> np.ndarray:
        """Embeds images, decoding and resizing them as this model was evaluated.

        Args:
            images: a source (a folder, an image, a text file of paths, an archive, ...), a Pillow image, a uint8 array
                [H, W, 3] of any size, or a list of these.

        Returns:
            Descriptors [N, D] float32 of unit length, one for each image in the order given (of a folder that of its
            sorted paths).

        Raises:
            UserError: an image cannot be read; it says which, and how many more.

        Examples:
            >>> import numpy as np
            >>> import rdcd_jax as rdcd
            >>> model = rdcd.load_model("rdcd-effb0-64")
            >>> grey = np.full((40, 60, 3), 128, np.uint8)
            >>> model.embed([grey, grey]).shape
            (2, 64)
        """
        found = images_of(images)
        # Of few images a whole batch would mostly be black.
        batch_size = min(_BATCH, 1 << (len(found) - 1).bit_length())
        part = embed_images(self, found, batch_size=batch_size)
        if part.unreadable:
            rest = len(part.unreadable) - 1
            more = f" (and {rest} more)" if rest else ""
            raise UserError(
                f"{part.unreadable[0].reason}{more} Leave what cannot be read out; `rdcd-jax embed` does."
            )
        return part.found.descriptors


def none_embedded(images: ImageSet, model: str, reason: str) -> str:
    """Says that a model has no descriptor of any image of a set, and why the first has none."""
    if reason.endswith(NOTHING):
        return (
            f"{images.source}: the model {model} embeds each of the {len(images)} images by nothing but zeros; they may"
            " all be blank, or its weights are damaged."
        )
    return f"{images.source}: none of the {len(images)} images can be read; the first: {reason}"


def embedded_parts(
    model: EmbeddingModel,
    images: ImageSet,
    *,
    rows: int | None = None,
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> Iterator[Part]:
    """Embeds a set part by part; only a part's descriptors and a few batches of images are in memory.

    A descriptor depends on its image alone, and its last bits on the part that the image is in.

    Args:
        model: what embeds them.
        images: the images.
        rows: images of a part; of the last one as many as are left. None for all in one.
        batch_size: B. Square images come in batches of B alone, the last of a part filled up with black. With
            `short_edge` what is left of a shape comes in batches of a quarter of B.
        on_progress: reported images done and in all after each batch.

    Yields:
        The parts in the set's order.

    Raises:
        UserError: the model gives NaN.
    """
    rows = rows or max(1, len(images))
    least = max(1, batch_size // 4) if model.short_edge else batch_size
    # Closed with this, so that whoever stops early does not wait for the rest.
    with contextlib.closing(_decoded(model, images, _BATCHES_AHEAD * batch_size)) as decoded:
        for start in range(0, len(images), rows):
            ids = images.ids[start : start + rows]
            unreadable: list[Unreadable] = []
            embedded, count, reported = None, 0, 0
            done = np.zeros(len(ids), bool)
            part = _readable(zip(ids, itertools.islice(decoded, len(ids)), strict=True), unreadable)
            for positions, batch in batches(part, batch_size, least):
                found = np.asarray(model.embed_batch(batch), np.float32)
                if embedded is None:
                    # Zeros, since rows of unreadable images are looked at too.
                    embedded = np.zeros((len(ids), found.shape[1]), np.float32)
                embedded[positions] = found[: len(positions)]
                done[positions] = True
                count += len(positions)
                reported = _report(on_progress, start + count + len(unreadable), len(images))
            if reported < start + len(ids):
                _report(on_progress, start + len(ids), len(images))
            if embedded is not None:
                # What has no direction resembles nothing.
                for position in np.flatnonzero(done & ~embedded.any(axis=1)).tolist():
                    done[position] = False
                    unreadable.append(Unreadable(ids[position], f"{ids[position]}: {NOTHING}"))
            yield Part(_checked(model, images, ids, embedded, done), unreadable)


def _readable(
    decoded: Iterator[tuple[str, np.ndarray | UnreadableImageError]], unreadable: list[Unreadable]
) -> Iterator[tuple[int, np.ndarray]]:
    """Each readable image with its position; the others go into the list."""
    for position, (image_id, image) in enumerate(decoded):
        if isinstance(image, UnreadableImageError):
            unreadable.append(Unreadable(image_id, str(image)))
        else:
            yield position, image


def _report(on_progress: Progress | None, done: int, total: int) -> int:
    if on_progress is not None:
        on_progress(done, total)
    return done


def _checked(
    model: EmbeddingModel,
    images: ImageSet,
    ids: tuple[str, ...],
    embedded: np.ndarray | None,
    done: np.ndarray,
) -> Descriptors | None:
    if not done.any():
        return None
    kept = id_array(list(itertools.compress(ids, done)))
    # Not copied where everything could be read: it may be most of what is in memory.
    embedded = embedded if done.all() else embedded[done]
    bad = rows_not_finite(embedded)
    if bad.size:
        raise UserError(
            f"{images.source}: the model {model.name or 'given'} embeds {bad.size} of {len(kept)} "
            f"images by NaN or infinity, the first {kept[bad[0]]}; its weights are damaged."
        )
    return Descriptors(kept, embedded, model.name, model.fingerprint)


def _decoded(
    model: EmbeddingModel, images: ImageSet, ahead: int
) -> Iterator[np.ndarray | UnreadableImageError]:
    """Yields the images [H, W, 3] uint8, `ahead` of them being decoded meanwhile."""

    def load(position: int) -> np.ndarray | UnreadableImageError:
        try:
            return resized(images.decode(position), model.image_size, model.short_edge)
        except UnreadableImageError as error:
            return error

    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    pool = concurrent.futures.ThreadPoolExecutor(threads, "decode")
    return mapped_ahead(pool, load, range(len(images)), ahead)

"""Descriptors of many pictures: decoding in the background, the model a batch at a time."""

import concurrent.futures
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator

import numpy as np

from rdcd_jax.data.decode import resize_square
from rdcd_jax.data.sources import ImageSet
from rdcd_jax.data.workers import mapped_ahead
from rdcd_jax.errors import UnreadableImageError, UserError
from rdcd_jax.evaluation.descriptors import Descriptors
from rdcd_jax.evaluation.exact import rows_not_finite

_MAX_THREADS = 16
_BATCHES_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A picture that was left out.

    Attributes:
        id: its id.
        reason: one sentence that names the file.
    """

    id: str
    reason: str


def embed_images(
    describe: Callable[[np.ndarray], np.ndarray],
    images: ImageSet,
    *,
    image_size: int = 288,
    batch_size: int = 32,
    model: str = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Descriptors, list[Unreadable]]:
    """Describes every readable picture of a set.

    Args:
        describe: maps uint8 RGB pictures [B, S, S, 3], B = batch_size always, to descriptors
            [B, D] float32.
        images: the pictures.
        image_size: S; pictures are resized to S x S, their aspect is not kept.
        batch_size: B. The last batch is filled up with black, so that one shape is compiled.
        model: the name that the descriptors carry.
        on_progress: called with (pictures done, pictures in all) after each batch.

    Returns:
        The descriptors in the set's order, and the pictures that could not be read.

    Raises:
        UserError: not one picture can be read, or the model gives NaN.
    """
    found, unreadable = embed_readable(
        describe,
        images,
        image_size=image_size,
        batch_size=batch_size,
        model=model,
        on_progress=on_progress,
    )
    if found is None:
        raise UserError(
            f"{images.source}: none of the {len(images)} images can be read; the first: "
            f"{unreadable[0].reason}"
        )
    return found, unreadable


def embed_readable(
    describe: Callable[[np.ndarray], np.ndarray],
    images: ImageSet,
    *,
    image_size: int = 288,
    batch_size: int = 32,
    model: str = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Descriptors | None, list[Unreadable]]:
    """As `embed_images`, but where not one picture can be read there are no descriptors and no error."""
    unreadable: list[Unreadable] = []
    ids: list[str] = []
    rows: list[np.ndarray] = []
    batch = np.zeros((batch_size, image_size, image_size, 3), np.uint8)
    filled = 0

    def flush() -> None:
        batch[filled:] = 0
        rows.append(np.asarray(describe(batch), np.float32)[:filled].copy())

    pictures = _decoded(images, image_size, ahead=_BATCHES_AHEAD * batch_size)
    for done, (image_id, picture) in enumerate(pictures, start=1):
        if isinstance(picture, UnreadableImageError):
            unreadable.append(Unreadable(image_id, str(picture)))
        else:
            batch[filled] = picture
            ids.append(image_id)
            filled += 1
        if filled == batch_size or done == len(images):
            if filled:
                flush()
            filled = 0
            if on_progress is not None:
                on_progress(done, len(images))
    if not ids:
        return None, unreadable
    descriptors = np.concatenate(rows)
    bad = rows_not_finite(descriptors)
    if bad.size:
        raise UserError(
            f"{images.source}: the model {model or 'given'} describes {bad.size} of {len(ids)} "
            f"images by NaN or infinity, the first {ids[bad[0]]}; its weights are damaged."
        )
    return Descriptors(np.asarray(ids, np.str_), descriptors, model), unreadable


def _decoded(
    images: ImageSet, size: int, ahead: int
) -> Iterator[tuple[str, np.ndarray | UnreadableImageError]]:
    """Yields each id with its picture [S, S, 3] uint8, `ahead` of them being decoded meanwhile."""

    def load(place: int) -> np.ndarray | UnreadableImageError:
        try:
            return np.asarray(resize_square(images.decode(place), size))
        except UnreadableImageError as error:
            return error

    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    pool = concurrent.futures.ThreadPoolExecutor(threads, "decode")
    pictures = mapped_ahead(pool, load, range(len(images)), ahead)
    # Closed with this, so that whoever stops early does not wait for the rest.
    with contextlib.closing(pictures):
        yield from zip(images.ids, pictures, strict=True)

"""Batches of augmented views for training, the same for any number of workers and hosts."""

import dataclasses
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Self

import grain
import numpy as np
from absl import flags
from PIL import Image

from rdcd_jax.data.decode import decode_rgb
from rdcd_jax.data.policies import Policy, View, make_view
from rdcd_jax.data.sources import ImageSet
from rdcd_jax.errors import UnreadableImageError, UserError

Batch = dict[str, np.ndarray]

# That many unreadable pictures in a row are no accident.
_MOST_IN_A_ROW = 1000


def make_batches(
    images: ImageSet,
    *,
    policy: str | Policy,
    image_size: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    views: int = 2,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 2,
) -> "Batches":
    """Batches without end: every epoch is a fresh shuffle, cut to a whole number of batches.

    Which pictures and views make up step k follows from `seed` and k alone. A run is continued by
    `start_step`; `workers`, `prefetch` and restarts change nothing, and the hosts' batches together
    hold exactly the pictures and views of the one batch that a single host would read.

    Args:
        images: the pictures.
        policy: a name from `policies.POLICIES`, or the steps themselves.
        image_size: side S of the views in pixels.
        batch_size: over all hosts; at most as many as there are pictures.
        seed: 0 or more.
        start_step: the first step to give, counted from 0.
        views: 2 independent ones per picture, or 1.
        workers: processes that read and augment; 0 does it in a thread of this one. With workers,
            the main script needs its `if __name__ == "__main__":`, since they are spawned.
        process_index: this host.
        process_count: all hosts; divides `batch_size`.
        prefetch: batches made ahead, by each worker.

    Returns:
        An iterator, to be closed after use (it is its own context manager), of dicts with
        "query" [b, S, S, 3] uint8, "key" likewise where views is 2, "index" [b] int64, the shown
        picture's place in `images`, and "unreadable" [b] int64, the place of the unreadable picture
        for which the shown one stands in, or -1; b = batch_size / process_count.

    Raises:
        UserError: impossible arguments; see also `policies.make_view`. From the iterator: hardly
            any picture is readable, or a worker died.
    """
    _check(images, batch_size, process_index, process_count)
    for name, value, least in [
        ("seed", seed, 0),
        ("start_step", start_step, 0),
        ("workers", workers, 0),
        ("prefetch", prefetch, 1),
    ]:
        if value < least:
            raise UserError(f"{name}={value} must be at least {least}.")
    if views not in (1, 2):
        raise UserError(f"views={views}: a picture gives 1 or 2 views.")
    order_seed, view_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
    per_epoch = len(images) // batch_size * batch_size
    make_sample = _Sample(images, make_view(policy, image_size), views)
    data = (
        grain.MapDataset.range(len(images))
        .shuffle(order_seed)
        .slice(slice(per_epoch))
        .random_map(make_sample, seed=view_seed)
        .repeat()
        # Hosts part here, last, so that their pictures and random numbers never coincide.
        .slice(slice(start_step * batch_size + process_index, None, process_count))
        # Without drop_remainder Grain rounds the endless length up to one that Python cannot hold.
        .batch(batch_size // process_count, drop_remainder=True)
    )
    if not workers:
        # More threads would wait for one another: little of the work releases the interpreter.
        read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
        return Batches(iter(data.to_iter_dataset(read)))
    if not flags.FLAGS.is_parsed():
        # Grain reads its debugging flags also in programs that do not use absl's.
        flags.FLAGS.mark_as_parsed()
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
    read = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # the workers read ahead
    return Batches(
        iter(data.to_iter_dataset(read).mp_prefetch(processes, worker_init_fn=_start_worker))
    )


class Batches(Iterator[Batch]):
    """The batches of `make_batches`; close it, or use it in a `with`, to end its workers."""

    def __init__(self, batches: grain.DatasetIterator) -> None:
        self._batches = batches

    def __next__(self) -> Batch:
        try:
            return next(self._batches)
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):
                raise
            raise UserError(
                "A data worker process died, most often for want of memory (or of /dev/shm): use "
                'fewer workers, or none, and keep `if __name__ == "__main__":` in the main script. '
                f"({error})"
            ) from error

    def close(self) -> None:
        """Ends the workers; the iterator gives nothing more."""
        self._batches.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Reads one picture and makes its views."""

    images: ImageSet
    view: View
    views: int

    def __call__(self, place: int, rng: np.random.Generator) -> Batch:
        image, shown = self._readable(int(place))
        names = ("query", "key")[: self.views]
        return {
            **{name: self.view(image, rng) for name in names},
            "index": np.int64(shown),
            "unreadable": np.int64(-1 if shown == place else place),
        }

    def _readable(self, place: int) -> tuple[Image.Image, int]:
        """The picture at `place`, or the next one that can be read, and where that one is."""
        for ahead in range(min(len(self.images), _MOST_IN_A_ROW)):
            shown = (place + ahead) % len(self.images)
            try:
                side = self.view.useful_side
                return decode_rgb(self.images.paths[shown], min_side_hint=side), shown
            except UnreadableImageError as error:
                last = error
        raise UserError(
            f"{self.images.source}: {ahead + 1} images in a row are unreadable. The last: {last}"
        )


def _check(images: ImageSet, batch_size: int, process_index: int, process_count: int) -> None:
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index={process_index} is not within {process_count} processes.")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size={batch_size} must be a positive multiple of the {process_count} hosts."
        )
    if len(images) < batch_size:
        raise UserError(
            f"{images.source}: {len(images)} images do not fill a batch of {batch_size}; use a "
            "smaller batch_size or more images."
        )


def _start_worker(index: int, count: int) -> None:
    """Makes a worker leave with its parent, however that ends, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: BaseProcess) -> None:
    # A parent that is killed cannot end its workers, and they would wait for it for ever.
    parent.join()
    os._exit(1)

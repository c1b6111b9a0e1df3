"""Batches of augmented views for training, the same for any number of workers and hosts."""

import contextlib
import dataclasses
import logging
import multiprocessing
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

import grain
import numpy as np
from absl import flags
from PIL import Image

from rdcd_jax.augment.policies import Policy, View, make_view
from rdcd_jax.core.errors import UnreadableImageError, UserError
from rdcd_jax.core.heap import keep_freed_memory
from rdcd_jax.core.workers import follow_parent
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.training.kept import Kept, Squash

Batch = dict[str, np.ndarray]

# That many unreadable images in a row are no accident.
_log = logging.getLogger(__name__)
_MOST_IN_A_ROW = 1000
# Workers that die again and again at one batch will do so for ever.
_MOST_DEATHS = 3
# How long workers that are to end may finish what they are doing.
_PATIENCE_S = 10


def make_batches(
    images: ImageSet,
    *,
    policy: str | Policy | None,
    image_size: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    views: int = 2,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 2,
    timeout_s: float = 300,
    kept: Kept | None = None,
) -> "Batches":
    """Batches without end: every epoch is a fresh shuffle, cut to a whole number of batches.

    Which images and views make up step k follows from `seed` and k alone. A run is continued by
    `start_step`; `workers`, `prefetch` and restarts change nothing, and the hosts' batches together
    hold exactly the images and views of the one batch that a single host would read.

    Args:
        images: the images.
        policy: a name from `policies.POLICIES`, or the steps themselves; None gives the images, unedited and squashed
            to a square, for views that are made on the device.
        image_size: side S of the views, or of the squashed images, in pixels.
        batch_size: over all hosts; at most as many as there are images.
        seed: 0 or more.
        start_step: the first step to give, counted from 0.
        views: 2 independent ones per image, or 1.
        workers: processes that read and augment; 0 does it in a thread of this one. With workers,
            the main script needs its `if __name__ == "__main__":`, since they are spawned.
        process_index: this host.
        process_count: all hosts; divides `batch_size`.
        prefetch: batches made ahead, by each worker.
        timeout_s: with workers, a batch that takes longer is taken to hang on an image.
        kept: the same images, decoded before; nothing is read then, and `policy` is None and `workers` 0.

    Returns:
        An iterator, to be closed after use (it is its own context manager), of dicts with
        "query" [b, S, S, 3] uint8 and, where views is 2, "key" likewise, or "image" [b, S, S, 3] uint8 and "aspect"
        [b] float32, its true width / height (neither where `kept` is on the device); "index" [b] int64, the shown
        image's position in `images`, and "unreadable" [b] int64, the place of the unreadable image
        for which the shown one stands in, or -1; b = batch_size / process_count.

    Raises:
        UserError: impossible arguments; see also `policies.make_view`. From the iterator: hardly
            any image is readable, workers keep dying, or give nothing within the time.
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
        raise UserError(f"views={views}: an image gives 1 or 2 views.")
    make = Squash(image_size) if policy is None else _Views(make_view(policy, image_size), views)
    order_seed, view_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
    per_epoch = len(images) // batch_size * batch_size
    if workers and not flags.FLAGS.is_parsed():
        # Grain reads its debugging flags also in programs that do not use absl's.
        flags.FLAGS.mark_as_parsed()

    def upcoming(step: int, transform: Callable[[grain.MapDataset], grain.MapDataset]):
        """This host's samples from a step on, without end."""
        positions = grain.MapDataset.range(len(images)).shuffle(order_seed).slice(slice(per_epoch))
        # Hosts part here, last, so that their images and random numbers never coincide.
        start = step * batch_size + process_index
        return transform(positions).repeat().slice(slice(start, None, process_count))

    def read(step: int, hanging: frozenset[int]) -> grain.DatasetIterator:
        sample = _Sample(images, make, hanging) if kept is None else kept
        # Without drop_remainder Grain rounds the endless length up to one that Python cannot hold.
        data = upcoming(step, lambda positions: positions.random_map(sample, seed=view_seed)).batch(
            batch_size // process_count, drop_remainder=True
        )
        if not workers:
            # More threads would wait for one another: little of the work releases the interpreter.
            options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
            return iter(data.to_iter_dataset(options))
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # the workers read ahead
        processes = grain.MultiprocessingOptions(workers, per_worker_buffer_size=prefetch)
        return iter(
            data.to_iter_dataset(options).mp_prefetch(processes, worker_init_fn=_start_worker)
        )

    def due(step: int) -> list[int]:
        # What the workers may be busy with while this step's batch is waited for.
        ahead = batch_size // process_count * (1 + max(workers, 1) * (prefetch + 1))
        positions = upcoming(step, lambda positions: positions)
        return list(dict.fromkeys(int(positions[i]) for i in range(ahead)))

    return Batches(read, due, images, start_step, timeout_s if workers else None)


class Batches(Iterator[Batch]):
    """The batches of `make_batches`; close it, or use it in a `with`, to end its workers.

    A worker that dies is replaced, and one that hangs on an image is too, with a warning. The batches are
    the same as if nothing had happened, except that an image on which reading hangs counts as unreadable.
    """

    def __init__(
        self,
        read: Callable[[int, frozenset[int]], grain.DatasetIterator],
        due: Callable[[int], list[int]],
        images: ImageSet,
        step: int,
        timeout_s: float | None,
    ) -> None:
        self._read, self._due, self._images = read, due, images
        self._step, self._timeout_s = step, timeout_s
        self._hanging: frozenset[int] = frozenset()
        self._failures = 0
        self._batches = read(step, self._hanging)

    def __next__(self) -> Batch:
        while True:
            try:
                batch = self._waited_for()
            except TimeoutError:
                self._leave_out_hanging()
            except RuntimeError as error:
                if "Worker process was terminated" not in str(error):
                    raise
                self._replace_workers(error)
            else:
                self._step, self._failures = self._step + 1, 0
                return batch

    def _waited_for(self) -> Batch:
        if self._timeout_s is None:
            return next(self._batches)
        answer: queue.SimpleQueue = queue.SimpleQueue()

        def ask() -> None:
            try:
                answer.put((next(self._batches), None))
            except BaseException as error:
                answer.put((None, error))

        threading.Thread(target=ask, daemon=True).start()
        try:
            batch, error = answer.get(timeout=self._timeout_s)
        except queue.Empty:
            raise TimeoutError from None
        if error is not None:
            raise error
        return batch

    def _replace_workers(self, error: RuntimeError) -> None:
        self._failures += 1
        if self._failures > _MOST_DEATHS:
            raise UserError(
                f"A data worker process died {self._failures} times at one batch, most often for want of memory (or of"
                ' /dev/shm): use fewer workers, or none, and keep `if __name__ == "__main__":` in the main script.'
                f" ({error})"
            ) from error
        _log.warning("A data worker process died; new ones go on from batch %d.", self._step)
        self._start_again()

    def _leave_out_hanging(self) -> None:
        _kill_workers()
        positions = [
            position for position in self._due(self._step) if position not in self._hanging
        ]
        hanging = [positions[i] for i in hanging_images(self._images.subset(positions))]
        if not hanging:
            raise UserError(
                f"{self._images.source}: the data workers gave no batch for {self._timeout_s:.0f} seconds, though each"
                " of its images can be read; use more workers (config.data.workers) or a faster disk."
            )
        self._hanging |= frozenset(hanging)
        for position in hanging:
            path = self._images.paths[position]
            _log.warning("%s cannot be read: reading it hangs. It is left out.", path)
        self._start_again()

    def _start_again(self) -> None:
        self.close()
        self._batches = self._read(self._step, self._hanging)

    def close(self) -> None:
        """Ends the workers; the iterator gives nothing more."""
        # Grain waits for its workers, and one may be hanging on an image that was to come later.
        timer = threading.Timer(_PATIENCE_S, _kill_workers)
        timer.start()
        self._batches.close()
        timer.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def hanging_images(images: ImageSet, limit_s: float = 20) -> list[int]:
    """The positions of the images whose decoding does not end within the limit, each tried in a process of its own."""
    # Spawned, since forking a process in which JAX runs may hang by itself.
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    hanging, rest = [], range(len(images))
    while rest:
        process = context.Process(target=_decode_all, args=(images, rest, send), daemon=True)
        process.start()
        done = 0
        # The first answer only says that the process has started.
        while done <= len(rest) and receive.poll(60 if not done else limit_s):
            receive.recv()
            done += 1
        process.kill()
        process.join()
        if done > len(rest):
            break
        if done:
            hanging.append(rest[done - 1])
        rest = rest[max(done, 1) :]
    return hanging


def _decode_all(images: ImageSet, positions: Sequence[int], send) -> None:
    send.send(None)
    for position in positions:
        with contextlib.suppress(UnreadableImageError):
            images.decode(position)
        send.send(None)


@dataclasses.dataclass(frozen=True)
class _Views:
    """Makes one or two views of an image."""

    view: View
    count: int

    @property
    def useful_side(self) -> int:
        return self.view.useful_side

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Batch:
        return {name: self.view(image, rng) for name in ("query", "key")[: self.count]}


@dataclasses.dataclass(frozen=True)
class _Sample:
    """Reads one image and makes what a batch holds of it."""

    images: ImageSet
    make: _Views | Squash
    hanging: frozenset[int]

    def __call__(self, position: int, rng: np.random.Generator) -> Batch:
        image, shown = self._readable(int(position))
        return {
            **self.make(image, rng),
            "index": np.int64(shown),
            "unreadable": np.int64(-1 if shown == position else position),
        }

    def _readable(self, position: int) -> tuple[Image.Image, int]:
        """The image at `position`, or the next one that can be read, and where that one is."""
        for ahead in range(min(len(self.images), _MOST_IN_A_ROW)):
            shown = (position + ahead) % len(self.images)
            if shown in self.hanging:
                last = UnreadableImageError(f"{self.images.paths[shown]}: reading it hangs.")
                continue
            try:
                side = self.make.useful_side
                return self.images.decode(shown, min_side_hint=side), shown
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


def _kill_workers() -> None:
    # Those of all iterators of this process, which will replace them: Grain does not say which are whose.
    for process in multiprocessing.active_children():
        if process.name.startswith("grain-"):
            process.kill()


def _start_worker(index: int, count: int) -> None:
    keep_freed_memory()
    follow_parent()

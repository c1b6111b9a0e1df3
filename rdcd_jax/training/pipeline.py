"""Batches of augmented views for training, the same for any number of workers and hosts."""

import contextlib
import dataclasses
import gc
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

from rdcd_jax.augment.policies import View
from rdcd_jax.core.errors import UnreadableImageError, UserError
from rdcd_jax.core.heap import keep_freed_memory
from rdcd_jax.core.workers import follow_parent
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.training.kept import Kept, Squash

Batch = dict[str, np.ndarray]

_log = logging.getLogger(__name__)
# That many unreadable images in a row are no accident.
_MOST_IN_A_ROW = 1000
# How long workers may take to start, beside the time for their first batch.
_START_S = 60
# Workers that die again and again at one batch will do so for ever.
_MOST_DEATHS = 3
# How long workers that are to end may finish what they are doing.
_PATIENCE_S = 10


@dataclasses.dataclass(frozen=True)
class Views:
    """Makes one or two independent views of an image.

    Attributes:
        view: see `policies.make_view`.
        count: 2 for "query" and "key", or 1 for "query" alone.
    """

    view: View
    count: int = 2

    def __post_init__(self):
        if self.count not in (1, 2):
            raise UserError(f"views={self.count}: an image gives 1 or 2 views.")

    @property
    def useful_side(self) -> int:
        """Short side in pixels from which on an image need not be larger."""
        return self.view.useful_side

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Batch:
        """Gives views [S, S, 3] uint8 by name."""
        return {name: self.view(image, rng) for name in ("query", "key")[: self.count]}


@dataclasses.dataclass(frozen=True)
class Workers:
    """The processes that read and augment.

    Attributes:
        count: 0 does it in a thread of this process. With workers, the main script needs its
            `if __name__ == "__main__":`, since they are spawned.
        prefetch: batches made ahead, by each worker.
        timeout_s: a batch that takes longer is taken to hang on an image.
    """

    count: int = 0
    prefetch: int = 2
    timeout_s: float = 300


def make_batches(
    images: ImageSet,
    make: Views | Squash | Kept | Callable[[int, np.random.Generator], Batch],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    workers: Workers = Workers(),
    host: tuple[int, int] = (0, 1),
) -> "Batches":
    """Batches without end: every epoch is a fresh shuffle, cut to a whole number of batches.

    Which images and views make up step k follows from `seed` and k alone. A run is continued by
    `start_step`; `workers` and restarts change nothing, and the hosts' batches together
    hold exactly the images and views of the one batch that a single host would read.

    Args:
        images: what to read.
        make: what a batch holds of an image: views; or the image itself, squashed to a square, for views that are made
            on the device; or what is kept of a set decoded before, by position, for which nothing is read.
        batch_size: over all hosts; at most as many as there are images.
        seed: 0 or more.
        start_step: the first step to give, counted from 0.
        workers: who reads. None where nothing is read.
        host: this one's position, and how many there are; their number divides `batch_size`.

    Returns:
        An iterator, to be closed after use (it is its own context manager), of dicts with
        "query" [b, S, S, 3] uint8 and, where two views are made, "key" likewise, or "image" [b, S, S, 3] uint8 and
        "aspect" [b] float32, its true width / height (neither where the kept is on the device); "index" [b] int64, the
        shown image's position in `images`, and "unreadable" [b] int64, the position of the unreadable image
        for which the shown one stands in, or -1; b = batch_size / hosts.

    Raises:
        UserError: impossible arguments. From the iterator: hardly
            any image is readable, workers keep dying, or give nothing within the time.
    """
    process_index, process_count = host
    _check(images, batch_size, process_index, process_count)
    for name, value, least in [
        ("seed", seed, 0),
        ("start_step", start_step, 0),
        ("workers", workers.count, 0),
        ("prefetch", workers.prefetch, 1),
    ]:
        if value < least:
            raise UserError(f"{name}={value} must be at least {least}.")
    plan = _Plan(images, make, batch_size, seed, workers, host)
    return Batches(plan, start_step)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What `make_batches` was given: which images make up which step, and how they are read."""

    images: ImageSet
    make: Callable
    batch_size: int
    seed: int
    workers: Workers
    host: tuple[int, int]

    def _upcoming(self, step: int, transform: Callable[[grain.MapDataset], grain.MapDataset]):
        """This host's part of each batch from a step on, without end."""
        order_seed, _ = self._seeds()
        per_epoch = len(self.images) // self.batch_size * self.batch_size
        positions = grain.MapDataset.range(len(self.images)).shuffle(order_seed)
        endless = transform(positions.slice(slice(per_epoch))).repeat()
        # Hosts part here, last, so that their images and random numbers never coincide; side by side, so that the parts
        # make up the very batch of a single host. Without drop_remainder Grain rounds the endless length up to one that
        # Python cannot hold.
        index, count = self.host
        parts = endless.batch(self.batch_size // count, drop_remainder=True)
        return parts.slice(slice(step * count + index, None, count))

    def _seeds(self) -> tuple[int, int]:
        """Of the shuffle and of the views."""
        order, view = np.random.SeedSequence(self.seed).generate_state(2)
        return int(order), int(view)

    def read(self, step: int, hanging: frozenset[int]) -> grain.DatasetIterator:
        """This host's batches from a step on, without the images at positions on which reading hangs."""
        reads = hasattr(self.make, "useful_side")
        sample = _Sample(self.images, self.make, hanging) if reads else self.make
        _, view_seed = self._seeds()
        data = self._upcoming(step, lambda positions: positions.random_map(sample, seed=view_seed))
        workers = self.workers
        if not workers.count:
            # More threads would wait for one another: little of the work releases the interpreter.
            options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=workers.prefetch)
            return iter(data.to_iter_dataset(options))
        if not flags.FLAGS.is_parsed():
            # Grain reads its debugging flags also in programs that do not use absl's.
            flags.FLAGS.mark_as_parsed()
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # the workers read ahead
        processes = grain.MultiprocessingOptions(
            workers.count, per_worker_buffer_size=workers.prefetch
        )
        return iter(
            data.to_iter_dataset(options).mp_prefetch(processes, worker_init_fn=_start_worker)
        )

    def due(self, step: int) -> list[int]:
        """The positions that workers may be busy with while this step's batch is waited for."""
        batches = 1 + max(self.workers.count, 1) * (self.workers.prefetch + 1)
        parts = self._upcoming(step, lambda positions: positions)
        return list(dict.fromkeys(int(each) for i in range(batches) for each in parts[i]))


def _ended() -> Iterator[Batch]:
    yield from ()


class Batches(Iterator[Batch]):
    """The batches of `make_batches`; close it, or use it in a `with`, to end its workers.

    A worker that dies is replaced, and one that hangs on an image is too, with a warning. The batches are
    the same as if nothing had happened, except that an image on which reading hangs counts as unreadable.
    """

    def __init__(self, plan: _Plan, step: int) -> None:
        self._plan, self._step = plan, step
        self._hanging: frozenset[int] = frozenset()
        self._failures = 0
        self._start()

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
                self._step, self._failures, self._started = self._step + 1, 0, True
                return batch

    def _waited_for(self) -> Batch:
        workers = self._plan.workers
        if not workers.count:
            return next(self._batches)
        patience = workers.timeout_s + (0 if self._started else _START_S)
        answer: queue.SimpleQueue = queue.SimpleQueue()

        def ask() -> None:
            try:
                answer.put((next(self._batches), None))
            except BaseException as error:
                answer.put((None, error))

        threading.Thread(target=ask, daemon=True).start()
        try:
            batch, error = answer.get(timeout=patience)
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
        images, limit = self._plan.images, self._plan.workers.timeout_s
        due = [each for each in self._plan.due(self._step) if each not in self._hanging]
        hanging = [due[i] for i in hanging_images(images.subset(due))]
        if not hanging:
            raise UserError(
                f"{images.source}: the data workers gave no batch for {limit:.0f} seconds, though each of its"
                " images can be read; use more workers (config.data.workers) or a faster disk."
            )
        self._hanging |= frozenset(hanging)
        for position in hanging:
            path = images.paths[position]
            _log.warning("%s cannot be read: reading it hangs. It is left out.", path)
        self._start_again()

    def _start_again(self) -> None:
        self.close()
        self._start()

    def _start(self) -> None:
        self._batches, self._started = self._plan.read(self._step, self._hanging), False

    def close(self) -> None:
        """Ends the workers; the iterator gives nothing more."""
        # Grain waits for its workers, and one may be hanging on an image that was to come later.
        timer = threading.Timer(_PATIENCE_S, _kill_workers)
        timer.start()
        self._batches.close()
        timer.cancel()
        self._batches = _ended()
        # The workers' queues lie in cycles. Freed while multiprocessing starts others, which may be any time later,
        # their semaphores would be reported as leaked (Python 3.13).
        gc.collect()

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
class _Sample:
    """Reads one image and makes what a batch holds of it."""

    images: ImageSet
    make: Views | Squash
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
        raise UserError(
            f"host={(process_index, process_count)}: {process_index} is not within {process_count} hosts."
        )
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

"""`rdcd-jax data pack`: any source of images as shards of records, which one disk read an image is enough for."""

import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import math
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool

from rdcd_jax.core.beam import run_each
from rdcd_jax.core.errors import UnreadableImageError, UserError, one_line
from rdcd_jax.core.files import file_sha256, write_aside, write_json, write_text
from rdcd_jax.core.locks import held
from rdcd_jax.core.workers import follow_parent
from rdcd_jax.images.decode import decode_rgb, is_seen_otherwise, resize_short_edge
from rdcd_jax.images.given import Images, images_of
from rdcd_jax.images.links import stamp, status
from rdcd_jax.images.records import ShardIndex, index_path, read_index, shard_name, write_index
from rdcd_jax.images.sources import ImageSet, changed

PLAN, UNREADABLE = "pack.json", "unreadable.txt"
_STEM = "pictures"
_SHARD_SIZE = 2048
_QUALITY = 95
# Whether an image can be read shows at any size, and small is quick.
_GLANCE = 32
# Images between two looks at what the other processes do.
_STRIDE = 16


@dataclasses.dataclass(frozen=True)
class Packed:
    """What was packed.

    Attributes:
        images: how many the shards hold.
        shards: how many there are.
        unreadable: one sentence for each image that was left out.
    """

    images: int
    shards: int
    unreadable: tuple[str, ...]


def pack_images(
    source: Images,
    out: str | os.PathLike,
    *,
    ids: str = "name",
    short_side: int | None = None,
    quality: int | None = None,
    shards: int | None = None,
    shard_size: int | None = None,
    workers: int = 1,
    beam_options: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Writes images as shards of records with their indexes, or goes on where such work was ended.

    The shards of work that was ended anywhere and continued are, byte for byte, those of work that was not.

    Args:
        source: see `given.images_of`.
        out: folder for the shards, `pack.json` (what is packed and how) and `unreadable.txt`.
        ids: see `given.images_of`.
        short_side: images are reduced to this short side in pixels, never enlarged, and stored as JPEG (a JPEG
            that is small enough, unchanged); None stores every file unchanged.
        quality: of these JPEGs, 1 to 100; 95 for None.
        shards: how many to make; images are spread evenly.
        shard_size: instead, the most images in one; 2048 where both are None.
        workers: processes; 1 works in this one. With more, the main script needs its `if __name__ == "__main__":`.
        beam_options: of an Apache Beam pipeline that makes the shards on machines that see the same files, such as
            "--runner=FlinkRunner --flink_master=HOST:8081"; None for this machine alone.
        on_progress: called now and then with (images done, images in all); not of a pipeline.

    Returns:
        What the shards hold.

    Raises:
        UserError: impossible settings; `out` holds something else, or was begun from another source or with other
            settings; the disk is full; not one image can be read; a worker died.
    """
    images = images_of(source, ids=ids)
    out = pathlib.Path(out)
    _refuse_inside(out, images)
    count = _shard_count(len(images), shards, shard_size)
    quality = _checked(short_side, quality, workers)
    plan = {
        "source": images.source if ":" in images.source else os.path.abspath(images.source),
        **images.fingerprint(),
        "short_side": short_side,
        "quality": quality,
        "shards": count,
    }
    busy = f"{out}: another process is packing images into it; wait until it has ended."
    with _full_disk_stored(out), contextlib.ExitStack() as stack:
        with contextlib.suppress(FileExistsError):
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(out, busy))
        _begin(out, plan)
        job = _Job(images, out, count, short_side, quality)
        if beam_options is None:
            indexes = _all_packed(job, min(workers, count), on_progress)
        else:
            run_each(job.make, range(count), beam_options)
            indexes = [read_index(job.shard(number)) for number in range(count)]
        unreadable = tuple(one_line(reason) for index in indexes for _, reason in index.unreadable)
        if unreadable:
            write_text(out / UNREADABLE, "".join(f"{reason}\n" for reason in unreadable))
        else:
            (out / UNREADABLE).unlink(missing_ok=True)
    packed = sum(len(index.ids) for index in indexes)
    if not packed:
        raise UserError(
            f"{images.source}: none of the {len(images)} images can be read; the first: {unreadable[0]}"
        )
    return Packed(packed, count, unreadable)


def _refuse_inside(out: pathlib.Path, images: ImageSet) -> None:
    """Refuses shards where the next listing of the images would find them."""
    if images.reader is not None or not os.path.isdir(images.source):
        return
    below = os.path.relpath(os.path.realpath(out), os.path.realpath(images.source))
    # A part that begins with a dot leads up and out, or is hidden, and what is hidden is not listed.
    if not any(part.startswith(".") for part in below.split(os.sep) if part != "."):
        raise UserError(
            f"Shards in {out} would be found among the images of {images.source}; give a folder outside."
        )


def _shard_count(images: int, shards: int | None, shard_size: int | None) -> int:
    if shards is not None and shard_size is not None:
        raise UserError("Give the number of shards or the size of one, not both.")
    for name, value in [("shards", shards), ("shard_size", shard_size)]:
        if value is not None and value < 1:
            raise UserError(f"{name}={value} must be at least 1.")
    if shards is None:
        shards = math.ceil(images / (shard_size or _SHARD_SIZE))
    most = min(images, 99_999)
    if shards > most:
        raise UserError(f"{shards} shards are too many for {images} images; use at most {most}.")
    return shards


def _checked(short_side: int | None, quality: int | None, workers: int) -> int | None:
    if workers < 1:
        raise UserError(f"workers={workers} must be at least 1.")
    if short_side is None:
        if quality is not None:
            raise UserError("quality is for images that are made smaller: give short_side with it.")
        return None
    if not 8 <= short_side <= 8192:
        raise UserError(f"short_side={short_side} must be 8 to 8192 pixels.")
    quality = _QUALITY if quality is None else quality
    if not 1 <= quality <= 100:
        raise UserError(f"quality={quality} must be 1 to 100.")
    return quality


def _begin(out: pathlib.Path, plan: dict) -> None:
    """Writes the plan, or checks that the one there is the same; removes what a kill left half-written."""
    path = out / PLAN
    if path.is_file():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged; pack into another folder.") from error
        change = changed(before, plan)
        if change:
            raise UserError(
                f"{out} was begun from another source: {change}; bring that set back to continue it, or give another"
                " folder."
            )
        for name in plan:
            if before.get(name) != plan[name]:
                raise UserError(
                    f"{out} was begun with {name} = {before.get(name)!r}, and this is {plan[name]!r}; give the same"
                    " source and settings to continue it, or another folder."
                )
    else:
        if out.exists() and not (out.is_dir() and all(_is_left(each) for each in out.iterdir())):
            raise UserError(f"{out} exists and is no folder of packed images; give a new folder.")
        write_json(path, plan)
    for each in out.iterdir():
        if _is_left(each):
            each.unlink(missing_ok=True)


def _is_left(path: pathlib.Path) -> bool:
    """Whether a file was being written aside when the process was killed."""
    return path.name.startswith((f".{_STEM}-", ".pack-", ".unreadable-"))


@dataclasses.dataclass(frozen=True)
class _Job:
    """All that a process needs to make any shard."""

    images: ImageSet
    out: pathlib.Path
    count: int
    short_side: int | None
    quality: int | None

    def shard(self, number: int) -> pathlib.Path:
        return self.out / shard_name(_STEM, number, self.count)

    def positions(self, number: int) -> range:
        total = len(self.images)
        return range(number * total // self.count, (number + 1) * total // self.count)

    def make(self, number: int) -> None:
        """Makes a shard, as a piece of a pipeline's work."""
        with _full_disk_stored(self.out):
            _packed_shard(self, number, lambda count: None)

    def stored(self, position: int) -> bytes:
        """What the record of an image holds."""
        content, path = self.images.read(position), self.images.paths[position]
        if self.short_side is None:
            decode_rgb(path, content=content, min_side_hint=_GLANCE)
            return content
        # The last reduction, by less than 2 to less than 4, is the one that a good filter does.
        image = decode_rgb(path, content=content, min_side_hint=2 * self.short_side)
        if is_seen_otherwise(content):
            return content
        if min(image.size) > self.short_side:
            image = resize_short_edge(image, self.short_side)
        elif content.startswith(b"\xff\xd8\xff"):
            return content
        buffer = io.BytesIO()
        try:
            image.save(buffer, "JPEG", quality=self.quality)
        except (OSError, ValueError) as error:
            raise UnreadableImageError(f"{path}: cannot be stored as JPEG ({error}).") from error
        return buffer.getvalue()


class _StoppedError(Exception):
    """Another process failed, or the user wants no more."""


def _all_packed(
    job: _Job, workers: int, on_progress: Callable[[int, int], None] | None
) -> list[ShardIndex]:
    total = len(job.images)
    reported = 0

    def report(done: int) -> None:
        nonlocal reported
        if done != reported:
            reported = done
            if on_progress is not None:
                on_progress(done, total)

    if workers == 1:
        return [
            _packed_shard(job, number, lambda count: report(reported + count))
            for number in range(job.count)
        ]
    # Spawned, since the parent may have threads.
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start, initargs=(job, counter, stop)
    )
    try:
        futures = [pool.submit(_pack_one, number) for number in range(job.count)]
        waiting = set(futures)
        while waiting:
            finished, waiting = concurrent.futures.wait(
                waiting, timeout=0.5, return_when=concurrent.futures.FIRST_EXCEPTION
            )
            for future in finished:
                future.result()
            report(counter.value)
        return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise UserError(
            f"{job.out}: a worker process died, most often for want of memory; the same command with fewer workers goes"
            " on from the shards that are whole."
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _start(job: _Job, counter, stop) -> None:
    global _job, _counter, _stop
    _job, _counter, _stop = job, counter, stop
    follow_parent()


def _pack_one(number: int) -> ShardIndex:
    def tick(count: int) -> None:
        with _counter.get_lock():
            _counter.value += count
        if _stop.is_set():
            raise _StoppedError

    with _full_disk_stored(_job.out):
        return _packed_shard(_job, number, tick)


def _has_newer(images: ImageSet, positions: Iterable[int], shard: pathlib.Path) -> bool:
    """Whether a file was changed after a shard was written."""
    written = shard.stat().st_mtime_ns
    found = (status(images, position) for position in positions)
    return any(each is not None and each.st_mtime_ns > written for each in found)


def _files_sha256(images: ImageSet, positions: Iterable[int]) -> str:
    """Hex digest of what is seen of files without opening them."""
    found = (status(images, position) for position in positions)
    stamps = [None if each is None else stamp(each) for each in found]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()


def _packed_shard(job: _Job, number: int, tick: Callable[[int], None]) -> ShardIndex:
    """Makes a shard and its index, unless they are there and sound."""
    shard, positions = job.shard(number), job.positions(number)
    files = _files_sha256(job.images, positions)
    with contextlib.suppress(UserError, FileNotFoundError):
        index = read_index(shard)
        ids = {*index.ids, *(id_ for id_, _ in index.unreadable)}
        mine = ids == {job.images.ids[position] for position in positions}
        # Version 0.1 did not note its files.
        noted = bool(index.files_sha256)
        same = (
            index.files_sha256 == files if noted else not _has_newer(job.images, positions, shard)
        )
        sound = mine and same
        sound = sound and shard.stat().st_size == index.size and file_sha256(shard) == index.sha256
        if sound and not any(_is_readable(job, id_, positions) for id_, _ in index.unreadable):
            if not noted:
                write_index(shard, dataclasses.replace(index, files_sha256=files))
            tick(len(positions))
            return index
    # Never an index beside a shard that it is not of.
    index_path(shard).unlink(missing_ok=True)
    ids, unreadable = [], []

    def records() -> Iterator[bytes]:
        waiting = 0
        for position in positions:
            try:
                content = job.stored(position)
            except UnreadableImageError as error:
                unreadable.append((job.images.ids[position], str(error)))
            else:
                ids.append(job.images.ids[position])
                yield content
            waiting += 1
            if waiting == _STRIDE:
                tick(waiting)
                waiting = 0
        if waiting:
            tick(waiting)

    with write_aside(shard) as aside:
        _write_records(aside, records())
        made = aside.stat().st_size, file_sha256(aside)
        index = ShardIndex(tuple(ids), *made, tuple(unreadable), files)
    write_index(shard, index)
    return index


def _is_readable(job: _Job, id_: str, positions: range) -> bool:
    """Whether an image that once could not be read can be read now."""
    position = next(each for each in positions if job.images.ids[each] == id_)
    try:
        job.stored(position)
    except UnreadableImageError:
        return False
    return True


def _write_records(path: pathlib.Path, records: Iterable[bytes]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    # One image a chunk, since they are read in any order; they do not get smaller.
    writer = ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
    # Closed also where reading the images failed, before the file is removed.
    with contextlib.closing(writer):
        for record in records:
            writer.write(record)


@contextlib.contextmanager
def _full_disk_stored(out: pathlib.Path) -> Iterator[None]:
    """Turns a full disk into a sentence; the record writer has an error of its own for it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not full and os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise UserError(
            f"{out}: the disk is full; no half-written shard was kept. Free some space, and the same command goes on"
            " from the shards that are whole."
        ) from error

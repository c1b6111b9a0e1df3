"""What a set of images holds: counts, sizes, what cannot be read, duplicates, and images of other sets in it."""

import collections
import concurrent.futures
import dataclasses
import hashlib
import io
import itertools
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from rdcd_jax.core.errors import UnreadableImageError, UserError, one_line
from rdcd_jax.core.workers import follow_parent, mapped_ahead
from rdcd_jax.images import seen
from rdcd_jax.images.decode import FORMATS, decode_rgb
from rdcd_jax.images.given import images_of
from rdcd_jax.images.near_duplicates import ROW, Group, Overlap, find_duplicates
from rdcd_jax.images.perceptual import perceptual_hash
from rdcd_jax.images.sources import ImageSet

# Called with the source being read, images done and in all.
Progress = Callable[[str, int, int], None]

# How the kinds of duplicates are reported.
_KINDS = {"bytes": "same files", "pixels": "same pixels", "near": "look-alikes"}
_CHUNK = 64
_CHUNKS_AHEAD = 4


@dataclasses.dataclass(frozen=True)
class Spread:
    """The smallest, the middle and the largest of some numbers.

    Attributes:
        min: the smallest.
        median: the middle one, or the mean of the middle two.
        max: the largest.
    """

    min: float
    median: float
    max: float


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """An image that cannot be read.

    Attributes:
        source: the set it is in.
        id: its id.
        reason: one sentence that names the file.
    """

    source: str
    id: str
    reason: str


@dataclasses.dataclass(frozen=True)
class SetReport:
    """What was found.

    Attributes:
        source: the set.
        images: how many it lists.
        readable: how many of them can be read.
        formats: readable images by format.
        sizes: width, height, megapixels and file_bytes of the readable images.
        total_bytes: of all readable files together.
        without_structure: readable images of nearly one colour, which are left out of the search for near ones.
        unreadable: those of the set, and then of the others.
        groups: duplicates within the set; an image may be in one group of each kind.
        against: number of images of each other set, by source.
        overlaps: images of the set that are also in another, at most one line an image and other set.
    """

    source: str
    images: int
    readable: int
    formats: dict[str, int]
    sizes: dict[str, Spread]
    total_bytes: int
    without_structure: int
    unreadable: tuple[Unreadable, ...]
    groups: tuple[Group, ...]
    against: dict[str, int]
    overlaps: tuple[Overlap, ...]

    def as_json(self) -> dict:
        """The report as plain JSON values."""
        return dataclasses.asdict(self)


def check_images(
    source: str | os.PathLike | ImageSet,
    *,
    against: Sequence[str | os.PathLike | ImageSet] = (),
    workers: int | None = None,
    on_progress: Progress | None = None,
) -> SetReport:
    """Reads every image once and reports what the set holds.

    Near duplicates are found by a perceptual hash that stands recompression, resizing and small overlays but not crops,
    rotations or mirroring: what it finds is nearly always true, what it does not find may still be a copy.

    Args:
        source: the set.
        against: other sets, such as the references and queries that a training set must not hold.
        workers: processes that decode; None is one per CPU core, 1 decodes in this process.
        on_progress: called with the source, images done and in all.

    Returns:
        The report.

    Raises:
        UserError: a source that cannot be found, two of one name, or a decoding process that was killed.
    """
    sets = [images_of(each) for each in (source, *against)]
    names = [images.source for images in sets]
    if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise UserError(f"{twice[0]} is given twice; a set is compared with itself anyway.")
    rows, unreadable = _measured(sets, workers or os.cpu_count() or 1, on_progress)
    groups, overlaps = find_duplicates(sets, rows)
    own = rows[: len(sets[0])]
    own = own[own["readable"]]
    formats = collections.Counter(FORMATS[code] for code in own["format"].tolist())
    return SetReport(
        source=names[0],
        images=len(sets[0]),
        readable=len(own),
        formats=dict(formats.most_common()),
        sizes=_spreads(own),
        total_bytes=int(own["file_bytes"].sum()),
        without_structure=int(own["flat"].sum()),
        unreadable=tuple(unreadable),
        groups=groups,
        against={images.source: len(images) for images in sets[1:]},
        overlaps=overlaps,
    )


def report_text(report: SetReport, *, lines: int = 10) -> str:
    """A report for people.

    Args:
        report: the report.
        lines: how many unreadable images, groups and overlaps to list of each kind; the rest are counted.

    Returns:
        Text of several lines.
    """
    formats = ", ".join(f"{count} {name}" for name, count in report.formats.items())
    text = [
        f"{report.source}: {report.images} images, {report.readable} readable ({formats or 'none'}), "
        f"{report.total_bytes / 1e6:.1f} MB"
    ]
    text += [
        f"  {name.replace('_', ' ')}: {each.min:g} to {each.max:g}, median {each.median:g}"
        for name, each in report.sizes.items()
    ]
    sections = [("unreadable", [one_line(each.reason) for each in report.unreadable])]
    for kind, what in _KINDS.items():
        found = [", ".join(group.ids) for group in report.groups if group.kind == kind]
        sections.append((f"groups of {what}", [one_line(each) for each in found]))
    for kind, what in _KINDS.items():
        for other in report.against:
            found = [
                f"{each.id} is {each.other_id}"
                + (f" ({each.distance} bits apart)" if kind == "near" else "")
                for each in report.overlaps
                if each.kind == kind and each.other_source == other
            ]
            sections.append((f"{what} also in {other}", [one_line(each) for each in found]))
    for title, found in sections:
        text.append(f"{title}: {len(found)}")
        text += [f"  {each}" for each in found[:lines]]
        if len(found) > lines:
            text.append(f"  and {len(found) - lines} more")
    if report.without_structure:
        text.append(
            f"{report.without_structure} images of nearly one colour were left out of the search for look-alikes"
        )
    return "\n".join(text)


def _measured(
    sets: Sequence[ImageSet], workers: int, on_progress: Progress | None
) -> tuple[np.ndarray, list[Unreadable]]:
    """Rows of all images, one set after another, and those that cannot be read."""
    rows, unreadable, filled = np.zeros(sum(map(len, sets)), ROW), [], 0
    chunks = (
        images.subset(range(start, min(start + _CHUNK, len(images))))
        for images in sets
        for start in range(0, len(images), _CHUNK)
    )
    measured = _mapped(chunks, workers)
    for images in sets:
        done = 0
        while done < len(images):
            part, failed = next(measured)
            rows[filled : filled + len(part)] = part
            unreadable += [
                Unreadable(images.source, images.ids[done + position], reason)
                for position, reason in failed
            ]
            filled, done = filled + len(part), done + len(part)
            if on_progress is not None:
                on_progress(images.source, done, len(images))
    return rows, unreadable


def _mapped(
    chunks: Iterator[ImageSet], workers: int
) -> Iterator[tuple[np.ndarray, list[tuple[int, str]]]]:
    """The chunks' measurements in order, a few chunks ahead of their use."""
    if workers == 1:
        yield from map(_measure, chunks)
        return
    # Not forked: JAX's threads, where there are any, do not survive that.
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), follow_parent
    )
    try:
        yield from mapped_ahead(pool, _measure, chunks, workers * _CHUNKS_AHEAD)
    except concurrent.futures.process.BrokenProcessPool:
        raise UserError(
            "A process that decoded images was killed, probably for want of memory; use fewer workers."
        ) from None


def _measure(images: ImageSet) -> tuple[np.ndarray, list[tuple[int, str]]]:
    rows, reasons = np.zeros(len(images), ROW), []
    for position, row in enumerate(rows):
        try:
            _fill(row, images, position)
        except UnreadableImageError as error:
            reasons.append((position, str(error)))
    return rows, reasons


def _fill(row: np.void, images: ImageSet, position: int) -> None:
    content = images.read(position)
    image = decode_rgb(images.paths[position], content=content, as_seen=True)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(content), formats=FORMATS) as header,
        ):
            row["format"] = FORMATS.index(header.format)
            # Of an animation all frames count; of one that is too long to look at, the very file.
            parts = (repr(image.size).encode(), image.tobytes())
            parts += () if seen.is_whole(header) else (content,)
            row["pixels"] = _digest(itertools.chain(parts, seen.all_frames(header)))
    except Exception:
        # A later frame than the one that stands for the animation is damaged, so the very file counts; Pillow raises
        # nearly anything then.
        row["pixels"] = _digest([content])
    row["width"], row["height"] = image.size
    row["file_bytes"] = len(content)
    row["content"] = _digest([content])
    hashed = perceptual_hash(image)
    row["flat"] = hashed is None
    if hashed is not None:
        row["hash"], row["thumbnail"] = hashed
    row["readable"] = True


def _digest(parts: Iterable[bytes]) -> np.ndarray:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return np.frombuffer(digest.digest(), "u8")


def _spreads(rows: np.ndarray) -> dict[str, Spread]:
    if not len(rows):
        return {}
    numbers = {
        "width": rows["width"],
        "height": rows["height"],
        "megapixels": rows["width"].astype(float) * rows["height"] / 1e6,
        "file_bytes": rows["file_bytes"],
    }
    return {
        name: Spread(float(each.min()), float(np.median(each)), float(each.max()))
        for name, each in numbers.items()
    }

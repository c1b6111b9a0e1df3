"""Copies within one set of images, or in two."""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import overload

import numpy as np
from PIL import Image

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import cache_folder, write_csv, write_json
from rdcd_jax.embedding.descriptors import read_descriptors
from rdcd_jax.embedding.parts import ROWS
from rdcd_jax.embedding.service import embed_to_file
from rdcd_jax.embedding.stream import Part, Unreadable, embed_images
from rdcd_jax.images.given import Images, images_of
from rdcd_jax.images.links import each_once
from rdcd_jax.images.lookup import image_at
from rdcd_jax.images.seen import SIDE, ink_of
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.index.groups import (
    Group,
    groups_of,
    part_of,
    shared_groups,
    without_likes,
    without_unlike_pages,
)
from rdcd_jax.index.places import BYTES, CHANGED, HEIGHT, WIDTH, is_stale, sizes, stamps
from rdcd_jax.index.quarantine import write_script
from rdcd_jax.index.results import require_savable
from rdcd_jax.index.search import PRECISION, Index, Progress
from rdcd_jax.report.gallery import Figure, Section, at, size_line, write_gallery
from rdcd_jax.search.calibration import require_score
from rdcd_jax.search.scoring import Scoring, scoring_of
from rdcd_jax.weights.engines import AUTO, load_by
from rdcd_jax.weights.model import Model
from rdcd_jax.weights.onnx_model import OnnxModel

_log = logging.getLogger(__name__)
CSV_COLUMNS = ("group", "id", "path", "width", "height", "bytes", "keep", "score")


@dataclasses.dataclass(frozen=True)
class Groups(Sequence[Group]):
    """The groups of copies in a set, the surest first.

    Attributes:
        groups: all of them.
        images: how many images were compared.
        unreadable: images that were left out.

    Examples:
        >>> import importlib.resources, os, tempfile
        >>> import rdcd_jax as rdcd
        >>> sample = importlib.resources.files("rdcd_jax") / "sample" / "references"
        >>> first, *others = sorted(str(path) for path in sample.iterdir())[:3]
        >>> groups = rdcd.find_duplicates([first, *others, first])
        >>> len(groups), groups.images
        (0, 3)
        >>> groups.save(os.path.join(tempfile.mkdtemp(), "groups.json"))
    """

    groups: list[Group]
    images: int
    unreadable: list[Unreadable]

    def __len__(self) -> int:
        return len(self.groups)

    @overload
    def __getitem__(self, position: int) -> Group: ...
    @overload
    def __getitem__(self, position: slice) -> list[Group]: ...
    def __getitem__(self, position: int | slice) -> Group | list[Group]:
        return self.groups[position]

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def save(self, path: str | os.PathLike, *, keep: str = "largest") -> None:
        """Writes all groups: a .json file, a .csv file with a row for each image, or a page (.html) with the images.

        Args:
            path: the file.
            keep: which image of each group is said to be the one to keep, see `Group.kept`; scores are to it.

        Raises:
            UserError: a file of another kind, or no such rule.
        """
        require_savable(path)
        suffix = pathlib.Path(path).suffix.lower()
        if suffix == ".html":
            self._save_page(path, keep)
        elif suffix == ".json":
            write_json(path, [_as_json(group, keep) for group in self.groups])
        else:
            rows = (
                (number, *row)
                for number, group in enumerate(self.groups, 1)
                for row in _rows(group, keep)
            )
            write_csv(path, CSV_COLUMNS, rows)

    def save_script(
        self, path: str | os.PathLike, quarantine: str | os.PathLike, *, keep: str = "largest"
    ) -> int:
        """Writes a shell script that moves all but the image to keep of each group, and runs nothing.

        Args:
            path: the script.
            quarantine: the folder that it moves images into.
            keep: which image of each group stays, see `Group.kept`.

        Returns:
            How many images it moves.

        Raises:
            UserError: there is no such rule.
        """
        return write_script(path, self.outside(quarantine).groups, quarantine, keep)

    def outside(self, folder: str | os.PathLike) -> "Groups":
        """The groups without files in a folder, such as a quarantine, where what lies is as good as deleted."""
        inside = os.path.realpath(folder) + os.sep
        kept = []
        for group in self.groups:
            rows = [
                i
                for i, path in enumerate(group.paths)
                if not os.path.realpath(path).startswith(inside)
            ]
            # Against another set the first is what all others are compared with.
            if len(rows) > 1 and (rows[0] == 0 or not group.others):
                kept.append(part_of(group, rows))
        return dataclasses.replace(self, groups=kept)

    def _save_page(self, path: str | os.PathLike, keep: str) -> None:
        copies = sum(len(group.ids) for group in self.groups)
        summary = f"{copies} of {self.images} images are in {len(self.groups)} groups of copies, the surest first."
        if any(group.others for group in self.groups):
            summary += " The images of the other collection are marked as those to keep."
        else:
            summary += f" The {keep.replace('-', ' ')} image of each is marked as the one to keep."
        sections = [_shown(number, group, keep) for number, group in enumerate(self.groups, 1)]
        write_gallery(path, "Duplicates", summary, sections)


def find_duplicates(
    images: Images | Index,
    *,
    against: Images | None = None,
    model: str | os.PathLike | Model | OnnxModel = "rdcd-effb0-128",
    threshold: float | None = None,
    normalised: bool = True,
    engine: str = AUTO,
    leave_out: str | os.PathLike | None = None,
    on_progress: Progress | None = None,
) -> Groups:
    """Groups the copies in a set, or finds what two sets share.

    Args:
        images: a source, or images, see `given.images_of`; or an index, whose descriptors are taken as they are.
        against: another set; each group is then an image of the first set and what it resembles in the other.
        model: a model that `load_model` gave, or what it takes; an index has its own.
        threshold: least score of two copies; the model's own at 90 % precision for None.
        normalised: takes off a pair's similarity how near the two are to the model's background, where it has one.
        engine: what computes descriptors: "jax", "onnxruntime-int8" or "auto", see `engines.load_by`; an index has its
            own.
        leave_out: a folder whose images do not count, such as a quarantine.
        on_progress: called with images done and in all.

    Returns:
        The groups, the surest first, and the images that were left out.

    Raises:
        UserError: for images or a model that cannot be read, a threshold that is no score, a set of which all images
            lie in `leave_out`, or a model without a calibration where no threshold is given.

    Examples:
        >>> import importlib.resources
        >>> from PIL import Image
        >>> import rdcd_jax as rdcd
        >>> sample = importlib.resources.files("rdcd_jax") / "sample" / "references"
        >>> first, second = (Image.open(path) for path in sorted(sample.iterdir())[:2])
        >>> groups = rdcd.find_duplicates([first, second, first.resize((100, 80))])
        >>> [group.ids for group in groups]
        [('#0', '#2')]
        >>> [group.ids for group in rdcd.find_duplicates(first, against=[second, first])]
        [('#0', '#1')]
    """
    # Before anything is embedded.
    if threshold is not None:
        require_score(threshold)
    if against is not None:
        against = _outside(images_of(against), leave_out)
    if isinstance(images, Index):
        sets = [_of_index(images, leave_out)]
        scoring, name = images.scoring(normalised), f"index {images.folder}"
        if against is not None:
            other = _of_images(images.embedder, against, on_progress)
            rows = images.as_stored(other.descriptors)
            sets.append(dataclasses.replace(other, descriptors=rows))
    else:
        embedder = load_by(model, engine)
        background = getattr(embedder, "background", None) if normalised else None
        scoring = scoring_of(background, getattr(embedder, "card", {}).get("calibration"))
        name = f"model {embedder.name}"
        first = _outside(images_of(images), leave_out)
        given = [first] if against is None else [first, against]
        sets = [_of_images(embedder, each, on_progress) for each in given]
    if threshold is None:
        threshold = scoring.threshold(PRECISION, len(sets[-1].ids))
    if threshold is None:
        raise UserError(
            f"The {name} has no calibration to choose a threshold by; give a threshold, such as 0.15 (0.7 where"
            " scores are not normalised), or calibrate it by `rdcd-jax evaluate disc`."
        )
    groups = _grouped(sets, threshold, scoring)
    if isinstance(images, Index):
        groups = _without_stale(groups, images.folder)
    unreadable = [each for found in sets for each in found.unreadable]
    return Groups(groups, sum(each.count for each in sets), unreadable)


@dataclasses.dataclass(frozen=True)
class _Set:
    """Embedded images, and what is known of their files."""

    ids: Sequence[str]
    paths: Sequence[str]
    descriptors: np.ndarray
    unreadable: list[Unreadable]
    count: int
    files: Callable[[Sequence[int]], np.ndarray]
    ink: Callable[[str], np.ndarray | None]


def _positions_outside(
    paths: Sequence[str], folder: str | os.PathLike | None, name: str
) -> list[int]:
    """Where the images lie that are not in a folder, which are said to be left out."""
    if folder is None:
        return list(range(len(paths)))
    inside = tuple({os.path.abspath(folder) + os.sep, os.path.realpath(folder) + os.sep})
    kept = [i for i, path in enumerate(paths) if not os.path.abspath(path).startswith(inside)]
    if not kept and paths:
        raise UserError(
            f"All images of {name} lie in {folder}, where what is moved away belongs; name another folder for that."
        )
    if len(kept) < len(paths):
        _log.warning("%s: the %d images in %s are left out.", name, len(paths) - len(kept), folder)
    return kept


def _outside(images: ImageSet, folder: str | os.PathLike | None) -> ImageSet:
    kept = _positions_outside(images.paths, folder, images.source)
    return images if len(kept) == len(images) else images.subset(kept)


def _of_index(index: Index, leave_out: str | os.PathLike | None) -> _Set:
    found = index.contents()
    if not found.ids:
        raise UserError(f"{index.folder} is empty; add images to it first.")
    kept = _positions_outside(found.paths, leave_out, str(index.folder))
    whole = len(kept) == len(found.ids)
    return _Set(
        found.ids if whole else [found.ids[i] for i in kept],
        found.paths if whole else [found.paths[i] for i in kept],
        found.rows if whole else found.rows[kept],
        [],
        len(kept),
        lambda positions: found.files[[kept[i] for i in positions]],
        # As large as of images that are given, so that the same page has the same ink.
        lambda path: _ink(lambda: image_at(path).seen().decode(0, min_side_hint=SIDE)),
    )


def _of_images(embedder: Model | OnnxModel, images: Images, on_progress: Progress | None) -> _Set:
    images = each_once(images_of(images)).seen()
    found, unreadable = _embedded(embedder, images, on_progress)
    position_of = {name: position for position, name in enumerate(images.ids)}
    ids = found.ids.tolist()
    places = [position_of[name] for name in ids]

    def files(positions: Sequence[int]) -> np.ndarray:
        rows = [places[i] for i in positions]
        known = stamps(images, rows)
        known[:, [WIDTH, HEIGHT]] = sizes(images, rows)
        # What lies in no file of its own has a checksum there.
        known[[not images.is_file(row) for row in rows], CHANGED] = 0
        return known

    paths = [images.paths[i] for i in places]
    position_at = {path: position for position, path in enumerate(images.paths)}

    def ink(path: str) -> np.ndarray | None:
        return _ink(lambda: images.decode(position_at[path], min_side_hint=SIDE))

    return _Set(ids, paths, found.descriptors, unreadable, len(images), files, ink)


def _ink(decode: Callable[[], Image.Image]) -> np.ndarray | None:
    """What is drawn on an image; None where it is not to be had any more."""
    try:
        return ink_of(decode())
    except (UserError, OSError):
        return None


def _grouped(sets: Sequence[_Set], threshold: float, scoring: Scoring) -> list[Group]:
    """The groups in one set, or of one with another, with what is known of their files."""
    if len(sets) == 1:
        (found,) = sets
        groups = groups_of(found.ids, found.paths, found.descriptors, threshold, scoring)
    else:
        parts = [(each.ids, each.paths, each.descriptors) for each in sets]
        groups = shared_groups(*parts, threshold, scoring)
    groups = [part for each in groups if (part := _without_itself(each)) is not None]
    position_of = [{path: i for i, path in enumerate(each.paths)} for each in sets]
    named = []
    for group in _told_apart(sets, groups):
        own = len(group) - group.others
        files = sets[0].files([position_of[0][path] for path in group.paths[:own]])
        if group.others:
            theirs = [position_of[-1][path] for path in group.paths[own:]]
            files = np.concatenate([files, sets[-1].files(theirs)])
        named.append(dataclasses.replace(group, files=files))
    return named


def _without_itself(group: Group) -> Group | None:
    """A group in which each file counts once, by whatever links it is there again; None where that leaves one."""
    rows: dict[object, int] = {}
    for i, path in enumerate(group.paths):
        try:
            there = os.stat(path)
        except (OSError, ValueError):
            # It lies in no file of its own.
            rows[i] = i
        else:
            rows.setdefault((there.st_dev, there.st_ino), i)
    return part_of(group, list(rows.values())) if len(rows) > 1 else None


def _without_stale(groups: list[Group], folder: pathlib.Path) -> list[Group]:
    """The groups without images of an index that have changed or are gone since, of which nothing is known."""
    stale, kept = 0, []
    for group in groups:
        own = len(group) - group.others
        known = group.files[:, [BYTES, CHANGED]].tolist()
        rows = [
            i for i, path in enumerate(group.paths) if i >= own or not is_stale(path, *known[i])
        ]
        stale += len(group) - len(rows)
        if len(rows) > 1 and rows[0] < own:
            kept.append(part_of(group, rows))
    if stale:
        _log.warning(
            "%s: %d images have changed or are gone since they were added, and are left out; `rdcd-jax index update %s`"
            " looks at them again.",
            folder,
            stale,
            folder,
        )
    return kept


def _told_apart(sets: Sequence[_Set], groups: list[Group]) -> list[Group]:
    """The groups without pages and drawings that only look alike, the surest first."""
    # By place and set: the same path may mean an image in memory of either.
    asked = dict.fromkeys(
        (path, -1 if i >= len(group) - group.others else 0)
        for group in groups
        for i, path in enumerate(group.paths)
    )
    with concurrent.futures.ThreadPoolExecutor() as pool:
        inks = dict(zip(asked, pool.map(lambda key: sets[key[1]].ink(key[0]), asked), strict=True))
    kept: list[Group] = []
    for group in groups:
        if not group.others:
            kept += without_likes(group, [inks[path, 0] for path in group.paths])
            continue
        own = len(group) - group.others
        which = [inks[path, 0 if i < own else -1] for i, path in enumerate(group.paths)]
        if (part := without_unlike_pages(group, which)) is not None:
            kept.append(part)
    return sorted(kept, key=lambda group: -group.score)


def _embedded(embedder: Model | OnnxModel, images: ImageSet, on_progress: Progress | None) -> Part:
    """The images' descriptors; many of them through a file in the cache folder, so that who is killed goes on."""
    if len(images) <= ROWS or images.in_memory:
        return embed_images(embedder, images, on_progress=on_progress)
    size = [embedder.image_size, embedder.short_edge, images.as_seen]
    key = json.dumps(
        [embedder.fingerprint, embedder.engine, size, images.fingerprint(), images.paths]
    )
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    path = cache_folder() / "duplicates" / f"{digest}.npz"
    # It tells of the user's images until the work is done.
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Of a call that was killed at its end.
    path.unlink(missing_ok=True)
    done = embed_to_file(
        embedder,
        images,
        path,
        on_progress=None if on_progress is None else lambda _, *count: on_progress(*count),
        process=(0, 1),
    )
    found = read_descriptors(path)
    for leftover in (path, pathlib.Path(f"{path}.unreadable.txt")):
        leftover.unlink(missing_ok=True)
    return Part(found, done.unreadable)


def _rows(group: Group, keep: str) -> Iterator[tuple]:
    kept = group.kept(keep)
    scores, stays = group.scores_to(kept).tolist(), group.stays(keep)
    for position, (name, path, size) in enumerate(
        zip(group.ids, group.paths, group.sizes, strict=True)
    ):
        size_in_bytes = int(group.files[position, BYTES]) or None
        yield (
            name,
            path,
            *(size or (None, None)),
            size_in_bytes,
            int(stays[position]),
            scores[position],
        )


def _as_json(group: Group, keep: str) -> dict:
    _, _, _, _, count, stays, scores = zip(*_rows(group, keep), strict=True)
    return {
        "ids": group.ids,
        "paths": group.paths,
        "sizes": group.sizes,
        "bytes": count,
        "keep": [bool(each) for each in stays],
        "scores": scores,
        "score": group.score,
        "least": group.least,
        "mean": group.mean,
    }


def _shown(number: int, group: Group, keep: str) -> Section:
    figures = []
    rows = sorted(_rows(group, keep), key=lambda row: (-row[-2], -row[-1]))
    for name, path, width, height, size, stays, score in rows:
        lines = ["keep" if stays else f"score {score:.3f}"]
        lines += size_line((width, height) if width else None, size)
        figures.append(Figure(name, [*lines, path], at(path), is_query=bool(stays), path=path))
    note = f"least score {group.least:.3f}, mean {group.mean:.3f}"
    return Section(f"Group {number}", note, figures, score=group.score)

"""Copies within one set of images, or in two."""

import concurrent.futures
import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_csv, write_json
from rdcd_jax.embedding.stream import Unreadable
from rdcd_jax.images.given import Images, images_of
from rdcd_jax.images.links import identity
from rdcd_jax.index.compared import Compared, of_images, of_index, outside
from rdcd_jax.index.groups import (
    Group,
    groups_of,
    groups_within,
    shared_groups,
    without_likes,
    without_unlike_pages,
)
from rdcd_jax.index.places import BYTES, CHANGED, is_stale
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
            kept += groups_within(group, rows)
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
        UserError: for images or a model that cannot be read, a threshold that is no score, an index as the other set,
            a set of which all images lie in `leave_out`, or a model without a calibration where no threshold is given.

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
    if isinstance(against, Index):
        raise UserError(
            f"against={against.folder} is an index; give that as the images, and against it the other collection."
        )
    if against is not None:
        against = outside(images_of(against), leave_out)
    if isinstance(images, Index):
        sets = [of_index(images, leave_out)]
        scoring, name = images.scoring(normalised), f"index {images.folder}"
        if against is not None:
            other = of_images(images.embedder, against, on_progress)
            rows = images.as_stored(other.descriptors)
            sets.append(dataclasses.replace(other, descriptors=rows))
    else:
        embedder = load_by(model, engine)
        background = getattr(embedder, "background", None) if normalised else None
        scoring = scoring_of(background, getattr(embedder, "card", {}).get("calibration"))
        name = f"model {embedder.name}"
        first = outside(images_of(images), leave_out)
        given = [first] if against is None else [first, against]
        sets = [of_images(embedder, each, on_progress) for each in given]
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


def _grouped(sets: Sequence[Compared], threshold: float, scoring: Scoring) -> list[Group]:
    """The groups in one set, or of one with another, with what is known of their files."""
    if len(sets) == 1:
        (found,) = sets
        groups = groups_of(found.ids, found.paths, found.descriptors, threshold, scoring)
    else:
        parts = [(each.ids, each.paths, each.descriptors) for each in sets]
        groups = shared_groups(*parts, threshold, scoring)
    groups = [part for each in groups for part in _without_itself(each)]
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


def _without_itself(group: Group) -> list[Group]:
    """A group in which each file counts once, by whatever links it is there again; none where that leaves one."""
    rows: dict[object, int] = {}
    for i, path in enumerate(group.paths):
        try:
            there = os.stat(path)
        except (OSError, ValueError):
            # It lies in no file of its own.
            rows[i] = i
        else:
            rows.setdefault(identity(there), i)
    return groups_within(group, list(rows.values()))


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
        # What lies in no file of its own has a checksum there, which would be the time of an old file.
        files = group.files.copy()
        files[[not os.path.isfile(path) for path in group.paths], CHANGED] = 0
        kept += groups_within(dataclasses.replace(group, files=files), rows)
    if stale:
        _log.warning(
            "%s: %d images have changed or are gone since they were added, and are left out; `rdcd-jax index update %s`"
            " looks at them again.",
            folder,
            stale,
            folder,
        )
    return kept


def _told_apart(sets: Sequence[Compared], groups: list[Group]) -> list[Group]:
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
        kept += without_unlike_pages(group, which)
    return sorted(kept, key=lambda group: -group.score)


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

"""Copydays' folder: originals, and blocks of attacked copies whose names start as their originals' do."""

import os
import pathlib
from collections.abc import Iterable, Sequence

from rdcd_jax.benchmarks.ground_truth import find_part, require_folder
from rdcd_jax.core.errors import UserError
from rdcd_jax.images.passed_over import warn_left_out
from rdcd_jax.images.sources import ImageSet, find_images

ORIGINAL, STRONG = "original", "strong"
ORIGINAL_FOLDERS = ("original", "originals", "copydays_original")
STRONG_FOLDERS = ("strong", "copydays_strong")
# Each holds one folder per strength, named by its number.
GRADED_FOLDERS = {
    "jpegqual": ("jpegqual", "jpeg", "copydays_jpeg"),
    "crops": ("crops", "crop", "copydays_crop"),
}
# A copy's file name starts with as many characters of its original's.
START = 4


def find_blocks(root: str | os.PathLike, *, strong: bool = False) -> dict[str, pathlib.Path]:
    """Finds the originals and the blocks of copies by the names in use.

    Args:
        root: a folder with the blocks' folders in it or in its `images` folder.
        strong: whether there must be strong attacks.

    Returns:
        Folders by block: "original" and whichever there are of "strong", "jpegqual/3" ... and "crops/10" ..., by
        number.

    Raises:
        UserError: no such folder, no originals, no copies, no strong ones where they are asked for, or a part that
            could be several.
    """
    root = require_folder(root)
    blocks = {ORIGINAL: find_part(root, "folder of originals", ORIGINAL_FOLDERS)}
    found = find_part(root, "folder of strong attacks", STRONG_FOLDERS, required=strong)
    if found is not None:
        blocks[STRONG] = found
    for kind, names in GRADED_FOLDERS.items():
        folder = find_part(root, f"folder of {kind}", names, required=False)
        if folder is not None:
            blocks |= {f"{kind}/{grade.name}": grade for grade in _grades(folder)}
    if len(blocks) == 1:
        known = [*STRONG_FOLDERS, *(name for each in GRADED_FOLDERS.values() for name in each)]
        raise UserError(f"{root}: holds no folder of copies; it may be called {', '.join(known)}.")
    return blocks


def find_copydays_images(root: str | os.PathLike) -> ImageSet:
    """Lists the images of a folder that is to be evaluated.

    Args:
        root: as in `find_blocks`, with strong attacks.

    Returns:
        Originals and copies, with ids such as "original/200000", "strong/200001" and "jpegqual/3/200000".

    Raises:
        UserError: as `find_blocks`, empty folders, originals that start alike, copies without an original.
    """
    blocks = {name: find_images(each) for name, each in find_blocks(root, strong=True).items()}
    by_start = originals_by_start(blocks[ORIGINAL].ids, blocks[ORIGINAL].source)
    for images in blocks.values():
        warn_left_out(images)
        if images.reader is not None:
            raise UserError(
                f"{images.source}: holds packed images; Copydays is evaluated from its own files."
            )
        originals_of(images.ids, images.paths, by_start)
    return ImageSet(
        source=str(root),
        ids=tuple(f"{name}/{each}" for name, images in blocks.items() for each in images.ids),
        paths=tuple(path for images in blocks.values() for path in images.paths),
    )


def block_of(image_id: str, source: str) -> str:
    """The block that an image of Copydays belongs to, by its path.

    Args:
        image_id: such as "strong/200001" or "copydays_jpeg/3/200000.jpg"; folders before these do not matter.
        source: where it comes from, for messages.

    Returns:
        A block's name as in `find_blocks`.

    Raises:
        UserError: another id.
    """
    *_, kind, last = ["", "", *image_id.split("/")[:-1]]
    for block, names in ((ORIGINAL, ORIGINAL_FOLDERS), (STRONG, STRONG_FOLDERS)):
        if last in names:
            return block
    for block, names in GRADED_FOLDERS.items():
        if kind in names and last.isdecimal():
            return f"{block}/{last}"
    raise UserError(
        f"{source}: {image_id!r} belongs to no part of Copydays; its ids are such as strong/200001 and "
        "jpegqual/3/200000 (`rdcd-jax embed --ids=path` gives them)."
    )


def block_order(block: str) -> tuple[int, int]:
    """A key by which blocks are sorted: originals, strong attacks, JPEG qualities and crops by number."""
    kind, _, grade = block.partition("/")
    return (ORIGINAL, STRONG, *GRADED_FOLDERS).index(kind), int(grade or 0)


def originals_by_start(ids: Iterable[str], source: str) -> dict[str, str]:
    """Originals' ids by the start of their names.

    Args:
        ids: of the originals; what stands before the last `/` is not of the name.
        source: where they come from, for messages.

    Raises:
        UserError: two start alike.
    """
    by_start: dict[str, str] = {}
    for image_id in ids:
        other = by_start.setdefault(_start(image_id), image_id)
        if other != image_id:
            raise UserError(
                f"{source}: the originals {other} and {image_id} start with the same {START} characters, so their "
                "copies cannot be told apart; leave Copydays' own images there."
            )
    return by_start


def originals_of(ids: Sequence[str], labels: Iterable[str], by_start: dict[str, str]) -> list[str]:
    """Which original each of some copies was made from.

    Args:
        ids: N copies.
        labels: what to call each in a message, such as its path.
        by_start: what `originals_by_start` gives.

    Returns:
        N ids of originals.

    Raises:
        UserError: a copy without one.
    """
    for image_id, label in zip(ids, labels, strict=True):
        if _start(image_id) not in by_start:
            raise UserError(
                f"{label}: no original's name starts with {_start(image_id)}; keep the file names of the download."
            )
    return [by_start[_start(image_id)] for image_id in ids]


def _start(image_id: str) -> str:
    return image_id.rpartition("/")[2][:START]


def _grades(folder: pathlib.Path) -> list[pathlib.Path]:
    grades = [each for each in folder.iterdir() if each.is_dir() and each.name.isdecimal()]
    if not grades:
        raise UserError(f"{folder}: holds no folder named by a number, such as {folder / '20'}.")
    return sorted(grades, key=lambda each: int(each.name))

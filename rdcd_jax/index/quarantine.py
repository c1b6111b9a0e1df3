"""A shell script that moves copies out of the way; it is written, never run."""

import filecmp
import os
import pathlib
import shlex
from collections.abc import Sequence

import numpy as np

from rdcd_jax.core.files import write_aside
from rdcd_jax.images.decode import has_several
from rdcd_jax.images.naming import escaped
from rdcd_jax.index.groups import Group

# Goes on past what cannot be moved, so that the script can be run again; some shells' `mv -n` says nothing of that.
_MOVE = """failed=0
move() {
    if [ -e "$2" ]; then
        [ -e "$1" ] || return 0
        echo "not moved, since $2 is there: $1" >&2
        failed=1
    elif [ ! -f "$1" ]; then
        echo "not there: $1" >&2
        failed=1
    else
        mv -n -- "$1" "$2" || failed=1
    fi
}"""


def write_script(
    path: str | os.PathLike,
    groups: Sequence[Group],
    quarantine: str | os.PathLike,
    rule: str = "largest",
) -> int:
    """Writes a script of moves, all images of each group but the one to keep, into one folder.

    Args:
        path: the script, for a POSIX shell.
        groups: the groups; of some against another set, that set's images stay.
        quarantine: the folder, which the script makes; each file keeps its name behind a number.
        rule: what is kept, see `Group.kept`.

    Returns:
        How many files it moves.
    """
    folder = os.path.abspath(quarantine)
    what = (
        "the other collection's images"
        if any(group.others for group in groups)
        else f"the {rule} image"
    )
    lines = [
        "#!/bin/sh",
        f"# Moves copies into {_comment(folder)}, and keeps of each group {what}.",
        "# Look through it before you run it. Nothing is deleted, and nothing in that folder is overwritten.",
        _MOVE,
        f"mkdir -p -- {shlex.quote(folder)} || exit 1",
    ]
    moved: set[str] = set()
    kept: set[str] = set()
    for number, group in enumerate(groups, 1):
        position = group.kept(rule)
        lines.append(f"# Group {number}, which keeps {_comment(group.paths[position])}")
        lines += _moves(group, position, group.stays(rule), folder, moved, kept)
    lines.append("exit $failed")
    with write_aside(path) as aside:
        # Bytes, since a file's name need not be text.
        aside.write_bytes(os.fsencode("\n".join(lines) + "\n"))
    pathlib.Path(path).chmod(pathlib.Path(path).stat().st_mode | 0o100)
    return len(moved)


def _moves(
    group: Group,
    position: int,
    stays: np.ndarray,
    folder: str,
    moved: set[str],
    kept: set[str],
) -> list[str]:
    """The lines of a group whose image at a position is kept; adds to the files moved and kept, links resolved."""
    files = [os.path.realpath(path) for path in group.paths]
    if files[position] in moved:
        return ["# That one is moved above, so nothing else of the group is."]
    kept |= {file for file, stay in zip(files, stays, strict=True) if stay} - moved
    lines = []
    for i, (source, file) in enumerate(zip(group.paths, files, strict=True)):
        if stays[i]:
            if i != position and not group.others:
                lines.append(f"# no copy of that one, so it stays: {_comment(source)}")
        elif file in moved or file in kept:
            continue
        elif not os.path.isfile(source):
            lines.append(f"# no file of its own: {_comment(source)}")
        elif os.path.islink(source):
            # Elsewhere it might lead to nothing.
            lines.append(f"# a link, so it stays: {_comment(source)}")
        elif has_several(source) and not any(
            _is_equal(source, path) for path, stay in zip(group.paths, stays, strict=True) if stay
        ):
            lines.append(
                f"# several pages, of which one was compared, so it stays: {_comment(source)}"
            )
        else:
            moved.add(file)
            target = os.path.join(folder, _name(len(moved), source))
            words = map(shlex.quote, (os.path.abspath(source), target))
            lines.append(" ".join(("move", *words)))
    return lines


def _is_equal(first: str, second: str) -> bool:
    """Whether two files hold the same bytes."""
    return os.path.isfile(second) and filecmp.cmp(first, second, shallow=False)


def _name(number: int, path: str) -> str:
    """What a file is called in quarantine; a file system takes 255 bytes."""
    name = os.path.basename(path)
    if len(os.fsencode(name)) > 240:
        name = os.path.splitext(name)[1][:20]
    return f"{number:06d}-{name}"


def _comment(path: str) -> str:
    """A path on one line."""
    return "".join(c if c.isprintable() else "?" for c in escaped(path))

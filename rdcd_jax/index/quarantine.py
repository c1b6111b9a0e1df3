"""A shell script that moves copies out of the way; it is written, never run."""

import os
import pathlib
import shlex
from collections.abc import Sequence

from rdcd_jax.core.files import write_aside
from rdcd_jax.images.naming import escaped
from rdcd_jax.index.groups import Group


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
    lines = [
        "#!/bin/sh",
        f"# Moves copies into {escaped(folder)}, and keeps of each group the {rule} image.".replace(
            "\n", " "
        ),
        "# Look through it before you run it. Nothing is deleted, and nothing in that folder is overwritten.",
        "set -eu",
        f"mkdir -p -- {shlex.quote(folder)}",
    ]
    moved: set[str] = set()
    for number, group in enumerate(groups, 1):
        kept = group.kept(rule)
        lines.append(f"# Group {number}, which keeps {_comment(group.paths[kept])}")
        stay = range(len(group) - group.others, len(group)) if group.others else [kept]
        for position in range(len(group)):
            source = group.paths[position]
            if position in stay or source in moved:
                continue
            if not os.path.isfile(source):
                lines.append(f"# no file of its own: {_comment(source)}")
                continue
            moved.add(source)
            target = os.path.join(folder, f"{len(moved):06d}-{os.path.basename(source)}")
            source = os.path.abspath(source)
            lines.append(f"mv -n -- {shlex.quote(source)} {shlex.quote(target)}")
    with write_aside(path) as aside:
        # Bytes, since a file's name need not be text.
        aside.write_bytes(os.fsencode("\n".join(lines) + "\n"))
    pathlib.Path(path).chmod(pathlib.Path(path).stat().st_mode | 0o100)
    return len(moved)


def _comment(path: str) -> str:
    """A path on one line."""
    return "".join(c if c.isprintable() else "?" for c in escaped(path))

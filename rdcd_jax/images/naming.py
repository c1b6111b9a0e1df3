"""What images are called: ids from paths, made distinct, and text of names that are none."""

import os
from collections.abc import Sequence, Set

from rdcd_jax.core.errors import UserError


def escaped(name: str) -> str:
    """A file name as text: bytes that are no UTF-8 become \\udcXX, everything else stays."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def ids_of(names: Sequence[str], *, by_path: bool) -> tuple[str, ...]:
    """The ids of images that a benchmark or a training set knows by name.

    Args:
        names: N paths below the set's folder, or as a list has them.
        by_path: the paths are the ids; else the file names without their extensions.

    Raises:
        UserError: two images share an id.
    """
    owner: dict[str, str] = {}
    for name in names:
        id_ = escaped(name if by_path else _short(name))
        if id_ in owner:
            cure = (
                "remove one"
                if by_path or owner[id_] == name
                else "rename one, or let paths be the ids"
            )
            raise UserError(
                f"Two images have the id {id_!r}: {escaped(owner[id_])} and {escaped(name)}; {cure}."
            )
        owner[id_] = name
    return tuple(owner)


def distinct(
    names: Sequence[str], paths: Sequence[str], taken: Set[str] = frozenset()
) -> tuple[str, ...]:
    """Ids that people can tell apart: the names, and where some are equal as much of their paths as it takes.

    Args:
        names: N short names.
        paths: N paths, whose last parts distinguish equal names.
        taken: ids of other images, which are not given again.

    Returns:
        N different ids. Of two images `2023/IMG_1.jpg` and `2024/IMG_1.jpg` they are `2023/IMG_1` and `2024/IMG_1`.
    """
    found, length = [escaped(name) for name in names], [1] * len(names)
    while equal := _equal(found, taken):
        moved = False
        for position in equal:
            length[position] += 1
            longer = _last_parts(paths[position], length[position])
            moved |= longer != found[position]
            found[position] = longer
        if not moved:
            return numbered(found, taken)
    return tuple(found)


def numbered(found: Sequence[str], taken: Set[str] = frozenset()) -> tuple[str, ...]:
    """The names, a number behind each that was there before."""
    used, result = set(taken), []
    for name in found:
        number, free = 1, name
        while free in used:
            number += 1
            free = f"{name} ({number})"
        used.add(free)
        result.append(free)
    return tuple(result)


def _equal(found: Sequence[str], taken: Set[str]) -> list[int]:
    """Positions of ids that are not theirs alone."""
    count: dict[str, int] = {}
    for name in found:
        count[name] = count.get(name, 0) + 1
    return [i for i, name in enumerate(found) if count[name] > 1 or name in taken]


def _last_parts(path: str, count: int) -> str:
    """The last parts of a path without its extension; the whole path where it has no more."""
    parts = escaped(path).replace(os.sep, "/").split("/")
    if count > len(parts):
        return "/".join(parts)
    return os.path.splitext("/".join(parts[-count:]))[0]


def _short(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0]

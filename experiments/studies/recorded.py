"""Result files, which a start that measures less does not replace."""

import json
import pathlib
from collections.abc import Iterator, Mapping

from rdcd_jax.core.files import write_json


def record(path: pathlib.Path, content: Mapping) -> pathlib.Path:
    """Writes a result file, or `NAME-part.json` beside it where figures would be lost.

    Args:
        path: the result file; the tables of docs are made from it.
        content: figures by model and what else a study tells apart, one or two names deep, and `environment`.

    Returns:
        The file written.
    """
    if path.exists():
        lost = _names(json.loads(path.read_text(encoding="utf-8"))) - _names(content)
        if lost:
            print(
                f"{path.name} has figures that were not measured now ({', '.join(sorted(lost)[:3])}), so it stays."
                " Move it away to replace it."
            )
            path = path.with_stem(f"{path.stem}-part")
    write_json(path, content)
    print(f"Written: {path}")
    return path


def _names(content: Mapping) -> set[str]:
    return set(_each_name({key: each for key, each in content.items() if key != "environment"}))


def _each_name(content: Mapping, depth: int = 3) -> Iterator[str]:
    """What figures are told apart by, such as models/rdcd-effb0-64 and benchmark/minidisc."""
    for key, each in content.items():
        if isinstance(each, Mapping) and depth > 1:
            yield from (f"{key}/{name}" for name in _each_name(each, depth - 1))
        elif isinstance(each, str):
            yield f"{key}/{each}"
        else:
            yield str(key)

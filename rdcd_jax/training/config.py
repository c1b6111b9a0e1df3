"""Loads a config file with its argument and overrides, the way ml_collections' flags do."""

import contextlib
import difflib
import importlib.util
import pathlib
import sys
from collections.abc import Iterator
from types import ModuleType

import ml_collections
from absl import flags
from ml_collections import config_flags

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.options import flat


def find_config(name: str) -> pathlib.Path:
    """The project's own config file of that name, in the checkout or inside the installed package.

    Raises:
        UserError: there is none of that name.
    """
    package = pathlib.Path(__file__).parents[1]
    folders = [package / "configs", package.parent / "configs"]
    for folder in folders:
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    names = {path.stem for folder in folders for path in folder.glob("*.py")} - {
        "__init__",
        "common",
    }
    raise UserError(
        f"There is no config '{name}'; give a file, or one of the project's by its name: {', '.join(sorted(names))}."
    )


def config_path(config: str) -> pathlib.Path:
    """The file of `CONFIG[:ARG]`, where CONFIG is a file or one of the project's configs by its name.

    Raises:
        UserError: there is no such file.
    """
    name = config.partition(":")[0]
    path = pathlib.Path(name)
    if path.is_file():
        return path.resolve()
    if path.suffix or len(path.parts) > 1:
        raise UserError(
            f"{name}: there is no such config file; the project's are known by name, such as --config=rdcd."
        )
    return find_config(name)


def load_config(config: str, overrides: list[str]) -> ml_collections.ConfigDict:
    """Loads a config.

    Args:
        config: `CONFIG[:ARG]`, see `config_path`; ARG goes to the file's `get_config`.
        overrides: `--config.a.b=VALUE`, each of a field that exists, in its type.

    Returns:
        The resolved config.

    Raises:
        UserError: a missing or broken file, an unknown field, a value of another type, anything not an override.
    """
    for word in overrides:
        if not word.startswith("--config."):
            raise UserError(
                f"Unknown argument {word}; a config's field is set by --config.NAME=VALUE."
            )
    path = config_path(config)
    _, colon, arg = config.partition(":")
    config = f"{path}{colon}{arg}"
    with importable(path):
        fields = flat(_parsed(config, []).to_dict())
        for word in overrides:
            name = word.removeprefix("--config.").partition("=")[0]
            if name not in fields:
                near = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]}?" if near else "."
                raise UserError(f"{config}: the config has no field '{name}'{hint}")
        return _parsed(config, overrides)


def _parsed(config: str, overrides: list[str]) -> ml_collections.ConfigDict:
    words = ["rdcd-jax", f"--config={config}", *overrides]
    values = flags.FlagValues()
    # Without `sys_argv` it would look for the overrides in the process's own arguments.
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words)
    try:
        values(words)
        if not isinstance(values.config, ml_collections.ConfigDict):
            raise TypeError(f"get_config gives a {type(values.config).__name__}, not a ConfigDict")
        return values.config
    except Exception as error:
        # A config file is a program of the user's, and may raise anything.
        lines = str(error).strip().splitlines()
        # An error inside the config file comes with its traceback, whose last line says what is wrong.
        stored = lines[-1].partition(": ")[2] if "Traceback" in str(error) else " ".join(lines)
        raise UserError(f"{config}: {stored.rstrip('.')}.") from error


@contextlib.contextmanager
def importable(path: pathlib.Path) -> Iterator[None]:
    """Lets a config import others as `configs.NAME`: those beside it, if its folder is called `configs`, else ours.

    A package of that name that the program has imported is there again afterwards.
    """
    sys.path.insert(0, str(path.parent.parent))
    ours = find_config("rdcd").parent
    theirs = _taken_out()
    if not (path.parent.parent / "configs" / "common.py").is_file():
        spec = importlib.util.spec_from_file_location(
            "configs", ours / "__init__.py", submodule_search_locations=[str(ours)]
        )
        sys.modules["configs"] = importlib.util.module_from_spec(spec)
    try:
        yield
    finally:
        sys.path.remove(str(path.parent.parent))
        _taken_out()
        sys.modules.update(theirs)


def _taken_out() -> dict[str, ModuleType]:
    """Takes the package `configs` out of what is imported; gives its modules."""
    names = [name for name in sys.modules if name.partition(".")[0] == "configs"]
    return {name: sys.modules.pop(name) for name in names}

"""Loads a config file with its argument and overrides, the way ml_collections' flags do."""

import contextlib
import difflib
import pathlib
import sys

import ml_collections
from absl import flags
from ml_collections import config_flags

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.options import flat


def find_config(name: str) -> pathlib.Path:
    """The project's own config file of that name, in the checkout or inside the installed package."""
    package = pathlib.Path(__file__).parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    raise UserError(f"{package}: the config {name}.py is missing; install rdcd_jax again.")


def load_config(config: str, overrides: list[str]) -> ml_collections.ConfigDict:
    """Loads a config.

    Args:
        config: `FILE[:ARG]`; ARG goes to the file's `get_config`.
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
    path = pathlib.Path(config.partition(":")[0])
    if not path.is_file():
        raise UserError(f"{path}: there is no such config file; the project's are in configs/.")
    with importable(path.resolve().parent.parent):
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
def importable(folder: pathlib.Path):
    """Lets configs import each other as `configs.NAME`."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))

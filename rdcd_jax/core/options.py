"""Fields of a configuration: a dataclass's, each with its help, what it may be, and whether it may change on resume."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from rdcd_jax.core.errors import UserError

_KEY = "option"
# Whole numbers stay within 32 bits, in which they are counted and kept.
_MOST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Option:
    """What is known of a field.

    Attributes:
        help: one or two sentences for people.
        choices: what it may be; empty for anything within the bounds.
        above: a bound that it lies above; None for none.
        at_least: a bound that it may reach; None for none.
        at_most: likewise from above.
        free: whether it may change when a run is continued: it says how the run is watched and stored, or how far it
            goes, not what comes of it.
    """

    help: str
    choices: tuple[str, ...] = ()
    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    free: bool = False

    def refuse(self, name: str, value: object) -> None:
        """Raises UserError for a value that the field cannot have, naming both."""
        if self.choices and value not in self.choices:
            choices = ", ".join(each or "'' (none)" for each in self.choices)
            raise UserError(f"config.{name} is {value!r}; use one of {choices}.")
        if not isinstance(value, int | float) or isinstance(value, bool):
            return
        if not math.isfinite(value):
            raise UserError(f"config.{name} is {value}; it must be a finite number.")
        if self.above is not None and not value > self.above:
            raise UserError(f"config.{name} is {value}; it must be above {self.above}.")
        if self.at_least is not None and not value >= self.at_least:
            least = "not be negative" if self.at_least == 0 else f"be at least {self.at_least}"
            raise UserError(f"config.{name} is {value}; it must {least}.")
        most = _MOST if isinstance(value, int) and self.at_most is None else self.at_most
        if most is not None and value > most:
            raise UserError(f"config.{name} is {value}; it must be at most {most}.")


def option(default: object, help: str, **known: Any) -> Any:
    """A dataclass's field with what is known of it; see `Option` for the keywords."""
    return dataclasses.field(default=default, metadata={_KEY: Option(help, **known)})


def group(kind: type, **values: Any) -> Any:
    """A dataclass's field that is a dataclass of options itself, with other defaults for some of them."""
    return dataclasses.field(default_factory=functools.partial(kind, **values))


def options_of(kind: type, prefix: str = "") -> Iterator[tuple[str, Option]]:
    """Every option of a dataclass and of its groups, by its dotted name."""
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            yield from options_of(field.type, f"{prefix}{field.name}.")
        elif _KEY in field.metadata:
            yield prefix + field.name, field.metadata[_KEY]


def flat(tree: Mapping, prefix: str = "") -> dict[str, object]:
    """A nested mapping as {"a.b": value}."""
    result: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = value
    return result

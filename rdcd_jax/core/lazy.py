"""Names of a package that are imported when they are first used, so that importing the package costs nothing."""

import importlib
from collections.abc import Callable, Mapping, Sequence


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], Sequence[str]]]:
    """Makes a package's `__getattr__` and `__dir__`.

    Args:
        package: the package's name.
        homes: the module that each name is of.

    Returns:
        Both functions. An unknown name raises AttributeError, as of any module.

    Source: PEP 562.
    """

    def __getattr__(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    def __dir__() -> Sequence[str]:
        return sorted(homes)

    return __getattr__, __dir__

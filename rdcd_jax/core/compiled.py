"""What JAX compiles is kept for the next start of the same program."""

import logging
import os
import pathlib
import re
import warnings
from collections.abc import Callable

from rdcd_jax.core.files import cache_folder

_log = logging.getLogger(__name__)
_FOLDER = "JAX_COMPILATION_CACHE_DIR"
# JAX's warning of an entry that it cannot read; the name is what the entry's file name begins with.
_UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '([\w.-]+)'")


def keep_compiled() -> None:
    """Sets where JAX, which is imported later, keeps what it compiled, and removes entries that it cannot read.

    JAX writes no entry where there is one. So one that was cut short, by a kill or a full disk, would be compiled anew,
    with a warning, at every start.
    """
    os.environ.setdefault(_FOLDER, str(cache_folder() / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    # Once, however often a program calls this.
    if not isinstance(warnings.showwarning, _Mending):
        warnings.showwarning = _Mending(warnings.showwarning)


class _Mending:
    """Shows warnings as before, but for those of entries that cannot be read: it removes these, and says so.

    Args:
        show: how they were shown.
    """

    def __init__(self, show: Callable[..., None]):
        self._show = show

    def __call__(self, message, category, filename, lineno, file=None, line=None) -> None:
        """As `warnings.showwarning`."""
        folder, found = os.environ[_FOLDER], _UNREADABLE.match(str(message))
        entries = [] if found is None else list(pathlib.Path(folder).glob(f"{found[1]}-*"))
        if not entries:
            self._show(message, category, filename, lineno, file, line)
            return
        for entry in entries:
            entry.unlink(missing_ok=True)
        _log.warning(
            "%s: what was compiled of '%s' is damaged; it is compiled anew.", folder, found[1]
        )

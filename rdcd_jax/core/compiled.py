"""What JAX compiles is kept for the next start of the same program."""

import logging
import os
import pathlib
import re
import warnings

from rdcd_jax.core.files import cache_folder

_log = logging.getLogger(__name__)
# JAX's warning of an entry that it cannot read; the name is what the entry's file name begins with.
_UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '([\w.-]+)'")


def keep_compiled() -> None:
    """Sets where JAX, which is imported later, keeps what it compiled, and removes entries that it cannot read.

    JAX writes no entry where there is one. So one that was cut short, by a kill or a full disk, would be compiled anew,
    with a warning, at every start.
    """
    folder = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    show = warnings.showwarning

    def mend(message, category, filename, lineno, file=None, line=None) -> None:
        found = _UNREADABLE.match(str(message))
        entries = [] if found is None else list(pathlib.Path(folder).glob(f"{found[1]}-*"))
        if not entries:
            show(message, category, filename, lineno, file, line)
            return
        for entry in entries:
            entry.unlink(missing_ok=True)
        _log.warning(
            "%s: what was compiled of '%s' is damaged; it is compiled anew.", folder, found[1]
        )

    warnings.showwarning = mend

"""One process at a time."""

import contextlib
import fcntl
import logging
import os
import pathlib
from collections.abc import Iterator

from rdcd_jax.core.errors import UserError

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def held(path: pathlib.Path, refusal: str | None) -> Iterator[None]:
    """Holds a lock while the block runs; whoever dies lets it go.

    A file system without locks, as some network drives are, is worked on with a warning: nobody can be told from it.

    Args:
        path: a folder, or a file, made with its folders where missing, which stays.
        refusal: what to say where another process holds it; None waits for that.

    Raises:
        UserError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if refusal is None else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(refusal) from None
        except OSError as error:
            _log.warning(
                "%s: this file system has no locks (%s); see to it that one process at a time works there.",
                path.parent,
                error.strerror,
            )
        yield
    finally:
        os.close(handle)

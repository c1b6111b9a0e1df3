"""Names of what is written aside, from which the next process knows what a killed one left, and removes it."""

import contextlib
import os
import pathlib
import re
import secrets
import shutil
import socket
import time
import zlib

# Paths beside which leftovers were looked for.
_CLEARED: set[pathlib.Path] = set()
_DAY = 86_400


def path_aside(path: pathlib.Path) -> pathlib.Path:
    """A path beside `path`, of the same suffix, for a temporary file or folder of this process."""
    name = f".{path.stem}-{_host()}_{os.getpid()}_{secrets.token_hex(4)}{path.suffix}"
    return path.with_name(name)


def clear_leftovers(path: pathlib.Path) -> None:
    """Removes what killed processes were writing aside for a path, the first time that this process writes it."""
    if path in _CLEARED:
        return
    _CLEARED.add(path)
    stem, suffix = re.escape(path.stem), re.escape(path.suffix)
    pattern = re.compile(rf"\.{stem}-([0-9a-f]{{8}})_(\d+)_[a-z0-9_]{{8}}{suffix}")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        found = [(entry, pattern.fullmatch(entry.name)) for entry in entries]
        for entry, match in found:
            if not match or not _is_left(match[1], int(match[2]), entry.stat().st_mtime):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def _is_left(host: str, process: int, written: float) -> bool:
    """Whether nobody writes a temporary file any more: its process is gone, or, on another machine, it is a day old."""
    if host != _host():
        return time.time() - written > _DAY
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        # Another user's.
        return False
    return False


def _host() -> str:
    """What tells this machine from others that share a folder."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"

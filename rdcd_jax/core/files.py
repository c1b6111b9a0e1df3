"""Writing files so that a reader sees the old content or the new one, never a part; and where the cache lies."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
import socket
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator

from rdcd_jax.core.errors import UserError

# Paths beside which leftovers were looked for.
_CLEARED: set[pathlib.Path] = set()
_DAY = 86_400
# With fewer bytes a disk is full.
_NO_ROOM = 2**16


@contextlib.contextmanager
def write_aside(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a temporary path beside `path`; renames it onto `path` when the block succeeds.

    Args:
        path: the file to write; missing parent folders are made.

    Yields:
        A path in the same folder, with the same suffix, to write to. It is removed if the block raises.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(path)
    with _named(path):
        prefix = f".{path.stem}-{_host()}_{os.getpid()}_"
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        aside = pathlib.Path(name)
        try:
            yield aside
            # mkstemp makes private files; what we leave behind should be as readable as any other file.
            aside.chmod(0o666 & ~_umask())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
    """Lets errors of writing a file name it, and neither the one written aside nor, as numpy's do, none at all."""
    try:
        yield
    except OSError as error:
        foreign = error.filename and pathlib.Path(os.fsdecode(error.filename)).parent != path.parent
        if foreign:
            raise
        full = error.errno is None and shutil.disk_usage(path.parent).free < _NO_ROOM
        number = errno.ENOSPC if full else error.errno or errno.EIO
        denied = number in (errno.EACCES, errno.EPERM, errno.EROFS)
        text = os.strerror(number) if error.errno or full else str(error)
        raise type(error)(number, text, str(path.parent if denied else path)) from error


def _clear_leftovers(path: pathlib.Path) -> None:
    """Removes what killed processes were writing aside for a path, the first time that this process writes it."""
    if path in _CLEARED:
        return
    _CLEARED.add(path)
    stem, suffix = re.escape(path.stem), re.escape(path.suffix)
    pattern = re.compile(rf"\.{stem}-([0-9a-f]{{8}})_(\d+)_[a-z0-9_]{{8}}{suffix}")
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        found = [(entry, pattern.fullmatch(entry.name)) for entry in entries]
        for entry, match in found:
            if match and _is_left(match[1], int(match[2]), entry.stat().st_mtime):
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


def flush(*paths: str | os.PathLike) -> None:
    """Waits until files, and folders' lists of names, are on the disk, so that a power cut does not undo them."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_lines(
    path: pathlib.Path, refusal: str = "is no text in UTF-8; give a file with one entry a line."
) -> list[str]:
    """The lines of a text file that are not empty, as they are; a line ends at \\n, \\r\\n or \\r alone.

    Args:
        path: the file.
        refusal: what to say of a file that is something else.

    Raises:
        UserError: it is no text in UTF-8.
    """
    try:
        # Reading text ends lines at these alone; splitlines would also at characters that names may hold.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}: {refusal}") from None
    return [line for line in lines if line]


def require_writable(path: str | os.PathLike) -> None:
    """Refuses a path that `write_aside` cannot write, so that it is reported before the work and not after.

    Args:
        path: the file to be written; missing parent folders are made.

    Raises:
        UserError: it is a folder.
        OSError: nothing can be written beside it.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes `text` (UTF-8) to `path` by way of a temporary file; of file names, bytes that are no text as \\udcXX."""
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike, value: object) -> None:
    """Writes `value` as indented JSON to `path`; NaN is refused, since it is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_csv(
    path: str | os.PathLike, header: Iterable[object], lines: Iterable[Iterable[object]]
) -> None:
    """Writes a header and lines of cells to `path` (UTF-8); None becomes an empty cell."""
    with (
        write_aside(path) as aside,
        aside.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(_Lines(file))
        writer.writerow(header)
        writer.writerows(lines)


class _Lines:
    """Takes lines as `csv` ends them, so that it quotes cells with either end's character; writes the usual end."""

    def __init__(self, file):
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(line.removesuffix("\r\n") + "\n")


def file_sha256(path: str | os.PathLike) -> str:
    """The hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> pathlib.Path:
    """`RDCD_JAX_CACHE`, else `rdcd_jax` in the user's cache folder (XDG); it need not exist."""
    if folder := os.environ.get("RDCD_JAX_CACHE"):
        return pathlib.Path(folder)
    home = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(home) if home else pathlib.Path.home() / ".cache") / "rdcd_jax"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

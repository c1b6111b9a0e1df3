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
import stat
import tempfile
from collections.abc import Iterable, Iterator

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.leftovers import clear_leftovers, path_aside

_ADDRESS = re.compile(r"[a-z][a-z0-9+]*://")
# With fewer bytes a disk is full.
_NO_ROOM = 2**16
_START = 2**16


@contextlib.contextmanager
def write_aside(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a temporary path beside `path`; renames it onto `path` when the block succeeds.

    Args:
        path: the file to write; missing parent folders are made.

    Yields:
        A path in the same folder, with the same suffix, to write to. It is removed if the block raises.

    Raises:
        UserError: at `path` is a folder, a pipe or a device.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path)
    with _named(path):
        rights = _rights(path)
        aside = path_aside(path)
        # Not by `tempfile`, whose files are private; what is left behind should be as readable as any other file.
        aside.touch(exist_ok=False)
        try:
            if rights is not None:
                # A private file stays private; one that nobody may write is replaced all the same.
                aside.chmod(rights | stat.S_IWUSR)
            yield aside
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def _rights(path: pathlib.Path) -> int | None:
    """Who may read and write the file at a path; None where there is none.

    Raises:
        UserError: what is there is no file, and would be replaced by one.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    if not stat.S_ISREG(mode):
        what = "folder" if stat.S_ISDIR(mode) else "pipe or a device"
        raise UserError(f"{path}: is a {what}; give the name of a file.")
    return stat.S_IMODE(mode)


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


@contextlib.contextmanager
def write_folder_aside(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a temporary folder beside `path`; renames it to `path` when the block succeeds.

    Args:
        path: the folder to write, which is not there when the block ends; missing parent folders are made.

    Yields:
        An empty folder. It is removed if the block raises.

    Raises:
        OSError: it cannot be written, or there is one at `path`.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path)
    aside = path_aside(path)
    aside.mkdir()
    try:
        yield aside
        aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def remove_folder(path: pathlib.Path) -> None:
    """Removes a folder so that nobody sees half of it."""
    aside = path_aside(path)
    path.rename(aside)
    shutil.rmtree(aside)


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
        with path.open("rb") as file:
            # Of what is no text the start is enough: it may be larger than the memory.
            if b"\0" in file.read(_START):
                raise UserError(f"{path}: {refusal}")
        # Reading text ends lines at these alone; splitlines would also at characters that names may hold.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}: {refusal}") from None
    return [line for line in lines if line]


def is_address(text: str) -> bool:
    """Whether a text is an address, such as gs://BUCKET/FOLDER, and not a path."""
    return _ADDRESS.match(text) is not None


def lasting_path(path: str) -> str:
    """A path as it means the same in any folder; `..` behind a link leads up from where the link leads."""
    parts = path.split(os.sep)
    if os.pardir not in parts:
        return os.path.abspath(path)
    end = len(parts) - parts[::-1].index(os.pardir)
    return os.path.normpath(os.path.join(os.path.realpath(os.sep.join(parts[:end])), *parts[end:]))


def require_writable(path: str | os.PathLike) -> None:
    """Refuses a path that `write_aside` cannot write, so that it is reported before the work and not after.

    Args:
        path: the file to be written; missing parent folders are made.

    Raises:
        UserError: it is a folder, a pipe or a device.
        OSError: nothing can be written beside it.
    """
    path = pathlib.Path(path)
    _rights(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _named(path), tempfile.TemporaryFile(dir=path.parent):
        pass


def reserve(path: pathlib.Path) -> None:
    """Takes the room that a file needs on the disk, holes included; what is in it stays.

    Whoever writes by a memory map into a file with holes, on a disk that is full, is killed.

    Raises:
        OSError: there is no room; the file is removed.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            # A file system that cannot.
            return
        path.unlink()
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


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


def stamp_of(path: str | os.PathLike) -> tuple[int, ...]:
    """What tells a file from another one at the same path; nothing where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

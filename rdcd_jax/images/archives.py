"""Images in a zip or tar archive, read where they lie: nothing is unpacked."""

import dataclasses
import functools
import hashlib
import lzma
import pathlib
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable

from rdcd_jax.core.errors import UnreadableImageError, UserError

# What is taken for an archive; of the compressed ones only to say that they must be decompressed first.
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# A member is read into memory whole.
_MOST_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class ArchiveReader:
    """Reads the images of an archive by the paths ARCHIVE:MEMBER.

    Attributes:
        archive: its path.
        content: hex digest over its members' names and sizes.
    """

    archive: str
    content: str
    kind = "archive"

    def __call__(self, path: str) -> bytes:
        """The bytes of the image at `path`."""
        read, lock = _open(self.archive)
        try:
            with lock:
                content = read(path[len(self.archive) + 1 :])
        except (OSError, ValueError, KeyError, RuntimeError, EOFError, *_BROKEN) as error:
            raise UnreadableImageError(
                f"{path}: the archive's member is damaged ({error})."
            ) from error
        if content is None:
            raise UnreadableImageError(f"{path}: is larger than {_MOST_BYTES >> 20} MiB.")
        return content


_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    NotImplementedError,
)


def list_archive(path: str) -> tuple[list[str], ArchiveReader]:
    """Lists the files in an archive, hidden ones left out.

    Args:
        path: a zip file, or a tar file that is not compressed as a whole.

    Returns:
        The members' names, sorted, and what reads them.

    Raises:
        UserError: the archive is damaged or encrypted, or a member's name leads out of the folder that the archive
            would be unpacked to.
    """
    try:
        if path.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
            names = [each.filename for each in entries]
            members = [(each.filename, each.file_size) for each in entries if not each.is_dir()]
            locked = [each.filename for each in entries if each.flag_bits & 1]
        else:
            with tarfile.open(path, "r:") as archive:
                entries = archive.getmembers()
            names = [each.name for each in entries]
            # A link or device holds no image.
            members = [(each.name, each.size) for each in entries if each.isreg()]
            locked = []
    except (ValueError, EOFError, OverflowError, *_BROKEN) as error:
        raise UserError(
            f"{path} cannot be read as an archive ({error}); it must be a whole .zip, or a .tar that is not compressed"
            " (decompress a .tar.gz first)."
        ) from error
    for name in names:
        _require_inside(path, name)
    if locked:
        raise UserError(f"{path}: {locked[0]} is encrypted; make an archive without a password.")
    members = sorted(
        (name, size)
        for name, size in members
        if not any(part.startswith(".") and part != "." for part in name.split("/"))
        and not name.startswith("__MACOSX/")
    )
    listing = "".join(f"{name} {size}\n" for name, size in members)
    digest = hashlib.sha256(listing.encode(errors="surrogateescape"))
    return [name for name, _ in members], ArchiveReader(path, digest.hexdigest())


def _require_inside(path: str, name: str) -> None:
    foreign = pathlib.PureWindowsPath(name)  # knows both kinds of slash, and drives
    if foreign.drive or foreign.root or ".." in foreign.parts:
        raise UserError(
            f"{path}: its member {name!r} would be written outside the archive's folder; such an archive is not to be"
            " trusted, make one with plain relative names."
        )


@functools.lru_cache
def _open(path: str) -> tuple[Callable[[str], bytes | None], threading.Lock]:
    """What reads a member by its name (None for one too large), and a lock for its users."""
    if path.endswith(".zip"):
        archive = zipfile.ZipFile(path)

        def read(name: str) -> bytes | None:
            return archive.read(name) if archive.getinfo(name).file_size <= _MOST_BYTES else None
    else:
        archive = tarfile.TarFile(path)
        members = {each.name: each for each in archive if each.isreg()}

        def read(name: str) -> bytes | None:
            member = members[name]
            if member.size > _MOST_BYTES:
                return None
            content = archive.extractfile(member).read()
            if len(content) != member.size:
                raise EOFError(f"{len(content)} bytes instead of {member.size}")
            return content

    return read, threading.Lock()

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
from rdcd_jax.core.files import stamp_of

# What is taken for an archive; of the compressed ones only to say that they must be decompressed first.
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# Archives that are kept open.
_MOST_OPEN = 64
# Bytes at a time behind a tar's last member.
_END_READ = 2**20
# A member is read into memory whole.
MOST_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class ArchiveReader:
    """Reads the images of an archive by the paths ARCHIVE:MEMBER.

    Attributes:
        archive: its path.
        content: hex digest over its members' names and sizes, and their checksums, of a tar their times.
        stamp: of the file that was listed, see `stamp_of`.
    """

    archive: str
    content: str
    stamp: tuple[int, ...]
    kind = "archive"

    def __call__(self, path: str) -> bytes:
        """The bytes of the image at `path`."""
        try:
            read, lock = _open(self.archive, self.stamp)
            with lock:
                content = read(path[len(self.archive) + 1 :])
        except (OSError, ValueError, KeyError, RuntimeError, EOFError, *_BROKEN) as error:
            raise UnreadableImageError(
                f"{path}: the archive's member is damaged ({error})."
            ) from error
        if content is None:
            raise UnreadableImageError(f"{path}: is larger than {MOST_BYTES >> 20} MiB.")
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
    stamp = stamp_of(path)
    try:
        if _is_zip(path):
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
            names = [each.filename for each in entries]
            # Of what was written twice the last counts.
            members = {
                each.filename: f"{each.file_size} {each.CRC}"
                for each in entries
                if not each.is_dir()
            }
            locked = [each.filename for each in entries if each.flag_bits & 1]
        else:
            with tarfile.open(path, "r:") as archive:
                names = archive.getnames()
                members = {
                    name: f"{each.size} {each.mtime}"
                    for name, each in _tar_members(archive).items()
                }
                _require_end(archive)
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
        (name, told)
        for name, told in members.items()
        if not any(part.startswith(".") and part != "." for part in name.split("/"))
        and not name.startswith("__MACOSX/")
    )
    listing = "".join(f"{name} {told}\n" for name, told in members)
    digest = hashlib.sha256(listing.encode(errors="surrogateescape"))
    return [name for name, _ in members], ArchiveReader(path, digest.hexdigest(), stamp)


def is_archive(path: str) -> bool:
    """Whether a file of that name is taken for an archive."""
    return path.lower().endswith(ARCHIVES)


def _is_zip(path: str) -> bool:
    return path.lower().endswith(".zip")


def _tar_members(archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """A tar's files by name, of what was written twice the last.

    A hard link is what it links to; other links and devices hold no image.
    """
    found: dict[str, tarfile.TarInfo] = {}
    for each in archive.getmembers():
        if each.isreg():
            found[each.name] = each
        elif each.islnk() and each.linkname in found:
            found[each.name] = found[each.linkname]
    return found


def _require_end(archive: tarfile.TarFile) -> None:
    """Refuses a tar whose listing stopped short of its end: `tarfile` takes any block that is no header for that.

    Raises:
        tarfile.TarError: there is no end, or more behind it.
    """
    archive.fileobj.seek(archive.offset)
    blocks = iter(lambda: archive.fileobj.read(_END_READ), b"")
    first = next(blocks, b"")
    if len(first) < tarfile.BLOCKSIZE or any(first[: tarfile.BLOCKSIZE]):
        last = archive.getnames()[-1:]
        raise tarfile.TarError(f"it is damaged or cut short after {', '.join(last) or 'its start'}")
    if any(map(any, (first, *blocks))):
        raise tarfile.TarError(
            "there is more behind its end, as where archives were joined: `tar --ignore-zeros -xf` unpacks all"
        )


def _require_inside(path: str, name: str) -> None:
    # It knows both kinds of slash. A colon alone is none of a drive.
    foreign = pathlib.PureWindowsPath(name)
    if foreign.root or ".." in foreign.parts:
        raise UserError(
            f"{path}: its member {name!r} would be written outside the archive's folder; such an archive is not to be"
            " trusted, make one with plain relative names."
        )


@functools.lru_cache(_MOST_OPEN)
def _open(path: str, _: tuple[int, ...]) -> tuple[Callable[[str], bytes | None], threading.Lock]:
    """What reads a member by its name (None for one too large), and a lock for its users.

    Another file at the same path, which has another stamp, is opened anew.
    """
    if _is_zip(path):
        archive = zipfile.ZipFile(path)

        def read(name: str) -> bytes | None:
            return archive.read(name) if archive.getinfo(name).file_size <= MOST_BYTES else None
    else:
        archive = tarfile.TarFile(path)
        members = _tar_members(archive)

        def read(name: str) -> bytes | None:
            member = members[name]
            if member.size > MOST_BYTES:
                return None
            content = archive.extractfile(member).read()
            if len(content) != member.size:
                raise EOFError(f"{len(content)} bytes instead of {member.size}")
            return content

    return read, threading.Lock()

"""Images in a zip or tar archive, read where they lie: nothing is unpacked."""

import dataclasses
import functools
import hashlib
import lzma
import pathlib
import posixpath
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
# As many as Linux follows.
_MOST_LINKS = 40
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


def list_archive(path: str) -> tuple[list[str], list[str], ArchiveReader]:
    """Lists the files in an archive, hidden ones left out; a tar's links are the files that they lead to.

    Args:
        path: a zip file, or a tar file that is not compressed as a whole.

    Returns:
        The members' names, sorted; those of links that lead to no file in the archive; and what reads members.

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
            astray: set[str] = set()
        else:
            with tarfile.open(path, "r:") as archive:
                names = archive.getnames()
                files = _tar_members(archive)
                members = {name: f"{each.size} {each.mtime}" for name, each in files.items()}
                links = {each.name for each in archive.getmembers() if each.issym() or each.islnk()}
                astray = links - files.keys()
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
    names = sorted(filter(_is_shown, members))
    listing = "".join(f"{name} {members[name]}\n" for name in names)
    digest = hashlib.sha256(listing.encode(errors="surrogateescape"))
    reader = ArchiveReader(path, digest.hexdigest(), stamp)
    return names, sorted(filter(_is_shown, astray)), reader


def is_archive(path: str) -> bool:
    """Whether a file of that name is taken for an archive."""
    return path.lower().endswith(ARCHIVES)


def _is_zip(path: str) -> bool:
    return path.lower().endswith(".zip")


def _is_shown(name: str) -> bool:
    """Whether a member is not hidden."""
    hidden = any(part.startswith(".") and part != "." for part in name.split("/"))
    return not hidden and not name.startswith("__MACOSX/")


def _tar_members(archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """A tar's files by name, of what was written twice the last.

    A link is the file that it leads to; devices hold no image.
    """
    found: dict[str, tarfile.TarInfo] = {}
    links: dict[str, str] = {}
    for each in archive.getmembers():
        links.pop(each.name, None)
        if each.isreg():
            found[each.name] = each
        elif each.islnk() and each.linkname in found:
            found[each.name] = found[each.linkname]
        elif each.issym():
            found.pop(each.name, None)
            links[each.name] = posixpath.join(posixpath.dirname(each.name), each.linkname)
    # However `tar` was told the folder's name, "./a" is "a".
    by_place = {posixpath.normpath(name): name for name in (*found, *links)}
    for name in links:
        if (file := _led_to(name, links, by_place)) is not None and file in found:
            found[name] = found[file]
    return found


def _led_to(name: str, links: dict[str, str], by_place: dict[str, str]) -> str | None:
    """The member that a chain of links ends at; None where it goes round or leaves the archive."""
    for _ in range(_MOST_LINKS):
        if name not in links:
            return name
        name = by_place.get(posixpath.normpath(links[name]))
        if name is None:
            return None
    return None


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

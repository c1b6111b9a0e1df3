"""Images in archives."""

import io
import os
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image
from toy import make_images

from rdcd_jax.core.errors import UnreadableImageError, UserError
from rdcd_jax.images.given import images_of
from rdcd_jax.images.passed_over import lacking, left_out
from rdcd_jax.images.sources import find_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("archives") / "set", 5)


def zipped(path, folder, extra=()):
    with zipfile.ZipFile(path, "w") as archive:
        for each in sorted(folder.iterdir()):
            archive.write(each, f"set/{each.name}")
        for name in extra:
            archive.writestr(name, b"x")
    return path


def tarred(path, folder, extra=(), mode="w"):
    with tarfile.open(path, mode) as archive:
        archive.add(folder, "./set")
        for name in extra:
            archive.addfile(tarfile.TarInfo(name))
    return path


@pytest.mark.parametrize("make", [zipped, tarred])
def test_an_archive_is_read_as_its_folder(folder, tmp_path, make):
    suffix = {zipped: ".zip", tarred: ".tar"}[make]
    extra = ["set/notes.txt", "__MACOSX/set/._a.jpg", "set/.hidden.jpg"]
    path = make(tmp_path / f"set{suffix}", folder, extra)
    images, want = find_images(path), find_images(folder)
    assert images.ids == want.ids
    assert all(each.startswith(f"{path}:") for each in images.paths)
    for position in range(len(want)):
        assert images.read(position) == want.read(position)
        np.testing.assert_array_equal(images.decode(position), want.decode(position))
    assert images.fingerprint()["kind"] == "archive"


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "a/../../b.jpg", "/etc/a.jpg", "C:\\a.jpg", "..\\a"]
)
@pytest.mark.parametrize("make", [zipped, tarred])
def test_a_member_that_leads_outside_is_refused_by_name(folder, tmp_path, make, name):
    path = make(tmp_path / {zipped: "a.zip", tarred: "a.tar"}[make], folder, [name])
    with pytest.raises(UserError, match="would be written outside") as error:
        find_images(path)
    assert repr(name) in str(error.value) and str(path) in str(error.value)


def test_links_in_a_tar_are_no_images(folder, tmp_path):
    path = tarred(tmp_path / "a.tar", folder)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("set/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    images = find_images(path)
    assert images.ids == find_images(folder).ids
    assert images.closed == (f"{path}:set/link.jpg",) and lacking(images) == 1
    assert f"cannot be opened: {path}:set/link.jpg." in left_out(images)[0]


LINKS = {
    "set/before.jpg": "to/real.jpg",
    "set/to/real.jpg": "../T00001.jpg",
    "set/to/beside.jpg": "real.jpg",
    "set/round.jpg": "about.jpg",
    "set/about.jpg": "round.jpg",
    "set/folder": "to",
    "set/T00003.jpg": "nowhere.jpg",
}


def test_links_within_a_tar_are_their_images(folder, tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for when in ("before", "after"):
            for name, target in LINKS.items():
                if (name == "set/before.jpg") == (when == "before"):
                    link = tarfile.TarInfo(name)
                    link.type, link.linkname = tarfile.SYMTYPE, target
                    archive.addfile(link)
            if when == "before":
                archive.add(folder, "./set")
    images = find_images(path)
    assert sorted(images.ids) == [
        *("T00000", "T00001", "T00002", "T00003", "T00004"),
        *("before", "beside", "real"),
    ]
    of = dict(zip(images.ids, range(len(images)), strict=True))
    for name in ("before", "beside", "real"):
        assert images.read(of[name]) == images.read(of["T00001"])
    # What was written as a file, "./set/T00003.jpg", is another member than the link.
    names = ["set/T00003.jpg", "set/about.jpg", "set/folder", "set/round.jpg"]
    assert images.closed == tuple(f"{path}:{name}" for name in names)


def test_ids_by_path_are_those_of_the_folder(folder, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder, ".")
    assert images_of(tmp_path / "a.tar", ids="path").ids == images_of(folder, ids="path").ids


def test_what_is_no_whole_archive_is_refused(folder, tmp_path):
    path = zipped(tmp_path / "a.zip", folder)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"a\.zip cannot be read as an archive"):
        find_images(path)
    path = tarred(tmp_path / "a.tar.gz", folder, mode="w:gz")
    with pytest.raises(UserError, match=r"a\.tar\.gz cannot .*decompress"):
        find_images(path)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(UserError, match="no images found"):
        find_images(tmp_path / "empty.zip")


def test_a_damaged_member_is_one_unreadable_image(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", buffer.getvalue())
        archive.writestr("b.png", buffer.getvalue())
    content = (tmp_path / "a.zip").read_bytes()
    at = content.index(b"IDAT")
    (tmp_path / "a.zip").write_bytes(content[:at] + b"IDAX" + content[at + 4 :])
    images = find_images(tmp_path / "a.zip")
    with pytest.raises(UnreadableImageError, match=r"a\.zip:a\.png: the archive's member"):
        images.decode(0)
    assert images.decode(1).size == (8, 8)


def test_a_member_whose_name_is_no_text_is_carried_through(folder, tmp_path):
    path = tarred(tmp_path / "a.tar", folder, ["caf\udce9.jpg"])
    found = find_images(path)
    assert found.ids[-1] == "caf\\udce9" and found.read(len(found) - 1) == b""


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def written(path, members):
    """An archive of these members, (name, content) each."""
    if path.suffix.lower() == ".zip":
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "w") as archive:
            for name, content in members:
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w") as archive:
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_an_archive_that_was_replaced_is_read_anew(tmp_path, suffix):
    path = written(tmp_path / f"a{suffix}", [("a.png", png("red"))])
    assert find_images(path).decode(0).getpixel((0, 0)) == (255, 0, 0)
    written(tmp_path / f"new{suffix}", [("a.png", png("blue"))]).replace(path)
    assert find_images(path).decode(0).getpixel((0, 0)) == (0, 0, 255)


def test_members_of_the_same_names_and_sizes_are_told_apart(tmp_path):
    red, blue = (
        find_images(written(tmp_path / "a.zip", [("a.png", content)])).fingerprint()
        for content in (b"one content", b"the other  ")
    )
    assert red.pop("records") != blue.pop("records") and red == blue


def damaged(content, place):
    content[place + 100] ^= 255
    return content


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (damaged, r"is damaged or cut short after a\.png"),
        (lambda content, place: content[:place], r"is damaged or cut short after a\.png"),
        (lambda content, place: content[: place + 100], r"is damaged or cut short after a\.png"),
        (lambda content, place: content * 2, "there is more behind its end"),
    ],
)
def test_a_tar_that_seems_to_end_early_is_refused(tmp_path, spoil, says):
    members = [(f"{name}.png", png("red")) for name in "abc"]
    path = written(tmp_path / "a.tar", members)
    assert len(find_images(path)) == 3
    with tarfile.open(path) as archive:
        place = archive.getmember("b.png").offset
    path.write_bytes(spoil(bytearray(path.read_bytes()), place))
    with pytest.raises(UserError, match=says):
        find_images(path)


@pytest.mark.parametrize("suffix", [".ZIP", ".Tar"])
def test_what_was_written_twice_counts_once_as_it_is_last(tmp_path, suffix):
    members = [("a.png", png("red")), ("10:30.png", png("green")), ("a.png", png("blue"))]
    images = find_images(written(tmp_path / f"a{suffix}", members))
    assert images.ids == ("10:30", "a")
    assert images.decode(1).getpixel((0, 0)) == (0, 0, 255)


def test_a_hard_link_in_a_tar_is_its_image(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.png").write_bytes(png("red"))
    os.link(folder / "a.png", folder / "b.png")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder, ".")
    images = find_images(tmp_path / "a.tar")
    assert images.ids == ("a", "b")
    assert images.decode(0).tobytes() == images.decode(1).tobytes()

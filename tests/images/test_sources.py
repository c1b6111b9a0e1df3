import os
import pickle
import shutil
import zipfile

import pytest
from PIL import Image
from toy import make_images

from rdcd_jax.core.errors import UnreadableImageError, UserError
from rdcd_jax.images import sources
from rdcd_jax.images.given import images_of
from rdcd_jax.images.sources import find_images, listed


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_a_folder_gives_its_images_sorted_by_path(tmp_path):
    touch(tmp_path, "b/Ünï cödé 漢字.PNG", "a.b.jpeg", "c.webp", "b/a.TIF")
    touch(tmp_path, ".hidden.jpg", ".git/x.jpg", "notes.txt", "noextension", "b/.DS_Store")
    images = find_images(tmp_path)
    assert images.ids == ("a.b", "a", "Ünï cödé 漢字", "c")
    below = [os.path.relpath(path, tmp_path).replace(os.sep, "/") for path in images.paths]
    assert below == ["a.b.jpeg", "b/a.TIF", "b/Ünï cödé 漢字.PNG", "c.webp"]
    assert len(images) == 4 and images.source == str(tmp_path)
    assert pickle.loads(pickle.dumps(images)) == images


def test_an_image_that_a_plugin_would_read_is_no_list(tmp_path, monkeypatch):
    touch(tmp_path, "a.xyz")
    monkeypatch.setitem(sources.PLUGINS, ".xyz", "pillow-xyz")
    with pytest.raises(UserError, match=r"a\.xyz: `pip install pillow-xyz` lets such images"):
        find_images(tmp_path / "a.xyz")


def test_a_text_file_gives_its_lines_in_order(tmp_path):
    touch(tmp_path, "images/b c.jpg", "elsewhere/a.png")
    text = f"\ufeffimages/b c.jpg\r\n\n{tmp_path / 'elsewhere' / 'a.png'}\nmissing.jpg\n"
    (tmp_path / "list.txt").write_bytes(text.encode())
    images = find_images(str(tmp_path / "list.txt"))
    assert images.ids == ("b c", "a", "missing")
    assert [os.path.isfile(path) for path in images.paths] == [True, True, False]


def test_an_image_by_itself(tmp_path):
    touch(tmp_path, "3.jpg")
    one = find_images(tmp_path / "3.jpg")
    assert one.ids == ("3",) and one.paths == (str(tmp_path / "3.jpg"),)


def test_two_files_of_one_id_are_refused_and_paths_cure_it(tmp_path):
    touch(tmp_path, "x/one.jpg", "y/one.png")
    with pytest.raises(
        UserError, match=r"'one': x/one.jpg and y/one.png; .*or let paths be the ids"
    ):
        find_images(tmp_path)
    assert find_images(tmp_path, ids="path").ids == ("x/one.jpg", "y/one.png")


def test_a_path_listed_twice_is_refused(tmp_path):
    touch(tmp_path, "a.jpg")
    (tmp_path / "list.txt").write_text("a.jpg\na.jpg\n")
    for ids in ("name", "path"):
        with pytest.raises(UserError, match=r"a.jpg and a.jpg; remove one"):
            find_images(tmp_path / "list.txt", ids=ids)


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "real/a.jpg", "set/b.jpg")
    (tmp_path / "set" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "up").symlink_to(tmp_path / "set")
    assert sorted(find_images(tmp_path / "set").ids) == ["a", "b"]


@pytest.mark.parametrize(
    ("make", "source", "says"),
    [
        (lambda folder: None, "nowhere", "no such folder or text file"),
        (lambda folder: touch(folder, "empty/readme.md"), "empty", "no images found"),
        (lambda folder: touch(folder, "list.txt"), "list.txt", "no images found"),
        (lambda folder: (folder / "l.txt").write_text("gone.jpg"), "l.txt", "gone.jpg, is not a"),
        (lambda folder: (folder / "p.bin").write_bytes(b"\xff\xd8\xff\xe0"), "p.bin", "neither"),
        (lambda folder: (folder / "n.txt").write_text("n" * 5000), "n.txt", "is not a file"),
        (
            lambda folder: touch(folder, "s.array_record"),
            "s.array_record",
            "no index s.array_record.json",
        ),
    ],
)
def test_other_sources_are_refused_by_name(tmp_path, make, source, says):
    make(tmp_path)
    with pytest.raises(UserError, match=says) as error:
        find_images(tmp_path / source)
    assert source in str(error.value)


def test_a_name_that_is_too_long_is_that_of_nothing():
    with pytest.raises(UserError, match="there is no such folder"):
        find_images("a" * 5000)


def test_a_subset_knows_of_its_own_images_alone(tmp_path):
    for name in ("a.jpg", "b.jpg", "b.txt"):
        touch(tmp_path, name)
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("c.png", b"c")
    images = images_of([tmp_path, tmp_path / "c.zip", Image.new("RGB", (8, 8))])
    assert len(images) == 4 and images.others
    some = images.subset([0, 2])
    assert some.ids == ("a", "c") and some.read(1) == b"c"
    assert (len(some.reader.of), len(some.in_memory), some.others) == (1, 0, ())


def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(make_images(tmp_path / "private", 2))
    with pytest.raises(UserError, match="source of images is empty; name one, such as . for"):
        find_images("")
    assert len(find_images(".")) == 2


def test_folders_that_vanish_or_are_closed_are_left_out(tmp_path, monkeypatch):
    folder = make_images(tmp_path / "a", 1)
    for name in ("closed", "gone"):
        make_images(folder / name, 1, seed=5)
    (folder / "nas").symlink_to("nowhere")
    scan = os.scandir

    def refusing(path):
        if str(path).endswith("gone"):
            shutil.rmtree(path)
            raise FileNotFoundError(2, "No such file or directory", str(path))
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = listed(folder)
    assert found.ids == ("T00000.jpg",)
    assert [os.path.basename(path) for path in found.closed] == ["closed", "gone", "nas"]


def test_a_file_above_a_gigabyte_is_not_read(tmp_path):
    folder = make_images(tmp_path / "a", 1)
    with (folder / "large.jpg").open("wb") as file:
        file.truncate(2**40)
    images = find_images(folder)
    with pytest.raises(UnreadableImageError, match=r"large\.jpg: is larger than 1024 MiB"):
        images.read(1)


def test_unknown_ids_are_refused():
    with pytest.raises(UserError, match="ids='stem'"):
        find_images(".", ids="stem")


def test_a_list_keeps_what_names_hold(tmp_path):
    names = ["plain.jpg", "ls\u2028x.jpg", " lead.jpg", "trail .jpg", "\u3000wide.jpg"]
    touch(tmp_path, *names)
    (tmp_path / "list.txt").write_bytes("\r\n".join(names).encode())
    found = find_images(tmp_path / "list.txt")
    assert [os.path.basename(path) for path in found.paths] == names
    assert all(os.path.isfile(path) for path in found.paths)

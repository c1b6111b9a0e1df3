import csv
import json
import os
import stat

import numpy as np
import pytest

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import (
    cache_folder,
    read_lines,
    require_writable,
    write_aside,
    write_csv,
    write_json,
    write_text,
)
from rdcd_jax.core.tensors import require_readable, write_tensors
from rdcd_jax.search.background import read_background
from rdcd_jax.weights.state_dicts import read_safetensors
from rdcd_jax.weights.store import read_imported


def test_the_old_file_stays_whole_when_the_block_raises(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), write_aside(path) as aside:
        aside.write_text("half of the n")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_nothing_appears_when_the_first_write_fails(tmp_path):
    with pytest.raises(ValueError, match="no"), write_aside(tmp_path / "new" / "a.txt"):
        raise ValueError("no")
    assert os.listdir(tmp_path / "new") == []


def test_parents_are_made_and_the_suffix_kept(tmp_path):
    path = tmp_path / "x" / "ü y" / "a.b.npz"
    with write_aside(path) as aside:
        assert aside.parent == path.parent
        assert aside.suffix == ".npz"
        aside.write_bytes(b"1")
    assert path.read_bytes() == b"1"
    assert os.listdir(path.parent) == ["a.b.npz"]


def test_cells_of_a_table(tmp_path):
    path = tmp_path / "a.csv"
    write_csv(path, ("id", "figure"), iter([("ü", 0.1), ("a,b", None)]))
    assert path.read_bytes().decode() == 'id,figure\nü,0.1\n"a,b",\n'
    names = ["a\rb", "a\nb", 'a"\r\n']
    write_csv(path, ("id", "figure"), ((name, 1) for name in names))
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[1:] == [[name, "1"] for name in names]
    write_csv(path, ("id", "figure"), [("ü", 0.1)])

    def cut_short():
        yield ("c", 1)
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        write_csv(path, ("id", "figure"), cut_short())
    assert path.read_text(encoding="utf-8").startswith("id,figure\nü")


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path, mask, expected):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a", "x")
        write_tensors(tmp_path / "b", {"x": np.zeros(2)})
        assert os.umask(mask) == mask, "the umask was changed"
    finally:
        os.umask(before)
    for name in ("a", "b"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == expected


def test_tensors_that_may_not_be_read_say_so(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": np.zeros(2)})
    require_readable(path)
    require_readable(tmp_path / "none")
    # Of root nothing is kept.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for read in (read_safetensors, lambda path: read_background(path, 2), read_imported):
        with pytest.raises(PermissionError, match=r"x\.safetensors"):
            read(path)


def test_what_is_no_file_is_not_replaced_and_what_is_private_stays_so(tmp_path):
    pipe, private = tmp_path / "pipe.json", tmp_path / "private.json"
    os.mkfifo(pipe)
    for refused in (require_writable, lambda path: write_text(path, "new")):
        with pytest.raises(UserError, match=r"pipe\.json: is a pipe or a device; give"):
            refused(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and len(list(tmp_path.iterdir())) == 1
    private.touch(mode=0o600)
    write_text(private, "new")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600 and private.read_text() == "new"


def test_what_is_no_text_is_known_by_its_start(tmp_path):
    # A hole of a terabyte takes no room, and no memory.
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match="large: is no text"):
        read_lines(tmp_path / "large")


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"é": [1, None, 0.5]})
    assert "é" in path.read_text(encoding="utf-8")
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, {"x": value})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [1, None, 0.5]}
    assert os.listdir(tmp_path) == ["a.json"]


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("RDCD_JAX_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("RDCD_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "rdcd_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "rdcd_jax"


def test_positions_that_cannot_be_written_are_reported_before(tmp_path):
    require_writable(tmp_path / "new" / "a.txt")
    (tmp_path / "new" / "a.txt").write_text("old")
    require_writable(tmp_path / "new" / "a.txt")
    assert (tmp_path / "new" / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path / "new") == ["a.txt"]
    with pytest.raises(UserError, match="new: is a folder"):
        require_writable(tmp_path / "new")
    with pytest.raises(OSError, match=r"a\.txt"):
        require_writable(tmp_path / "new" / "a.txt" / "b.txt")

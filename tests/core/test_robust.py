"""Leftovers of killed runs, disks without room, and signals."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from rdcd_jax.core import files, leftovers
from rdcd_jax.core.files import (
    remove_folder,
    require_writable,
    write_aside,
    write_folder_aside,
    write_text,
)
from rdcd_jax.core.tensors import write_tensors
from rdcd_jax.images import pack
from rdcd_jax.index.segments import _OWN


def test_leftovers_of_killed_runs_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "_CLEARED", set())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here, elsewhere = leftovers._host(), "00000000"
    names = {
        "killed": f".out-{here}_{gone.pid}_abcd1234.npz",
        "written": f".out-{here}_{os.getpid()}_abcd1234.npz",
        "elsewhere": f".out-{elsewhere}_1_abcd1234.npz",
        "of long ago": f".out-{elsewhere}_2_abcd1234.npz",
        "another's": ".out-longer_name.npz",
    }
    for name in names.values():
        (tmp_path / name).write_text("half")
    then = time.time() - 100_000
    os.utime(tmp_path / names["of long ago"], (then, then))
    write_text(tmp_path / "out.npz", "whole")
    left = {path.name for path in tmp_path.iterdir()}
    kept = {names[kind] for kind in ("written", "elsewhere", "another's")}
    assert left == kept | {"out.npz"}
    # An index's segments and packed shards know such names as their own.
    name = f".000012.rows-{here}_77_abcd1234.npy"
    assert _OWN.fullmatch(name) and pack._is_left(tmp_path / f".pictures-{here}_7_abcd1234")


def test_folders_are_whole_or_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "_CLEARED", set())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / f".out-{leftovers._host()}_{gone.pid}_abcd1234.parts"
    (left / "deep").mkdir(parents=True)
    with pytest.raises(OSError, match="full"), write_folder_aside(tmp_path / "out.parts") as aside:
        assert not left.exists()
        write_text(aside / "a.txt", "half")
        raise OSError("full")
    assert not list(tmp_path.iterdir())
    with write_folder_aside(tmp_path / "out.parts") as aside:
        write_text(aside / "a.txt", "whole")
    assert (tmp_path / "out.parts" / "a.txt").read_text() == "whole"
    with pytest.raises(OSError, match="not empty"), write_folder_aside(tmp_path / "out.parts"):
        pass
    remove_folder(tmp_path / "out.parts")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(*_):
        # As numpy reports it.
        raise OSError("12800 requested and 2016 written")

    monkeypatch.setattr(
        files.shutil, "disk_usage", lambda _: files.shutil._ntuple_diskusage(1, 1, 0)
    )
    with pytest.raises(OSError, match="No space left") as error, write_aside(tmp_path / "a.npy"):
        full()
    assert error.value.filename == str(tmp_path / "a.npy") and error.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space left") as error, write_aside(tmp_path / "b"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert error.value.filename == str(tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_tensors_on_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(OSError, match="No space left") as error:
        write_tensors(tmp_path / "w.safetensors", {"a": np.zeros(3)})
    assert error.value.filename == str(tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="Permission denied") as error:
        write_text(tmp_path / "a.txt", "")
    assert error.value.filename == str(tmp_path)


def test_a_folder_that_refuses_is_named(tmp_path, monkeypatch):
    def refused(path, **how):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "touch", refused)
    with pytest.raises(PermissionError) as error:
        write_text(tmp_path / "a.txt", "")
    assert error.value.filename == str(tmp_path)


def test_a_folder_that_refuses_is_named_before_the_work_too(tmp_path, monkeypatch):
    def refused(dir):
        raise PermissionError(errno.EACCES, "Permission denied", f"{dir}/tmpn642hfck")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refused)
    with pytest.raises(PermissionError) as error:
        require_writable(tmp_path / "a.txt")
    assert error.value.filename == str(tmp_path)


# A verb that waits; where asked, in a function whose exceptions Python drops.
WAITING = """
import importlib, sys, time
from rdcd_jax.cli import models

cli = importlib.import_module("rdcd_jax.cli.main")

class Dropping:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(1)

def waiting(options, rest):
    if sys.argv[1] == "dropped":
        Dropping()
    else:
        print("ready", flush=True)
    # A signal that comes just before a sleep does not shorten it.
    for _ in range(600):
        time.sleep(0.1)

cli.add_models = lambda verbs: models.verb(verbs, "models", "", "", waiting)
sys.exit(cli.main(["models"]))
"""


@pytest.mark.parametrize("where", ["plain", "dropped"])
@pytest.mark.parametrize(
    ("number", "status", "says"),
    [(signal.SIGINT, 130, "interrupted."), (signal.SIGTERM, 143, "ended by SIGTERM.")],
)
def test_signals_end_a_verb_wherever_they_come(where, number, status, says):
    started = subprocess.Popen(
        [sys.executable, "-c", WAITING, where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout.readline() == "ready\n"
    begun = time.monotonic()
    started.send_signal(number)
    _, stored = started.communicate(timeout=30)
    assert (started.returncode, stored) == (status, f"rdcd-jax: {says}\n")
    assert time.monotonic() - begun < 20

import errno
import fcntl
import logging
import subprocess
import sys

import pytest

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.locks import held

HOLDER = """
import pathlib, sys
from rdcd_jax.core.locks import held
with held(pathlib.Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["a file", "a folder"])
def path(request, tmp_path):
    return tmp_path / "new" / "lock" if request.param == "a file" else tmp_path


def test_one_process_at_a_time_until_it_dies(path):
    command = [sys.executable, "-c", HOLDER, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="it is taken"), held(path, "it is taken"):
            pass
        holder.kill()
    with held(path, "it is taken"):
        pass


def test_a_file_system_without_locks_is_worked_on_with_a_warning(path, monkeypatch, caplog):
    def refuse(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), held(path, "it is taken"):
        pass
    assert "has no locks (No locks available); see to it that one process" in caplog.text

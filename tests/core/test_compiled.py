import os
import subprocess
import sys
import warnings

from rdcd_jax.core.compiled import keep_compiled

PROGRAM = """
from rdcd_jax.core.compiled import keep_compiled
from rdcd_jax.core.logs import show_warnings
keep_compiled()
show_warnings()
import jax
jax.jit(lambda x: x * 2 + 1)(3.0)
"""


def test_many_calls_change_nothing_more(monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    keep_compiled()
    once = warnings.showwarning
    keep_compiled()
    assert warnings.showwarning is once


def test_a_cache_that_cannot_be_read_is_not_called_damaged(tmp_path):
    (tmp_path / "file").write_text("")
    about = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "file")}
    about["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | about, capture_output=True, text=True
    )
    assert done.returncode == 0 and "damaged" not in done.stderr


def test_an_entry_cut_short_is_written_anew(tmp_path):
    about = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    about["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

    def run():
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=os.environ | about, capture_output=True, text=True
        )
        assert done.returncode == 0
        return done.stderr

    assert run() == ""
    (entry,) = tmp_path.glob("jit__lambda*-cache")
    content = entry.read_bytes()
    entry.write_bytes(content[:100])
    assert f"{tmp_path}: what was compiled of 'jit__lambda' is damaged" in run()
    assert len(entry.read_bytes()) > 100
    assert run() == ""

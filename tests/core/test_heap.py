import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from rdcd_jax.core.heap import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def use():
    arrays = [np.ones(200_000, np.uint8) for _ in range(40)]
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is reported")
def test_freed_memory_is_used_again():
    faults = {}
    for how in ("keep", "default"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
        )
        faults[how] = int(done.stdout)
    if not faults["default"]:
        pytest.skip("this system does not count page faults")
    assert faults["keep"] < faults["default"] / 5

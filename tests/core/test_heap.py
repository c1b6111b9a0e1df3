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


STEPS = """
import resource, sys
import jax, jax.numpy as jnp
from rdcd_jax.core.heap import keep_memory_of_steps
if sys.argv[1] == "keep":
    keep_memory_of_steps()
# Beside what it takes and gives it needs 64 MiB, which cannot be left out.
step = jax.jit(lambda x: jnp.sin(jnp.outer(x, x)) @ x)
x = jnp.arange(4096, dtype=jnp.float32)
# In the first, blocks that stay take their places, some from the middle of what a step has freed.
for _ in range(50):
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is reported")
@pytest.mark.parametrize(("script", "times"), [(FAULTS, 5), (STEPS, 2)], ids=["views", "steps"])
def test_freed_memory_is_used_again(script, times):
    faults = {}
    for how in ("keep", "default"):
        done = subprocess.run(
            [sys.executable, "-c", script, how], capture_output=True, text=True, check=True
        )
        faults[how] = int(done.stdout)
    if not faults["default"]:
        pytest.skip("this system does not count page faults")
    assert faults["keep"] < faults["default"] / times

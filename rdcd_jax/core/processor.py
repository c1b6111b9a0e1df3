"""What the CPU can do."""

import functools
import pathlib

_CPUINFO = pathlib.Path("/proc/cpuinfo")


@functools.cache
def instructions() -> frozenset[str]:
    """The instruction sets of the CPU by Linux's names for them, such as `avx2`; none where Linux does not say.

    >>> "no such set" in instructions()
    False
    """
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())

"""Huge pages for large arrays on Linux, where the system leaves it to each program to ask for them.

XLA takes the memory of a step from the C library and gives it back at the step's end. In pages of 4 KiB the kernel then
spends a third of a training step on a CPU on handing out cleared pages again, 700,000 of them at a batch of 32:
`experiments/benchmarks/step.py` measures both.
"""

import os
import pathlib
import platform
import sys
from collections.abc import Mapping

_VARIABLE, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_SWITCH = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def asking(
    environment: Mapping[str, str], *, libc: str | None = None, switch: pathlib.Path = _SWITCH
) -> dict[str, str]:
    """The environment variable with which a new process asks for huge pages.

    Args:
        environment: the variables that hold now; whoever has set `glibc.malloc.hugetlb` already, to 0 or 1, is obeyed.
        libc: the C library's name, by default this Python's.
        switch: the kernel's setting; only with `madvise` is it left to the programs.

    Returns:
        The variable and its value, or nothing where asking changes nothing.
    """
    stored = environment.get(_VARIABLE, "")
    if _TUNABLE in stored or (libc or platform.libc_ver()[0]) != "glibc":
        return {}
    try:
        left_to_programs = "[madvise]" in switch.read_text()
    except OSError:
        return {}
    return {_VARIABLE: f"{stored}:{_TUNABLE}=1".lstrip(":")} if left_to_programs else {}


def restart_with_huge_pages() -> None:
    """Starts this process anew, under its own number, with the variable: the C library reads it only at a start."""
    if (variable := asking(os.environ)) and sys.executable and sys.orig_argv:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **variable})

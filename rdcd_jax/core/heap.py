"""How the C library keeps memory in a process that makes views."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> None:
    """Makes this process keep what it frees, up to 256 MiB, instead of giving it back to the system.

    A view takes and frees some dozen arrays of several 100 KB. By default the C library maps each anew, and the kernel
    clears its pages again and again: about a fifth of a data worker's time. It does nothing where that is not glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, 256 << 20)
        # Threads with a heap of their own would give it back all the same.
        libc.mallopt(_ARENA_MAX, 1)
        # The most that glibc takes.
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)

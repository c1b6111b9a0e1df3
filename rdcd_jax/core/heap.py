"""How the C library keeps memory in a process that takes and frees the same again and again."""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8


def keep_freed_memory() -> None:
    """Makes this process keep what it frees, up to 256 MiB, instead of giving it back to the system.

    A view takes and frees some dozen arrays of several 100 KB. By default the C library maps each anew, and the kernel
    clears its pages again and again: about a fifth of a data worker's time. It does nothing where that is not glibc.
    """
    if libc := _glibc():
        libc.mallopt(_TRIM_THRESHOLD, 256 << 20)
        # Threads with a heap of their own would give it back all the same.
        libc.mallopt(_ARENA_MAX, 1)
        # The most that glibc takes.
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)


def keep_memory_of_steps() -> None:
    """Makes a process that trains on a CPU keep a step's memory for the next one.

    XLA takes some GB for each step and frees them at its end. By default the C library gives such blocks back at once,
    and the kernel hands them out cleared again: a third of a step's time on a virtual machine. Kept is what the main
    thread frees, so steps have to run in it: JAX is told so, which it heeds if it has not been used yet. The most that
    a run takes grew by 7 % (45 steps of 64 images of 128 pixels, three evaluations). It does nothing where that is not
    glibc, or JAX's devices are others.
    """
    import jax

    if libc := _glibc():
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        if jax.default_backend() == "cpu":
            # Never.
            libc.mallopt(_TRIM_THRESHOLD, -1)
            libc.mallopt(_MMAP_MAX, 0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None

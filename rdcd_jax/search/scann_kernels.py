"""Lets ScaNN use the instructions that the CPU has.

ScaNN holds kernels for SSE4, AVX2 and AVX-512, and chooses among them whenever it searches, by flags that are set from
a test of the CPU when it is loaded. In its wheels on PyPI (1.3.5 to 1.4.2) that test answers no to every question, so
that they use SSE4 everywhere, at about half the queries a second. Here the flags are set by the rule of ScaNN's own
source. They are only ever switched on; a wheel without them, or with the test mended, stays as it is.
"""

import ctypes

from rdcd_jax.core.processor import instructions

# ScaNN's flags, as the linker names them, and the instruction sets that its source asks for.
_FLAGS = {
    "_ZN14research_scann14flags_internal15should_use_avx2E": {"avx2", "fma"},
    "_ZN14research_scann14flags_internal17should_use_avx512E": {
        "avx2",
        "fma",
        "avx512f",
        "avx512dq",
        "avx512bw",
    },
}


def use_instructions(library: str) -> None:
    """Switches on the kernels that the CPU can run.

    Args:
        library: path of ScaNN's compiled module, which is loaded already.
    """
    loaded = ctypes.CDLL(library)
    for name, needed in _FLAGS.items():
        try:
            flag = ctypes.c_bool.in_dll(loaded, name)
        except ValueError:
            continue
        flag.value |= needed <= instructions()

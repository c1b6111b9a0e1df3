"""ScaNN's kernels are those that the CPU can run, and what one kind wrote another reads."""

import ctypes

import numpy as np
import pytest

from rdcd_jax.core import processor
from rdcd_jax.search import scann_backend, scann_kernels

pytest.importorskip("scann")


@pytest.fixture
def flags():
    """ScaNN's flags by what they need, put back afterwards."""
    library = ctypes.CDLL(scann_backend._scann().scann_pybind.__file__)
    found = {
        frozenset(needed): ctypes.c_bool.in_dll(library, name)
        for name, needed in scann_kernels._FLAGS.items()
    }
    before = [flag.value for flag in found.values()]
    yield found
    for flag, value in zip(found.values(), before, strict=True):
        flag.value = value


def test_what_the_cpu_has_is_used(flags):
    for needed, flag in flags.items():
        assert flag.value == (needed <= processor.instructions())


def test_what_the_cpu_lacks_is_not_used(flags, monkeypatch):
    for flag in flags.values():
        flag.value = False
    monkeypatch.setattr(
        scann_kernels, "instructions", lambda: frozenset({"avx2", "fma", "avx512f"})
    )
    scann_backend._scann()
    assert [
        flag.value for needed, flag in sorted(flags.items(), key=lambda item: len(item[0]))
    ] == [
        True,
        False,
    ]


def test_an_unknown_library_is_left_alone():
    scann_kernels.use_instructions(None)  # The process itself, which has no such flags.


def test_files_are_the_same_for_every_cpu(flags, tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3000, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = rows[:50] + rng.normal(size=(50, 64)).astype(np.float32) / 40
    config = scann_backend.ScannConfig(30, 10, 50)
    scann_backend.save_scann(rows, 50, config, tmp_path)
    found = []
    for off in ({}, {5}, {2, 5}):
        for needed, flag in flags.items():
            flag.value = len(needed) not in off and needed <= processor.instructions()
        # Loading switches on what the CPU has, so it is told that it has nothing.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scann_kernels, "instructions", frozenset)
            find = scann_backend.load_scann(tmp_path)
        candidates = find(queries)
        assert (candidates == np.arange(50)[:, None]).any(axis=1).all()
        found.append([set(row) for row in candidates])
    for other in found[1:]:
        shared = [len(one & two) for one, two in zip(found[0], other, strict=True)]
        # Sums of other lengths round differently, which changes who is last.
        assert np.mean(shared) > 48

"""Asking the C library for huge pages: only where it is left to the program, and only once."""

import json
import os
import subprocess
import sys

import pytest

from rdcd_jax.core.huge_pages import asking


@pytest.fixture
def switch(tmp_path):
    """A kernel that leaves it to the programs."""
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never\n")
    return path


def test_it_asks_where_the_kernel_leaves_it_to_programs(switch):
    found = asking({}, libc="glibc", switch=switch)
    assert found == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert asking(found, libc="glibc", switch=switch) == {}


def test_other_tunables_are_kept(switch):
    found = asking({"GLIBC_TUNABLES": "glibc.malloc.check=3"}, libc="glibc", switch=switch)
    assert found == {"GLIBC_TUNABLES": "glibc.malloc.check=3:glibc.malloc.hugetlb=1"}


def test_a_refusal_is_obeyed(switch):
    refused = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    assert asking(refused, libc="glibc", switch=switch) == {}


@pytest.mark.parametrize("setting", ["[always] madvise never", "always madvise [never]", None])
def test_nothing_is_asked_where_it_changes_nothing(tmp_path, switch, setting):
    if setting is None:
        switch.unlink()
    else:
        switch.write_text(setting)
    assert asking({}, libc="glibc", switch=switch) == {}
    assert asking({}, libc="musl", switch=switch) == {}


def test_the_restart_keeps_arguments_and_process(switch):
    code = (
        "import functools, json, os, pathlib, sys; from rdcd_jax.core import huge_pages as h;"
        f"h.asking = functools.partial(h.asking, libc='glibc', switch=pathlib.Path({str(switch)!r}));"
        "h.restart_with_huge_pages();"
        "print(json.dumps([os.getpid(), sys.argv[1:], os.environ['GLIBC_TUNABLES']]))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, "a b", "--c"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    stored, _ = process.communicate(timeout=60)
    assert json.loads(stored) == [process.pid, ["a b", "--c"], "glibc.malloc.hugetlb=1"]

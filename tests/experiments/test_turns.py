"""Contenders of a benchmark take turns, and none is left behind."""

import functools
import multiprocessing
import time

import pytest

from experiments.benchmarks.turns import contest


def counting(start):
    numbers = iter(range(start, 100))
    return {"a": lambda: next(numbers), "b": lambda: -start}, {"start": start}


def failing():
    raise RuntimeError("no such package")


def test_contenders_take_turns():
    makers = {"one": functools.partial(counting, 1), "ten": functools.partial(counting, 10)}
    with contest(makers) as contenders:
        assert contenders.about == {"one": {"start": 1}, "ten": {"start": 10}}
        found = contenders.rounds(("a", "b"), 2)
    assert found == {"one": {"a": [1, 2], "b": [-1, -1]}, "ten": {"a": [10, 11], "b": [-10, -10]}}


def test_none_is_left_behind_by_one_that_fails(capfd):
    with pytest.raises(EOFError), contest({"one": functools.partial(counting, 1), "bad": failing}):
        pass
    assert "no such package" in capfd.readouterr().err
    deadline = time.monotonic() + 30
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()

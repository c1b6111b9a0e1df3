"""Work given to other threads and processes, and what such processes need to know."""

import collections
import concurrent.futures
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from typing import Any


def mapped_ahead(
    pool: concurrent.futures.Executor, function: Callable, items: Iterable, ahead: int
) -> Iterator[Any]:
    """Yields the function's results in the items' order, `ahead` of them being made meanwhile; then ends the pool."""
    items = iter(items)
    try:
        waiting = collections.deque(
            pool.submit(function, item) for item in itertools.islice(items, ahead)
        )
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def follow_parent() -> None:
    """Makes this process leave with its parent, however that ends, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: BaseProcess) -> None:
    # A parent that is killed cannot end its workers, and they would wait for it for ever.
    parent.join()
    os._exit(1)

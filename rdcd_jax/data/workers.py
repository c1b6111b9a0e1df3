"""What processes that work for this one need to know."""

import os
import signal
import threading
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess


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

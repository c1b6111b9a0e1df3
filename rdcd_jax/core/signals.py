"""What Ctrl-C and SIGTERM do to a program: both end it, and neither is lost."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

# Functions whose exceptions Python drops ("Exception ignored in ..."): JAX's at a garbage collection, and finalizers.
_DROPPED_IN = {"_xla_gc_callback", "__del__"}
# Seconds after which a signal that came within one of these is raised again.
_AGAIN = 0.1


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raises KeyboardInterrupt for SIGINT and Terminated for SIGTERM while the block runs, where that is seen."""
    kinds = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
    waiting: list[type[KeyboardInterrupt]] = []

    def come(number: int, frame: FrameType | None) -> None:
        kind = kinds[number] if number in kinds else waiting.pop()
        if _is_dropped(frame):
            waiting.append(kind)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        else:
            raise kind

    try:
        before = {number: signal.signal(number, come) for number in (*kinds, signal.SIGALRM)}
    except ValueError:
        # Not in the main thread: whoever started the thread handles signals.
        yield
        return
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_dropped(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name in _DROPPED_IN:
            return True
        frame = frame.f_back
    return False

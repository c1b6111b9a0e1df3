"""The package's warnings on the terminal, for programs; a library's user has `logging` as it is."""

import logging
import sys
import traceback


class _Stderr(logging.Handler):
    """One line a record, on whatever stderr is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            traceback.print_exception(*record.exc_info)
        print(f"{record.levelname.capitalize()}: {record.getMessage()}", file=sys.stderr)


def show_warnings() -> None:
    """Writes this package's warnings to stderr, once however often it is called."""
    logger = logging.getLogger("rdcd_jax")
    if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
        logger.addHandler(_Stderr(logging.WARNING))
        logger.propagate = False

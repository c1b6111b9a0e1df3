"""A run's figures as TensorBoard events, where tensorboardX is installed."""

import contextlib
import logging
import pathlib
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_log = logging.getLogger(__name__)


class Events:
    """Writes figures to a new file of events, until the disk has no room.

    It writes at once: tensorboardX's own writer leaves that to a thread, and waits for ever for one that a full disk
    has ended.

    Args:
        folder: of the files of events, made where missing.
        step: the step that the run continues from; of earlier files TensorBoard no longer shows what comes after it.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        self._folder = folder
        self._file: Any = None
        try:
            from tensorboardX.proto import event_pb2
            from tensorboardX.record_writer import RecordWriter
            from tensorboardX.summary import scalar
        except ImportError:
            return
        self._event, self._scalar = event_pb2.Event, scalar
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        with self._until_full():
            folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
            self._file = RecordWriter(str(folder / name))
            self._add(file_version="brain.Event:2")
            self._add(step=step + 1, session_log=start)

    def write(self, rows: Sequence[Mapping[str, float | None]]) -> None:
        """Appends the figures of rows, each with its `step`; those that are None are left out.

        Where they cannot be written, one warning says so, and this and all later calls do nothing.
        """
        if self._file is None:
            return
        with self._until_full():
            for row in rows:
                for name, value in row.items():
                    if name != "step" and value is not None:
                        self._add(step=row["step"], summary=self._scalar(name, value))
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with self._until_full():
                self._file.close()

    def _add(self, **fields: object) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._file.write(event.SerializeToString())

    @contextlib.contextmanager
    def _until_full(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _log.warning(
                "%s cannot be written (%s); until the next start the figures are in metrics.jsonl alone.",
                self._folder,
                error,
            )
            file, self._file = self._file, None
            if file is not None:
                # Closing tries to write the buffer once more.
                with contextlib.suppress(OSError):
                    file.close()

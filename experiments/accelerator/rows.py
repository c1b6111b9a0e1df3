"""Result files that grow by rows, so that a piece of work cut short goes on."""

import argparse
import json
import pathlib
import time
from collections.abc import Callable

from rdcd_jax.core.files import write_json
from rdcd_jax.training.record import environment


class Rows:
    """The rows of a result file by their names.

    Args:
        path: the file; read where it is there.
        deadline: `time.monotonic()` after which nothing new is begun.
    """

    def __init__(self, path: pathlib.Path, deadline: float):
        self._path, self._deadline = path, deadline
        self.rows: dict[str, dict] = {}
        if path.exists():
            self.rows = json.loads(path.read_text(encoding="utf-8"))["rows"]

    def make(self, name: str, row: Callable[[], dict]) -> None:
        """Adds a row, if it is not there and there is time; one that fails says why."""
        if name in self.rows or time.monotonic() > self._deadline:
            return
        begun = time.monotonic()
        try:
            found = row()
        except Exception as error:
            # The next one may work, and time on an accelerator is dear.
            found = {"error": f"{type(error).__name__}: {error}"[:500]}
        found["seconds"] = round(time.monotonic() - begun, 2)
        self.rows[name] = found
        write_json(self._path, {"environment": environment(), "rows": self.rows})
        print(f"{name}: {found}", flush=True)


def opened(about: str, seconds: float) -> tuple[Rows, argparse.Namespace]:
    """The rows that a part's command line names, and its options: `seconds` and `small`.

    Args:
        about: the part, for --help.
        seconds: it takes at most, unless the command line says otherwise.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--small", action="store_true", help="a trial on a CPU")
    options = parser.parse_args()
    return Rows(options.out, time.monotonic() + options.seconds), options

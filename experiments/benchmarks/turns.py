"""Contenders that take turns, each in a process of its own, so that two thread pools never share the cores."""

import contextlib
import dataclasses
import multiprocessing
from collections.abc import Callable, Collection, Iterator, Mapping
from multiprocessing.connection import Connection

# Gives what a contender measures, by name of the part, and what else is to be known of it.
Maker = Callable[[], tuple[Mapping[str, Callable[[], float]], object]]


@dataclasses.dataclass(frozen=True)
class Contest:
    """Contenders that are ready.

    Attributes:
        about: what each maker gave beside.
    """

    about: Mapping[str, object]
    _pipes: Mapping[str, Connection]

    def rounds(self, parts: Collection[str], count: int) -> dict[str, dict[str, list[float]]]:
        """What each contender measured of each part in so many rounds, in which all take turns."""
        found = {name: {part: [] for part in parts} for name in self._pipes}
        for _ in range(count):
            for part in parts:
                for name, pipe in self._pipes.items():
                    pipe.send(part)
                    found[name][part].append(pipe.recv())
        return found


@contextlib.contextmanager
def contest(makers: Mapping[str, Maker]) -> Iterator[Contest]:
    """Starts the contenders, one after the other, and ends them.

    Args:
        makers: picklable functions without arguments, called in the contender's process.

    Raises:
        EOFError: a contender ended before it was ready; it has said why.
    """
    context = multiprocessing.get_context("spawn")
    pipes, about = {}, {}
    try:
        for name, make in makers.items():
            pipes[name], theirs = context.Pipe()
            # Not a daemon: torch's loader has children of its own.
            context.Process(target=_serve, args=(make, theirs)).start()
            theirs.close()
            about[name] = pipes[name].recv()
        yield Contest(about, pipes)
    finally:
        for pipe in pipes.values():
            pipe.close()


def _serve(make: Maker, pipe: Connection) -> None:
    """Measures what is asked for until nobody asks any more."""
    runs, about = make()
    pipe.send(about)
    while True:
        try:
            part = pipe.recv()
        except EOFError:
            return
        pipe.send(runs[part]())

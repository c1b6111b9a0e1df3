"""What cases share: damage that suits any file, and numbers and texts that programs stumble over."""

import dataclasses
import json
import pathlib

import numpy as np

# Around the edges of machine integers, beyond them, and one too long to be printed at once.
NUMBERS = (0, -1, 1, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64, 10**30, 10**5000)
TEXTS = (
    "",
    " ",
    "../../MARKER",
    "/dev/zero",
    "two\nlines\n",
    "\x1b[2J\x1b[31mred",
    "a\x00b",
    "鳥🦆",
    "x" * 100_000,
    "%s%n{0}",
    "None",
    "nan",
)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a case lies.

    Attributes:
        root: its folder; only what begins with `given/out` and the weights' cache may change below it.
        seeds: the valid files.
    """

    root: pathlib.Path
    seeds: pathlib.Path

    @property
    def inside(self) -> pathlib.Path:
        """Folder of the case's input files."""
        return self.root / "given" / "in"

    @property
    def out(self) -> pathlib.Path:
        """Where the command writes; `out` with any suffix is allowed."""
        return self.root / "given" / "out"

    @property
    def marker(self) -> pathlib.Path:
        """What a hostile file tries to make."""
        return self.root / "MARKER"

    def written(self, name: str, data: bytes | str) -> pathlib.Path:
        """Writes an input file."""
        path = self.inside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path


@dataclasses.dataclass(frozen=True)
class Case:
    """One command line.

    Attributes:
        argv: its arguments.
        injected: what is wrong with its input, for people.
        stored: a sentence that refuses it must hold one of these.
    """

    argv: list[str]
    injected: str
    stored: tuple[str, ...]


def damaged(data: bytes, random: np.random.Generator) -> tuple[bytes, str]:
    """Damages a file.

    Args:
        data: the whole file.
        random: where the choices come from.

    Returns:
        The damaged file, and what was done to it.
    """
    ways = (_cut, _flipped, _flipped, _lied, _lied, _zeroed, _removed, _repeated, _noisy)
    way = ways[random.integers(len(ways))]
    return way(data, random)


def _cut(data, random):
    n = _position(data, random)
    return data[:n], f"cut to {n} of {len(data)} bytes"


def _flipped(data, random):
    changed = bytearray(data)
    positions = sorted(_position(data, random) for _ in range(random.integers(1, 9)))
    for position in positions:
        changed[position] ^= 1 << random.integers(8)
    return bytes(changed), f"a bit flipped at each of {positions}"


def _lied(data, random):
    """Overwrites what may be a size with an extreme one."""
    position, width = _position(data, random), int(random.choice([1, 2, 4, 8]))
    lie = [b"\xff" * 8, b"\x00" * 8, b"\xff\xff\xff\x7f" * 2, b"\x7f" + b"\xff" * 7]
    chosen = lie[random.integers(len(lie))][:width]
    return data[:position] + chosen + data[position + width :], f"{chosen.hex()} at {position}"


def _zeroed(data, random):
    a, b = sorted((_position(data, random), _position(data, random)))
    return data[:a] + bytes(b - a) + data[b:], f"zeros from {a} to {b}"


def _removed(data, random):
    a, b = sorted((_position(data, random), _position(data, random)))
    return data[:a] + data[b:], f"bytes {a} to {b} removed"


def _repeated(data, random):
    a, b = sorted((_position(data, random), _position(data, random)))
    return data[:b] + data[a:b] + data[b:], f"bytes {a} to {b} twice"


def _noisy(data, random):
    position, count = _position(data, random), int(random.integers(1, 65))
    return data[:position] + random.bytes(count) + data[
        position + count :
    ], f"{count} noisy at {position}"


def _position(data, random):
    """A position in the file; half of all in its first or last 200 bytes, where the structure is."""
    n = max(len(data), 1)
    edge = int(random.integers(min(n, 200)))
    return (edge, n - 1 - edge, *random.integers(n, size=2).tolist())[random.integers(4)]


def chosen(random: np.random.Generator, options):
    """One of a sequence or of a dict's items; unlike `random.choice` it keeps the type."""
    options = list(options.items()) if isinstance(options, dict) else options
    return options[int(random.integers(len(options)))]


def hostile_json(random: np.random.Generator) -> str:
    """A JSON text that a field did not expect."""
    numbers = [str(n) for n in NUMBERS[:-1]] + ["9" * 5000, "1e999", "-0.0", "NaN", "-Infinity"]
    others = ["null", "true", "[]", "{}", '[["x"]]', '{"a": 1}', '"\\ud800"', '"\\udcff"']
    deep = ["[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000]
    return chosen(random, [*numbers, *others, *deep, *map(json.dumps, TEXTS)])


def short(value: object) -> str:
    """A value as a few words of a report."""
    try:
        text = repr(value)
    except ValueError:
        text = "a number of thousands of digits"
    return text if len(text) < 80 else f"{text[:60]}... ({len(text)} characters)"

"""What a program that XLA compiled for a TPU moves, counted in its text."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# What moves nothing by itself, or has been counted where it started.
_FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_LINE = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\((.*?)\)(?:, (.*))?$")


class Operation(NamedTuple):
    """A line of a program.

    Attributes:
        name: of what it gives.
        shape: of that.
        kind: such as "fusion".
        operands: their names.
        rest: what else the line says.
    """

    name: str
    shape: str
    kind: str
    operands: list[str]
    rest: str


def operations(text: str) -> Iterator[Operation]:
    """The operations of a program's text, or of a part of it."""
    for line in text.splitlines():
        found = _LINE.match(line)
        if found is not None:
            name, shape, kind, operands, rest = found.groups()
            names = [each.strip().lstrip("%") for each in operands.split(",")]
            yield Operation(name, shape, kind, names, rest or "")


def array_bytes(shape: str) -> list[int]:
    """The bytes of each array of a shape."""
    return [_size(*found) for found in _ARRAY.findall(shape) if found[0] in BYTES]


def _size(kind: str, dims: str, _: str = "") -> int:
    return BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n)


def _in_memory(shape: str) -> list[int]:
    """The same of those that lie in the chip's main memory, not in its vector memory, S(1)."""
    found = [each for each in _ARRAY.findall(shape) if each[0] in BYTES]
    return [0 if "S(" in layout else _size(kind, dims) for kind, dims, layout in found]


def collectives(text: str) -> dict[str, int]:
    """How many collectives a program has, and the bytes of what they give."""
    sizes: dict[str, int] = {}
    for each in operations(text):
        if each.kind.removesuffix("-start") not in COLLECTIVES:
            continue
        arrays = array_bytes(each.shape)
        if each.kind.endswith("-start"):
            # It gives its operands too.
            arrays = arrays[len(arrays) // 2 :]
        # One that overlaps with arithmetic is told in every piece of that.
        channel = re.search(r"channel_id=(\d+)", each.rest)
        sizes[channel[1] if channel else each.name] = sum(arrays)
    return {"collective_count": len(sizes), "collective_bytes": sum(sizes.values())}


def memory_bytes(text: str) -> int:
    """Bytes that a program reads from the chip's main memory and writes to it.

    The compiler's own count adds those of its vector memory, where most of a small batch stays. Of an array that is
    changed in place, what is put in counts, read and written.
    """
    shapes: dict[str, str] = {}
    total = 0
    for each in operations(text[text.index("\nENTRY") :]):
        shapes[each.name] = each.shape
        if each.kind in _FREE or each.kind.endswith("-done"):
            continue
        given = [shapes.get(name, "") for name in each.operands]
        total += _moved(each, given)
    return total


def _moved(each: Operation, given: list[str]) -> int:
    if each.kind in ("copy-start", "slice-start"):
        # It gives its source and its target, in either order; what moves is the smaller, between two memories.
        arrays = [
            (full, there)
            for full, there in zip(array_bytes(each.shape), _in_memory(each.shape), strict=True)
        ]
        amount = min(full for full, _ in arrays[:2])
        return amount * sum(there > 0 for _, there in arrays[:2])
    read = [sum(_in_memory(shape)) for shape in given]
    written = sum(_in_memory(each.shape))
    if "dynamic_update_slice" in each.rest or each.kind == "dynamic-update-slice":
        whole = [
            i for i, shape in enumerate(given) if array_bytes(shape) == array_bytes(each.shape)
        ]
        if whole:
            put_in = sum(sum(array_bytes(shape)) for i, shape in enumerate(given) if i != whole[0])
            return 2 * put_in
    return written + sum(read)

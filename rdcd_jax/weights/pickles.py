"""A pickle interpreter that knows torch's tensors, plain containers and nothing else.

A pickle is a program, and running an untrusted one runs whatever it names. So `pickle` is not used
here: the few opcodes a state dict needs are interpreted over inert Python values, and any global
besides the tensors' own, their containers' and those of `OBJECTS` is refused by name. Files are mapped, not read whole,
and no tensor may claim more numbers than the file holds.
"""

import dataclasses
import pickletools

from rdcd_jax.core.errors import UserError

STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}


# Bits; the longest that torch writes is its magic number, of 77.
LONGEST_NUMBER = 128


@dataclasses.dataclass(frozen=True)
class Storage:
    """A named run of numbers in the file.

    Args:
        key: its name in the file.
        dtype: a numpy type string, or `bfloat16`.
        numel: how many numbers the pickle says it has.
    """

    key: str
    dtype: str
    numel: int


@dataclasses.dataclass(frozen=True)
class TensorView:
    """A tensor: a strided view into a storage; nothing is checked yet."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name that a pickle mentions; calling it is up to `_call`."""

    name: str


class Attributes(dict):
    """An object of some class, of which nothing is known but its attributes: TorchScript's modules, and `OBJECTS`."""


# What training programs leave in their checkpoints; never made, only stepped over.
OBJECTS = {
    "argparse.Namespace",
    "collections.defaultdict",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
    "pathlib.PosixPath",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    *(f"builtins.{name}" for name in ("dict", "list", "set", "int", "float")),
    *(f"__builtin__.{name}" for name in ("dict", "list", "set", "int", "float")),
}
# Classes of a TorchScript program, whose objects are its modules.
SCRIPT = "__torch__."

_LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS_AND_TEXT = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
# How many items each takes off the stack; None for all above the last mark.
_ITEMS = {
    **{"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": None},
    **{"APPEND": 1, "APPENDS": None, "ADDITEMS": None, "SETITEM": 2, "SETITEMS": None},
}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}


def read_pickle(stream, name: str) -> object:
    """Interprets one pickle from where `stream` stands, up to and with its STOP.

    Args:
        stream: a binary stream whose `read(n)` never allocates more than it has (bytes or a memory
            map).
        name: the file, for messages.

    Returns:
        Dicts, lists, tuples, sets, text, numbers, `TensorView`s and `Attributes`.

    Raises:
        UserError: for a global other than a tensor's, a container's or one of `OBJECTS`, naming it; for an opcode
            that no state dict needs; for a broken or truncated pickle.
    """
    try:
        return _interpret(stream, name)
    except UserError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{name}: not a complete torch checkpoint ({type(error).__name__} in its pickle); "
            "fetch or save the file again."
        ) from error


def _interpret(stream, name: str) -> object:
    stack: list = []
    marks: list[int] = []
    memo: dict[int, object] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        op = opcode.name
        if op in ("PROTO", "FRAME"):
            pass
        elif op == "STOP":
            return stack.pop()
        elif op == "MARK":
            marks.append(len(stack))
        elif op in _LITERALS:
            stack.append(_LITERALS[op])
        elif op in _NUMBERS_AND_TEXT:
            stack.append(_short_number(argument))
        elif op in _EMPTY:
            stack.append(_EMPTY[op]())
        elif op in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif op == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif op in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif op in _ITEMS:
            at = marks.pop() if _ITEMS[op] is None else len(stack) - _ITEMS[op]
            if at < 0:
                raise IndexError(f"{op} of what is not there")
            items = stack[at:]
            del stack[at:]
            _gather(op, items, stack)
        else:
            _make(op, argument, stack, name)
    raise ValueError("no STOP")


def _gather(op: str, items: list, stack: list) -> None:
    """Puts items into a tuple of their own, or into the container before them."""
    if op.startswith("TUPLE"):
        stack.append(tuple(items))
    elif op.startswith("APPEND"):
        _as(list, stack[-1]).extend(items)
    elif op == "ADDITEMS":
        _as(set, stack[-1]).update(map(_plain, items))
    else:
        keys = map(_plain, items[::2])
        _as(dict, stack[-1]).update(zip(keys, items[1::2], strict=True))


def _make(op: str, argument: str | None, stack: list, name: str) -> None:
    """Names what is to be made, makes it, and gives it its state."""
    if op == "GLOBAL":
        stack.append(_admitted(argument.replace(" ", "."), name))
    elif op == "STACK_GLOBAL":
        attribute, module = stack.pop(), stack.pop()
        stack.append(_admitted(f"{module}.{attribute}", name))
    elif op == "REDUCE":
        arguments, function = stack.pop(), stack.pop()
        stack.append(_call(_as(_Global, function).name, _as(tuple, arguments)))
    elif op == "NEWOBJ":
        arguments, kind = stack.pop(), stack.pop()
        _as(tuple, arguments)
        stack.append(_call(_as(_Global, kind).name, ()))
        _as(Attributes, stack[-1])
    elif op == "BINPERSID":
        stack.append(_storage(_as(tuple, stack.pop())))
    elif op == "BUILD":
        state, made = stack.pop(), _as(dict, stack[-1])
        # Of an OrderedDict (torch's `_metadata`) they are versions of layers, no weights.
        if isinstance(made, Attributes) and isinstance(state, dict):
            made.update(state)
    else:
        raise UserError(
            f"{name}: refused, since its pickle uses {op}, which no state dict needs; "
            "save it again with torch.save(model.state_dict(), FILE)."
        )


def _as(kind, value):
    """`value`, which must be a `kind` (a type or a tuple of types)."""
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} where {kind} was due")
    return value


def _short_number(value):
    """`value`, which must not be an integer of more digits than Python prints."""
    if isinstance(value, int) and value.bit_length() > LONGEST_NUMBER:
        raise ValueError(f"a number of {value.bit_length()} bits")
    return value


def _plain(key):
    """`key`, which must be text, a number or a class: hashing nested tuples can overflow the stack."""
    return key if key is None else _as((str, bytes, int, float, _Global), key)


def _admitted(full_name: str, name: str) -> _Global:
    module, _, attribute = full_name.rpartition(".")
    known = full_name in _CALLS or full_name in OBJECTS or full_name.startswith(SCRIPT)
    if known or (module == "torch" and attribute in STORAGES):
        return _Global(full_name)
    raise UserError(
        f"{name}: refused, since its pickle asks for '{full_name}', which is neither a "
        "tensor nor a container; save it again with torch.save(model.state_dict(), FILE)."
    )


def _call(full_name: str, arguments: tuple) -> object:
    if full_name in OBJECTS or full_name.startswith(SCRIPT):
        return Attributes()
    return _CALLS[full_name](*arguments)


def _storage(identity: tuple) -> Storage:
    tag, kind, key, _, numel, *view = identity
    if tag != "storage" or (view and view[0] is not None):
        raise ValueError("unknown kind of storage")
    dtype = STORAGES[_as(_Global, kind).name.removeprefix("torch.")]
    return Storage(_as(str, key), dtype, _as(int, numel))


def _tensor(storage, offset, shape, strides, *_) -> TensorView:
    return TensorView(
        _as(Storage, storage), _as(int, offset), _as(tuple, shape), _as(tuple, strides)
    )


def _listed(items) -> list:
    return _as(list, items)


_CALLS = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: _as(TensorView, data),
    "torch.Size": lambda sizes=(): _as(tuple, sizes),
    "collections.OrderedDict": lambda: {},
    # TorchScript's lists of one type.
    **{
        f"torch.jit._pickle.build_{kind}list": _listed
        for kind in ("int", "double", "bool", "tensor")
    },
}

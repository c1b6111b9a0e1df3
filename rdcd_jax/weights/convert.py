"""Between flat dicts of torch-named, torch-shaped arrays and the networks here.

The flat dict is the common currency: readers make it, the cache keeps it, networks are filled from
it and give it back. Every source name is used once and every leaf of the network filled once, or
all differences are reported together.
"""

import functools
import re
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx

from rdcd_jax.core.errors import UserError
from rdcd_jax.weights.tables import LAYERS

LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
TOP_LEVEL = ("backbone.", "projector.", "embeddings.")
TOLD = 20


def torch_names(
    tensors: Mapping[str, np.ndarray], layers: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Brings names to the common form.

    Wrappers' prefixes (`module.`, `model.`) go, `backbone.` is put where a bare trunk lacks it,
    torch's `num_batches_tracked` counters are dropped.

    Args:
        tensors: a flat state dict.
        layers: foreign names to torchvision's, of layers or of single arrays, applied last; names it lacks stay as
            they are.

    Returns:
        The same arrays under their new names.

    Raises:
        UserError: if two names become one.
    """
    names = {key: key for key in tensors if not key.endswith("num_batches_tracked")}
    while names and (prefix := _shared_prefix(names.values())):
        names = {key: name.removeprefix(prefix) for key, name in names.items()}
    if not any(name.startswith(TOP_LEVEL) for name in names.values()):
        names = {key: f"backbone.{name}" for key, name in names.items()}
    result: dict[str, np.ndarray] = {}
    for key, name in names.items():
        layer, _, leaf = name.rpartition(".")
        if layers and name in layers:
            name = layers[name]
        elif layers and layer in layers:
            name = f"{layers[layer]}.{leaf}"
        if name in result:
            raise UserError(f"The weights name '{name}' twice (once as '{key}'); keep one of them.")
        result[name] = tensors[key]
    return result


def to_state(
    module: nnx.Module, tensors: Mapping[str, np.ndarray], name: str, *, fresh: str | None = None
) -> nnx.State:
    """The state of `module` with the numbers of `tensors`; the module is left as it is.

    Args:
        module: a network of `models.build(name, ...)`; it may be abstract (`nnx.eval_shape`).
        tensors: a flat state dict with torchvision's names and layouts, prefixes as `torch_names`
            allows.
        name: the network's name in the registry.
        fresh: pattern of the names that `tensors` need not have; the module's own numbers stay there.

    Returns:
        A state of `nnx.Param` and `nnx.BatchStat`, in the module's types.

    Raises:
        UserError: telling every missing, unexpected and misshapen array, or one that holds no floating-point numbers.
    """
    # RDCD's FastViT has its projector within a Sequential; either form is taken, for any network.
    projector = _layers(name)["projector"]
    tensors = torch_names(tensors, dict.fromkeys(("projector", "projector.0"), projector))
    state = _state(module)
    leaves = {_torch_name(path, name): leaf for path, leaf in nnx.to_flat_state(state)}
    kept = {key for key in leaves if fresh and key not in tensors and re.fullmatch(fresh, key)}
    missing = [key for key in leaves if key not in tensors and key not in kept]
    unexpected = [key for key in tensors if key not in leaves]
    misshapen = [
        f"{key} {_size(tensors[key].shape)} for {_size(shape)}"
        for key, leaf in leaves.items()
        if key in tensors and tensors[key].shape != (shape := _torch_shape(key, leaf.shape))
    ]
    groups = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(groups.values()):
        stored = "; ".join(f"{len(v)} {k}: {_listed(v)}" for k, v in groups.items() if v)
        raise UserError(f"These are not the weights of this {name}: {stored}.")
    # Whole numbers are quantised weights, which mean nothing without their scales.
    for key, array in tensors.items():
        if not jax.dtypes.issubdtype(array.dtype, np.floating):
            raise UserError(
                f"'{key}' holds {array.dtype}, not floating-point numbers; give the weights as they were before they"
                " were quantised."
            )
    wanted = [
        (path, leaf, _from_torch(tensors[key], leaf))
        for path, leaf in nnx.to_flat_state(state)
        if (key := _torch_name(path, name)) not in kept
    ]
    # All at once: one by one each costs a dispatch of its own.
    arrays = jax.device_put([array for _, _, array in wanted])
    filled = [
        (path, leaf.replace(array)) for (path, leaf, _), array in zip(wanted, arrays, strict=True)
    ]
    return nnx.from_flat_state(filled)


def load_into(
    module: nnx.Module, tensors: Mapping[str, np.ndarray], name: str, *, fresh: str | None = None
) -> None:
    """Fills `module` from `tensors`; arguments and errors as in `to_state`."""
    nnx.update(module, to_state(module, tensors, name, fresh=fresh))


def drawn_state(make: Callable[[], nnx.Module], name: str, pattern: str) -> nnx.State:
    """That part of a fresh network's state whose names match, without drawing the rest.

    Args:
        make: builds the network.
        name: the network's name in the registry.
        pattern: of torchvision's names.

    Returns:
        A state of `nnx.Param` and `nnx.BatchStat`.
    """

    @jax.jit
    def draw() -> nnx.State:
        leaves = nnx.to_flat_state(_state(make()))
        wanted = [each for each in leaves if re.fullmatch(pattern, _torch_name(each[0], name))]
        return nnx.from_flat_state(wanted)

    return draw()


def to_torch(module: nnx.Module, name: str) -> dict[str, np.ndarray]:
    """The inverse of `load_into`.

    Args:
        module: a network of `models.build(name, ...)`.
        name: the network's name in the registry.

    Returns:
        Contiguous arrays under torchvision's names (`backbone.…`, `projector.…`), in torch's
        layout and the module's types, without `num_batches_tracked`.
    """
    arrays = {}
    for path, leaf in nnx.to_flat_state(_state(module)):
        array = np.asarray(leaf.get_value())
        key = _torch_name(path, name)
        turned = array.transpose(_TO_TORCH.get(array.ndim, range(array.ndim)))
        arrays[key] = np.ascontiguousarray(turned.reshape(_torch_shape(key, array.shape)))
    return arrays


def torch_shapes(module: nnx.Module, name: str) -> dict[str, tuple[int, ...]]:
    """The names and shapes of `to_torch`'s arrays; the module may be abstract."""
    leaves = ((_torch_name(path, name), leaf) for path, leaf in nnx.to_flat_state(_state(module)))
    return {key: _torch_shape(key, leaf.shape) for key, leaf in leaves}


# By rank: convolutions are [H, W, in, out] here and [out, in, H, W] in torch, linear layers [in,
# out] and [out, in].
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0)}
_FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0)}


def _state(module: nnx.Module) -> nnx.State:
    return nnx.state(module, (nnx.Param, nnx.BatchStat))


def _torch_name(path: tuple, name: str) -> str:
    layer = ".".join(map(str, path[:-1]))
    return f"{_layers(name)[layer]}.{LEAVES.get(path[-1], path[-1])}"


@functools.cache
def _layers(name: str) -> dict[str, str]:
    return {"projector": "projector"} | LAYERS[name]()


def _torch_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    # timm's factors per channel have the sides of an image.
    if key.endswith(".gamma"):
        return (*shape, 1, 1)
    return tuple(shape[i] for i in _TO_TORCH.get(len(shape), range(len(shape))))


def _from_torch(array: np.ndarray, leaf: nnx.Variable) -> np.ndarray:
    array = array.transpose(_FROM_TORCH.get(array.ndim, range(array.ndim)))
    # A copy in any case: on a CPU the device may keep what it is given.
    return np.array(array.reshape(leaf.shape), leaf.dtype, order="C")


def _shared_prefix(names) -> str | None:
    prefixes = ("module.", "model.")
    return next((p for p in prefixes if all(name.startswith(p) for name in names)), None)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _listed(items: list[str]) -> str:
    rest = f" and {len(items) - TOLD} more" if len(items) > TOLD else ""
    return ", ".join(items[:TOLD]) + rest

"""The device mesh: one `data` axis; state everywhere, batches split over it."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rdcd_jax.core.errors import UserError


def make_mesh(devices: int = 0) -> Mesh:
    """A mesh of the first `devices` devices, or of all for 0: those of all processes.

    Raises:
        UserError: there are not so many, or one of several processes would have none.
    """
    found = jax.devices()
    if not 0 <= devices <= len(found):
        raise UserError(f"devices is {devices}, but there are {len(found)}; 0 means all.")
    if jax.process_count() > 1 and devices not in (0, len(found)):
        raise UserError(
            f"devices is {devices}, but the {jax.process_count()} processes have {len(found)}, which all work; set it"
            " to 0."
        )
    return mesh_of(found[: devices or len(found)])


def local_mesh(*, batch: int = 0) -> Mesh:
    """A mesh of this process's own devices, for what it does by itself; of so many that they divide a batch evenly."""
    devices = jax.local_devices()
    return mesh_of(devices[: math.gcd(batch, len(devices))])


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    """A mesh of these devices."""
    # Explicit axes, jax's default, refuse to write data-sharded keys into the replicated queue.
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicate(tree, mesh: Mesh):
    """Puts a whole copy of every array of `tree`, the same in all processes, on every device."""
    whole = NamedSharding(mesh, PartitionSpec())
    if whole.is_fully_addressable:
        return jax.device_put(tree, whole)
    # device_put would compare all of it between the processes, and takes no random keys.
    with jax.set_mesh(mesh):
        return jax.jit(lambda tree: tree, out_shardings=whole)(tree)


def everywhere(array: jax.Array) -> jax.Array:
    """An array whole on every device of the mesh, if there is one, inside a jit."""
    if jax.sharding.get_abstract_mesh().empty:
        return array
    return jax.lax.with_sharding_constraint(array, PartitionSpec())


def split_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays, split by their first axis, of what this process read of a batch."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }

"""Everything that a step changes, as one tree of arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct

from rdcd_jax.method.queue import init_bank, init_queue

Tree = Any


@struct.dataclass
class TrainState:
    """The state of a run between two steps; what a checkpoint holds.

    Attributes:
        step: int32 scalar, steps done.
        params: the student's parameters.
        batch_stats: the student's BatchNorm running statistics.
        key_params: parameters of the momentum (key) encoder.
        key_batch_stats: the key encoder's own running statistics.
        opt_state: the optimiser's.
        queue: [K, D] past keys.
        queue_position: int32 scalar, where the next key goes.
        bank: [KB, F] past teacher features.
        bank_position: int32 scalar, where the next feature goes.
    """

    step: jax.Array
    params: Tree
    batch_stats: Tree
    key_params: Tree
    key_batch_stats: Tree
    opt_state: Tree
    queue: jax.Array
    queue_position: jax.Array
    bank: jax.Array
    bank_position: jax.Array


def split(module: nnx.Module) -> tuple[nnx.GraphDef, Tree, Tree]:
    """A module's structure, its parameters and its running statistics as trees of plain arrays."""
    graph, params, batch_stats = nnx.split(module, nnx.Param, nnx.BatchStat)
    return graph, nnx.as_pure(params), nnx.as_pure(batch_stats)


def init_state(
    student: nnx.Module,
    optimizer: optax.GradientTransformation,
    *,
    queue_size: int,
    bank_size: int,
    dim: int,
    feature_dim: int,
    rng: jax.Array,
) -> TrainState:
    """The state before the first step.

    Args:
        student: gives parameters and statistics; the key encoder starts as its copy.
        optimizer: see `optim.make_optimizer`.
        queue_size: K.
        bank_size: KB.
        dim: D.
        feature_dim: F.
        rng: key for the random start of queue and bank.
    """
    _, params, batch_stats = split(student)
    queue_rng, bank_rng = jax.random.split(rng)

    @jax.jit
    def copies(tree: Tree) -> tuple[Tree, Tree]:
        # The state is donated to each step, so no two of its leaves may share a buffer.
        return jax.tree.map(jnp.copy, tree), jax.tree.map(jnp.copy, tree)

    (params, batch_stats), (key_params, key_batch_stats) = copies((params, batch_stats))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        key_params=key_params,
        key_batch_stats=key_batch_stats,
        opt_state=optimizer.init(params),
        queue=init_queue(queue_rng, queue_size, dim),
        queue_position=jnp.zeros((), jnp.int32),
        bank=init_bank(bank_rng, bank_size, feature_dim),
        bank_position=jnp.zeros((), jnp.int32),
    )

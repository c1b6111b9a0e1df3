"""A run's step as XLA sees it, without images and without the devices that it is for."""

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rdcd_jax.method.objective import Objective
from rdcd_jax.method.step import make_train_step
from rdcd_jax.training import feed
from rdcd_jax.training.setup import first_state, training_graph
from rdcd_jax.training.teacher import Teacher


def trace_step(
    config: ml_collections.ConfigDict,
    student: nnx.Module,
    teacher: Teacher,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> jax.stages.Traced:
    """Traces one step of a run that trains all of its student.

    Args:
        config: of the run; its batch is that of all devices.
        student: see `student.make_student`.
        teacher: see `teacher.make_teacher`.
        optimizer: see `setup.optimization`.
        mesh: the devices, which may be those of a topology that is described only.

    Returns:
        What `lower().compile()` makes a program of, which says its memory, arithmetic and bytes.
    """
    objective = Objective(**config.objective)
    step = make_train_step(
        training_graph(student, config),
        optimizer,
        objective,
        teacher.embed,
        feed.make_views(config),
    )
    feature_dim = teacher.feature_dim or student.projector.in_features
    state = jax.eval_shape(lambda: first_state(config, student, optimizer, feature_dim))
    everywhere, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    batch = _placed(_batch(config, objective, teacher, feature_dim), split)
    if config.data.views == "device" and feed.has_overlays(config.data.policy):
        batch["atlas"] = _placed(jax.eval_shape(feed.draw_atlas), everywhere)
    with jax.set_mesh(mesh):
        return jax.jit(step, donate_argnums=0).trace(
            _placed(state, everywhere),
            _placed(teacher.arrays, everywhere),
            batch,
            _placed(jax.eval_shape(lambda: jax.random.key(0)), everywhere),
        )


def _placed(tree, sharding: NamedSharding):
    """Shapes, types and places of arrays."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def _batch(
    config: ml_collections.ConfigDict, objective: Objective, teacher: Teacher, feature_dim: int
) -> dict[str, jax.ShapeDtypeStruct]:
    count, on_device = config.batch_size, config.data.views == "device"
    size = feed.source_size(config) if on_device else config.image_size
    image = jax.ShapeDtypeStruct((count, size, size, 3), jnp.uint8)
    batch = {"index": jax.ShapeDtypeStruct((count,), jnp.int32)}
    if on_device:
        batch |= {"image": image, "aspect": jax.ShapeDtypeStruct((count,), jnp.float32)}
    else:
        batch |= {"query": image, "key": image} if objective.compares_views else {"query": image}
    if teacher.features_of is not None:
        batch["teacher"] = jax.ShapeDtypeStruct((count, feature_dim), jnp.float32)
    return batch

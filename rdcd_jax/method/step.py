"""One training step of RDCD: the paper's algorithm on one page."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from rdcd_jax.core.rng import at_step
from rdcd_jax.method.objective import Metrics, Objective, Seen
from rdcd_jax.method.queue import enqueue
from rdcd_jax.method.state import TrainState, Tree, split
from rdcd_jax.models.descriptor import normalize_images

Batch = Mapping[str, jax.Array]


def make_train_step(
    student: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    embed_teacher: Callable[[Tree, jax.Array], jax.Array] | None,
    make_views: Callable[[Batch, jax.Array], Batch] | None = None,
) -> Callable[[TrainState, Tree, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Makes the step.

    Args:
        student: structure of the student, in training mode.
        optimizer: see `optim.make_optimizer`.
        objective: what to minimise.
        embed_teacher: maps the teacher's arrays and normalised images [B, H, W, 3] to features [B, F]; not called
            where the batch brings `teacher` features, nor where no term needs them.
        make_views: maps a batch and the step's number to one of views; None where the batch holds them, see `feed`.

    Returns:
        A function of the state, the teacher's arrays, a batch and the run's dropout key that gives the next state and
        scalar metrics. The batch holds `query` views and (where the objective compares views) `key` views, uint8
        [B, H, W, 3], optionally `teacher` [B, F], and where views are mixed the `targets` of `losses.sscd_info_nce`
        [2 B, B]. B is the global batch: under a jit over a mesh BatchNorm is synchronised.

    Source: RDCD, section 3 and its training code for the order of things: the key encoder moves first, the losses see
    queue and bank as they were before this batch, and the batch is enqueued last.
    """

    def loss(params, state, images, batch, key, teacher, rng):
        feature, descriptor, batch_stats = forward(student, params, state.batch_stats, images, rng)
        both = None
        if objective.needs("both"):
            # The student saw the key views after the query views; the other terms are on the query views alone.
            both, targets = descriptor, batch.get("targets")
            feature, descriptor = (jnp.split(each, 2)[0] for each in (feature, descriptor))
        else:
            targets = None
        seen = Seen(feature, descriptor, both, targets, key, teacher, state.queue, state.bank)
        total, metrics = objective.loss(seen)
        if key is not None:
            metrics |= descriptor_statistics(descriptor, key, state.queue)
        return total, (metrics, batch_stats)

    def step(
        state: TrainState, teacher_arrays: Tree, batch: Batch, rng: jax.Array
    ) -> tuple[TrainState, Metrics]:
        query_rng, key_rng = jax.random.split(at_step(rng, state.step))
        if make_views is not None:
            batch = make_views(batch, state.step)
        images = normalize_images(batch["query"])

        # 1. The momentum encoder moves towards the student, then embeds the key view in training mode.
        key, changes = None, {}
        if objective.needs("key"):
            key, changes = moved_key(student, objective, state, batch["key"], key_rng)

        # 2. The teacher sees the query view only.
        teacher = None
        if objective.needs_teacher:
            teacher = (
                batch["teacher"] if "teacher" in batch else embed_teacher(teacher_arrays, images)
            )

        # 3. Losses against queue and bank as the last step left them, and the update.
        if objective.needs("both"):
            images = jnp.concatenate([images, normalize_images(batch["key"])])
        (total, (metrics, batch_stats)), gradients = jax.value_and_grad(loss, has_aux=True)(
            state.params, state, images, batch, key, teacher, query_rng
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        # 4. Only now this batch enters queue and bank.
        if key is not None:
            queue, position = enqueue(state.queue, key, state.queue_position)
            changes |= {"queue": queue, "queue_position": position}
        if objective.needs("bank"):
            bank, position = enqueue(state.bank, teacher, state.bank_position)
            changes |= {"bank": bank, "bank_position": position}

        metrics |= {"loss": total, "gradient_norm": optax.tree.norm(gradients)}
        changes |= {"params": params, "batch_stats": batch_stats, "opt_state": opt_state}
        return state.replace(step=state.step + 1, **changes), metrics

    return step


def forward(
    graph: nnx.GraphDef, params: Tree, batch_stats: Tree, images: jax.Array, rng: jax.Array
) -> tuple[jax.Array, jax.Array, Tree]:
    """Runs a student in training mode.

    Returns:
        Feature [B, F], descriptor [B, D], and the running statistics after it.
    """
    module = nnx.merge(graph, params, batch_stats)
    feature, descriptor = module(images, nnx.Rngs(dropout=rng))
    return feature, descriptor, split(module)[2]


def moved_key(
    student: nnx.GraphDef, objective: Objective, state: TrainState, views: jax.Array, rng: jax.Array
) -> tuple[jax.Array, dict[str, Tree]]:
    """The key encoder after its move towards the student.

    Returns:
        Its descriptors [B, D] of the key views, and what it changes in the state.
    """
    params = optax.incremental_update(state.params, state.key_params, 1 - objective.key_momentum)
    images = normalize_images(views)
    _, key, batch_stats = forward(student, params, state.key_batch_stats, images, rng)
    return key, {"key_params": params, "key_batch_stats": batch_stats}


def descriptor_statistics(query: jax.Array, key: jax.Array, queue: jax.Array) -> Metrics:
    """What distinguishes a healthy descriptor from a collapsed one.

    Args:
        query: [B, D].
        key: [B, D].
        queue: [K, D].

    Returns:
        Means of: similarity to the positive, to all of the queue, to its nearest row; and the length of the mean
        descriptor (1 when all are equal).
    """
    negative = jnp.matmul(query, queue.T, precision="highest")
    return {
        "positive_similarity": jnp.mean(jnp.sum(query * key, axis=-1)),
        "negative_similarity": jnp.mean(negative),
        "nearest_negative_similarity": jnp.mean(jnp.max(negative, axis=-1)),
        "center_norm": jnp.linalg.norm(jnp.mean(query, axis=0)),
    }

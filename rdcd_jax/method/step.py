"""One training step of RDCD: the paper's algorithm on one page."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from rdcd_jax.core.rng import at_step
from rdcd_jax.method import losses
from rdcd_jax.method.objective import Objective
from rdcd_jax.method.queue import enqueue
from rdcd_jax.method.state import TrainState, Tree, split
from rdcd_jax.models.descriptor import normalize_images
from rdcd_jax.models.layers import l2_normalize

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def nested_prefixes(
    dims: Sequence[int], *descriptors: jax.Array
) -> Iterator[tuple[jax.Array, ...]]:
    """The first dimensions of descriptors, each size a descriptor of its own.

    Args:
        dims: sizes d; empty for the descriptors as they are.
        *descriptors: each [N, D] with an N of its own.

    Yields:
        For each size the descriptors cut to [N, d] and brought to unit length.
    """
    if not dims:
        yield descriptors
    for dim in dims:
        yield tuple(l2_normalize(each[:, :dim]) for each in descriptors)


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


def make_train_step(
    student: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    describe_teacher: Callable[[Tree, jax.Array], jax.Array] | None,
    make_views: Callable[[Batch, jax.Array], Batch] | None = None,
) -> Callable[[TrainState, Tree, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """Makes the step.

    Args:
        student: structure of the student, in training mode.
        optimizer: see `optim.make_optimizer`.
        objective: what to minimise.
        describe_teacher: maps the teacher's arrays and normalised images [B, H, W, 3] to features [B, F]; not called
            where the batch brings `teacher` features, nor where no term needs them.
        make_views: maps a batch and the step's number to one of views; None where the batch holds them, see `feed`.

    Returns:
        A function of the state, the teacher's arrays, a batch and the run's dropout key that gives the
        next state and scalar metrics. The batch holds `query` views and (with `moco_lambda`,
        `compress_lambda` or `sscd_lambda`) `key` views, uint8 [B, H, W, 3], optionally `teacher` [B, F], and where
        views are mixed the `targets` of `losses.sscd_info_nce` [2 B, B]. B is the global batch: under a jit over a mesh
        BatchNorm is synchronised.

    Source: RDCD, section 3 and its training code for the order of things: the key encoder moves first, the losses see
    queue and bank as they were before this batch, and the batch is enqueued last.
    """
    contrast = objective.moco_lambda > 0
    relate = objective.kld_lambda > 0
    regress = objective.regress_lambda > 0
    repeat = objective.sscd_lambda > 0
    compress = objective.compress_lambda > 0
    nested = functools.partial(nested_prefixes, objective.nested_dims)
    # What keeps the key encoder and its queue, and the teacher's bank, at work.
    keyed, banked = contrast or compress, relate or compress

    def loss(params, state, images, targets, key_descriptor, teacher_feature, rng):
        feature, descriptor, batch_stats = forward(student, params, state.batch_stats, images, rng)
        total, metrics = jnp.zeros((), feature.dtype), {}
        if repeat:
            if targets is None:
                targets = jnp.tile(jnp.arange(len(images) // 2), 2)
            info_nce, entropy = 0.0, 0.0
            for (part,) in nested(descriptor):
                info_nce += losses.sscd_info_nce(
                    part, targets, temperature=objective.sscd_temperature
                )
                entropy += objective.entropy_lambda * losses.differential_entropy(part, targets)
            total += objective.sscd_lambda * (info_nce + entropy)
            metrics |= {"sscd_info_nce": info_nce, "entropy": entropy}
            # From here on the query views alone.
            feature, descriptor = (jnp.split(x, 2)[0] for x in (feature, descriptor))
        if contrast:
            info_nce, hard = 0.0, 0.0
            for query, key, queue in nested(descriptor, key_descriptor, state.queue):
                info_nce += losses.info_nce_queue(
                    query, key, queue, temperature=objective.temperature
                )
                hard += objective.hn_lambda * losses.hard_negative(query, queue)
            total += objective.moco_lambda * (info_nce + hard)
            metrics |= {"info_nce": info_nce, "hard_negative": hard}
        if keyed:
            metrics |= descriptor_statistics(descriptor, key_descriptor, state.queue)
        if relate:
            bank = state.bank
            if objective.bank_includes_batch:
                bank = jnp.concatenate([teacher_feature, bank])
            relational = objective.kld_lambda * losses.relational_kl(
                feature, teacher_feature, bank, temperature=objective.kld_temperature
            )
            total += relational
            metrics["relational_kl"] = relational
        if regress:
            distance = 1 - jnp.mean(jnp.sum(feature * teacher_feature, axis=-1))
            total += objective.regress_lambda * distance
            metrics["regression"] = objective.regress_lambda * distance
        if compress:
            relations = 0.0
            for query, queue in nested(descriptor, state.queue):
                relations += losses.relational_kl(
                    query,
                    teacher_feature,
                    state.bank,
                    temperature=objective.kld_temperature,
                    student_bank=queue,
                )
            metrics["compress_kl"] = objective.compress_lambda * relations
            total += metrics["compress_kl"]
        return total, (metrics, batch_stats)

    def step(
        state: TrainState, teacher: Tree, batch: Batch, rng: jax.Array
    ) -> tuple[TrainState, Metrics]:
        query_rng, key_rng = jax.random.split(at_step(rng, state.step))
        if make_views is not None:
            batch = make_views(batch, state.step)
        images = normalize_images(batch["query"])

        # 1. The momentum encoder moves towards the student, then describes the key view in training mode.
        changes, key_descriptor = {}, None
        if keyed:
            key_params = optax.incremental_update(
                state.params, state.key_params, 1 - objective.key_momentum
            )
            _, key_descriptor, key_batch_stats = forward(
                student, key_params, state.key_batch_stats, normalize_images(batch["key"]), key_rng
            )
            changes |= {"key_params": key_params, "key_batch_stats": key_batch_stats}

        # 2. The teacher sees the query view only.
        teacher_feature = None
        if objective.needs_teacher:
            teacher_feature = (
                batch["teacher"] if "teacher" in batch else describe_teacher(teacher, images)
            )

        if repeat:
            images = jnp.concatenate([images, normalize_images(batch["key"])])

        # 3. Losses against queue and bank as the last step left them, and the update.
        (total, (metrics, batch_stats)), gradients = jax.value_and_grad(loss, has_aux=True)(
            state.params,
            state,
            images,
            batch.get("targets"),
            key_descriptor,
            teacher_feature,
            query_rng,
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        # 4. Only now this batch enters queue and bank.
        if keyed:
            queue, position = enqueue(state.queue, key_descriptor, state.queue_position)
            changes |= {"queue": queue, "queue_position": position}
        if banked:
            bank, position = enqueue(state.bank, teacher_feature, state.bank_position)
            changes |= {"bank": bank, "bank_position": position}

        metrics |= {"loss": total, "gradient_norm": optax.tree.norm(gradients)}
        state = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            **changes,
        )
        return state, metrics

    return step


def descriptor_statistics(query: jax.Array, key: jax.Array, queue: jax.Array) -> Metrics:
    """What tells a healthy descriptor from a collapsed one.

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

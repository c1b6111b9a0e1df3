"""Optimisers and the learning-rate schedule."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from rdcd_jax.core.errors import UserError

Schedule = Callable[[jax.Array | int], jax.Array]


def learning_rate_schedule(
    base: float, steps_per_epoch: int, epochs: int, warmup_epochs: int
) -> Schedule:
    """Linear warm-up to `base`, then a cosine to zero, per step.

    Args:
        base: the rate at the end of the warm-up.
        steps_per_epoch: optimiser steps in an epoch.
        epochs: M = epochs * steps_per_epoch is the last step.
        warmup_epochs: W = warmup_epochs * steps_per_epoch.

    Returns:
        Maps step k (int scalar or array) to its rate: base * k / (W - 1) for k < W, so that step 0 has rate 0 and
        step W - 1 the base; base / 2 * (1 + cos(pi (k - W) / (M - W))) after, 0 from M on.

    Source: pl_bolts' LinearWarmupCosineAnnealingLR, as RDCD and SSCD use it.
    Differs: no warm-up means the cosine from the base; in the published code it means rate 0 for ever.
    """
    warmup, total = warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
    if not 0 <= warmup < total:
        raise UserError(
            f"schedule.warmup_epochs is {warmup_epochs}, but it must be at least 0 and below"
            f" schedule.epochs = {epochs}."
        )

    def rate(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step)
        step = step.astype(jnp.result_type(float))
        rising = base * step / max(warmup - 1, 1)
        progress = jnp.clip((step - warmup) / (total - warmup), 0, 1)
        falling = base / 2 * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(step < warmup, rising, falling)

    return rate


def scale_by_lars_trust(
    trust_coefficient: float, weight_decay: float, epsilon: float = 1e-8
) -> optax.GradientTransformation:
    """Adds weight decay and scales each tensor's update by the length of its weights, for LARS.

    g' = (g + wd p) * trust |p| / (|g| + wd |p| + epsilon) where both norms are above zero, else g unchanged.

    Source: pl_bolts' LARS (You et al. 2017).
    Differs: optax's `scale_by_trust_ratio` divides by the norm of the decayed gradient, a sum of vectors, and
    applies the ratio to zero tensors otherwise; the reference's numbers need this form.
    """

    def scale(gradient: jax.Array, parameter: jax.Array) -> jax.Array:
        length, slope = jnp.linalg.norm(parameter), jnp.linalg.norm(gradient)
        ratio = trust_coefficient * length / (slope + weight_decay * length + epsilon)
        scaled = (gradient + weight_decay * parameter) * ratio
        return jnp.where((length > 0) & (slope > 0), scaled, gradient)

    def update(updates, params):
        return jax.tree.map(scale, updates, params)

    return optax.stateless(update)


def make_optimizer(
    name: str, schedule: Schedule, *, weight_decay: float, momentum: float = 0.9
) -> optax.GradientTransformation:
    """The optimiser that a config names.

    Args:
        name: `sgd` (the paper's), `adamw` or `lars`.
        schedule: step -> learning rate.
        weight_decay: on every parameter alike, norms and biases too, as in the reference. For `sgd` and `lars` it
            is part of the gradient that the momentum averages; for `adamw` it is decoupled.
        momentum: of `sgd` and `lars`; without dampening or Nesterov. `adamw` keeps its usual two.

    Raises:
        UserError: for another name.
    """
    if name == "adamw":
        return optax.adamw(schedule, weight_decay=weight_decay)
    if name == "sgd":
        first = optax.add_decayed_weights(weight_decay)
    elif name == "lars":
        first = scale_by_lars_trust(1e-3, weight_decay)
    else:
        raise UserError(f"optimizer.name is '{name}'; use sgd, adamw or lars.")
    return optax.chain(first, optax.trace(momentum), optax.scale_by_learning_rate(schedule))

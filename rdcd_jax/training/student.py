"""The student at the start of a run."""

import dataclasses

import jax.numpy as jnp
import ml_collections
from flax import nnx

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.rng import stream
from rdcd_jax.models import build
from rdcd_jax.models.descriptor import DescriptorNet
from rdcd_jax.weights.library import load_network
from rdcd_jax.weights.model import Model


@dataclasses.dataclass(frozen=True)
class Start:
    """A student at the start of a run.

    Attributes:
        module: the network.
        own_projector: whether its projector is that of `init_from`.
        fingerprint: of `init_from`'s weights; None without.
        licences: of these weights, as far as they are known.
    """

    module: DescriptorNet
    own_projector: bool
    fingerprint: str | None
    licences: tuple[str, ...] = ()


def make_student(config: ml_collections.ConfigDict, feature_dim: int | None) -> Start:
    """Makes the student: with `init_from`'s weights, or fresh ones.

    A starting model of another descriptor size, or without a projector, keeps its trunk and gets a fresh projector,
    unless config.student.projector is to be its own.

    Args:
        config: of the run.
        feature_dim: F, the teacher's; None, without one, takes that of `init_from`, else the network's own.

    Raises:
        UserError: for sizes or a starting model that do not fit.
    """
    bare = config.student.projector == "none"
    if bare and config.student.dim != feature_dim:
        raise UserError(
            f"config.student.projector is 'none', so the descriptor is the feature that the teacher's {feature_dim}"
            f" dimensions teach, but config.student.dim is {config.student.dim}; set dim to {feature_dim}, or projector"
            " to 'learned'."
        )
    start = _starting_model(config, feature_dim) if config.init_from else None
    if start is not None and feature_dim is None:
        feature_dim = start.feature_dim
    dtype = None if config.student.dtype == "float32" else jnp.dtype(config.student.dtype)
    student = build(
        config.student.network,
        dim=None if bare else config.student.dim,
        feature_dim=feature_dim,
        rngs=nnx.Rngs(params=stream(config.seed, "student")),
        dtype=dtype,
    )
    projector = None if start is None else start.module.projector
    fits = projector is not None and projector.out_features == config.student.dim
    if config.student.projector == "start" and not fits:
        raise UserError(
            f"config.student.projector is 'start', but config.init_from = {config.init_from!r} has no projector to"
            f" config.student.dim = {config.student.dim} dimensions; start from a student that has, or use 'whitened'."
        )
    if start is not None:
        nnx.update(student.backbone, nnx.state(start.module.backbone))
    own = fits and not bare
    if own:
        nnx.update(student.projector, nnx.state(projector))
    if start is None:
        return Start(student, own, None)
    return Start(student, own, start.fingerprint, start.licences)


def _starting_model(config: ml_collections.ConfigDict, feature_dim: int | None) -> Model:
    start = load_network(config.init_from, trunk=True, feature_dim=feature_dim)
    if start.network != config.student.network:
        raise UserError(
            f"config.init_from = {config.init_from} is a {start.network}, but config.student.network is"
            f" {config.student.network}; make them agree."
        )
    if start.feature_dim != (feature_dim or start.feature_dim):
        whose = "config.student.dim" if config.student.projector == "none" else "this teacher"
        raise UserError(
            f"config.init_from = {config.init_from} has not the feature of {feature_dim} dimensions that {whose} needs,"
            f" but one of {start.feature_dim}; start from another model, or from a trunk, which takes any size."
        )
    return start

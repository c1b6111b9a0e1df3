"""The paper's step as benchmarks time it: EfficientNet-B0, a ResNet-50 teacher, queue and bank, at random weights."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax
from flax import nnx

from experiments.benchmarks.step import DIM, FEATURE, QUEUE
from rdcd_jax import models
from rdcd_jax.method.state import TrainState, Tree, init_state, split
from rdcd_jax.training.optim import make_optimizer
from rdcd_jax.weights.model import evaluation_mode


class PaperStep(NamedTuple):
    """What `make_train_step` takes, and what the step is called with.

    Attributes:
        graph: of the student, in training mode.
        optimizer: SGD.
        embed_teacher: see `make_train_step`.
        state: before the first step.
        teacher_arrays: the teacher's.
    """

    graph: nnx.GraphDef
    optimizer: optax.GradientTransformation
    embed_teacher: Callable[[Tree, jax.Array], jax.Array]
    state: TrainState
    teacher_arrays: Tree


def paper_step(dtype: jax.typing.DTypeLike | None = None) -> PaperStep:
    """Makes the networks and the state.

    Args:
        dtype: of the trunks; None for float32.
    """
    student = models.build("efficientnet_b0", dim=DIM, rngs=nnx.Rngs(0), dtype=dtype)
    teacher = evaluation_mode(models.build("resnet50", dim=None, rngs=nnx.Rngs(1), dtype=dtype))
    teacher_graph, teacher_arrays = nnx.split(teacher)
    optimizer = make_optimizer("sgd", lambda step: 0.01, weight_decay=1e-6, momentum=0.9)
    state = init_state(
        student,
        optimizer,
        queue_size=QUEUE,
        bank_size=QUEUE,
        dim=DIM,
        feature_dim=FEATURE,
        rng=jax.random.key(0),
    )

    def embed_teacher(arrays: Tree, images: jax.Array) -> jax.Array:
        return nnx.merge(teacher_graph, arrays)(images)[1]

    graph = split(student)[0]
    return PaperStep(graph, optimizer, embed_teacher, state, nnx.as_pure(teacher_arrays))

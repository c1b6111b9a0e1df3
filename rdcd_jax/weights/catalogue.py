"""Every network there is: how large, and where weights for it come from."""

import dataclasses
import json

from flax import nnx

from rdcd_jax.models import build
from rdcd_jax.models.counts import multiply_adds, parameter_count
from rdcd_jax.models.registry import NETWORKS
from rdcd_jax.weights.kinds import KINDS
from rdcd_jax.weights.library import CARD, SHIPPED, list_models

# A student's descriptor may have any size; this is the configs' own.
STUDENT_DIM = 128
IMAGE_SIZE = 224


@dataclasses.dataclass(frozen=True)
class NetworkFacts:
    """One network.

    Attributes:
        name: the registry's.
        role: `student` or `teacher`, as published.
        parameters: how many weights it learns; of a student with a projector to `STUDENT_DIM` dimensions.
        multiply_adds: for one image of `IMAGE_SIZE` pixels a side.
        dim: D, of its descriptor.
        shipped: models of it that come with the package.
        kinds: kinds of foreign files that may hold its weights, keys of `KINDS`.
    """

    name: str
    role: str
    parameters: int
    multiply_adds: int
    dim: int
    shipped: tuple[str, ...]
    kinds: tuple[str, ...]

    @property
    def descriptor_bytes(self) -> int:
        """Bytes of a descriptor."""
        return 4 * self.dim


def networks() -> list[NetworkFacts]:
    """The facts of every network, students first."""
    shipped = {
        name: json.loads((SHIPPED / name / CARD).read_text())["network"] for name in list_models()
    }
    rows = sorted(NETWORKS.items(), key=lambda item: (item[1].role, item[0]))
    return [_facts(name, row.role, row.feature_dim, shipped) for name, row in rows]


def _facts(name: str, role: str, feature_dim: int, shipped: dict[str, str]) -> NetworkFacts:
    dim = STUDENT_DIM if role == "student" else None
    module = nnx.eval_shape(lambda: build(name, dim=dim, rngs=nnx.Rngs(0)))
    return NetworkFacts(
        name=name,
        role=role,
        parameters=parameter_count(module),
        multiply_adds=multiply_adds(module, IMAGE_SIZE),
        dim=dim or feature_dim,
        shipped=tuple(model for model, network in shipped.items() if network == name),
        kinds=tuple(kind for kind, row in KINDS.items() if name in dict(row.networks)),
    )

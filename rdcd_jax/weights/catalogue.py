"""Every network there is: how large, and where weights for it come from.

What follows from the networks alone lies in `networks.json`, since measuring it takes ten seconds;
`python -m rdcd_jax.weights.catalogue` writes it, and a test measures it again.
"""

import dataclasses
import json
import pathlib

from rdcd_jax.core.files import write_json
from rdcd_jax.weights.shipped import CARD, SHIPPED, list_models

# A student's descriptor may have any size; this is the configs' own.
STUDENT_DIM = 128
IMAGE_SIZE = 224
_MEASURED = pathlib.Path(__file__).with_name("networks.json")


@dataclasses.dataclass(frozen=True)
class NetworkFacts:
    """One network.

    Attributes:
        name: the registry's.
        role: `student` or `teacher`, as published.
        parameters: how many weights it learns; of a student with a projector to `STUDENT_DIM` dimensions.
        multiply_adds: for one image of `IMAGE_SIZE` pixels a side.
        dim: D, of its descriptor.
        kinds: kinds of foreign files that may hold its weights, keys of `KINDS`.
        shipped: models of it that come with the package.
    """

    name: str
    role: str
    parameters: int
    multiply_adds: int
    dim: int
    kinds: tuple[str, ...]
    shipped: tuple[str, ...] = ()

    @property
    def descriptor_bytes(self) -> int:
        """Bytes of a descriptor in float32."""
        return 4 * self.dim


def networks() -> list[NetworkFacts]:
    """The facts of every network, students first."""
    network_of = {
        name: json.loads((SHIPPED / name / CARD).read_text())["network"] for name in list_models()
    }
    return [
        NetworkFacts(
            **{**row, "kinds": tuple(row["kinds"])},
            shipped=tuple(model for model, name in network_of.items() if name == row["name"]),
        )
        for row in json.loads(_MEASURED.read_text())
    ]


def measure() -> list[dict]:
    """What `networks.json` holds, from the networks themselves."""
    from rdcd_jax.models.counts import multiply_adds, parameter_count
    from rdcd_jax.models.registry import NETWORKS, abstract
    from rdcd_jax.weights.kinds import KINDS

    rows = []
    for name, row in sorted(NETWORKS.items(), key=lambda item: (item[1].role, item[0])):
        dim = STUDENT_DIM if row.role == "student" else None
        module = abstract(name, dim=dim)
        rows.append(
            {
                "name": name,
                "role": row.role,
                "parameters": parameter_count(module),
                "multiply_adds": multiply_adds(module, IMAGE_SIZE),
                "dim": dim or row.feature_dim,
                "kinds": [kind for kind, each in KINDS.items() if name in dict(each.networks)],
            }
        )
    return rows


if __name__ == "__main__":
    write_json(_MEASURED, measure())

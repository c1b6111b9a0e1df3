"""Compiles the exact search of a billion descriptors for a TPU slice that is not here.

    pip install --no-deps libtpu==0.0.42.1
    python -m experiments.benchmarks.compile_search [--rows 1000000000] [--dim 64]

The rows lie on the chips of a v5e 8x8 as the index stores them, 8-bit integers with a scale each; 1,024 queries are
compared with all. One slab of rows, as many as a chip takes at a time, is compiled: the index needs so many slabs, one
after the other. Bytes and arithmetic are what the compiler says of its program, times the slabs.
"""

import argparse
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.benchmarks.tpu import described_devices, floor_ms
from rdcd_jax.core.files import write_json
from rdcd_jax.core.mesh import mesh_of
from rdcd_jax.search import exact, sharded
from rdcd_jax.training.record import environment

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULT = ROOT / "experiments" / "results" / "compile_search.json"
TOPOLOGY, QUERIES, K = "v5e:8x8", 1024, 10


def compiled_search(rows: int, dim: int) -> dict:
    """What the search needs of each chip."""
    devices = described_devices(TOPOLOGY)

    mesh, wanted = mesh_of(devices), K + exact.MARGIN
    by_maxima = sharded.selects_by_maxima(rows, wanted, mesh)
    width = sharded.slab_width(rows, mesh, by_maxima)
    step = width * mesh.size

    def shape(dims: tuple[int, ...], dtype, *axes: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(mesh, P(*axes)))

    with jax.set_mesh(mesh):
        program = (
            sharded.merged.trace(
                shape((QUERIES, wanted), jnp.float32),
                shape((QUERIES, wanted), jnp.int32),
                shape((QUERIES, dim), jnp.float32),
                shape((step, dim), jnp.int8, "data"),
                shape((step,), jnp.float32, "data"),
                shape((2,), jnp.int32),
                k=wanted,
                mesh=mesh,
                by_maxima=by_maxima,
                approximate=False,
            )
            .lower()
            .compile()
        )
    cost, memory, slabs = program.cost_analysis(), program.memory_analysis(), math.ceil(rows / step)
    flop, moved = slabs * cost["flops"], slabs * cost["bytes accessed"]
    return {
        "topology": TOPOLOGY,
        "rows": rows,
        "dim": dim,
        "queries": QUERIES,
        "slabs": slabs,
        "rows_a_slab": width,
        "index_bytes_per_chip": slabs * width * (dim + 4),
        "temporary_bytes": memory.temp_size_in_bytes,
        "flop": flop,
        "bytes_moved": moved,
        "by_maxima": by_maxima,
        "floor_ms": floor_ms(TOPOLOGY, flop, moved),
    }


def main() -> int:
    """Writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10**9, help="descriptors in the index")
    parser.add_argument("--dim", type=int, default=64, help="their dimensions")
    options = parser.parse_args()
    row = compiled_search(options.rows, options.dim)

    write_json(RESULT, {"rows": [row], "environment": environment()})
    print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())

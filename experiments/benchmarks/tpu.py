"""TPUs that are not here: their topologies, for XLA's compiler, and what the maker says of them."""

import importlib.util
import os

import jax
from jax.experimental import topologies

# Peak bfloat16 arithmetic and memory bandwidth of a chip, by the maker's data sheets.
PEAKS = {"v5e": (197e12, 819e9), "v6e": (918e12, 1640e9), "v5p": (459e12, 2765e9)}
LIBTPU = "libtpu==0.0.42.1"


def described_devices(topology: str) -> list:
    """The devices of a topology such as "v5e:2x4".

    Raises:
        SystemExit: the compiler is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise SystemExit(f"XLA's TPU compiler is not installed: pip install --no-deps {LIBTPU}")
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        # No chip is used, so that another process may compile meanwhile.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    # Nothing is run, and no device of this machine is asked for.
    jax.config.update("jax_platforms", "cpu")
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)


def floor_ms(topology: str, flop: float, bytes_moved: float) -> dict[str, float]:
    """The least time of a program on a chip, by arithmetic and by memory; it takes the larger at least."""
    peak, bandwidth = PEAKS[topology.partition(":")[0]]
    return {"arithmetic": 1e3 * flop / peak, "memory": 1e3 * bytes_moved / bandwidth}

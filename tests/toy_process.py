"""`rdcd-jax` with the toys, as one of several processes: `python toy_process.py VERB ...`."""

import os
import sys
import time

import pytest

# Each has four devices, the test's own process eight.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
)

from rdcd_jax.cli.main import main
from rdcd_jax.core import hosts

join = hosts.join


def join_and_add_toys(**options):
    """Joins, and only then imports JAX by way of the toys."""
    join(**options)
    # As a machine that compiles what another has in its cache.
    time.sleep(float(os.environ.get("LATE_SECONDS", "0")))
    import jax
    from toy import add_toys

    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    add_toys(pytest.MonkeyPatch())


hosts.join = join_and_add_toys
sys.exit(main())

"""`python -m rdcd_jax` and the console script `rdcd-jax`."""

import os
import sys

from rdcd_jax.cli.main import main
from rdcd_jax.core.huge_pages import restart_with_huge_pages


def run() -> int:
    """Runs the command line in a process whose memory is set up for it."""
    restart_with_huge_pages()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # It was closed.
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (as long as the process)
    # What the terminal's encoding lacks is shown escaped.
    sys.stdout.reconfigure(errors="backslashreplace")
    return main()


if __name__ == "__main__":
    sys.exit(run())

"""`python -m rdcd_jax` and the console script `rdcd-jax`."""

import sys

from rdcd_jax.cli.main import main
from rdcd_jax.core.huge_pages import restart_with_huge_pages


def run() -> int:
    """Runs the command line in a process whose memory is set up for it."""
    restart_with_huge_pages()
    # What the terminal's encoding lacks is shown escaped.
    sys.stdout.reconfigure(errors="backslashreplace")
    return main()


if __name__ == "__main__":
    sys.exit(run())

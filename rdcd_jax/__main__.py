"""`python -m rdcd_jax` is `rdcd-jax`."""

import sys

from rdcd_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())

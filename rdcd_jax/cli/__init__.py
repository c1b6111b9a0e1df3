"""`rdcd-jax VERB`: one module a verb; each parses, calls one library function, prints."""

from rdcd_jax.cli.main import main

__all__ = ["main"]

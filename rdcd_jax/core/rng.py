"""Named random streams: adding a stream, or drawing more from one, never shifts another."""

import zlib

import jax


def stream(seed: int, name: str) -> jax.Array:
    """The key of the stream `name` of a run with this seed."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def at_step(key: jax.Array, step: jax.Array | int) -> jax.Array:
    """The key that a stream uses in one step, so that a resumed run draws what an undisturbed one draws."""
    return jax.random.fold_in(key, step)

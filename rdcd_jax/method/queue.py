"""The ring buffers of a run: the queue of past keys and the bank of past teacher features."""

import jax
import jax.numpy as jnp

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.mesh import everywhere


def init_queue(key: jax.Array, size: int, dim: int) -> jax.Array:
    """A queue [size, dim] float32 of random directions (unit Gaussian rows), as MoCo starts."""
    rows = jax.random.normal(key, (size, dim))
    return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)


def init_bank(key: jax.Array, size: int, dim: int) -> jax.Array:
    """A bank [size, dim] float32, uniform in +-sqrt(3 / dim): only about unit length, as CompRess starts."""
    bound = (3 / dim) ** 0.5
    return jax.random.uniform(key, (size, dim), minval=-bound, maxval=bound)


def enqueue(
    queue: jax.Array, rows: jax.Array, position: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """Writes a batch over the oldest rows.

    Args:
        queue: [K, D].
        rows: [B, D], B at most K. Takes no gradient.
        position: int scalar in [0, K), where the first row goes; the batch wraps round the end.

    Returns:
        The queue [K, D] with the rows written, and the next position.

    Raises:
        UserError: if the batch is larger than the queue.
    """
    size, count = len(queue), len(rows)
    if count > size:
        raise UserError(
            f"A batch of {count} does not fit a queue of {size} rows; make the queue at least as large as the batch."
        )
    position = jnp.asarray(position, jnp.int32)
    # Slices are written in place; rows at positions of any kind would be gathered and written one by one.
    last = jnp.minimum(position, size - count)
    over = position - last
    # What wraps round comes first.
    rows = jnp.roll(everywhere(jax.lax.stop_gradient(rows).astype(queue.dtype)), over, axis=0)
    wraps = (jnp.arange(count, dtype=over.dtype) < over)[:, None]
    for start, is_written in ((last, ~wraps), (jnp.zeros_like(last), wraps)):
        before = jax.lax.dynamic_slice_in_dim(queue, start, count)
        block = jnp.where(is_written, rows, before)
        queue = jax.lax.dynamic_update_slice_in_dim(queue, block, start, axis=0)
    return queue, (position + count) % size

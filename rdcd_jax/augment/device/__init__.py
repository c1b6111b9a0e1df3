"""A policy's operations on JAX arrays, inside the training step."""

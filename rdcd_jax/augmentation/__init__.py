"""The augmentation policies as JAX programs for batches of pictures; `data.policies` is their twin on the host."""

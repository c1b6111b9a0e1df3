"""Persistent indexes of images' descriptors: made, grown, searched."""

from rdcd_jax.index.search import Index

__all__ = ["Index"]

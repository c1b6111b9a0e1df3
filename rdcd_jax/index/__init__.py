"""Persistent indexes of pictures' descriptors: made, grown, searched."""

from rdcd_jax.index.search import Index

__all__ = ["Index"]

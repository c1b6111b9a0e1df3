"""Descriptors to neighbours: exact and approximate search, score normalisation, calibration."""

from typing import TYPE_CHECKING

from rdcd_jax.core.lazy import lazy_names

if TYPE_CHECKING:
    from rdcd_jax.search.backends import knn

__all__ = ["knn"]

__getattr__, __dir__ = lazy_names(__name__, {"knn": "rdcd_jax.search.backends"})

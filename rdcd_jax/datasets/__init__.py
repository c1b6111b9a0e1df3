"""Benchmarks as tensorflow-datasets; importing this package registers their builders."""

from rdcd_jax.datasets.copydays import Copydays
from rdcd_jax.datasets.disc2021 import Disc2021
from rdcd_jax.datasets.ndec import Ndec
from rdcd_jax.datasets.preparation import Prepared, prepare

__all__ = ["Copydays", "Disc2021", "Ndec", "Prepared", "prepare"]

"""Benchmarks as tensorflow-datasets; importing this package registers their builders."""

from rdcd_jax.benchmarks.builders.copydays import Copydays
from rdcd_jax.benchmarks.builders.disc2021 import Disc2021
from rdcd_jax.benchmarks.builders.ndec import Ndec
from rdcd_jax.benchmarks.builders.preparation import Prepared, prepare

__all__ = ["Copydays", "Disc2021", "Ndec", "Prepared", "prepare"]

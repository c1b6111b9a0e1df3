"""Around the step: config, setup, input feed, loop, evaluations, checkpoints, record, sweep."""

from typing import TYPE_CHECKING

from rdcd_jax.core.lazy import lazy_names

if TYPE_CHECKING:
    from rdcd_jax.training.loop import train_and_evaluate

__all__ = ["train_and_evaluate"]

__getattr__, __dir__ = lazy_names(__name__, {"train_and_evaluate": "rdcd_jax.training.loop"})

"""Checkpoints of a run; the only file that imports orbax."""

import pathlib

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from rdcd_jax.errors import UserError
from rdcd_jax.train.state import TrainState


class Checkpoints:
    """The checkpoints below one folder, one per step, written in the background, the newest `keep` kept.

    Args:
        folder: made where missing.
        keep: how many of the newest to keep.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int):
        self._folder = folder.resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            # The loop says when; orbax must not think otherwise.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )
        self._pending = None

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, state: TrainState) -> None:
        """Saves `state` under its step, in the background; waits for the save before, if still going on."""
        self.wait()
        step = int(state.step)
        if self.latest == step:
            return
        # The next step is given this state's buffers, and on a CPU orbax would write from those very buffers.
        copy = jax.tree.map(jnp.copy, state)
        self._pending = self._checkpointer.save_async(step, _arrays(copy))

    def restore(self, like: TrainState) -> TrainState:
        """The newest state, placed and sharded as `like` is.

        Raises:
            UserError: naming the first array that differs, if the checkpoint is of another network or size.
        """
        step = self.latest
        saved = _shapes(self._checkpointer.metadata(step).metadata)
        wanted = _shapes(_arrays(like))
        for path in sorted(saved.keys() | wanted.keys()):
            if saved.get(path) != wanted.get(path):
                raise UserError(
                    f"{self._folder / str(step)}: the checkpoint has {path} of shape {saved.get(path)}, this config"
                    f" {wanted.get(path)}; continue with the config it was made with, or give another --workdir."
                )
        loaded = self._checkpointer.load(step, _arrays(like))
        return TrainState(**loaded)

    def wait(self) -> None:
        """Returns when nothing is being written any more."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def close(self) -> None:
        """Finishes what is being written."""
        self.wait()
        self._checkpointer.close()


def _arrays(state: TrainState) -> dict:
    return {name: getattr(state, name) for name in state.__dataclass_fields__}


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }

"""Parts of an embedding, made on the machines of an Apache Beam pipeline."""

import dataclasses
import functools
import platform
from collections.abc import Callable
from typing import NamedTuple

from rdcd_jax.core.beam import run_each
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.parts import Parts
from rdcd_jax.embedding.stream import EmbeddingModel, has_fingerprint


class OnBeam(NamedTuple):
    """Where an embedding's parts are made.

    Attributes:
        options: of the pipeline, see `core.beam`.
        load: loads the model on each machine; can be pickled.
    """

    options: str
    load: Callable[[], EmbeddingModel]


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Makes a part by its number, on any machine.

    Attributes:
        parts: of which it is one.
        load: see `OnBeam`.
        fingerprint: of the model whose parts they are.
        batch_size: images at a time.
    """

    parts: Parts
    load: Callable[[], EmbeddingModel]
    fingerprint: str
    batch_size: int

    def __call__(self, number: int) -> None:
        """Makes it.

        Raises:
            UserError: a machine has other weights by that name.
        """
        model = _loaded(self.load)
        if not has_fingerprint(model, self.fingerprint):
            raise UserError(
                f"{platform.node()} has other weights of {model.name}; give it the same version of them."
            )
        self.parts.make(model, number, self.batch_size)


@functools.lru_cache(1)
def _loaded(load: Callable[[], EmbeddingModel]) -> EmbeddingModel:
    return load()


def make_parts(parts: Parts, fingerprint: str, batch_size: int, beam: OnBeam) -> None:
    """Makes those that are missing.

    Args:
        parts: of the embedding.
        fingerprint: of the model that they were opened for.
        batch_size: images at a time.
        beam: where.

    Raises:
        UserError: see `core.beam.run_each`; a machine has other weights.
    """
    run_each(_Piece(parts, beam.load, fingerprint, batch_size), parts.missing(), beam.options)

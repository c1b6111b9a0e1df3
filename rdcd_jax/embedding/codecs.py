"""What is done to descriptors before the search, named in faiss's factory language. Numpy only."""

import dataclasses
import functools
import re
from collections.abc import Callable

import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.whitening import PCAWhitening

# How a codec may look: each stage at most once, `Flat` (exact search) last.
_FORM = re.compile(r"(?:(L2norm),)?(?:(PCAW?)(\d{1,9}),)?(?:(L2norm),)?Flat")
KNOWN_FORMS = "Flat; L2norm,Flat; PCAW<d>,L2norm,Flat; PCA<d>,L2norm,Flat; L2norm,PCAW<d>,Flat"


@dataclasses.dataclass(frozen=True)
class Codec:
    """A parsed codec: an L2 norm, a projection and another L2 norm, each optional.

    Attributes:
        name: as it was written.
        norm_first: divide by the length before the projection.
        dim: dimensions after the projection; None without one.
        whiten: whether the projection whitens.
        norm_last: divide by the length at the end.
    """

    name: str
    norm_first: bool
    dim: int | None
    whiten: bool
    norm_last: bool

    @property
    def needs_training(self) -> bool:
        """Whether it must be fitted on training descriptors."""
        return self.dim is not None

    def fit(self, training: np.ndarray | None) -> Callable[[np.ndarray], np.ndarray]:
        """Returns the function that encodes descriptors.

        Args:
            training: [T, D] descriptors as the model gives them; None where there are none.

        Returns:
            A function from [N, D] to [N, dim or D] float32.

        Raises:
            UserError: it needs training descriptors and there are none, or too few.
        """
        stages: list[Callable[[np.ndarray], np.ndarray]] = []
        if self.norm_first:
            stages.append(unit_rows)
        if self.dim is not None:
            if training is None:
                raise UserError(
                    f"the codec {self.name!r} is fitted on training descriptors and none were "
                    "given; give a training set, or choose Flat."
                )
            rows = unit_rows(training) if self.norm_first else training
            stages.append(PCAWhitening.fit(rows, self.dim, self.whiten).apply)
        if self.norm_last:
            stages.append(unit_rows)

        def encode(x: np.ndarray) -> np.ndarray:
            return functools.reduce(lambda rows, stage: stage(rows), stages, x)

        return encode


def parse_codec(name: str) -> Codec:
    """Reads a codec's name.

    Args:
        name: such as "Flat" or "PCAW128,L2norm,Flat".

    Returns:
        The codec.

    Raises:
        UserError: an unknown one.
    """
    match = _FORM.fullmatch(name.replace(" ", ""))
    if match is None or (match[2] is not None and int(match[3]) == 0):
        raise UserError(f"unknown codec {name!r}; known are {KNOWN_FORMS}.")
    first, kind, dim, last = match.groups()
    return Codec(
        name=name.replace(" ", ""),
        norm_first=first is not None,
        dim=int(dim) if dim else None,
        whiten=kind == "PCAW",
        norm_last=last is not None,
    )


def parse_codecs(names: str) -> list[Codec]:
    """Reads several codecs separated by `;`.

    Args:
        names: such as "Flat;PCAW128,L2norm,Flat".

    Returns:
        The codecs in order.

    Raises:
        UserError: an unknown one, or none at all.
    """
    codecs = [parse_codec(name) for name in names.split(";") if name.strip()]
    if not codecs:
        raise UserError(f"no codec in {names!r}; known are {KNOWN_FORMS}.")
    return codecs


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Returns `x` [N, D] float32 with each row divided by its length; rows of zeros stay."""
    x = np.asarray(x, np.float32)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(lengths > 0, lengths, np.float32(1))

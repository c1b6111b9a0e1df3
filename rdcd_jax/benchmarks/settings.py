"""What every protocol asks of its codecs, score normalisations, number of candidates and search."""

import dataclasses
from collections.abc import Sequence

from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.codecs import parse_codec, parse_codecs
from rdcd_jax.search import backends
from rdcd_jax.search import score_norm as norms

DEFAULT_CODECS = "Flat"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How descriptors are compared.

    Attributes:
        codecs: such as "Flat" or "PCAW128,L2norm,Flat".
        score_norms: such as "1.0[0,2]", or None for none. Copydays knows none.
        k: candidates a query; None for the protocol's own number, or all of the database where it is smaller.
        global_candidates: take the k * N best pairs of all N queries instead of k of each. Not of Copydays.
        backend: one of `backends.EXACT_BACKENDS`.
    """

    codecs: Sequence[str] = ("Flat",)
    score_norms: Sequence[str | None] = (None,)
    k: int | None = None
    global_candidates: bool = False
    backend: str = "jax"

    @classmethod
    def written(
        cls,
        has_training: bool,
        *,
        codecs: str = DEFAULT_CODECS,
        score_norm: str | None = None,
        k: int | None = None,
        global_candidates: bool = False,
        backend: str = "jax",
    ) -> "Settings":
        """Settings as a user writes them, checked before any costly work.

        Args:
            has_training: whether there is a training set.
            codecs: separated by `;`.
            score_norm: separated by `;`; by default "None;1.0[0,2]", or "None" where there is no training set.
            k: as the attribute.
            global_candidates: as the attribute.
            backend: as the attribute.

        Raises:
            UserError: as `require`.
        """
        if score_norm is None:
            score_norm = f"None;{norms.DEFAULT}" if has_training else "None"
        specs = norms.parse_score_norms(score_norm)
        names = [codec.name for codec in parse_codecs(codecs)]
        found = cls(names, specs, k, global_candidates, backend)
        found.require(has_training)
        return found

    @property
    def needs_training(self) -> bool:
        """Whether any of the codecs or score normalisations is fitted on a training set."""
        whitens = any(parse_codec(name).needs_training for name in self.codecs)
        return whitens or any(spec is not None for spec in self.score_norms)

    def require_dimensions(self, dim: int | None, training: int) -> None:
        """Refuses what descriptors of `dim` dimensions and so many training images do not allow, before any is made.

        Raises:
            UserError: a codec is of more dimensions, or it or a score normalisation is fitted on more images.
        """
        for codec in map(parse_codec, self.codecs):
            if dim is None or not codec.needs_training:
                continue
            if codec.dim > dim:
                raise UserError(
                    f"{codec.name} has {codec.dim} dimensions, and the model's descriptor only {dim}; choose a codec of"
                    f" {dim} at most."
                )
            if training < dim:
                raise UserError(
                    f"{codec.name} is fitted on at least as many training images as the model has dimensions:"
                    f" {training} are given for {dim}; give a larger training set, or other codecs."
                )
        for spec in self.score_norms:
            if spec is not None:
                norms.require_ranks(norms.parse_score_norm(spec), training)

    def require(self, has_training: bool) -> None:
        """Raises UserError for settings that cannot work, before any costly work."""
        if not self.codecs or not self.score_norms:
            raise UserError("name at least one codec and one score normalisation (None for none).")
        fitted = [name for name in self.codecs if parse_codec(name).needs_training]
        for spec in self.score_norms:
            if spec is not None:
                norms.parse_score_norm(spec)
                fitted.append(spec)
        if self.k is not None and self.k < 1:
            raise UserError(f"k is {self.k}; every query needs at least 1 candidate.")
        if self.backend not in backends.EXACT_BACKENDS:
            raise UserError(
                f"figures come from an exact search, and {self.backend!r} is none; choose one of "
                f"{', '.join(backends.EXACT_BACKENDS)}."
            )
        if fitted and not has_training:
            raise UserError(
                f"{fitted[0]!r} is fitted on a training set and there is none; give one, or choose the "
                "codec Flat and the score normalisation None."
            )


def candidate_count(k: int | None, default: int, n_database: int) -> int:
    """How many candidates each query gets.

    Args:
        k: as asked for; None for the protocol's own number, or all where there are fewer.
        default: the protocol's own number.
        n_database: images to choose from.

    Raises:
        UserError: more are asked for than there are.
    """
    if k is not None and k > n_database:
        raise UserError(
            f"k is {k}, but queries are compared with {n_database} images only; choose k from 1 to {n_database}."
        )
    return min(default, n_database) if k is None else k

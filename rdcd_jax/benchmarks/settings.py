"""What every protocol asks of its codecs, score normalisations, number of candidates and search."""

from collections.abc import Sequence

from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.codecs import parse_codec, parse_codecs
from rdcd_jax.search import backends, score_norm


def needs_training(codecs: Sequence[str], score_norms: Sequence[str | None] = ()) -> bool:
    """Returns whether any of the codecs or score normalisations is fitted on a training set."""
    whitens = any(parse_codec(name).needs_training for name in codecs)
    return whitens or any(spec is not None for spec in score_norms)


def require_settings(
    codecs: Sequence[str],
    score_norms: Sequence[str | None],
    has_training: bool,
    *,
    k: int | None,
    backend: str,
) -> None:
    """Raises UserError for settings that cannot work, before any costly work."""
    if not codecs or not score_norms:
        raise UserError("name at least one codec and one score normalisation (None for none).")
    for spec in score_norms:
        if spec is not None:
            score_norm.parse_score_norm(spec)
    if k is not None and k < 1:
        raise UserError(f"k is {k}; every query needs at least 1 candidate.")
    if backend not in backends.EXACT_BACKENDS:
        raise UserError(
            f"figures come from an exact search, and {backend!r} is none; choose one of "
            f"{', '.join(backends.EXACT_BACKENDS)}."
        )
    needy = [name for name in codecs if needs_training([name])]
    needy += [spec for spec in score_norms if spec is not None]
    if needy and not has_training:
        raise UserError(
            f"{needy[0]!r} is fitted on a training set and there is none; give one, or choose the "
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


def codec_names(
    codecs: str,
    score_norms: Sequence[str | None],
    has_training: bool,
    *,
    k: int | None,
    backend: str,
) -> list[str]:
    """Splits codecs separated by `;`, and checks them as `settings.require_settings` does."""
    names = [codec.name for codec in parse_codecs(codecs)]
    require_settings(names, score_norms, has_training, k=k, backend=backend)
    return names

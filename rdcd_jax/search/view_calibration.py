"""A calibration without labels: an edited view of an image stands for a copy of it, and one of an image that is not
among the references for a query that has none.

The views may be those that a descriptor was trained on: how far the result holds for other images is in
docs/finetune.md, measured.
"""

import dataclasses

import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.search import backends
from rdcd_jax.search.calibration import fit_calibration
from rdcd_jax.search.score_norm import DEFAULT, query_adjustment

# More images change a calibration little.
MOST_IMAGES = 12_000
_LEAST_IMAGES = 128
# Of the images; most are left for the background, which is then nearly as dense as it will be in use.
_REFERENCES = 1 / 8
# Each divides the images anew, so that few of them give many matches.
_DRAWS = 10
# Matches of each view, as many as a search gives.
_MATCHES = 10
# Images as similar as this, both unedited, may be versions of one. Nobody said whether these are copies, so they are
# neither right nor wrong: counted as wrong they make a calibration far too careful. Lower, it promises too much.
_VERSIONS = 0.7


def calibrate_on_views(unedited: np.ndarray, edited: np.ndarray, *, background: int) -> dict:
    """What scores mean among images like these, in the form of a card's or a file's calibration.

    Args:
        unedited: [N, D] float32 of unit length.
        edited: [N, D] likewise, of an edited view of each.
        background: descriptors of such images by which scores are to be normalised; 0 for none.

    Raises:
        UserError: too few images, or views that do not resemble their images more than others do.

    Examples:
        >>> import numpy as np
        >>> from rdcd_jax.search.calibration import read_calibration
        >>> from rdcd_jax.embedding.codecs import unit_rows
        >>> rows, noise = np.random.default_rng(0).normal(size=(2, 400, 16)).astype(np.float32)
        >>> found = calibrate_on_views(unit_rows(rows), unit_rows(rows + noise / 2), background=0)
        >>> read_calibration(found).threshold(0.9, references=1000) > 0.5
        True
    """
    count = min(len(unedited), MOST_IMAGES)
    if count < _LEAST_IMAGES:
        raise UserError(f"a calibration on views takes {_LEAST_IMAGES} images; here are {count}.")
    rng = np.random.default_rng(0)
    draws = [
        _matches(rng.permutation(len(unedited))[:count], unedited, edited, background)
        for _ in range(_DRAWS)
    ]
    scores, adjustment, right = map(np.concatenate, zip(*draws, strict=True))

    def fitted(scores: np.ndarray, score_norm: str) -> dict:
        found = fit_calibration(
            scores,
            right,
            references=int(count * _REFERENCES),
            measured_on=f"edited views of {count:,} training images",
            score_norm=score_norm,
        )
        return dataclasses.asdict(found)

    found = fitted(scores, "")
    if background:
        found["normalised"] = fitted(scores + adjustment, DEFAULT)
    return found


def _matches(
    order: np.ndarray, unedited: np.ndarray, edited: np.ndarray, background: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores [P] of views with the references nearest to them, what normalisation adds, and which are the views' own.

    The first images in this order are references; views of them and of as many others are queries; those that follow
    are background.
    """
    count = int(len(order) * _REFERENCES)
    shown, others = order[: 2 * count], order[2 * count :]
    references, queries = unedited[shown[:count]], edited[shown]
    scores, positions = backends.knn(queries, references, min(_MATCHES, count))
    # Views of the others have no reference of their own.
    right = positions == np.arange(2 * count)[:, None]
    alike = np.einsum("nd,nkd->nk", unedited[shown], references[positions])
    known = right | (alike < _VERSIONS)
    adjustment = np.zeros(2 * count, np.float32)
    if background:
        adjustment = query_adjustment(queries, unedited[others[:background]], DEFAULT)
    return scores[known], np.broadcast_to(adjustment[:, None], scores.shape)[known], right[known]

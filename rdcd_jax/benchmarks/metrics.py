"""How well ranked predictions find the true copies: DISC2021's figures and Copydays'. Numpy only."""

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np

from rdcd_jax.core.errors import UserError

# The challenge's rank of a true pair that was not predicted at all.
NOT_RETRIEVED = 2**35
REQUIRED_PRECISION = 0.9


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The figures of one set of predictions; fractions of 1.

    Attributes:
        average_precision: micro average precision (µAP), 0 to 1.
        recall_at_p90: the largest recall at a precision of at least 0.9; None where that precision
            is never reached.
        threshold_at_p90: the score at which that recall is first reached, on the scale of the
            scores given; None likewise.
        recall_at_1: the fraction of true pairs that rank first for their query ("accuracy-at-1").
        recall_at_10: the fraction of true pairs among the first ten of their query.
        precisions: [P] float64, the precision after each prediction, best score first.
        recalls: [P] float64, the recall after each prediction.
        thresholds: [P] float64, the scores in that order.
        true_ranks: [G] int64, the zero-based rank of each true pair among its query's predictions,
            in the order of the ground truth; `NOT_RETRIEVED` where it was not predicted.
    """

    average_precision: float
    recall_at_p90: float | None
    threshold_at_p90: float | None
    recall_at_1: float
    recall_at_10: float
    precisions: np.ndarray
    recalls: np.ndarray
    thresholds: np.ndarray
    true_ranks: np.ndarray


def evaluate(
    ground_truth: Sequence[tuple[Hashable, Hashable]],
    query_ids: Sequence[Hashable],
    reference_ids: Sequence[Hashable],
    scores: Sequence[float],
) -> Metrics:
    """Returns the challenge's figures for predictions given in any order.

    Args:
        ground_truth: G pairs (query id, reference id); a sequence of tuples or an array [G, 2].
            Queries without a copy have no pair here.
        query_ids: [P] query id of each prediction, strings or integers.
        reference_ids: [P] reference id of each prediction.
        scores: [P] a higher score says "copy" more strongly; any finite scale.

    Returns:
        The metrics. Equal scores are taken at their worst: false pairs are ranked before true ones,
        and a true pair ranks behind every prediction of its query that scores as high.

    Raises:
        UserError: duplicate predictions or true pairs, an empty ground truth, lengths that differ,
            scores that are not finite.

    Source: the ISC2021 evaluation (µAP over all pairs ranked together, divided by the number of
        true pairs).
    """
    scores = np.asarray(scores, np.float64)
    if not len(query_ids) == len(reference_ids) == len(scores):
        raise UserError(
            f"predictions need one query id, reference id and score each, but there are "
            f"{len(query_ids)}, {len(reference_ids)} and {len(scores)}."
        )
    if len(ground_truth) == 0:
        raise UserError("the ground truth holds no pair of a query and its reference.")
    if not np.isfinite(scores).all():
        bad = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise UserError(f"prediction {bad} has the score {scores[bad]}; scores must be finite.")

    true_queries, true_references = zip(*_plain(ground_truth), strict=True)
    query_codes, true_query_codes, _ = _codes(query_ids, true_queries)
    reference_codes, true_reference_codes, n_references = _codes(reference_ids, true_references)
    pairs = query_codes * n_references + reference_codes
    true_pairs = true_query_codes * n_references + true_reference_codes
    _refuse_duplicates("predictions", pairs, query_ids, reference_ids)
    _refuse_duplicates("ground truth", true_pairs, true_queries, true_references)

    true_ranks = _true_ranks(pairs, query_codes, scores, true_pairs)
    is_true = np.isin(pairs, true_pairs)
    order = np.lexsort((is_true, -scores))
    found = np.cumsum(is_true[order])
    precisions = found / np.arange(1, len(scores) + 1)
    recalls = found / len(true_pairs)
    thresholds = scores[order]

    recall_at_p90 = threshold_at_p90 = None
    enough = np.flatnonzero(precisions >= REQUIRED_PRECISION)
    if enough.size:
        best = enough[np.argmax(recalls[enough])]
        recall_at_p90, threshold_at_p90 = float(recalls[best]), float(thresholds[best])
    return Metrics(
        average_precision=float(np.sum(np.diff(recalls, prepend=0.0) * precisions)),
        recall_at_p90=recall_at_p90,
        threshold_at_p90=threshold_at_p90,
        recall_at_1=float(np.mean(true_ranks < 1)),
        recall_at_10=float(np.mean(true_ranks < 10)),
        precisions=precisions,
        recalls=recalls,
        thresholds=thresholds,
        true_ranks=true_ranks,
    )


def trapezoid_average_precision(ranks: Sequence[int], n_positive: int) -> float:
    """Returns the average precision of one query, the area in trapezoids below its precision-recall curve.

    Args:
        ranks: zero-based positions of the positives among what was found, all different, in any order.
        n_positive: positives there are; those that were not found count as missed.

    Returns:
        0 to 1.

    Raises:
        UserError: n_positive below 1.

    Source: the evaluation of INRIA's Holidays and Copydays.
    """
    ranks = np.sort(np.asarray(ranks, np.float64))
    _require_positives(n_positive)
    found = np.arange(len(ranks))
    # Before anything was found the curve is at precision 1.
    before = np.divide(found, ranks, out=np.ones(len(ranks)), where=ranks > 0)
    after = (found + 1) / (ranks + 1)
    return float(np.sum(before + after) / (2 * n_positive))


def macro_average_precision(relevance: np.ndarray, distances: np.ndarray, n_positive: int) -> float:
    """Returns the average precision of the neighbours of all queries, ranked together by distance.

    Args:
        relevance: [Q, k] 1 or True for a positive.
        distances: [Q, k] any scale; the nearest says "copy" most strongly.
        n_positive: positives there are for all queries together.

    Returns:
        0 to 1, the area in trapezoids.

    Raises:
        UserError: as `pooled_precision_recall`.

    Source: SSCD's evaluation of Copydays, whose "overall µAP" this is.
    """
    precisions, recalls = pooled_precision_recall(relevance, distances, n_positive)
    before = np.concatenate([[1.0], precisions[:-1]])
    return float(np.sum(np.diff(recalls, prepend=0.0) * (before + precisions) / 2))


def pooled_precision_recall(
    relevance: np.ndarray, distances: np.ndarray, n_positive: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the curve behind `macro_average_precision`.

    Args:
        relevance: as there.
        distances: as there; among equals the order is that of numpy's default sort, as in the reference. That depends
            on the CPU's vector instructions: the reference's own figure of Copydays is within 3e-5 of any order's.
        n_positive: as there.

    Returns:
        precisions and recalls [Q * k] float64, after each neighbour, the nearest first.

    Raises:
        UserError: shapes that differ, distances that are not finite, n_positive below 1.
    """
    relevance, distances = np.asarray(relevance), np.asarray(distances)
    if relevance.shape != distances.shape:
        raise UserError(
            f"relevance and distances must have one shape, not {relevance.shape} and {distances.shape}."
        )
    _require_positives(n_positive)
    if not np.isfinite(distances).all():
        raise UserError("the distances hold NaN or infinity; compute the descriptors again.")
    found = np.cumsum(relevance.ravel()[np.argsort(distances.ravel())], dtype=np.int64)
    return found / np.arange(1, len(found) + 1), found / n_positive


def _require_positives(n_positive: int) -> None:
    if n_positive < 1:
        raise UserError(f"there are {n_positive} positives; an average precision needs at least 1.")


def _true_ranks(
    pairs: np.ndarray, query_codes: np.ndarray, scores: np.ndarray, true_pairs: np.ndarray
) -> np.ndarray:
    """[G] zero-based ranks of the true pairs; equal scores of a query count against them."""
    ranks = np.full(len(true_pairs), NOT_RETRIEVED, np.int64)
    if len(pairs) == 0:
        return ranks
    by_query = np.lexsort((-scores, query_codes))
    queries, ordered = query_codes[by_query], scores[by_query]
    new_query = np.diff(queries, prepend=-1) != 0
    new_tie = new_query | (np.diff(ordered, prepend=np.nan) != 0)
    query_start = np.flatnonzero(new_query)[np.cumsum(new_query) - 1]
    tie_end = np.append(np.flatnonzero(new_tie)[1:], len(ordered))[np.cumsum(new_tie) - 1]
    rank = np.empty(len(pairs), np.int64)
    rank[by_query] = tie_end - query_start - 1

    by_pair = np.argsort(pairs)
    position = np.searchsorted(pairs, true_pairs, sorter=by_pair)
    candidate = by_pair[np.minimum(position, len(pairs) - 1)]
    predicted = pairs[candidate] == true_pairs
    ranks[predicted] = rank[candidate[predicted]]
    return ranks


def _plain(ids: Sequence) -> list:
    return ids.tolist() if isinstance(ids, np.ndarray) else list(ids)


def _codes(ids: Sequence, true_ids: Sequence) -> tuple[np.ndarray, np.ndarray, int]:
    """Numbers the ids of predictions and ground truth together; a dict takes any kind of id."""
    numbers: dict[Hashable, int] = {}
    codes, true_codes = (
        np.fromiter((numbers.setdefault(i, len(numbers)) for i in _plain(each)), np.int64)
        for each in (ids, true_ids)
    )
    return codes, true_codes, len(numbers)


def _refuse_duplicates(what: str, pairs: np.ndarray, queries: Sequence, references: Sequence):
    _, first, counts = np.unique(pairs, return_index=True, return_counts=True)
    if np.any(counts > 1):
        example = int(first[np.argmax(counts > 1)])
        raise UserError(
            f"the {what} contain duplicates: {int(np.sum(counts - 1))} pairs are repeated, "
            f"such as query {queries[example]!s} with reference {references[example]!s}; "
            "give each pair once."
        )

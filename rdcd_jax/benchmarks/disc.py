"""The DISC protocol: descriptors and a ground truth in, a table of figures out."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Collection, Sequence

import numpy as np

from rdcd_jax.benchmarks import metrics
from rdcd_jax.benchmarks.ground_truth import HEADER, GroundTruth, require_known_ids
from rdcd_jax.benchmarks.settings import Settings, candidate_count
from rdcd_jax.core.files import write_csv, write_json
from rdcd_jax.embedding.codecs import parse_codec
from rdcd_jax.embedding.descriptors import Descriptors, require_comparable
from rdcd_jax.search import backends, score_norm

COLUMNS = ("codec", "score_norm", "uAP", "accuracy-at-1", "recall-at-p90")
DEFAULT_K = 10
# How a table names the absence of score normalisation.
NO_SCORE_NORM = "None"
# As `backends.knn`.
Search = Callable[..., tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class DiscRow:
    """One line of the table.

    Attributes:
        codec: the codec's name.
        score_norm: the normalisation, or "None".
        metrics: every figure; scores and thresholds are inner products after codec and
            normalisation.
    """

    codec: str
    score_norm: str
    metrics: metrics.Metrics

    def cells(self) -> dict[str, str | float | None]:
        """Returns the row's published figures by column; None where one does not exist."""
        figures = self.metrics
        values = (
            self.codec,
            self.score_norm,
            figures.average_precision,
            figures.recall_at_1,
            figures.recall_at_p90,
        )
        return dict(zip(COLUMNS, values, strict=True))


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Ranked pairs.

    Attributes:
        query_ids: [P] unicode.
        reference_ids: [P] unicode.
        scores: [P] float32, descending.
    """

    query_ids: np.ndarray
    reference_ids: np.ndarray
    scores: np.ndarray


def evaluate_descriptors(
    queries: Descriptors,
    references: Descriptors,
    training: Descriptors | None,
    ground_truth: GroundTruth,
    settings: Settings = Settings(),
    *,
    unreadable: Collection[str] = (),
    search: Search = backends.knn,
) -> tuple[list[DiscRow], Predictions]:
    """Evaluates descriptors by every codec with every score normalisation.

    Args:
        queries: the queries' descriptors, those of distractors included.
        references: the references' descriptors.
        training: descriptors of unrelated images; needed by whitening and score normalisation.
        ground_truth: the true pairs.
        settings: how they are compared; 10 candidates a query unless they say otherwise.
        unreadable: ids of images that the ground truth may name although they could not be
            embedded; their pairs count as missed.
        search: what searches, such as a `RememberingSearch`.

    Returns:
        One row for each codec and normalisation, codec by codec, and the predictions behind the
        LAST row.

    Raises:
        UserError: unknown names, sets that cannot be compared, a ground truth that names other
            images, no training descriptors where they are needed, an approximate backend, k above
            the number of references.

    Source: DISC2021 by way of SSCD's evaluation, by inner product throughout. NDEC's is the same.
    """
    settings.require(training is not None)
    k = min(
        candidate_count(settings.k, DEFAULT_K, len(references) + len(unreadable)), len(references)
    )
    named = {"the query set": queries, "the reference set": references}
    if training is not None:
        named["the training set"] = training
    require_comparable(named)
    require_known_ids(
        ground_truth, [*queries.ids.tolist(), *unreadable], [*references.ids.tolist(), *unreadable]
    )
    specs = settings.score_norms
    norms = [None if spec is None else score_norm.parse_score_norm(spec) for spec in specs]
    ranks = max((norm.last + 1 for norm in norms if norm is not None), default=0)
    for norm in norms:
        if norm is not None:
            score_norm.require_ranks(norm, len(training))

    rows = []
    for codec in map(parse_codec, settings.codecs):
        encode = codec.fit(None if training is None else training.descriptors)
        encoded = [encode(each.descriptors) for each in (queries, references)]
        if ranks:
            unrelated = encode(training.descriptors)
            similarities, _ = search(encoded[0], unrelated, ranks, settings.backend)
        for spec, norm in zip(specs, norms, strict=True):
            pair = encoded
            if norm is not None:
                pair = score_norm.append_adjustment(*encoded, norm.adjustment(similarities))
            scores, query, reference = _candidates(pair, k, settings, search)
            predictions = Predictions(queries.ids[query], references.ids[reference], scores)
            figures = metrics.evaluate(
                ground_truth.pairs,
                predictions.query_ids,
                predictions.reference_ids,
                predictions.scores,
            )
            rows.append(DiscRow(codec.name, NO_SCORE_NORM if spec is None else spec, figures))
    return rows, predictions


def write_disc_results(
    folder: str | os.PathLike,
    rows: Sequence[DiscRow],
    predictions: Predictions,
    *,
    benchmark: str = "disc",
) -> None:
    """Writes `disc_metrics.csv`, `metrics.json` and `predictions.csv`.

    Args:
        folder: where to; it is made if missing.
        rows: the table. A figure that does not exist is an empty cell, and null in JSON.
        predictions: what `evaluate_descriptors` returns: those of the last row.
        benchmark: what the first file is called by.
    """
    folder = pathlib.Path(folder)
    cells = [row.cells() for row in rows]
    write_csv(folder / f"{benchmark}_metrics.csv", COLUMNS, (row.values() for row in cells))
    write_json(folder / "metrics.json", cells)
    write_predictions(folder, predictions)


def write_predictions(folder: pathlib.Path, predictions: Predictions) -> None:
    """Writes `predictions.csv`."""
    columns = (predictions.query_ids, predictions.reference_ids, predictions.scores)
    lines = zip(*(column.tolist() for column in columns), strict=True)
    write_csv(folder / "predictions.csv", (*HEADER, "score"), lines)


def _candidates(
    pair: Sequence[np.ndarray], k: int, settings: Settings, search: Search
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, descending, with the positions of their query and reference."""
    queries, references = pair
    if settings.global_candidates:
        return backends.best_pairs(queries, references, k * len(queries), settings.backend)
    scores, reference = search(queries, references, k, settings.backend)
    order = np.argsort(-scores.ravel(), kind="stable")
    query = np.repeat(np.arange(len(queries)), k)[order]
    return scores.ravel()[order], query, reference.ravel()[order]


class RememberingSearch:
    """`backends.knn` that does not search one database for the same queries and number of neighbours twice.

    Args:
        database: [M, D]; whatever else is searched is not kept in memory.
    """

    def __init__(self, database: np.ndarray):
        self._database = database
        self._found: dict[tuple[int, int], tuple] = {}

    def __call__(
        self, queries: np.ndarray, database: np.ndarray, k: int, backend: str = "jax"
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `backends.knn`; exact backends give the same answer, so whichever searched first will do."""
        if database is not self._database:
            return backends.knn(queries, database, k, backend)
        key = id(queries), k
        if key not in self._found:
            # With the queries, so that no others get their id.
            self._found[key] = backends.knn(queries, database, k, backend), queries
        return self._found[key][0]

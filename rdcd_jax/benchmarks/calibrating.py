"""A calibration from a benchmark's matches: what a score of the model's descriptors means."""

import contextlib
import dataclasses
import os
import pathlib

import numpy as np

from rdcd_jax.benchmarks.disc import Search
from rdcd_jax.benchmarks.ground_truth import (
    GroundTruth,
)
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_json
from rdcd_jax.embedding.descriptors import (
    Descriptors,
)
from rdcd_jax.search import backends
from rdcd_jax.search.calibration import fit_calibration
from rdcd_jax.search.score_norm import DEFAULT, query_adjustment

# Matches of each query that a calibration is fitted to, as many as a search gives.
_CALIBRATED = 10


def best_matches(
    queries: Descriptors,
    references: Descriptors,
    truth: GroundTruth,
    background: np.ndarray | None = None,
    search: Search = backends.knn,
) -> tuple[np.ndarray, np.ndarray]:
    """The matches that a calibration is fitted to.

    Args:
        queries: N descriptors, those of distractors included.
        references: descriptors.
        truth: the true pairs.
        background: [T, D] float32, to normalise scores by.
        search: as of `disc.evaluate_descriptors`, which has searched the same.

    Returns:
        scores [N, k] float32 of each query's ten best references, or of all where there are fewer, and whether each is
        a copy [N, k] bool.
    """
    k = min(_CALIBRATED, len(references))
    scores, positions = search(queries.descriptors, references.descriptors, k)
    if background is not None:
        scores = scores + query_adjustment(queries.descriptors, background, DEFAULT)[:, None]
    true = set(truth.pairs)
    found = zip(queries.ids.tolist(), references.ids[positions].tolist(), strict=True)
    correct = [[(query, reference) in true for reference in row] for query, row in found]
    return scores, np.asarray(correct, bool)


def write_calibration(
    out: pathlib.Path,
    queries: Descriptors,
    references: Descriptors,
    truth: GroundTruth,
    measured_on: str | os.PathLike,
    background: np.ndarray | None = None,
    search: Search = backends.knn,
) -> None:
    """Writes `calibration.json` where there are right and wrong matches: of the descriptors as they are, and of scores
    that the background normalised."""
    path = out / "calibration.json"
    name = pathlib.Path(os.path.abspath(measured_on)).name

    def fitted(background: np.ndarray | None) -> dict:
        scores, correct = best_matches(queries, references, truth, background, search)
        found = fit_calibration(
            scores.ravel(),
            correct.ravel(),
            references=len(references),
            measured_on=name,
            score_norm="" if background is None else DEFAULT,
        )
        return dataclasses.asdict(found)

    # That of an earlier run would be taken for this one's.
    path.unlink(missing_ok=True)
    # Matches of one kind, or of a model that knows nothing, calibrate nothing.
    with contextlib.suppress(UserError):
        stored = fitted(None)
        if background is not None:
            stored["normalised"] = fitted(background)
        write_json(path, stored)

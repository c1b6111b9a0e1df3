"""Evaluations as a report tells of them: named apart, with what their last row found and missed."""

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from rdcd_jax.benchmarks import metrics
from rdcd_jax.benchmarks.disc import NO_SCORE_NORM
from rdcd_jax.benchmarks.record import Record, Row, read_record
from rdcd_jax.core.errors import UserError, one_line

FALSE_POSITIVE, MISSED = "false positive", "missed copy"


@dataclasses.dataclass(frozen=True)
class EditRecall:
    """How many copies with one kind of edit were found.

    Attributes:
        copies: pairs whose query has it.
        first: of those, with the true reference before all others.
        above: of those, with a score at or above the threshold; None where there is no threshold.
    """

    copies: int
    first: int
    above: int | None


@dataclasses.dataclass(frozen=True)
class Case:
    """A mistake, as it is shown.

    Attributes:
        outcome: `FALSE_POSITIVE` or `MISSED`.
        query: the query's id.
        found: the best wrong reference; None where there is none.
        found_score: its score.
        true: the true reference; None for a query that is a copy of nothing.
        true_score: its score; None where it is not among the candidates.
        above: whether the wrong reference is at or above the threshold; None where there is none.
        edits: what was done to the query.
    """

    outcome: str
    query: str
    found: str | None
    found_score: float | None
    true: str | None
    true_score: float | None
    above: bool | None
    edits: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """An evaluation with a name of its own; its copies and mistakes are those of its last row, which has predictions.

    Attributes:
        name: the model's, with as much of the folder as keeps it apart from other runs.
        record: what its folder holds.
    """

    name: str
    record: Record

    def title(self, row: Row) -> str:
        """Names a row of this run among all rows of all runs."""
        norm = "" if row.score_norm == NO_SCORE_NORM else f", SN {row.score_norm}"
        return f"{self.name} · {one_line(row.codec)}{one_line(norm)}"

    @property
    def shown(self) -> Row:
        """The last row."""
        return self.record.rows[-1]

    @property
    def threshold(self) -> float | None:
        """The least score of the largest recall at a precision of 0.9; None where that is never reached."""
        return self.shown.figures["score-at-p90"]

    @functools.cached_property
    def metrics(self) -> metrics.Metrics:
        """Every figure of the last row."""
        stored = self.record.predictions
        return metrics.evaluate(
            self.record.truth.pairs, stored.query_ids, stored.reference_ids, stored.scores
        )

    @functools.cached_property
    def scores(self) -> dict[tuple[str, str], float]:
        """The candidates' scores by query and reference, best first."""
        stored = self.record.predictions
        pairs = zip(stored.query_ids.tolist(), stored.reference_ids.tolist(), strict=True)
        scores = dict(zip(pairs, stored.scores.tolist(), strict=True))
        return dict(sorted(scores.items(), key=lambda item: -item[1]))

    @functools.cached_property
    def copies_and_others(self) -> tuple[np.ndarray, np.ndarray]:
        """The scores of the candidates that are copies, and of those that are not."""
        true = set(self.record.truth.pairs)
        split = ([], [])
        for pair, score in self.scores.items():
            split[pair not in true].append(score)
        return np.asarray(split[0]), np.asarray(split[1])

    def by_edit(self) -> dict[str, EditRecall]:
        """What was found, by kind of edit; a copy with several edits counts for each."""
        counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0])
        for pair, rank in zip(
            self.record.truth.pairs, self.metrics.true_ranks.tolist(), strict=True
        ):
            for edit in set(self.record.truth.edits.get(pair[0], ())):
                found = 1, rank == 0, self._is_above(self.scores.get(pair))
                counts[edit] = [a + b for a, b in zip(counts[edit], found, strict=True)]
        known = self.threshold is not None
        return {
            edit: EditRecall(copies, first, above if known else None)
            for edit, (copies, first, above) in counts.items()
        }

    def false_positives(self) -> list[Case]:
        """Each query's best wrong reference, highest score first."""
        cases = [
            self._case(FALSE_POSITIVE, query, self._first_true.get(query))
            for query in self._best_wrong
        ]
        return sorted(cases, key=lambda case: -case.found_score)

    def missed(self) -> list[Case]:
        """True pairs below the threshold, or behind a wrong one where there is no threshold.

        Those that are not among the candidates come first, with the most misleading wrong reference at the head;
        then the others by their score.
        """
        missed = []
        for (query, reference), rank in zip(
            self.record.truth.pairs, self.metrics.true_ranks.tolist(), strict=True
        ):
            if (
                rank > 0
                if self.threshold is None
                else not self._is_above(self.scores.get((query, reference)))
            ):
                missed.append(self._case(MISSED, query, reference))

        def order(case: Case) -> tuple[bool, float]:
            if case.true_score is None:
                return False, -(case.found_score if case.found is not None else -np.inf)
            return True, case.true_score

        return sorted(missed, key=order)

    def _is_above(self, score: float | None) -> bool:
        return score is not None and self.threshold is not None and score >= self.threshold

    @functools.cached_property
    def _best_wrong(self) -> dict[str, tuple[str, float]]:
        true, best = set(self.record.truth.pairs), {}
        for (query, reference), score in self.scores.items():
            if (query, reference) not in true:
                best.setdefault(query, (reference, score))
        return best

    @functools.cached_property
    def _first_true(self) -> dict[str, str]:
        return dict(reversed(self.record.truth.pairs))

    def _case(self, outcome: str, query: str, true: str | None) -> Case:
        found, score = self._best_wrong.get(query, (None, None))
        above = None if found is None or self.threshold is None else score >= self.threshold
        edits = self.record.truth.edits.get(query, ())
        true_score = None if true is None else self.scores.get((query, true))
        return Case(outcome, query, found, score, true, true_score, above, edits)


def read_runs(folders: Sequence[str | os.PathLike]) -> list[Run]:
    """Reads evaluations and names them apart.

    Args:
        folders: what `rdcd-jax evaluate` wrote, at least one.

    Returns:
        The runs in that order.

    Raises:
        UserError: a folder given twice, or see `read_record`.
    """
    paths = [pathlib.Path(os.path.realpath(folder)) for folder in folders]
    for position, path in enumerate(paths):
        if path in paths[:position]:
            raise UserError(f"{folders[position]}: is given twice; name each evaluation once.")
    records = [read_record(folder) for folder in folders]
    models = [one_line(record.model) or "unnamed descriptors" for record in records]
    names = []
    for model, path in zip(models, paths, strict=True):
        alike = [p for m, p in zip(models, paths, strict=True) if m == model and p != path]
        names.append(f"{model} ({one_line(_tail(path, alike))})" if alike else model)
    return [Run(name, record) for name, record in zip(names, records, strict=True)]


def _tail(path: pathlib.Path, others: Sequence[pathlib.Path]) -> str:
    """The shortest end of a path that no other path has."""
    for length in range(1, len(path.parts)):
        tail = path.parts[-length:]
        if all(other.parts[-length:] != tail for other in others):
            return "/".join(tail)
    return str(path)

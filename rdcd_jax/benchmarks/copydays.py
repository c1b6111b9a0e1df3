"""Copydays and CD10K: attacked copies ranked against their originals and distractors."""

import dataclasses
import os
import pathlib
from collections.abc import Collection, Sequence

import numpy as np

from rdcd_jax.benchmarks import metrics
from rdcd_jax.benchmarks.copydays_folder import (
    ORIGINAL,
    STRONG,
    block_of,
    block_order,
    originals_by_start,
    originals_of,
)
from rdcd_jax.benchmarks.disc import NO_SCORE_NORM, Predictions, write_predictions
from rdcd_jax.benchmarks.ground_truth import GroundTruth
from rdcd_jax.benchmarks.settings import Settings, candidate_count
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_csv, write_json
from rdcd_jax.embedding.codecs import parse_codec
from rdcd_jax.embedding.descriptors import Descriptors, require_comparable
from rdcd_jax.search.distances import nearest

COLUMNS = ("codec", "strong_mAP", "overall_uAP")
BLOCK_COLUMNS = ("codec", "block", "pictures", "mAP")
DEFAULT_K = 100
# What distractors' ids begin with where they stand beside originals'.
DISTRACTORS = "distractors/"
# Of the whole benchmark: 157 originals, 229 strong attacks, 9 JPEG qualities and 9 crops of 157.
IMAGES, BLOCKS = 3212, 20


@dataclasses.dataclass(frozen=True)
class Block:
    """The figure of one kind of attack.

    Attributes:
        name: such as "strong" or "crops/80".
        images: how many queries it has.
        mean_average_precision: 0 to 1.
    """

    name: str
    images: int
    mean_average_precision: float


@dataclasses.dataclass(frozen=True)
class CopydaysRow:
    """One line of the table.

    Attributes:
        codec: the codec's name.
        blocks: the originals and every kind of attack.
        overall: micro average precision of all blocks' queries ranked together, 0 to 1.
        metrics: DISC's figures of the same candidates, all blocks together.
    """

    codec: str
    blocks: tuple[Block, ...]
    overall: float
    metrics: "metrics.Metrics" = dataclasses.field(compare=False, repr=False)
    score_norm = NO_SCORE_NORM

    @property
    def strong(self) -> float:
        """The mean average precision of the strong attacks, 0 to 1."""
        return next(each for each in self.blocks if each.name == STRONG).mean_average_precision

    def cells(self) -> dict[str, str | float]:
        """Returns the row's published figures by column."""
        return dict(zip(COLUMNS, (self.codec, self.strong, self.overall), strict=True))


def evaluate_copydays(
    images: Descriptors,
    distractors: Descriptors | None = None,
    training: Descriptors | None = None,
    settings: Settings = Settings(),
    *,
    unreadable: Collection[str] = (),
) -> tuple[list[CopydaysRow], Predictions]:
    """Evaluates descriptors by every codec.

    Args:
        images: originals and copies, with ids such as "original/200000", "strong/200001" and "jpegqual/3/200000".
            All of them are queries; the originals are the database.
        distractors: images that the database holds beside the originals, whatever their ids; ten thousand make
            Copydays CD10K.
        training: descriptors of unrelated images; needed by whitening.
        settings: how they are compared; 100 candidates a query unless they say otherwise.
        unreadable: ids of originals and copies that could not be embedded; they count as missed.

    Returns:
        One row for each codec, and the candidates behind the last row. Their scores are 1 - d^2 / 2 of the distance d,
        the inner product where descriptors have length 1; distractors' ids begin with "distractors/".

    Raises:
        UserError: unknown names, sets that cannot be compared, images that are not Copydays', no strong attacks, no
            training descriptors where they are needed, an approximate backend, k above the size of the database.

    Source: SSCD's evaluation of Copydays: neighbours by Euclidean distance, each query with one positive.
        Differs: originals are found by name in every block, there by the order of the files in all but the strong one.
    """
    settings.require(training is not None)
    if settings.global_candidates or any(spec is not None for spec in settings.score_norms):
        raise UserError("Copydays knows neither score normalisation nor global candidates.")
    optional = {"the distractors": distractors, "the training set": training}
    require_comparable(
        {"Copydays": images} | {name: each for name, each in optional.items() if each is not None}
    )
    names = [*images.ids.tolist(), *unreadable]
    blocks, _ = _blocks_and_originals(names)
    own = blocks[: len(images)] == ORIGINAL
    n_distractors = 0 if distractors is None else len(distractors)
    most = np.count_nonzero(blocks == ORIGINAL) + n_distractors
    k = min(candidate_count(settings.k, DEFAULT_K, most), np.count_nonzero(own) + n_distractors)

    ids, truth = images.ids[own], true_pairs(names)
    if distractors is not None:
        ids = np.concatenate([ids, np.char.add(DISTRACTORS, distractors.ids)])

    rows = []
    for codec in map(parse_codec, settings.codecs):
        encode = codec.fit(None if training is None else training.descriptors)
        queries = encode(images.descriptors)
        database = queries[own]
        if distractors is not None:
            database = np.concatenate([database, encode(distractors.descriptors)])
        distances, found = nearest(queries, database, k, settings.backend)
        order = np.argsort(distances, axis=None, kind="stable")
        predictions = Predictions(
            np.repeat(images.ids, k)[order],
            ids[found].ravel()[order],
            (1 - distances.ravel()[order] / 2).astype(np.float32),
        )
        stored = metrics.evaluate(
            truth.pairs, predictions.query_ids, predictions.reference_ids, predictions.scores
        )
        rows.append(CopydaysRow(codec.name, *figures(names, found, distances), stored))
    return rows, predictions


def true_pairs(names: Sequence[str]) -> GroundTruth:
    """Every image, originals too, with its original; its block stands for what was done to it.

    Args:
        names: as in `figures`.

    Raises:
        UserError: as `figures`.
    """
    blocks, originals = _blocks_and_originals(names)
    edits = {name: (block,) for name, block in zip(names, blocks.tolist(), strict=True)}
    return GroundTruth("Copydays", tuple(zip(names, originals, strict=True)), (), edits)


def figures(
    names: Sequence[str], found: np.ndarray, distances: np.ndarray
) -> tuple[tuple[Block, ...], float]:
    """What the neighbours of Copydays' images amount to.

    Args:
        names: ids of the N images, see `evaluate_copydays`, and after them those of unreadable ones.
        found: [N, k] positions in the database, which begins with the N images' originals in their order.
        distances: [N, k] ascending.

    Returns:
        The figure of every block, and the overall micro average precision.

    Raises:
        UserError: names that are not of Copydays, or too few of them.
    """
    blocks, originals = _blocks_and_originals(names)
    database = (
        name for name, block in zip(names[: len(found)], blocks, strict=False) if block == ORIGINAL
    )
    # An original that could not be embedded has no position and is found by nobody.
    positions = {name: position for position, name in enumerate(database)}
    positives = np.asarray([positions.get(name, -1) for name in originals[: len(found)]])
    relevance = found == positives[:, None]
    precisions = np.zeros(len(names))
    for query, line in enumerate(relevance):
        precisions[query] = metrics.trapezoid_average_precision(np.flatnonzero(line), 1)
    by_block = (
        Block(name, int(np.sum(blocks == name)), float(precisions[blocks == name].mean()))
        for name in sorted(set(blocks.tolist()), key=block_order)
    )
    return tuple(by_block), metrics.macro_average_precision(relevance, distances, len(names))


def write_copydays_results(
    folder: str | os.PathLike, rows: Sequence[CopydaysRow], predictions: Predictions
) -> None:
    """Writes `copydays_metrics.csv`, `metrics.json`, `predictions.csv` and, of every kind of attack,
    `copydays_blocks.csv`.

    Args:
        folder: where to; it is made if missing.
        rows: the table.
        predictions: those of the last row.
    """
    folder = pathlib.Path(folder)
    cells = [row.cells() for row in rows]
    write_csv(folder / "copydays_metrics.csv", COLUMNS, (row.values() for row in cells))
    write_json(folder / "metrics.json", cells)
    lines = (
        (row.codec, block.name, block.images, block.mean_average_precision)
        for row in rows
        for block in row.blocks
    )
    write_csv(folder / "copydays_blocks.csv", BLOCK_COLUMNS, lines)
    write_predictions(folder, predictions)


def _blocks_and_originals(names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The block of each image, and the original that it was made from."""
    blocks = np.asarray([block_of(name, "Copydays") for name in names], np.str_)
    for needed in (ORIGINAL, STRONG):
        if needed not in blocks:
            raise UserError(
                f"Copydays: there are no images of the part {needed!r}, whose ids are such as {needed}/200000; "
                "give the whole benchmark."
            )
    originals = [name for name, block in zip(names, blocks, strict=True) if block == ORIGINAL]
    return blocks, originals_of(names, names, originals_by_start(originals, "Copydays"))

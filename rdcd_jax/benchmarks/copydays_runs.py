"""What the command line's `evaluate copydays` does, as functions of plain arguments."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from rdcd_jax.benchmarks import copydays
from rdcd_jax.benchmarks.copydays_folder import ORIGINAL, find_copydays_images
from rdcd_jax.benchmarks.record import Measured, write_record
from rdcd_jax.benchmarks.settings import Settings, candidate_count
from rdcd_jax.core.hosts import written_by_first
from rdcd_jax.embedding.descriptors import Descriptors, read_sets
from rdcd_jax.embedding.service import Progress, embedded_sets
from rdcd_jax.embedding.stream import EmbeddingModel, Unreadable
from rdcd_jax.images.passed_over import warn_left_out
from rdcd_jax.images.sources import ImageSet, find_images


def evaluate_copydays_run(
    model: EmbeddingModel,
    data: str | os.PathLike,
    out: str | os.PathLike,
    *,
    distractors: str | os.PathLike | None = None,
    training: str | os.PathLike | None = None,
    batch_size: int = 32,
    keep_descriptors: bool = True,
    on_progress: Progress | None = None,
    **settings: Any,
) -> tuple[list[copydays.CopydaysRow], list[Unreadable]]:
    """Embeds Copydays' images and evaluates them.

    Args:
        model: the model, at the size that the images are to have.
        data: the folder, see `copydays_folder.find_blocks`.
        out: folder for `copydays_metrics.csv`, `metrics.json`, `copydays_blocks.csv`, `predictions.csv` (of the
            last row), `descriptors/*.npz`, what a report is made of (see `write_record`), and `unreadable.txt` where
            images were left out.
        distractors: a source of images that copies are also compared with.
        training: a source of images that whitening is fitted on. They are embedded only if a codec needs them.
        batch_size: images at a time.
        keep_descriptors: keeps them in `descriptors/`.
        on_progress: called with "copydays", "distractors" or "training", images done and in all.
        settings: of `Settings.written`: codecs, k, backend.

    Returns:
        The table, and the images left out (Copydays' own count as missed).

    Raises:
        UserError: as `evaluate_disc`.
    """
    compared, images = copydays_inputs(
        data, getattr(model, "dim", None), distractors, training, **settings
    )
    out = pathlib.Path(out)
    with (
        embedded_sets(model, images, out, batch_size, on_progress, keep=keep_descriptors) as found,
        written_by_first(out) as results,
    ):
        embedded, left_out = found
        unreadable = [each.id for each in left_out["copydays"]]
        rows, predictions = copydays.evaluate_copydays(
            embedded["copydays"],
            embedded.get("distractors"),
            embedded.get("training"),
            compared,
            unreadable=unreadable,
        )
        copydays.write_copydays_results(results, rows, predictions)
        shown = {"copydays": data}
        if distractors is not None:
            shown["distractors"] = images["distractors"].source
        measured = Measured(data, shown, model.image_size, model.short_edge)
        sets = embedded["copydays"], embedded.get("distractors")
        _write_record(results, rows, *sets, measured, unreadable)
    return rows, [each for some in left_out.values() for each in some]


def copydays_inputs(
    data: str | os.PathLike,
    dim: int | None,
    distractors: str | os.PathLike | None,
    training: str | os.PathLike | None,
    **settings: Any,
) -> tuple[Settings, dict[str, ImageSet]]:
    """What an evaluation is made of, before any image is opened.

    Args:
        data: the folder.
        dim: D, dimensions of the descriptors; None where not known.
        distractors: as of `evaluate_copydays_run`.
        training: likewise.
        settings: likewise.

    Returns:
        The settings; the images, those for training only where something is fitted on them.

    Raises:
        UserError: a part is missing, or they cannot work together.
    """
    compared = Settings.written(training is not None, score_norm="None", **settings)
    images = {"copydays": find_copydays_images(data)}
    for name, source in {"distractors": distractors, "training": training}.items():
        if source is not None:
            # Nothing asks what these are called.
            images[name] = find_images(source, ids="path")
            warn_left_out(images[name])
    if not compared.needs_training:
        images.pop("training", None)
    originals = sum(each.startswith(f"{ORIGINAL}/") for each in images["copydays"].ids)
    candidate_count(compared.k, copydays.DEFAULT_K, originals + len(images.get("distractors", ())))
    compared.require_dimensions(dim, len(images.get("training", ())))
    return compared, images


def evaluate_copydays_files(
    images: str | os.PathLike,
    out: str | os.PathLike,
    *,
    distractors: str | os.PathLike | None = None,
    training: str | os.PathLike | None = None,
    **settings: Any,
) -> list[copydays.CopydaysRow]:
    """Evaluates descriptor files of Copydays.

    Args:
        images: a file of originals and copies, whose ids tell their part: "strong/200001", "jpegqual/3/200000".
        out: folder for `copydays_metrics.csv`, `metrics.json`, `copydays_blocks.csv`, `predictions.csv` and what a
            report is made of.
        distractors: a descriptor file.
        training: a descriptor file.
        settings: as of `evaluate_copydays_run`.

    Returns:
        The table.

    Raises:
        UserError: anything wrong with the files or names.
    """
    compared = Settings.written(training is not None, score_norm="None", **settings)
    read = read_sets({"query": images, "distractor": distractors, "training": training})
    rows, predictions = copydays.evaluate_copydays(
        read["query"],
        read.get("distractor"),
        read.get("training"),
        compared,
    )
    with written_by_first(pathlib.Path(out)) as results:
        copydays.write_copydays_results(results, rows, predictions)
        _write_record(results, rows, read["query"], read.get("distractor"), Measured(images))
    return rows


def _write_record(
    out: str | os.PathLike,
    rows: list[copydays.CopydaysRow],
    found: Descriptors,
    distractors: Descriptors | None,
    measured: Measured,
    unreadable: Sequence[str] = (),
) -> None:
    """As `write_record`: the database is the originals with the distractors."""
    truth = copydays.true_pairs([*found.ids.tolist(), *unreadable])
    # Originals are their own.
    own = np.isin(found.ids, [original for _, original in truth.pairs])
    ids, database = found.ids[own], found.descriptors[own]
    if distractors is not None:
        ids = np.concatenate([ids, distractors.ids])
        database = np.concatenate([database, distractors.descriptors])
    references = dataclasses.replace(found, ids=ids, descriptors=database)
    write_record(out, rows, truth, references, queries=len(found), measured=measured)

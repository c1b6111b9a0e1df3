"""What the command line's `evaluate disc` and `evaluate ndec` do, as functions of plain arguments."""

import os
import pathlib
from typing import Any, NamedTuple

from rdcd_jax.benchmarks import disc
from rdcd_jax.benchmarks.calibrating import write_calibration
from rdcd_jax.benchmarks.ground_truth import (
    DiscLayout,
    GroundTruth,
    find_disc_layout,
    find_ndec_layout,
    read_ground_truth,
    require_known_ids,
    warn_of_unnamed,
)
from rdcd_jax.benchmarks.record import Measured, require_apart, write_record
from rdcd_jax.benchmarks.settings import Settings, candidate_count
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.hosts import written_by_first
from rdcd_jax.embedding.descriptors import read_sets
from rdcd_jax.embedding.service import Progress, embedded_sets
from rdcd_jax.embedding.stream import EmbeddingModel, Unreadable
from rdcd_jax.images.passed_over import warn_left_out
from rdcd_jax.images.sources import ImageSet, find_images

# The benchmarks that are evaluated as DISC2021 is.
LAYOUTS = {"disc": find_disc_layout, "ndec": find_ndec_layout}
# Side of the images where a benchmark's own differs from the model's.
IMAGE_SIZES = {"ndec": 224}


class Evaluation(NamedTuple):
    """What an evaluation came to.

    Attributes:
        rows: the table, one row for each codec and score normalisation.
        predictions: the ranked pairs behind the last row.
        unreadable: images that were left out; their pairs count as missed.
    """

    rows: list[disc.DiscRow]
    predictions: disc.Predictions
    unreadable: list[Unreadable]


def evaluate_disc(
    model: EmbeddingModel,
    data: str | os.PathLike | DiscLayout,
    out: str | os.PathLike,
    *,
    benchmark: str = "disc",
    training: str | os.PathLike | None = None,
    batch_size: int = 32,
    keep_descriptors: bool = True,
    on_progress: Progress | None = None,
    **settings: Any,
) -> Evaluation:
    """Embeds the images of a DISC-shaped folder, or of NDEC's, and evaluates them.

    Args:
        model: the model, at the size that the images are to have.
        data: the folder, see `find_disc_layout` and `find_ndec_layout`; or its parts, any sources of images.
        out: folder for `disc_metrics.csv` (or `ndec_`), `metrics.json`, `predictions.csv` (of the last row),
            `calibration.json` (where some matches are right and some wrong: what a score of the descriptors as they are
            means, and one that the model's background normalised), `descriptors/*.npz`, what a report is made of (see
            `write_record`), and `unreadable.txt` where images were left out.
        benchmark: "disc" or "ndec".
        training: a source of training images in place of the folder's own.
        batch_size: images at a time.
        keep_descriptors: keeps them in `descriptors/`, so that other codecs need not embed everything again.
        on_progress: called with "queries", "references" or "training", images done and in all.
        settings: of `Settings.written`: codecs, score_norm, k, global_candidates, backend. Training images are embedded
            only if something needs them.

    Returns:
        The table, the ranked pairs behind its last row, and the images that were left out.

    Raises:
        UserError: anything wrong with the folder, names or files; before any image is embedded
            where that can be known.

    Examples:
        >>> import importlib.resources, pathlib, tempfile
        >>> import rdcd_jax as rdcd
        >>> sample = pathlib.Path(str(importlib.resources.files("rdcd_jax") / "sample" / "references"))
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for part in ("queries", "references"):
        ...     (folder / part).mkdir()
        ...     for path in sorted(sample.iterdir())[:3]:
        ...         copied = (folder / part / path.name).write_bytes(path.read_bytes())
        >>> _ = (folder / "ground_truth.csv").write_text(f"{path.stem},{path.stem}\\n")
        >>> found = rdcd.evaluate_disc(rdcd.load_model("rdcd-effb0-64"), folder, folder / "results")
        >>> found.rows[0].metrics.recall_at_1
        1.0
    """
    if benchmark not in LAYOUTS:
        raise UserError(f"There is no benchmark '{benchmark}'; use one of {', '.join(LAYOUTS)}.")
    layout = data if isinstance(data, DiscLayout) else LAYOUTS[benchmark](data)
    measured_on = layout.ground_truth if data is layout else data
    require_apart(out, layout.ground_truth)
    compared, images, truth = disc_inputs(layout, getattr(model, "dim", None), training, **settings)
    warn_of_unnamed(truth, images["queries"].ids)
    out = pathlib.Path(out)
    with (
        embedded_sets(model, images, out, batch_size, on_progress, keep=keep_descriptors) as found,
        written_by_first(out) as results,
    ):
        embedded, left_out = found
        unreadable = [each for some in left_out.values() for each in some]
        search = disc.RememberingSearch(embedded["references"].descriptors)
        rows, predictions = disc.evaluate_descriptors(
            embedded["queries"],
            embedded["references"],
            embedded.get("training"),
            truth,
            compared,
            unreadable=[each.id for each in unreadable],
            search=search,
        )
        disc.write_disc_results(results, rows, predictions, benchmark=benchmark)
        background = getattr(model, "background", None)
        sets = embedded["queries"], embedded["references"]
        write_calibration(results, *sets, truth, measured_on, background, search)
        shown = {name: images[name].source for name in ("queries", "references")}
        measured = Measured(measured_on, shown, model.image_size, model.short_edge)
        write_record(results, rows, truth, sets[1], queries=len(sets[0]), measured=measured)
    return Evaluation(rows, predictions, unreadable)


def disc_inputs(
    layout: DiscLayout, dim: int | None, training: str | os.PathLike | None, **settings: Any
) -> tuple[Settings, dict[str, ImageSet], GroundTruth]:
    """What an evaluation is made of, before any image is opened.

    Args:
        layout: where its parts lie.
        dim: D, dimensions of the descriptors; None where not known.
        training: in place of the layout's own training images.
        settings: as of `evaluate_disc`.

    Returns:
        The settings; the images, those for training only where something is fitted on them; the true pairs.

    Raises:
        UserError: a part is missing, or they cannot work together.
    """
    given = training is not None
    training = training if given else layout.training
    compared = Settings.written(training is not None, **settings)
    sources = {"queries": layout.queries, "references": layout.references}
    if given or compared.needs_training:
        sources["training"] = training
    images = {name: find_images(source) for name, source in sources.items()}
    for each in images.values():
        warn_left_out(each)
    if not compared.needs_training:
        images.pop("training", None)
    candidate_count(compared.k, disc.DEFAULT_K, len(images["references"]))
    compared.require_dimensions(dim, len(images.get("training", ())))
    truth = read_ground_truth(layout.ground_truth)
    require_known_ids(truth, images["queries"].ids, images["references"].ids)
    return compared, images, truth


def evaluate_disc_files(
    queries: str | os.PathLike,
    references: str | os.PathLike,
    ground_truth: str | os.PathLike,
    out: str | os.PathLike,
    *,
    benchmark: str = "disc",
    training: str | os.PathLike | None = None,
    **settings: Any,
) -> Evaluation:
    """Evaluates descriptor files.

    Args:
        queries: an `.npz` or `.h5` file.
        references: likewise; may be the same `.h5` file where it holds both.
        ground_truth: a CSV file.
        out: folder for `disc_metrics.csv` (or `ndec_`), `metrics.json`, `predictions.csv` (of the last row),
            `calibration.json` and what a report is made of.
        benchmark: as in `evaluate_disc`.
        training: a descriptor file of unrelated images.
        settings: as of `evaluate_disc`.

    Returns:
        As `evaluate_disc`.

    Raises:
        UserError: anything wrong with the files or names.
    """
    compared = Settings.written(training is not None, **settings)
    require_apart(out, ground_truth)
    truth = read_ground_truth(ground_truth)
    read = read_sets({"query": queries, "reference": references, "training": training})
    warn_of_unnamed(truth, read["query"].ids.tolist())
    search = disc.RememberingSearch(read["reference"].descriptors)
    rows, predictions = disc.evaluate_descriptors(
        read["query"],
        read["reference"],
        read.get("training"),
        truth,
        compared,
        search=search,
    )
    sets, measured = (read["query"], read["reference"]), Measured(ground_truth)
    with written_by_first(pathlib.Path(out)) as results:
        disc.write_disc_results(results, rows, predictions, benchmark=benchmark)
        write_calibration(results, *sets, truth, ground_truth, search=search)
        write_record(results, rows, truth, sets[1], queries=len(sets[0]), measured=measured)
    return Evaluation(rows, predictions, [])

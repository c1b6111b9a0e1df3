"""What the command line's `embed` and `evaluate` do, as functions of plain arguments."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from rdcd_jax.data.sources import ImageSet, find_images
from rdcd_jax.errors import UserError, one_line
from rdcd_jax.evaluation import protocols, search
from rdcd_jax.evaluation.calibration import fit_calibration
from rdcd_jax.evaluation.codecs import parse_codecs
from rdcd_jax.evaluation.descriptors import (
    Descriptors,
    descriptor_suffix,
    read_descriptors,
    require_comparable,
)
from rdcd_jax.evaluation.embed import DescribingModel, Unreadable
from rdcd_jax.evaluation.ground_truth import (
    GroundTruth,
    find_disc_layout,
    find_ndec_layout,
    read_ground_truth,
    require_known_ids,
)
from rdcd_jax.evaluation.parts import Embedded, Parts, open_parts
from rdcd_jax.evaluation.record import write_record
from rdcd_jax.evaluation.score_norm import DEFAULT, parse_score_norms, query_adjustment
from rdcd_jax.evaluation.settings import candidate_count, needs_training, require_settings
from rdcd_jax.files import require_writable, write_json, write_text

DEFAULT_CODECS = "Flat"
# Without a training set there is nothing to normalise by.
DEFAULT_SCORE_NORMS = {True: f"None;{DEFAULT}", False: "None"}

# The benchmarks that are evaluated as DISC2021 is.
LAYOUTS = {"disc": find_disc_layout, "ndec": find_ndec_layout}
# Side of the pictures where a benchmark's own differs from the model's.
IMAGE_SIZES = {"ndec": 224}

# Matches of each query that a calibration is fitted to, as many as a search gives.
_CALIBRATED = 10

# Called with what is being described ("queries", ...), pictures done and pictures in all.
Progress = Callable[[str, int, int], None]


def embed_to_file(
    model: DescribingModel,
    images: str | os.PathLike | ImageSet,
    out: str | os.PathLike,
    *,
    batch_size: int = 32,
    process: tuple[int, int] | None = None,
    on_progress: Progress | None = None,
) -> Embedded | None:
    """Describes pictures and writes the descriptors, as many pictures as there may be.

    What is described lies in the folder `<out>.parts` until all is (see `parts`): the same call goes on with what
    is there, and several processes share the work.

    Args:
        model: the model.
        images: a source of pictures, or pictures found already.
        out: an `.npz` or `.h5` file. Where pictures are unreadable, `<out>.unreadable.txt` lists
            them, one sentence a line.
        batch_size: pictures at a time.
        process: this process's number, from 0, and the number of processes that share the work; for None what JAX says.
        on_progress: told the source, pictures done and in all, of this process's share.

    Returns:
        What the file holds; None where another process will write it, or has.

    Raises:
        UserError: no pictures, none readable, `out` of another kind, parts of another embedding beside it.
        OSError: `out` cannot be written.
    """
    # Told before the pictures are described.
    descriptor_suffix(out)
    require_writable(out)
    images = images if isinstance(images, ImageSet) else find_images(images)
    process = process or (jax.process_index(), jax.process_count())
    with open_parts(out, model, images, process) as parts:
        parts.fill(model, batch_size, _told(on_progress, images.source))
        found = parts.join()
    if found is not None:
        _list_unreadable(pathlib.Path(f"{out}.unreadable.txt"), found.unreadable)
    return found


def evaluate_disc_run(
    model: DescribingModel,
    data: str | os.PathLike,
    out: str | os.PathLike,
    *,
    benchmark: str = "disc",
    training: str | os.PathLike | None = None,
    codecs: str = DEFAULT_CODECS,
    score_norm: str | None = None,
    k: int | None = None,
    global_candidates: bool = False,
    backend: str = "jax",
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> tuple[list[protocols.DiscRow], protocols.Predictions, list[Unreadable]]:
    """Describes the pictures of a DISC-shaped folder, or of NDEC's, and evaluates them.

    Args:
        model: the model, at the size that the pictures are to have.
        data: the folder, see `find_disc_layout` and `find_ndec_layout`.
        out: folder for `disc_metrics.csv` (or `ndec_`), `metrics.json`, `predictions.csv` (of the last row),
            `calibration.json` (where some matches are right and some wrong: what a score of the descriptors as they are
            means, and one that the model's background normalised), `descriptors/*.npz`, what a report is made of (see
            `write_record`), and `unreadable.txt` where pictures were left out.
        benchmark: "disc" or "ndec".
        training: a source of training pictures in place of the folder's own.
        codecs: codecs separated by `;`.
        score_norm: normalisations separated by `;`; by default "None;1.0[0,2]", or "None" where
            there is no training set. Training pictures are described only if something needs them.
        k: candidates a query; 10 for None, or all references where there are fewer.
        global_candidates: k * N best pairs of all instead of k of each query.
        backend: an exact search backend.
        batch_size: pictures at a time.
        on_progress: told "queries", "references" or "training", pictures done and in all.

    Returns:
        The table, the predictions behind its last row, and the pictures left out (their pairs count
        as missed).

    Raises:
        UserError: anything wrong with the folder, names or files; before any picture is described
            where that can be known.
    """
    layout = LAYOUTS[benchmark](data)
    training = layout.training if training is None else training
    settings = _settings(codecs, score_norm, training is not None, k=k, backend=backend)
    sources = {"queries": layout.queries, "references": layout.references}
    if needs_training(settings["codecs"], settings["score_norms"]):
        sources["training"] = training
    images = {name: find_images(source) for name, source in sources.items()}
    candidate_count(k, protocols.DEFAULT_K, len(images["references"]))
    truth = read_ground_truth(layout.ground_truth)
    require_known_ids(truth, images["queries"].ids, images["references"].ids)

    out = pathlib.Path(out)
    with described_sets(model, images, out, batch_size, on_progress) as (described, left_out):
        unreadable = [each for some in left_out.values() for each in some]
        rows, predictions = protocols.evaluate_disc(
            described["queries"],
            described["references"],
            described.get("training"),
            truth,
            global_candidates=global_candidates,
            unreadable=[each.id for each in unreadable],
            **settings,
        )
        protocols.write_disc_results(out, rows, predictions, benchmark=benchmark)
        background = getattr(model, "background", None)
        sets = described["queries"], described["references"]
        _write_calibration(out, *sets, truth, data, background)
        write_record(
            out,
            rows,
            truth,
            described["references"],
            queries=len(described["queries"]),
            measured_on=data,
            image_size=model.image_size,
            short_edge=model.short_edge,
            pictures={name: images[name].source for name in ("queries", "references")},
        )
    return rows, predictions, unreadable


def evaluate_disc_files(
    queries: str | os.PathLike,
    references: str | os.PathLike,
    ground_truth: str | os.PathLike,
    out: str | os.PathLike,
    *,
    benchmark: str = "disc",
    training: str | os.PathLike | None = None,
    codecs: str = DEFAULT_CODECS,
    score_norm: str | None = None,
    k: int | None = None,
    global_candidates: bool = False,
    backend: str = "jax",
) -> tuple[list[protocols.DiscRow], protocols.Predictions]:
    """Evaluates descriptor files.

    Args:
        queries: an `.npz` or `.h5` file.
        references: likewise; may be the same `.h5` file where it holds both.
        ground_truth: a CSV file.
        out: folder for `disc_metrics.csv` (or `ndec_`), `metrics.json`, `predictions.csv` (of the last row),
            `calibration.json` and what a report is made of.
        benchmark: as in `evaluate_disc_run`.
        training: a descriptor file of unrelated pictures.
        codecs: as in `evaluate_disc_run`.
        score_norm: as in `evaluate_disc_run`.
        k: as in `evaluate_disc_run`.
        global_candidates: as in `evaluate_disc_run`.
        backend: as in `evaluate_disc_run`.

    Returns:
        The table, and the predictions behind its last row.

    Raises:
        UserError: anything wrong with the files or names.
    """
    settings = _settings(codecs, score_norm, training is not None, k=k, backend=backend)
    truth = read_ground_truth(ground_truth)
    read = read_sets({"query": queries, "reference": references, "training": training})
    rows, predictions = protocols.evaluate_disc(
        read["query"],
        read["reference"],
        read.get("training"),
        truth,
        global_candidates=global_candidates,
        **settings,
    )
    protocols.write_disc_results(out, rows, predictions, benchmark=benchmark)
    _write_calibration(pathlib.Path(out), read["query"], read["reference"], truth, ground_truth)
    write_record(
        out, rows, truth, read["reference"], queries=len(read["query"]), measured_on=ground_truth
    )
    return rows, predictions


@contextlib.contextmanager
def described_sets(
    model: DescribingModel,
    images: Mapping[str, ImageSet],
    out: pathlib.Path,
    batch_size: int,
    on_progress: Progress | None,
) -> Iterator[tuple[dict[str, Descriptors], dict[str, list[Unreadable]]]]:
    """Describes the sets of a benchmark; whatever ends the block early, the same call need not describe them again.

    Args:
        model: the model.
        images: sets by name.
        out: folder for `descriptors/NAME.npz`, and for `unreadable.txt` where pictures were left out.
        batch_size: pictures at a time.
        on_progress: told the set's name, pictures done and in all.

    Yields:
        Descriptors and the pictures left out, by the sets' names.
    """
    # Kept, so that other codecs and normalisations need not describe everything again.
    paths = {name: out / "descriptors" / f"{name}.npz" for name in images}
    with contextlib.ExitStack() as opened:
        parts: dict[str, Parts] = {}
        for name, each in images.items():
            require_writable(paths[name])
            parts[name] = opened.enter_context(open_parts(paths[name], model, each, (0, 1)))
        for name, each in parts.items():
            each.fill(model, batch_size, _told(on_progress, name))
        left_out = {name: each.join(keep=True).unreadable for name, each in parts.items()}
        described = {name: read_descriptors(path) for name, path in paths.items()}
        every = [each for some in left_out.values() for each in some]
        _list_unreadable(out / "unreadable.txt", every)
        yield described, left_out
        for each in parts.values():
            each.remove()


def read_sets(parts: Mapping[str, str | os.PathLike | None]) -> dict[str, Descriptors]:
    """Reads the descriptor files of a benchmark.

    Args:
        parts: files by part, such as "query"; None for a part that there is not.

    Returns:
        Descriptors by part.

    Raises:
        UserError: a broken file, or files of different models.
    """
    # Read under the files' own names, so that an error says which two do not belong together.
    read = {part: read_descriptors(path, part) for part, path in parts.items() if path is not None}
    require_comparable({f"{part} file {parts[part]}": each for part, each in read.items()})
    return read


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


def best_matches(
    queries: Descriptors,
    references: Descriptors,
    truth: GroundTruth,
    background: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The matches that a calibration is fitted to.

    Args:
        queries: N descriptors, those of distractors included.
        references: descriptors.
        truth: the true pairs.
        background: [T, D] float32, to normalise scores by.

    Returns:
        scores [N, k] float32 of each query's ten best references, or of all where there are fewer, and whether each is
        a copy [N, k] bool.
    """
    k = min(_CALIBRATED, len(references))
    scores, places = search.knn(queries.descriptors, references.descriptors, k)
    if background is not None:
        scores = scores + query_adjustment(queries.descriptors, background, DEFAULT)[:, None]
    true = set(truth.pairs)
    found = zip(queries.ids.tolist(), references.ids[places].tolist(), strict=True)
    correct = [[(query, reference) in true for reference in row] for query, row in found]
    return scores, np.asarray(correct, bool)


def _write_calibration(
    out: pathlib.Path,
    queries: Descriptors,
    references: Descriptors,
    truth: GroundTruth,
    measured_on: str | os.PathLike,
    background: np.ndarray | None = None,
) -> None:
    """Writes `calibration.json` where there are right and wrong matches: of the descriptors as they are, and of scores
    that the background normalised."""
    path = out / "calibration.json"
    name = pathlib.Path(os.path.abspath(measured_on)).name

    def fitted(background: np.ndarray | None) -> dict:
        scores, correct = best_matches(queries, references, truth, background)
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
        told = fitted(None)
        if background is not None:
            told["normalised"] = fitted(background)
        write_json(path, told)


def _settings(
    codecs: str, score_norm: str | None, has_training: bool, *, k: int | None, backend: str
) -> dict:
    """Arguments of `protocols.evaluate_disc`, checked before anything costly is done."""
    norms = parse_score_norms(
        DEFAULT_SCORE_NORMS[has_training] if score_norm is None else score_norm
    )
    names = codec_names(codecs, norms, has_training, k=k, backend=backend)
    return {"codecs": names, "score_norms": norms, "k": k, "backend": backend}


def _told(on_progress: Progress | None, name: str) -> Callable[[int, int], None]:
    """The callback of one set."""
    return lambda done, total: None if on_progress is None else on_progress(name, done, total)


def _list_unreadable(path: pathlib.Path, unreadable: Sequence[Unreadable]) -> None:
    """Writes one sentence a line, or removes the list of an earlier run."""
    if unreadable:
        write_text(path, "".join(f"{one_line(each.reason)}\n" for each in unreadable))
    else:
        path.unlink(missing_ok=True)

"""The main job on the bundled images: copies are found, then a compact descriptor is distilled and compared."""

import contextlib
import dataclasses
import importlib.resources
import importlib.util
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from rdcd_jax.augment.assets import assets_folder
from rdcd_jax.benchmarks.disc import DiscRow, Predictions
from rdcd_jax.benchmarks.disc_runs import evaluate_disc
from rdcd_jax.benchmarks.ground_truth import DiscLayout, find_disc_layout, read_ground_truth
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_json
from rdcd_jax.embedding.stream import Embedder, EmbeddingModel
from rdcd_jax.images.perceptual import BITS, perceptual_hash
from rdcd_jax.images.sources import find_images
from rdcd_jax.index.search import Index
from rdcd_jax.report.matches import draw_matches, match_rows
from rdcd_jax.training.config import find_config, load_config
from rdcd_jax.training.fitting import featured
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.weights import store
from rdcd_jax.weights.library import load_model

SAMPLE = importlib.resources.files("rdcd_jax") / "sample"
SHIPPED = "rdcd-effb0-128"
# Bytes of a number in an int8 index.
_BYTES = 1
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the table at the end.

    Attributes:
        model: what is measured.
        dim: dimensions of its descriptor, or bits of a hash.
        bytes: of one image's descriptor.
        row: the figures.
    """

    model: str
    dim: int
    bytes: int
    row: DiscRow


def run_demo(out: pathlib.Path) -> None:
    """Finds copies with a shipped student, trains a descriptor, and compares; a run cut short is continued.

    What a bare installation lacks is left out, and how to get it is reported: without a teacher nothing is distilled,
    and without fonts and emoji the views have no overlays.

    Args:
        out: folder for the index, `found.html`, the run, the evaluations, `matches.png` and `demo.json`.
    """
    # A continued run must find its own images and features under the same names.
    out = out.resolve()
    with importlib.resources.as_file(SAMPLE) as sample:
        layout = find_disc_layout(sample)
        _find_copies(layout, out)
        lines = _distil(sample, out)
        with _timed(f"Evaluating {SHIPPED}, as it is shipped"):
            shipped, predictions = _evaluated(load_model(SHIPPED), sample, out / "shipped")
        lines.append(Line(f"{SHIPPED}, as shipped", 128, 128 * _BYTES, shipped[0]))
        with _timed("Evaluating a perceptual hash"):
            hashed, _ = _evaluated(_PHASH, sample, out / "phash")
        lines.append(Line("pHash, what one would use instead", BITS, BITS // 8, hashed[0]))
        queries, references = find_images(layout.queries), find_images(layout.references)
        rows = match_rows(predictions, read_ground_truth(layout.ground_truth))
        draw_matches(out / "matches.png", rows, queries, references)
    _print_table(lines)
    write_json(
        out / "demo.json",
        [
            {"model": line.model, "dim": line.dim, "bytes": line.bytes, **line.row.cells()}
            for line in lines
        ],
    )
    print(f"Every query beside what was found for it: {out / 'found.html'}")


def _find_copies(layout: DiscLayout, out: pathlib.Path) -> None:
    """What a user does: an index of one's images, a search for copies of them, a page to look at."""
    truth = read_ground_truth(layout.ground_truth)
    with _timed("Making an index of the bundled references"):
        index = Index.build(out / "references.index", layout.references, model=SHIPPED)
    with _timed("Searching it for copies"):
        matches = index.search(layout.queries)
    matches.save(out / "found.html", {name: ", ".join(made) for name, made in truth.edits.items()})
    pairs = {(match.query, match.reference) for match in matches}
    right = len(pairs & set(truth.pairs))
    print(
        f"Of {len(truth.pairs)} edited copies {right} were found, and {len(pairs) - right} other pairs were reported,"
        f" among {len(index)} images: {out / 'found.html'}"
    )


def _distil(sample: pathlib.Path, out: pathlib.Path) -> list[Line]:
    """Trains a compact descriptor on a trunk, and measures before, after and the teacher; nothing without a teacher."""
    # On a CPU onnxruntime runs the teacher five times as fast.
    spec = "onnxruntime" if importlib.util.find_spec("onnxruntime") else "sscd"
    teacher = _unless_missing(lambda: load_model(spec), "Without it nothing is distilled.")
    if teacher is None:
        return []
    for licence in store.teacher_licences():
        print(f"Teacher: {licence}")
    config = load_config(f"{find_config('demo')}:data={sample / 'train'}", [])
    config.teacher.model = spec
    if not _unless_missing(assets_folder, "The views have no text and emoji."):
        config.data.policy += "_NO_OVERLAY"
    dim = config.student.dim
    trunk = featured(load_model(config.init_from))
    with _timed("Evaluating the trunk before the training"):
        codecs = f"Flat;PCAW{dim},L2norm,Flat"
        (feature, whitened), _ = _evaluated(trunk, sample, out / "before", codecs)
    with _timed("Evaluating the teacher"):
        (taught,), _ = _evaluated(teacher, sample, out / "teacher")
    with _timed("Training the descriptor"):
        train_and_evaluate(config, out / "run")
    with _timed("Evaluating the student after the training"):
        after, _ = _evaluated(load_model(str(out / "run" / "export")), sample, out / "after")
    print(f"The student: --model={out / 'run' / 'export'}")
    wide = 512 * _BYTES
    return [
        Line("teacher, SSCD ResNet-50", 512, wide, taught),
        Line("before: the student's trunk, its feature as it is", 512, wide, feature),
        Line("before: whitened to the descriptor's size", dim, dim * _BYTES, whitened),
        Line("after: distilled just now", dim, dim * _BYTES, after[0]),
    ]


def _hashes(batch: np.ndarray) -> np.ndarray:
    """Perceptual hashes [B, 64] as signs, whose inner product tells in how many bits two agree; 0 without structure."""
    rows = np.zeros((len(batch), BITS), np.float32)
    for row, pixels in zip(rows, batch, strict=True):
        found = perceptual_hash(Image.fromarray(pixels))
        if found is not None:
            bits = (found[0] >> np.arange(BITS, dtype=np.uint64)) & np.uint64(1)
            row[:] = np.where(bits == 1, np.float32(BITS**-0.5), np.float32(-(BITS**-0.5)))
    return rows


_PHASH = Embedder(_hashes, name="pHash")


def _unless_missing(find: Callable[[], T], consequence: str) -> T | None:
    try:
        return find()
    except UserError as error:
        print(f"{error} {consequence}")
        return None


def _evaluated(
    model: EmbeddingModel, sample: pathlib.Path, out: pathlib.Path, codecs: str = "Flat"
) -> tuple[list[DiscRow], Predictions]:
    """Rows without score normalisation, searched by ScaNN where there is one."""
    # ScaNN has wheels for Linux only; exact search in JAX gives the same answers.
    backend = "scann" if importlib.util.find_spec("scann") else "jax"
    rows, predictions, _ = evaluate_disc(
        model, sample, out, codecs=codecs, score_norm="None", backend=backend
    )
    return rows, predictions


def _print_table(lines: list[Line]) -> None:
    table = Table(
        "model",
        "dimensions",
        "bytes",
        "µAP",
        "recall@P90",
        title="Percent, on the bundled sample, without score normalisation",
    )
    for line in lines:
        figures = line.row.metrics.average_precision, line.row.metrics.recall_at_p90
        table.add_row(
            line.model,
            str(line.dim),
            str(line.bytes),
            *("-" if value is None else f"{100 * value:.1f}" for value in figures),
        )
    Console().print(table)


@contextlib.contextmanager
def _timed(what: str) -> Iterator[None]:
    print(f"{what} ...", flush=True)
    start = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - start:.0f} s", flush=True)

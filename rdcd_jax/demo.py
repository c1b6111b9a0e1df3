"""The main job on the bundled images: a compact student distilled from the real teacher, evaluated beside it."""

import contextlib
import importlib.resources
import importlib.util
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from rdcd_jax.augment.assets import assets_folder
from rdcd_jax.benchmarks.disc import DiscRow, Predictions
from rdcd_jax.benchmarks.disc_runs import evaluate_disc
from rdcd_jax.benchmarks.ground_truth import find_disc_layout, read_ground_truth
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_json
from rdcd_jax.images.sources import find_images
from rdcd_jax.report.matches import draw_matches, match_rows
from rdcd_jax.training.config import find_config, load_config
from rdcd_jax.training.fitting import recalibrate_batch_norm
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.student import make_student
from rdcd_jax.weights import store
from rdcd_jax.weights.library import load_model
from rdcd_jax.weights.model import Model, evaluation_mode

SAMPLE = importlib.resources.files("rdcd_jax") / "sample"
TEACHER_FEATURE = 512
SHIPPED = "rdcd-effb0-128"
T = TypeVar("T")


def run_demo(out: pathlib.Path) -> None:
    """Runs the demo; a run cut short is continued.

    What a bare installation lacks is left out, and how to get it is reported: without a teacher the student trains on
    SSCD's objective alone, and without fonts and emoji its views have no overlays.

    Args:
        out: folder for the run, the evaluations, `matches.png` and `demo.json`.
    """
    # A continued run must find its own images and features under the same names.
    out = out.resolve()
    teacher = _unless_missing(lambda: load_model("sscd"), "The student trains without a teacher.")
    overlays = _unless_missing(assets_folder, "The views have no text and emoji.")
    if teacher:
        for licence in store.teacher_licences():
            print(f"Teacher: {licence}")
    with importlib.resources.as_file(SAMPLE) as sample:
        config = load_config(f"{find_config('demo')}:data={sample / 'train'}", [])
        if not overlays:
            config.data.policy += "_NO_OVERLAY"
        if not teacher:
            config.objective.kld_lambda = 0.0
        student = make_student(config, TEACHER_FEATURE).module
        size = config.evaluate.image_size
        before = Model("before", config.student.network, evaluation_mode(student), size)
        recalibrate_batch_norm(before, find_images(sample / "train"), config.student.recalibrate)
        codec = f"PCAW{config.student.dim},L2norm,Flat"

        lines = []
        with _timed("Evaluating the student before its training"):
            rows, _ = _evaluated(before, sample, out / "before")
            lines.append(("student before training: random weights", config.student.dim, rows))
        if teacher:
            with _timed("Evaluating the teacher"):
                rows, _ = _evaluated(teacher, sample, out / "teacher", codecs=f"Flat;{codec}")
            flat = [row for row in rows if row.codec == "Flat"]
            lines.append(("teacher", TEACHER_FEATURE, flat))
            lines.append(
                ("teacher, whitened", config.student.dim, [r for r in rows if r.codec == codec])
            )
            # The teacher has just embedded the training images, for the score normalisation.
            config.teacher.features = str(out / "teacher" / "descriptors" / "training.npz")
        with _timed("Training the student"):
            train_and_evaluate(config, out / "run")
        with _timed("Evaluating the student after its training"):
            after = load_model(str(out / "run" / "export"))
            rows, predictions = _evaluated(after, sample, out / "after")
            lines.insert(1, ("student after training", config.student.dim, rows))
        with _timed("Evaluating the shipped student"):
            rows, _ = _evaluated(load_model(SHIPPED), sample, out / "shipped")
            lines.insert(2, (f"shipped {SHIPPED}, trained for longer", 128, rows))

        _draw(out / "matches.png", sample, predictions)
    _print_table(lines)
    write_json(
        out / "demo.json",
        [{"model": name, "dim": dim, **row.cells()} for name, dim, rows in lines for row in rows],
    )
    print(f"Queries with the references found for them: {out / 'matches.png'}")
    print(f"The student: --model={out / 'run' / 'export'}")


def _unless_missing(find: Callable[[], T], consequence: str) -> T | None:
    try:
        return find()
    except UserError as error:
        print(f"{error} {consequence}")
        return None


def _evaluated(
    model: Model, sample: pathlib.Path, out: pathlib.Path, codecs: str = "Flat"
) -> tuple[list[DiscRow], Predictions]:
    """Rows without and with score normalisation, searched by ScaNN where there is one."""
    # ScaNN has wheels for Linux only; exact search in JAX gives the same answers.
    backend = "scann" if importlib.util.find_spec("scann") else "jax"
    rows, predictions, _ = evaluate_disc(model, sample, out, codecs=codecs, backend=backend)
    return rows, predictions


def _draw(path: pathlib.Path, sample: pathlib.Path, predictions: Predictions) -> None:
    layout = find_disc_layout(sample)
    truth = read_ground_truth(layout.ground_truth)
    queries, references = find_images(layout.queries), find_images(layout.references)
    draw_matches(path, match_rows(predictions, truth), queries, references)


def _print_table(lines: list[tuple[str, int, list[DiscRow]]]) -> None:
    table = Table(
        "model",
        "dimensions",
        "µAP",
        "µAP with SN",
        "accuracy@1",
        title="Percent, on the bundled sample",
    )
    for name, dim, (plain, normalised) in lines:
        figures = (
            plain.metrics.average_precision,
            normalised.metrics.average_precision,
            normalised.metrics.recall_at_1,
        )
        table.add_row(name, str(dim), *(f"{100 * value:.1f}" for value in figures))
    Console().print(table)


@contextlib.contextmanager
def _timed(what: str) -> Iterator[None]:
    print(f"{what} ...", flush=True)
    start = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - start:.0f} s", flush=True)

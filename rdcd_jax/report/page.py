"""The page: one HTML file that needs no other and no network."""

import base64
import dataclasses
import hashlib
import itertools
import logging
import os
import pathlib
from collections.abc import Sequence

import jinja2

import rdcd_jax
from rdcd_jax.core.errors import one_line
from rdcd_jax.core.files import require_writable, write_text
from rdcd_jax.images.naming import escaped
from rdcd_jax.report import charts, tables
from rdcd_jax.report.runs import FALSE_POSITIVE, MISSED, Case, Run, read_runs
from rdcd_jax.report.thumbnails import Thumbnails

# Mistakes of each kind and run that are shown, and bytes that their images may take in all.
SHOWN, _BYTES = 12, 3_500_000

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Shown:
    """A mistake with its images.

    Attributes:
        run: number of the run.
        case: the mistake.
        images: data URIs of the query, the wrong reference and the true one; None where there is none to show.
    """

    run: int
    case: Case
    images: tuple[str | None, str | None, str | None]


def write_report(
    folders: Sequence[str | os.PathLike], out: str | os.PathLike, *, shown: int = SHOWN
) -> list[Run]:
    """Writes the report of some evaluations.

    Args:
        folders: what `rdcd-jax evaluate` wrote, at least one.
        out: the HTML file.
        shown: the worst false positives and missed copies that are shown of each run; fewer where all their images
            would take more than 3.5 MB. 0 shows none.

    Returns:
        The runs.

    Raises:
        UserError: see `read_runs`; or `out` is a folder.
        OSError: `out` cannot be written.
    """
    require_writable(out)
    runs = read_runs(folders)
    shown_cases, notes = _with_images(runs, shown)
    script = template("report.js")
    page = (
        environment()
        .get_template("report.html")
        .render(
            version=rdcd_jax.__version__,
            style=template("report.css"),
            script=script,
            script_digest=script_digest(script),
            runs=runs,
            comparable=tables.are_comparable(runs),
            copydays=tables.has_copydays(runs),
            figures=tables.metrics_table(runs),
            curves=charts.precision_recall(runs),
            histograms=[(run, charts.score_histogram(run)) for run in runs],
            spectrum=charts.spectrum(runs),
            edits=tables.edit_table(runs),
            cases=shown_cases,
            counts=[(run, *_mistakes(run)) for run in runs],
            notes=notes,
            outcomes=(FALSE_POSITIVE, MISSED),
            kinds=sorted(
                {edit for each in shown_cases for edit in each.case.edits}, key=tables.natural_order
            ),
            canvas=charts,
            scored=_scored,
        )
    )
    write_text(out, page)
    return runs


def _with_images(runs: Sequence[Run], count: int) -> tuple[list[Shown], list[str]]:
    """The worst mistakes with their images, as far as these may take room; and what runs have none to show."""
    if count == 0:
        return [], []
    sources = [Thumbnails(run.record.images) for run in runs]
    notes = []
    for run, images in zip(runs, sources, strict=True):
        if not run.record.images:
            notes.append(
                f"{run.name} was evaluated from descriptor files, so it has no images to show."
            )
        elif images.problem:
            # The page may be passed on, and need not tell where they were.
            notes.append(
                f"{run.name} has no images to show any more; they are not where they were."
            )
            _log.warning("%s has no images to show any more: %s", run.name, images.problem)
    lists = [
        [(number, case) for case in cases[:count]]
        for number, run in enumerate(runs)
        for cases in (run.false_positives(), run.missed())
    ]
    found, taken = {}, 0
    # The worst of every run and kind before the second worst of any.
    for number, case in filter(None, itertools.chain(*itertools.zip_longest(*lists))):
        named = zip(
            ("queries", "references", "references"),
            (case.query, case.found, case.true),
            strict=True,
        )
        uris = tuple(None if id_ is None else sources[number].uri(part, id_) for part, id_ in named)
        taken += sum(len(uri or "") for uri in uris)
        if taken > _BYTES:
            break
        found[number, case] = Shown(number, case, uris)
    return [found[key] for key in itertools.chain(*lists) if key in found], notes


def _mistakes(run: Run) -> tuple[int, int]:
    """How many queries have a wrong reference above the threshold, and how many copies are missed."""
    return sum(case.above is True for case in run.false_positives()), len(run.missed())


def _scored(score: float | None) -> str:
    return ", not a candidate" if score is None else f", score {score:.3f}"


def environment() -> jinja2.Environment:
    """What fills the templates; every text is escaped."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("rdcd_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["one_line"] = one_line
    made.filters["whole"] = _whole
    return made


def _whole(path: str) -> str:
    """A path as it is, but for line ends, of which a list of paths has one each."""
    return escaped(path).replace("\n", "\\n").replace("\r", "\\r")


def script_digest(script: str) -> str:
    """What a page's policy names its own script by: it may run, and nothing that an image's name smuggled in."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def template(name: str) -> str:
    """A template's file as it is."""
    return (pathlib.Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")

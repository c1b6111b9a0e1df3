"""Evaluations by name, during a run and at its end: `config.evals`."""

import contextlib
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import ml_collections

from rdcd_jax.benchmarks.copydays_runs import copydays_inputs, evaluate_copydays_run
from rdcd_jax.benchmarks.disc_runs import IMAGE_SIZES, LAYOUTS, disc_inputs, evaluate_disc
from rdcd_jax.benchmarks.ground_truth import DiscLayout
from rdcd_jax.core import hosts
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.stream import Unreadable
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.training.schema import EvalOptions, as_config_dict
from rdcd_jax.weights.model import Model

_log = logging.getLogger(__name__)
Figures = dict[str, float | None]
# What the sources of a pair evaluation are given by.
_PAIRS = ("queries", "references", "ground_truth")


def evaluations(config: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
    """The evaluations that a config gives something to evaluate on, by name, each with all fields."""
    base = as_config_dict(EvalOptions()).to_dict()
    found = {}
    for name, given in config.evals.items():
        # What else stands there `check_config` refuses.
        if isinstance(given, ml_collections.ConfigDict):
            options = ml_collections.ConfigDict(base | given.to_dict())
            if options.data or any(options[part] for part in _PAIRS):
                found[name] = options
    return found


def judging_images(name: str, options: ml_collections.ConfigDict, dim: int) -> list[ImageSet]:
    """The images that an evaluation judges by: its queries and references, or Copydays' originals and copies.

    Args:
        name: the evaluation's.
        options: fields of `schema.EvalOptions`.
        dim: D, dimensions of the student's descriptor.

    Raises:
        UserError: something that the evaluation needs is not where the config says, or cannot work.
    """
    training, codecs = options.training or None, options.codecs
    with _named(name):
        if options.protocol == "copydays":
            images = copydays_inputs(options.data, dim, None, training, codecs=codecs)[1]
            return [images["copydays"]]
        images = disc_inputs(_layout_of(options), dim, training, codecs=codecs)[1]
        return [images["queries"], images["references"]]


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Says of which evaluation an error is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"config.evals.{name}: {error}") from error


def _layout_of(options: ml_collections.ConfigDict) -> DiscLayout:
    """Where the parts of an evaluation lie that is as DISC2021's.

    Raises:
        UserError: a part is missing.
    """
    if options.protocol in LAYOUTS:
        return LAYOUTS[options.protocol](options.data)
    for part in _PAIRS:
        if not options[part]:
            raise UserError(f"{part} is empty; an evaluation of pairs needs {', '.join(_PAIRS)}.")
    return DiscLayout(
        options.queries, options.references, options.training or None, options.ground_truth
    )


def evaluate(model: Model, options: ml_collections.ConfigDict, folder: pathlib.Path) -> Figures:
    """Evaluates a model, and keeps the figures, not the descriptors.

    Args:
        model: at the size that images are to have.
        options: fields of `schema.EvalOptions`.
        folder: for the results.

    Returns:
        Figures by `CODEC/SCORE_NORM/NAME`, fractions of 1.
    """
    return _PROTOCOLS[options.protocol](model, options, folder)


def _disc(model: Model, options: ml_collections.ConfigDict, folder: pathlib.Path) -> Figures:
    layout = _layout_of(options)
    rows, _, unreadable = evaluate_disc(
        model.at_size(IMAGE_SIZES.get(options.protocol)),
        layout,
        folder,
        benchmark="ndec" if options.protocol == "ndec" else "disc",
        training=options.training or None,
        codecs=options.codecs,
        keep_descriptors=False,
    )
    _warn_of(unreadable, folder)
    return _figures([row.cells() for row in rows])


def _copydays(model: Model, options: ml_collections.ConfigDict, folder: pathlib.Path) -> Figures:
    rows, unreadable = evaluate_copydays_run(
        model,
        options.data,
        folder,
        training=options.training or None,
        codecs=options.codecs,
        keep_descriptors=False,
    )
    _warn_of(unreadable, folder)
    return _figures([row.cells() for row in rows])


def _warn_of(unreadable: Sequence[Unreadable], folder: pathlib.Path) -> None:
    if unreadable and hosts.is_first():
        _log.warning(
            "An evaluation leaves out %d of its images, since they cannot be read; %s lists them.",
            len(unreadable),
            folder / "unreadable.txt",
        )


def _figures(rows: list[Mapping[str, str | float | None]]) -> Figures:
    names = ("codec", "score_norm")
    return {
        "/".join([*(str(row[name]) for name in names if name in row), figure]): value
        for row in rows
        for figure, value in row.items()
        if figure not in names
    }


_PROTOCOLS: dict[str, Callable[[Model, ml_collections.ConfigDict, pathlib.Path], Figures]] = {
    "disc": _disc,
    "ndec": _disc,
    "pairs": _disc,
    "copydays": _copydays,
}

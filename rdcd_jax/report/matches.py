"""An image of queries with the references found for them."""

import dataclasses
import os
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from rdcd_jax.benchmarks.disc import Predictions
from rdcd_jax.benchmarks.ground_truth import GroundTruth
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_aside
from rdcd_jax.images.sources import ImageSet

# Blue-green and orange-red keep apart for colour-blind eyes; a mark beneath says the same.
_RIGHT, _WRONG = "#0a8a3a", "#d1361c"
_THUMBNAIL = 192
_INCHES = 1.5


@dataclasses.dataclass(frozen=True)
class Found:
    """One reference found.

    Attributes:
        id: its id.
        score: its score.
        is_right: whether it is the query's true reference.
    """

    id: str
    score: float
    is_right: bool


@dataclasses.dataclass(frozen=True)
class MatchRow:
    """A query and what was found for it, best first.

    Attributes:
        query: the query's id.
        found: the references found.
    """

    query: str
    found: tuple[Found, ...]


def match_rows(
    predictions: Predictions,
    ground_truth: GroundTruth,
    *,
    n_queries: int = 8,
    n_found: int = 5,
) -> list[MatchRow]:
    """Chooses queries that have a true reference, evenly over all of them, good or bad.

    Args:
        predictions: ranked pairs, best first.
        ground_truth: the true pairs.
        n_queries: rows wanted.
        n_found: references a row.

    Returns:
        At most n_queries rows, in the ground truth's order.
    """
    ranked: dict[str, list[tuple[str, float]]] = {}
    columns = predictions.query_ids, predictions.reference_ids, predictions.scores
    for query, reference, score in zip(*(each.tolist() for each in columns), strict=True):
        ranked.setdefault(query, []).append((reference, score))
    pairs = set(ground_truth.pairs)
    candidates = [q for q in dict.fromkeys(query for query, _ in ground_truth.pairs) if q in ranked]
    n_queries = min(n_queries, len(candidates))
    chosen = [candidates[i * len(candidates) // n_queries] for i in range(n_queries)]
    return [
        MatchRow(
            query,
            tuple(
                Found(reference, score, (query, reference) in pairs)
                for reference, score in ranked[query][:n_found]
            ),
        )
        for query in chosen
    ]


def draw_matches(
    path: str | os.PathLike, rows: Sequence[MatchRow], queries: ImageSet, references: ImageSet
) -> None:
    """Draws queries at the left and what was found beside them, right ones framed green.

    Args:
        path: the PNG file to write.
        rows: one row of images each, their scores beneath.
        queries: holds the queries' images.
        references: holds the references' images.

    Raises:
        UserError: no rows, or an image that cannot be read.
    """
    if not rows:
        raise UserError(f"{path}: there are no matches to draw.")
    n_columns = 1 + max(len(row.found) for row in rows)
    figure = Figure(figsize=(_INCHES * n_columns, (_INCHES + 0.2) * len(rows)))
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), n_columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    query_position = {id_: position for position, id_ in enumerate(queries.ids)}
    reference_position = {id_: position for position, id_ in enumerate(references.ids)}
    for row, line in zip(rows, grid, strict=True):
        image = _thumbnail(queries, query_position[row.query])
        _show(line[0], image, "query", "black", frame=0.5)
        for axes, found in zip(line[1:], row.found, strict=False):
            mark, colour = ("✓", _RIGHT) if found.is_right else ("✗", _WRONG)
            image = _thumbnail(references, reference_position[found.id])
            _show(axes, image, f"{found.score:.3f} {mark}", colour, frame=3)
    with write_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=110)


def _thumbnail(images: ImageSet, position: int) -> Image.Image:
    image = images.decode(position, min_side_hint=_THUMBNAIL)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return image


def _show(axes: Axes, image: Image.Image, label: str, colour: str, frame: float) -> None:
    axes.imshow(image)
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(label, color=colour, fontsize=8)
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=frame)

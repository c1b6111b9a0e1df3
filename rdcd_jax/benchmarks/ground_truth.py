"""Which query is a copy of which reference, and where a DISC-shaped folder keeps its parts."""

import csv
import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from rdcd_jax.core.errors import UserError

_log = logging.getLogger(__name__)

HEADER = ("query_id", "reference_id")
QUERY_FOLDERS = ("queries", "final_queries", "dev_queries", "val_query", "query_images")
REFERENCE_FOLDERS = ("references", "val_ref", "reference_images")
TRAINING_FOLDERS = ("train", "training", "training_images")
GROUND_TRUTH_FILES = (
    "ground_truth.csv",
    "dev_ground_truth.csv",
    "public_ground_truth.csv",
    "dev_queries_groundtruth.csv",
    "val_groundtruth_matches.csv",
    "gt_1k.csv",
)
# NDEC's own names come first: its folder may hold DISC2021's queries too.
NDEC_QUERY_FOLDERS = ("query_images_h5", *QUERY_FOLDERS)
NDEC_GROUND_TRUTH_FILES = ("public_ground_truth_h5.csv", *GROUND_TRUTH_FILES)


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """The true pairs of a benchmark.

    Attributes:
        source: the file it came from, for messages.
        pairs: (query id, reference id), all different, at least one.
        distractors: ids of queries that are copies of nothing.
        edits: what was done to each query, as far as a file beside the source tells.
    """

    source: str
    pairs: tuple[tuple[str, str], ...]
    distractors: tuple[str, ...]
    edits: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DiscLayout:
    """The parts of a benchmark folder.

    Attributes:
        queries: folder of query images.
        references: folder of reference images.
        training: folder of unrelated training images; None where there is none.
        ground_truth: CSV file.
    """

    queries: pathlib.Path
    references: pathlib.Path
    training: pathlib.Path | None
    ground_truth: pathlib.Path


def read_ground_truth(path: str | os.PathLike) -> GroundTruth:
    """Reads a ground-truth CSV.

    Args:
        path: a UTF-8 file of lines `query_id,reference_id`, with or without that header. An empty
            reference marks a query that is a copy of nothing. Edits are read from a file beside it, see `read_edits`.

    Returns:
        The ground truth.

    Raises:
        UserError: a missing file, a line of another form, a repeated pair, a query that is a copy and of nothing, or no
            pair at all.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: cannot be read as a ground-truth CSV (there is no such file).")
    pairs: dict[tuple[str, str], int] = {}
    distractors: dict[str, None] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, line in enumerate(csv.reader(file), start=1):
                cells = [cell.strip() for cell in line]
                if not any(cells) or (number == 1 and tuple(map(str.lower, cells)) == HEADER):
                    continue
                if len(cells) > 2 or not cells[0]:
                    raise UserError(
                        f"{path}, line {number}: {','.join(line)!r} is not query_id,reference_id."
                    )
                query, reference = cells[0], cells[1] if len(cells) == 2 else ""
                if not reference:
                    distractors[query] = None
                elif (query, reference) in pairs:
                    raise UserError(
                        f"{path}, line {number}: the pair {query},{reference} was given in line "
                        f"{pairs[query, reference]} already; remove one."
                    )
                else:
                    pairs[query, reference] = number
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a ground-truth CSV ({error}).") from error
    _require_pairs(path, pairs, distractors)
    return GroundTruth(str(path), tuple(pairs), tuple(distractors), read_edits(path))


def _require_pairs(path: pathlib.Path, pairs: dict, distractors: dict) -> None:
    """Refuses a ground truth without a pair, or that says of a query both that it is a copy and that it is none."""
    if not pairs:
        separator = next((each for each in ";\t|" if any(each in name for name in distractors)), "")
        way_out = f" Its columns are separated by {separator!r}; use commas." if separator else ""
        raise UserError(
            f"{path}: the ground truth holds no pair of a query and its reference.{way_out}"
        )
    for (query, reference), number in pairs.items():
        if query in distractors:
            raise UserError(
                f"{path}, line {number}: {query} is a copy of {reference}, and in another line a copy of nothing;"
                " remove one."
            )


def read_edits(path: pathlib.Path) -> dict[str, tuple[str, ...]]:
    """Reads what was done to each query, where it is reported beside a ground truth.

    Args:
        path: the ground truth's. `PATH.edits` has lines of a query, its reference and its edits, separated by tabs;
            `edits.csv` in the same folder has columns query_id and edits. Several edits are joined by `+`.

    Returns:
        The edits by query; empty where there is no such file.

    Raises:
        UserError: a file that cannot be read, or a line of another form.
    """
    listed, table = path.with_name(f"{path.name}.edits"), path.with_name("edits.csv")
    source = listed if listed.is_file() else table
    if not source.is_file():
        return {}
    found: dict[str, tuple[str, ...]] = {}
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, delimiter="\t" if source == listed else ",")
            columns = ["query_id", "reference_id", "edits"] if source == listed else next(lines, [])
            # Any other table may be called edits.csv.
            if not {"query_id", "edits"} <= set(columns):
                return {}
            for line in filter(any, lines):
                if len(line) != len(columns):
                    raise UserError(
                        f"{source}, line {lines.line_num}: has {len(line)} cells and not {len(columns)}; mend it, or"
                        " remove the file."
                    )
                cells = dict(zip(columns, map(str.strip, line), strict=True))
                found[cells["query_id"]] = tuple(filter(None, cells["edits"].split("+")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{source}: cannot be read as the queries' edits ({error}); mend it, or remove the file."
        ) from error
    return found


def require_known_ids(
    ground_truth: GroundTruth, query_ids: Iterable[str], reference_ids: Iterable[str]
) -> None:
    """Raises UserError where the ground truth names queries or references that are not there.

    Args:
        ground_truth: what to check.
        query_ids: ids of all queries.
        reference_ids: ids of all references.
    """
    named = {
        "queries": [query for query, _ in ground_truth.pairs] + list(ground_truth.distractors),
        "references": [reference for _, reference in ground_truth.pairs],
    }
    present = {"queries": set(query_ids), "references": set(reference_ids)}
    for kind, names in named.items():
        distinct = dict.fromkeys(names)
        unknown = [name for name in distinct if name not in present[kind]]
        if unknown:
            raise UserError(
                f"{ground_truth.source}: {len(unknown)} of the {len(distinct)} {kind} named are "
                f"not among the {len(present[kind])} given ({', '.join(unknown[:3])}"
                f"{', ...' if len(unknown) > 3 else ''}); give the {kind} that belong to it."
            )


def warn_of_unnamed(ground_truth: GroundTruth, query_ids: Sequence[str]) -> None:
    """Warns of queries that are not named by a ground truth which lists distractors: it may be that of other queries.

    Args:
        ground_truth: of an evaluation.
        query_ids: ids of all its queries.
    """
    named = {*ground_truth.distractors, *(query for query, _ in ground_truth.pairs)}
    unnamed = [query for query in query_ids if query not in named]
    if ground_truth.distractors and unnamed:
        _log.warning(
            "%s does not name %d of the %d queries, such as %s; they count as copies of nothing.",
            ground_truth.source,
            len(unnamed),
            len(query_ids),
            unnamed[0],
        )


def find_disc_layout(root: str | os.PathLike) -> DiscLayout:
    """Finds the parts of a DISC-shaped folder by the names in use.

    Args:
        root: a folder with the image folders in it or in its `images` folder, and the
            ground-truth CSV.

    Returns:
        Where the parts are.

    Raises:
        UserError: no such folder, a part that is missing, or several that could be meant.
    """
    root = require_folder(root)
    return DiscLayout(
        queries=find_part(root, "query folder", QUERY_FOLDERS),
        references=find_part(root, "reference folder", REFERENCE_FOLDERS),
        training=find_part(root, "training folder", TRAINING_FOLDERS, required=False),
        ground_truth=find_part(root, "ground-truth file", GROUND_TRUTH_FILES),
    )


def find_ndec_layout(root: str | os.PathLike) -> DiscLayout:
    """Finds the parts of an NDEC folder, in which references and training images are DISC2021's.

    Args:
        root: as in `find_disc_layout`. NDEC's own names are preferred to DISC2021's.

    Returns:
        Where the parts are.

    Raises:
        UserError: as `find_disc_layout`.

    Source: arXiv 2205.12358, https://github.com/WangWenhao0716/ASL.
    """
    root = require_folder(root)
    return DiscLayout(
        queries=_preferred_part(root, "query folder", NDEC_QUERY_FOLDERS),
        references=find_part(root, "reference folder", REFERENCE_FOLDERS),
        training=find_part(root, "training folder", TRAINING_FOLDERS, required=False),
        ground_truth=_preferred_part(root, "ground-truth file", NDEC_GROUND_TRUTH_FILES),
    )


def require_folder(root: str | os.PathLike) -> pathlib.Path:
    """Returns the path of a benchmark's folder; raises UserError where there is none."""
    root = pathlib.Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder.")
    return root


def _preferred_part(root: pathlib.Path, what: str, names: Sequence[str]) -> pathlib.Path:
    own = find_part(root, what, names[:1], required=False)
    return own or find_part(root, what, names)


def find_part(
    root: pathlib.Path, what: str, names: Sequence[str], *, required: bool = True
) -> pathlib.Path | None:
    """Finds one part of a benchmark folder by the names in use.

    Args:
        root: the benchmark's folder; the part lies in it or in its `images` folder.
        what: what is looked for, for messages.
        names: names it may have; those that end in `.csv` are files', others folders'.
        required: whether there must be one.

    Returns:
        Where it is; None where there is none and none is required.

    Raises:
        UserError: a required part that is missing, or several that could be meant.
    """
    positions = [folder / name for folder in (root, root / "images") for name in names]
    found = [p for p in positions if (p.is_file() if p.suffix == ".csv" else p.is_dir())]
    if len(found) > 1:
        raise UserError(
            f"{root}: more than one {what}: {', '.join(str(p.relative_to(root)) for p in found)}; "
            "leave the one that is meant (a folder of links will do)."
        )
    if not found and required:
        raise UserError(f"{root}: holds no {what}; it may be called {', '.join(names)}.")
    return found[0] if found else None

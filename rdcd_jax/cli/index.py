"""`rdcd-jax index ACTION`, `search` and `duplicates`: the tool that finds copies."""

import dataclasses
import pathlib
import sys

from rdcd_jax.cli.data import SOURCE
from rdcd_jax.cli.options import add_ids_option, positive, reported, verb
from rdcd_jax.core.errors import UserError, one_line
from rdcd_jax.core.files import read_lines, require_writable, write_csv, write_json

# Matches printed; a file gets them all.
_SHOWN = 40


def add_index(verbs) -> None:
    """Adds the verbs to the parser's."""
    parser = verb(
        verbs,
        "index",
        "Make, grow and inspect a persistent index of images.",
        "rdcd-jax index build FOLDER --model=rdcd-effb0-128 --out=my.index",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_build(actions)
    _add_add(actions)
    _add_remove(actions)
    _add_info(actions)
    _add_search(verbs)
    _add_duplicates(verbs)


def _add_build(actions) -> None:
    parser = verb(
        actions,
        "build",
        "Embed images and make an index of them, or go on with it where it was ended.",
        "rdcd-jax index build FOLDER --model=rdcd-effb0-128 --out=my.index --dtype=int8",
        _build,
    )
    parser.add_argument("images", help=SOURCE)
    parser.add_argument("--model", required=True, help="a shipped student, an export folder, ...")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="the index's folder")
    parser.add_argument(
        "--dtype", default="float32", help="numbers on disk: float32 (default), float16 or int8"
    )
    parser.add_argument("--image-size", type=positive, metavar="S", help="the model's own without")
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="calibration.json of evaluate disc; the model's own without",
    )
    _add_score_norm_option(parser)
    add_ids_option(parser)


def _add_score_norm_option(parser) -> None:
    parser.add_argument(
        "--score-norm",
        choices=("auto", "none"),
        default="auto",
        help="none leaves similarities as they are; else the model's background, if it has one, normalises them",
    )


def _build(options, rest) -> None:
    from rdcd_jax.images.sources import find_images
    from rdcd_jax.index import Index
    from rdcd_jax.search.calibration import read_file

    images = find_images(options.images, ids=options.ids)
    calibration = options.calibration and read_file(options.calibration)
    with reported() as report:
        index, added, unreadable = Index.build(
            options.out,
            images,
            model=options.model,
            dtype=options.dtype,
            image_size=options.image_size,
            calibration=calibration,
            normalised=options.score_norm == "auto",
            on_progress=lambda done, total: report("Describing", done, total),
        )
    _report(options.out, len(index), added, len(images), unreadable)


def _add_add(actions) -> None:
    parser = verb(
        actions,
        "add",
        "Add images to an index; ids that it has already are passed over (--ids=path where folders repeat names).",
        "rdcd-jax index add my.index FOLDER",
        _add,
    )
    parser.add_argument("index", type=pathlib.Path)
    parser.add_argument("images", help=SOURCE)
    add_ids_option(parser)


def _add(options, rest) -> None:
    from rdcd_jax.images.sources import find_images
    from rdcd_jax.index import Index

    images, index = find_images(options.images, ids=options.ids), Index(options.index)
    with reported() as report:
        added, unreadable = index.add(
            images, on_progress=lambda done, total: report("Describing", done, total)
        )
    _report(options.index, len(index), added, len(images), unreadable)


def _report(folder, total: int, added: int, given: int, unreadable) -> None:
    for each in unreadable:
        print(f"left out: {one_line(each.reason)}", file=sys.stderr)
    there = given - added - len(unreadable)
    print(f"{folder} holds {total} images: {added} added, {there} ids were there already.")


def _add_remove(actions) -> None:
    parser = verb(
        actions,
        "remove",
        "Remove images from an index.",
        "rdcd-jax index remove my.index holiday_0017 holiday_0018",
        _remove,
    )
    parser.add_argument("index", type=pathlib.Path)
    parser.add_argument(
        "ids", nargs="+", metavar="ID", help="an image's id, or @FILE (UTF-8) of one a line"
    )


def _remove(options, rest) -> None:
    from rdcd_jax.index import Index

    wanted: list[str] = []
    for text in options.ids:
        wanted += read_lines(pathlib.Path(text[1:])) if text[:1] == "@" else [text]
    index = Index(options.index)
    removed = index.remove(wanted)
    if removed < len(set(wanted)):
        print(f"{len(set(wanted)) - removed} of the ids were not there.", file=sys.stderr)
    print(f"{options.index} holds {len(index)} images: {removed} removed.")


def _add_info(actions) -> None:
    parser = verb(actions, "info", "What an index holds.", "rdcd-jax index info my.index", _info)
    parser.add_argument("index", type=pathlib.Path)


def _info(options, rest) -> None:
    from rdcd_jax.index import Index
    from rdcd_jax.index.store import index_bytes

    index = Index(options.index)
    found = index.manifest
    print(f"{options.index}: {len(index)} images, {index_bytes(options.index) / 1e6:.1f} MB")
    print(f"model {found.model}, images of {found.image_size} pixels")
    print(f"descriptors of {found.dim} dimensions in {found.dtype}")
    scoring = index.scoring()
    if scoring.background is not None:
        print(f"scores normalised by a background of {len(scoring.background)} images")
    if scoring.calibration is None:
        print("no calibration")
        return
    print(
        f"90 % of matches are copies from a score of {index.threshold():.3f}, by a calibration on"
        f" {scoring.calibration.measured_on}"
    )


def _add_search(verbs) -> None:
    parser = verb(
        verbs,
        "search",
        "Find the images of an index that queries are copies of.",
        "rdcd-jax search --index=my.index SUSPECTS --out=matches.csv",
        _search,
    )
    parser.add_argument("--index", required=True, type=pathlib.Path, help="made by index build")
    parser.add_argument(
        "pictures", nargs="*", help=f"the queries: images, folders, or one {SOURCE}"
    )
    parser.add_argument("--images", help="the same, one alone")
    parser.add_argument("--k", type=positive, default=10, help="images for each query (10)")
    parser.add_argument(
        "--threshold", type=float, help="least score; the model's at 90%% precision without"
    )
    parser.add_argument(
        "--variants",
        default="trim",
        help="also looks for queries changed so: trim (borders and a screenshot's bars cut off; the default), crops"
        " (five parts), flip, rotate90, rotate180, rotate270; or none",
    )
    _add_score_norm_option(parser)
    parser.add_argument("--out", type=pathlib.Path, help="a .csv or .json file for all matches")
    add_ids_option(parser)


def _search(options, rest) -> None:
    from rdcd_jax.images.sources import find_all
    from rdcd_jax.index import Index

    if bool(options.images) == (options.images is not None):
        raise UserError("Name what to look for once: images, folders, or --images=SOURCE.")
    if options.out is not None:
        _require_table(options.out)
    images = find_all(options.images or [options.images], ids=options.ids)
    index = Index(options.index)
    with reported() as report:
        matches, unreadable = index.search(
            images,
            k=options.k,
            threshold=options.threshold,
            variants=[name for name in options.variants.split(",") if name not in ("", "none")],
            normalised=options.score_norm == "auto",
            on_progress=lambda done, total: report("Describing", done, total),
        )
    for each in unreadable:
        print(f"left out: {one_line(each.reason)}", file=sys.stderr)
    if options.out is not None:
        _write_table(options.out, matches)
    _print_matches(matches)
    found = len({match.query for match in matches})
    print(f"{found} of {len(images)} queries resemble an image of the index.")


def _require_table(path: pathlib.Path) -> None:
    if path.suffix.lower() not in (".csv", ".json"):
        raise UserError(f"{path}: matches are written to .csv or .json files; name one of those.")
    require_writable(path)


def _write_table(path: pathlib.Path, matches) -> None:
    rows = [dataclasses.asdict(match) for match in matches]
    if path.suffix.lower() == ".json":
        write_json(path, rows)
        return
    from rdcd_jax.index.search import Match

    names = [field.name for field in dataclasses.fields(Match)]
    write_csv(path, names, (row.values() for row in rows))


def _print_matches(matches) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("query", "image of the index", "score", "probability", "variant")
    for match in matches[:_SHOWN]:
        probability = "-" if match.probability is None else f"{100 * match.probability:.0f} %"
        # As text, since brackets would be taken for markup.
        ids = (Text(one_line(name)) for name in (match.query, match.reference))
        table.add_row(*ids, f"{match.score:.3f}", probability, match.variant or "-")
    Console(width=100 if not sys.stdout.isatty() else None).print(table)
    if len(matches) > _SHOWN:
        print(f"... and {len(matches) - _SHOWN} more; --out=FILE gets them all.")


def _add_duplicates(verbs) -> None:
    parser = verb(
        verbs,
        "duplicates",
        "Group the images of one set that are copies of each other.",
        "rdcd-jax duplicates FOLDER --model=rdcd-effb0-128 --out=groups.json",
        _duplicates,
    )
    parser.add_argument("images", help=SOURCE)
    parser.add_argument("--model", default="rdcd-effb0-128", help="a shipped student, ...")
    parser.add_argument("--threshold", type=float, help="the model's at 90%% precision without")
    _add_score_norm_option(parser)
    parser.add_argument("--out", type=pathlib.Path, help="a .json file")
    add_ids_option(parser)


def _duplicates(options, rest) -> None:
    from rdcd_jax.images.sources import find_images
    from rdcd_jax.index.duplicates import find_groups

    if options.out is not None:
        if options.out.suffix.lower() != ".json":
            raise UserError(f"{options.out}: groups are written to .json files; name one of those.")
        require_writable(options.out)
    images = find_images(options.images, ids=options.ids)
    with reported() as report:
        groups, unreadable = find_groups(
            images,
            model=options.model,
            threshold=options.threshold,
            normalised=options.score_norm == "auto",
            on_progress=lambda done, total: report("Describing", done, total),
        )
    for each in unreadable:
        print(f"left out: {one_line(each.reason)}", file=sys.stderr)
    if options.out is not None:
        write_json(options.out, [dataclasses.asdict(group) for group in groups])
    for group in groups[:_SHOWN]:
        print(f"{group.score:.3f}  " + "  ".join(one_line(name) for name in group.ids))
    if len(groups) > _SHOWN:
        print(f"... and {len(groups) - _SHOWN} more; --out=FILE gets them all.")
    grouped = sum(len(group.ids) for group in groups)
    print(f"{len(groups)} groups of copies, {grouped} of {len(images)} images in all.")

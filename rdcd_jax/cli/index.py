"""`rdcd-jax index ACTION`: persistent indexes of images."""

import pathlib
import sys

from rdcd_jax.cli.options import (
    SHOWN,
    add_engine_option,
    add_moved_model,
    add_score_norm_option,
    add_sources,
    add_strict_option,
    local_path,
    positive,
    reported,
    require_all,
    sources_of,
    verb,
    warn_left_out,
)
from rdcd_jax.core.errors import UserError, one_line
from rdcd_jax.core.files import read_lines

# Of ids that are not there.
_NAMED = 10


def add_index(verbs) -> None:
    """Adds the verb with its actions to the parser's."""
    parser = verb(
        verbs,
        "index",
        "Make, grow and inspect a persistent index of images.",
        "rdcd-jax index build FOLDER --model=rdcd-effb0-128 --out=my.index",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_build(actions)
    _add_add(actions)
    _add_update(actions)
    _add_remove(actions)
    _add_ann(actions)
    _add_info(actions)
    _add_export(actions)


def _add_build(actions) -> None:
    parser = verb(
        actions,
        "build",
        "Embed images and make an index of them, or go on with it where it was ended.",
        "rdcd-jax index build FOLDER --model=rdcd-effb0-128 --out=my.index --dtype=int8",
        _build,
    )
    add_sources(parser, "the images")
    parser.add_argument(
        "--model",
        default="rdcd-effb0-128",
        help="a shipped student, an export folder, ... (rdcd-effb0-128)",
    )
    parser.add_argument("--out", required=True, type=local_path, help="the index's folder")
    parser.add_argument(
        "--dtype",
        default="float32",
        help="on disk: float32 (default), float16, int8, or binary (the signs alone)",
    )
    parser.add_argument(
        "--parts",
        action="store_true",
        help="also embed five parts of every image, for queries that show a part; six times the descriptors",
    )
    parser.add_argument("--image-size", type=positive, metavar="S", help="the model's own without")
    parser.add_argument(
        "--calibration",
        type=local_path,
        metavar="FILE",
        help="calibration.json of evaluate disc; the model's own without",
    )
    add_score_norm_option(parser)
    add_engine_option(parser)
    parser.add_argument(
        "--ann",
        action="store_true",
        help="build an approximate search beside it, for search --engine=ann; of 100,000 images and more it is faster",
    )


def _build(options, rest) -> None:
    from rdcd_jax.index.ann import require_place
    from rdcd_jax.index.search import Index
    from rdcd_jax.search.calibration import read_file

    images = sources_of(options)
    calibration = options.calibration and read_file(options.calibration)
    if options.ann:
        # Before anything is embedded.
        require_place(options.out)
    with reported() as report:
        index = Index.build(
            options.out,
            images,
            model=options.model,
            dtype=options.dtype,
            image_size=options.image_size,
            calibration=calibration,
            normalised=options.score_norm == "auto",
            parts=options.parts,
            engine=options.engine,
            on_progress=lambda done, total: report("Embedding", done, total),
        )
    _report(options.out, index)
    if options.ann:
        _print_recall(options.out, index.build_ann())
    require_all(options, images, len(index.added.unreadable))


def _add_add(actions) -> None:
    parser = verb(
        actions,
        "add",
        "Add images to an index; those that are in it already are passed over.",
        "rdcd-jax index add my.index FOLDER",
        _add,
    )
    parser.add_argument("index", type=local_path)
    add_sources(parser, "the images")
    add_moved_model(parser)


def _add(options, rest) -> None:
    from rdcd_jax.index.search import Index

    images, index = sources_of(options), Index(options.index, model=options.model)
    with reported() as report:
        index.add(images, on_progress=lambda done, total: report("Embedding", done, total))
    _report(options.index, index)
    require_all(options, images, len(index.added.unreadable))


def _report(folder: pathlib.Path, index) -> None:
    done = index.added
    if done.unreadable and not done.added + done.present:
        raise UserError(
            f"{folder}: none of the {len(done.unreadable)} images can be read; the first:"
            f" {done.unreadable[0].reason}"
        )
    warn_left_out(done.unreadable)
    if done.changed:
        print(
            f"{done.changed} images have changed since they were added; `rdcd-jax index update {folder}` embeds them"
            " anew.",
            file=sys.stderr,
        )
    print(
        f"{folder} holds {len(index)} images: {done.added} added, {done.present} were there already."
    )


def _add_update(actions) -> None:
    parser = verb(
        actions,
        "update",
        "Add what is new, embed anew what has changed, drop what is gone.",
        "rdcd-jax index update my.index --dry-run",
        _update,
    )
    parser.add_argument("index", type=local_path)
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="all that the index is to hold; without, what it was built from",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would change")
    parser.add_argument(
        "--root",
        metavar="FOLDER",
        help="where the folder that the images were below lies now, if it was moved",
    )
    add_moved_model(parser)
    add_strict_option(parser)


def _update(options, rest) -> None:
    from rdcd_jax.index.search import Index

    index = Index(options.index, model=options.model)
    if options.root is not None:
        if options.dry_run:
            options.usage_error("--root is written at once; give it without --dry-run first")
        index.move(options.root)
    sources = options.sources or None
    if options.dry_run:
        _print_changes(options.index, index.changes(sources))
        return
    with reported() as report:
        done = index.update(
            sources, on_progress=lambda done, total: report("Embedding", done, total)
        )
    warn_left_out(done.unreadable)
    print(
        f"{options.index} holds {len(index)} images: {done.added} added, {done.renewed} embedded anew, {done.removed}"
        f" removed, {done.present} as they were."
    )
    require_all(options, done.images, len(done.unreadable))


def _print_changes(folder: pathlib.Path, found) -> None:
    from rdcd_jax.index.places import whole_path

    kinds = {
        "new": [found.images.paths[i] for i in found.new],
        "changed": [found.images.paths[i] for i in found.changed],
        "gone": [whole_path(path, found.root) for path in found.gone],
    }
    for kind, paths in kinds.items():
        for path in paths[:SHOWN]:
            print(f"{kind}: {one_line(path)}")
        if len(paths) > SHOWN:
            print(f"... and {len(paths) - SHOWN} more {kind}")
    print(
        f"{folder} would change: {len(found.new)} added, {len(found.changed)} embedded anew, {len(found.gone)} removed,"
        f" {found.present} as they are."
    )


def _add_remove(actions) -> None:
    parser = verb(
        actions,
        "remove",
        "Remove images from an index.",
        "rdcd-jax index remove my.index holiday_0017 holiday_0018",
        _remove,
    )
    parser.add_argument("index", type=local_path)
    parser.add_argument(
        "ids",
        nargs="+",
        metavar="ID",
        help="an image's id, or @FILE (UTF-8) of one a line; @@NAME for an id that begins with @",
    )


def _remove(options, rest) -> None:
    from rdcd_jax.index.search import Index

    wanted: list[str] = []
    for text in options.ids:
        if text[:1] == "@" and text[:2] != "@@":
            wanted += read_lines(pathlib.Path(text[1:]))
        else:
            wanted.append(text.removeprefix("@"))
    index = Index(options.index)
    missing = sorted(set(wanted) - set(index.ids))
    removed = index.remove(wanted)
    if missing:
        shown = ", ".join(map(one_line, missing[:_NAMED])) + (", ..." if missing[_NAMED:] else "")
        print(f"{len(missing)} of the ids were not there: {shown}", file=sys.stderr)
    print(f"{options.index} holds {len(index)} images: {removed} removed.")


def _add_ann(actions) -> None:
    parser = verb(
        actions,
        "ann",
        "Build an index's approximate search, for search --engine=ann, anew.",
        "rdcd-jax index ann my.index",
        lambda options, rest: _ann(options),
    )
    parser.add_argument("index", type=local_path)


def _ann(options) -> None:
    from rdcd_jax.index.search import Index

    _print_recall(options.index, Index(options.index).build_ann())


def _print_recall(folder: pathlib.Path, recall: float) -> None:
    print(
        f"{folder}: --engine=ann finds {100 * recall:.1f} % of the ten nearest descriptors that the exact search finds."
    )


def _add_info(actions) -> None:
    parser = verb(actions, "info", "What an index holds.", "rdcd-jax index info my.index", _info)
    parser.add_argument("index", type=local_path)


def _info(options, rest) -> None:
    from rdcd_jax.index.ann import read_ann
    from rdcd_jax.index.search import Index
    from rdcd_jax.index.store import index_bytes

    index = Index(options.index)
    found = index.manifest
    print(f"{options.index}: {len(index)} images, {index_bytes(options.index) / 1e6:.1f} MB")
    by = f", embedded by {found.engine}" if found.engine else ""
    print(f"model {found.model}, images of {found.image_size} pixels{by}")
    if found.root:
        print(f"paths below {found.root}")
    parts = ", six an image: its own and those of five parts" if found.parts else ""
    print(f"descriptors of {found.dim} dimensions in {found.dtype}{parts}")
    built = read_ann(options.index)
    if built is not None:
        stale = "" if built.segments == found.segments else ", but the index has changed since"
        print(
            f"--engine=ann finds {100 * built.recall:.1f} % of the ten nearest descriptors{stale}"
        )
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


def _add_export(actions) -> None:
    parser = verb(
        actions,
        "export",
        "Write an index's descriptors, ids, paths and sizes for other systems.",
        "rdcd-jax index export my.index --format=parquet --out=my.parquet",
        _export,
    )
    parser.add_argument("index", type=local_path)
    parser.add_argument("--format", required=True, help="parquet, faiss or npz")
    parser.add_argument("--out", required=True, type=local_path, help="the file")


def _export(options, rest) -> None:
    from rdcd_jax.index.export import export_index
    from rdcd_jax.index.search import Index

    count = export_index(Index(options.index), options.out, options.format)
    print(f"{options.out} holds {count} descriptors.")

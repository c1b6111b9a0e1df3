"""`rdcd-jax duplicates`."""

import argparse
import pathlib

from rdcd_jax.cli.options import (
    AUTO,
    SHOWN,
    add_engine_option,
    add_score_norm_option,
    add_sources,
    local_path,
    reported,
    require_all,
    score,
    sources_of,
    verb,
    warn_left_out,
)
from rdcd_jax.core.errors import one_line
from rdcd_jax.core.files import require_writable

_MODEL = "rdcd-effb0-128"
# As in `index.groups`, which would load more than a command line's help should.
_KEEP = ("largest", "least-compressed", "oldest")


def add_duplicates(verbs) -> None:
    """Adds the verb to the parser's."""
    parser = verb(
        verbs,
        "duplicates",
        "Group the images that are copies of each other, or find what two collections share.",
        "rdcd-jax duplicates FOLDER --out=groups.html --script=move.sh",
        _duplicates,
    )
    add_sources(parser, "the images")
    parser.add_argument(
        "--index",
        type=local_path,
        help="of these images, in place of SOURCE: nothing is embedded",
    )
    parser.add_argument(
        "--against", metavar="SOURCE", help="another collection: find what both of them hold"
    )
    parser.add_argument("--model", help=f"a shipped student, ... ({_MODEL}); an index has its own")
    parser.add_argument("--threshold", type=score, help="the model's at 90%% precision without")
    add_score_norm_option(parser)
    add_engine_option(parser)
    parser.add_argument("--out", type=local_path, help="a .csv, .json or .html file")
    parser.add_argument(
        "--keep", choices=_KEEP, help=f"which image of a group to keep ({_KEEP[0]})"
    )
    parser.add_argument(
        "--script",
        type=local_path,
        help="write a shell script that moves the others away; of two collections, those of SOURCE",
    )
    parser.add_argument(
        "--quarantine",
        type=local_path,
        metavar="FOLDER",
        help="where that script moves them (quarantine, beside the script)",
    )


def _duplicates(options, rest) -> None:
    from rdcd_jax.images.given import images_of
    from rdcd_jax.images.passed_over import lacking
    from rdcd_jax.index.duplicates import find_duplicates
    from rdcd_jax.index.results import require_savable

    if options.quarantine is not None and options.script is None:
        options.usage_error(
            "--quarantine is where the script of --script moves files; name that too"
        )
    if options.keep is not None and options.out is None and options.script is None:
        options.usage_error("--keep says what --out and --script keep of a group; name one of them")
    if options.out is not None and options.out == options.script:
        options.usage_error(f"--out and --script are one file, {options.out}; name two")
    if options.out is not None:
        require_savable(options.out)
    for path in (options.out, options.script):
        if path is not None:
            require_writable(path)
    images, given = _given(options)
    against = None if options.against is None else images_of(options.against, ids=options.ids)
    with reported() as report:
        groups = find_duplicates(
            given,
            against=against,
            model=options.model or _MODEL,
            threshold=options.threshold,
            normalised=options.score_norm == "auto",
            engine=options.engine,
            # What an earlier script moved there is not what to keep now.
            leave_out=None if options.script is None else _quarantine(options),
            on_progress=lambda done, total: report("Embedding", done, total),
        )
    warn_left_out(groups.unreadable)
    if options.out is not None:
        groups.save(options.out, keep=options.keep or _KEEP[0])
    for group in groups[:SHOWN]:
        print(f"{group.score:.3f}  " + "  ".join(one_line(name) for name in group.ids))
    if len(groups) > SHOWN:
        print(f"... and {len(groups) - SHOWN} more; --out=FILE gets them all.")
    grouped = sum(len(group) for group in groups)
    if options.against is None:
        print(f"{len(groups)} groups of copies, {grouped} of {groups.images} images in all.")
    else:
        print(f"{len(groups)} images are in {one_line(options.against)} too.")
    _write_script(options, groups)
    left_out = len(groups.unreadable) + (0 if against is None else lacking(against))
    require_all(options, images, left_out)


def _given(options: argparse.Namespace) -> tuple:
    """The images, None where there is an index, and what to find duplicates in.

    Raises:
        UserError: see `sources_of` and `Index`.
    """
    from rdcd_jax.index.search import Index

    if options.index is None:
        images = sources_of(options)
        return images, images
    if options.sources or options.images:
        options.usage_error("name the images once: SOURCE..., --images=SOURCE or --index=DIR")
    if options.ids != "name":
        options.usage_error("--ids is for images that are listed; an index has theirs")
    if options.engine != AUTO:
        options.usage_error("--engine is for images that are embedded; an index has its own")
    index = Index(options.index, model=options.model)
    if options.model is not None:
        _ = index.embedder  # Which refuses a model that did not make the index.
    return None, index


def _quarantine(options: argparse.Namespace) -> pathlib.Path:
    return options.quarantine or options.script.parent / "quarantine"


def _write_script(options: argparse.Namespace, groups) -> None:
    if options.script is None:
        return
    quarantine = _quarantine(options)
    moved = groups.save_script(options.script, quarantine, keep=options.keep or _KEEP[0])
    print(
        f"{one_line(str(options.script))} moves {moved} of them into {one_line(str(quarantine))} when you run it."
    )

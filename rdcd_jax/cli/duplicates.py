"""`rdcd-jax duplicates`."""

import pathlib

from rdcd_jax.cli.options import (
    SHOWN,
    add_score_norm_option,
    add_sources,
    reported,
    require_all,
    score,
    sources_of,
    verb,
    warn_left_out,
)
from rdcd_jax.core.errors import one_line
from rdcd_jax.core.files import require_writable


def add_duplicates(verbs) -> None:
    """Adds the verb to the parser's."""
    parser = verb(
        verbs,
        "duplicates",
        "Group the images that are copies of each other.",
        "rdcd-jax duplicates FOLDER --out=groups.html",
        _duplicates,
    )
    add_sources(parser, "the images")
    parser.add_argument(
        "--model", default="rdcd-effb0-128", help="a shipped student, ... (rdcd-effb0-128)"
    )
    parser.add_argument("--threshold", type=score, help="the model's at 90%% precision without")
    add_score_norm_option(parser)
    parser.add_argument("--out", type=pathlib.Path, help="a .csv, .json or .html file")


def _duplicates(options, rest) -> None:
    from rdcd_jax.index.duplicates import find_duplicates
    from rdcd_jax.index.results import require_savable

    if options.out is not None:
        require_savable(options.out)
        require_writable(options.out)
    images = sources_of(options)
    with reported() as report:
        groups = find_duplicates(
            images,
            model=options.model,
            threshold=options.threshold,
            normalised=options.score_norm == "auto",
            on_progress=lambda done, total: report("Embedding", done, total),
        )
    warn_left_out(groups.unreadable)
    if options.out is not None:
        groups.save(options.out)
    for group in groups[:SHOWN]:
        print(f"{group.score:.3f}  " + "  ".join(one_line(name) for name in group.ids))
    if len(groups) > SHOWN:
        print(f"... and {len(groups) - SHOWN} more; --out=FILE gets them all.")
    grouped = sum(len(group) for group in groups)
    print(f"{len(groups)} groups of copies, {grouped} of {len(images)} images in all.")
    require_all(options, images, len(groups.unreadable))

"""`rdcd-jax search`."""

import argparse
import sys

from rdcd_jax.cli.options import (
    SHOWN,
    add_distributed_option,
    add_moved_model,
    add_score_norm_option,
    add_sources,
    local_path,
    positive,
    reported,
    require_all,
    score,
    sources_of,
    verb,
    warn_left_out,
)
from rdcd_jax.core import hosts
from rdcd_jax.core.errors import one_line
from rdcd_jax.core.files import require_writable


def add_search(verbs) -> None:
    """Adds the verb to the parser's."""
    parser = verb(
        verbs,
        "search",
        "Find the images of an index that queries are copies of.",
        "rdcd-jax search --index=my.index SUSPECTS --out=matches.html",
        _search,
    )
    parser.add_argument("--index", required=True, type=local_path, help="made by index build")
    add_sources(parser, "the queries")
    add_moved_model(parser)
    parser.add_argument("--k", type=positive, default=10, help="images for each query (10)")
    parser.add_argument(
        "--threshold", type=score, help="least score; the model's at 90%% precision without"
    )
    parser.add_argument(
        "--variants",
        type=_variants,
        default="trim",
        help="also looks for queries changed so, separated by commas: trim (borders and a screenshot's bars cut off;"
        " the default, unless others are named), crops (five parts), flip, rotate90, rotate180, rotate270; or none",
    )
    add_score_norm_option(parser)
    add_distributed_option(parser)
    parser.add_argument(
        "--engine",
        choices=("exact", "ann"),
        default="exact",
        help="ann is the approximate search that index build --ann made (exact)",
    )
    parser.add_argument(
        "--out", type=local_path, help="a .csv, .json or .html file for all matches"
    )


def _variants(text: str) -> list[str]:
    """The names in a list that commas separate; empty for none."""
    names = [name for name in text.split(",") if name]
    if "none" in names and len(names) > 1:
        raise argparse.ArgumentTypeError(f"{text} is none and others; give one or the other")
    return [name for name in names if name != "none"]


def _search(options, rest) -> None:
    from rdcd_jax.index.places import is_stale
    from rdcd_jax.index.results import require_savable
    from rdcd_jax.index.search import Index

    if options.out is not None:
        require_savable(options.out)
        require_writable(options.out)
    images = sources_of(options)
    index = Index(options.index, model=options.model)
    with reported() as report:
        matches = index.search(
            images,
            k=options.k,
            threshold=options.threshold,
            variants=options.variants,
            normalised=options.score_norm == "auto",
            engine=options.engine,
            on_progress=lambda done, total: report("Embedding", done, total),
        )
    if not hosts.is_first():
        return
    warn_left_out(matches.unreadable)
    if options.out is not None:
        matches.save(options.out)
    print_matches(matches)
    found_files = {(match.path, match.bytes or 0) for match in matches}
    if stale := sum(is_stale(*each) for each in found_files):
        print(
            f"Warning: {stale} of the images found have changed or are gone since they were indexed;"
            f" `rdcd-jax index update {one_line(str(options.index))}` looks at them again.",
            file=sys.stderr,
        )
    found = len({match.query for match in matches})
    if options.threshold is None:
        _warn_uncalibrated(index, options.score_norm == "auto")
    print(f"Queries with matches: {found} of {len(images)}.")
    require_all(options, images, len(matches.unreadable))


def _warn_uncalibrated(index, normalised: bool) -> None:
    from rdcd_jax.index.manifest import BINARY

    if index.threshold(normalised=normalised) is not None:
        return
    way_out = "build the index with --calibration=FILE"
    if index.manifest.dtype == BINARY:
        way_out = "normalise scores, by a model with a background"
    print(
        "Warning: these scores have no calibration, so the nearest images of each query are listed, copies or not;"
        f" give a --threshold, or {way_out}.",
        file=sys.stderr,
    )


def print_matches(matches) -> None:
    """Prints the first matches as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("query", "image of the index", "score", "probability", "variant")
    for match in matches[:SHOWN]:
        probability = "-" if match.probability is None else f"{100 * match.probability:.0f} %"
        # As text, since brackets would be taken for markup.
        ids = (Text(one_line(name)) for name in (match.query, match.reference))
        table.add_row(*ids, f"{match.score:.3f}", probability, match.variant or "-")
    Console(width=100 if not sys.stdout.isatty() else None).print(table)
    if len(matches) > SHOWN:
        print(f"... and {len(matches) - SHOWN} more; --out=FILE gets them all.")

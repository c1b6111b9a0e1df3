"""`rdcd-jax evaluate disc|ndec|copydays`: the papers' benchmarks."""

import sys

from rdcd_jax.cli.options import (
    SOURCE,
    add_distributed_option,
    add_embedding_options,
    chosen_model,
    local_path,
    report_unreadable,
    reported,
    verb,
)
from rdcd_jax.core import hosts

# What each benchmark's descriptor files are given by, and the options that it has no use for.
_FILES = {
    "disc": ("queries", "references", "ground_truth"),
    "ndec": ("queries", "references", "ground_truth"),
    "copydays": ("queries",),
}
_FOREIGN = {
    "disc": ("distractors",),
    "ndec": ("distractors",),
    "copydays": ("references", "ground_truth", "score_norm", "global_candidates"),
}


def add_evaluate(verbs) -> None:
    """Adds the verb to the parser's."""
    parser = verb(
        verbs,
        "evaluate",
        "Evaluate a model, or descriptor files, by the protocol of DISC2021, NDEC or Copydays.",
        "rdcd-jax evaluate disc --model=runs/first/export --data=DISC --out=results --codecs='Flat;PCAW64,L2norm,Flat'"
        "\n  rdcd-jax evaluate copydays --model=rdcd-effb0-128 --data=COPYDAYS --distractors=FOLDER --out=results",
        _evaluate,
    )
    parser.add_argument("protocol", choices=tuple(_FILES))
    parser.add_argument("--model", help="a shipped student, an export folder, or KIND:PATH")
    parser.add_argument(
        "--data",
        help="the benchmark's folder: queries, references, training and ground truth, or Copydays' originals and"
        " copies",
    )
    parser.add_argument(
        "--queries",
        metavar="FILE",
        help="descriptors, instead of --model and --data; of copydays, originals and copies with ids such as"
        " strong/200001",
    )
    parser.add_argument("--references", metavar="FILE", help="descriptors, with --queries")
    parser.add_argument("--ground-truth", metavar="CSV", help="with --queries")
    parser.add_argument(
        "--training",
        metavar="SOURCE",
        help="unrelated images that whitening and score normalisation are fitted on; descriptors with --queries",
    )
    parser.add_argument(
        "--distractors",
        metavar="SOURCE",
        help="of copydays: images beside the originals, 10,000 for CD10K; descriptors with --queries",
    )
    parser.add_argument("--out", required=True, type=local_path, help="folder for the results")
    parser.add_argument(
        "--codecs",
        default="Flat",
        help="separated by ';': Flat, or such as PCAW128,L2norm,Flat (Flat)",
    )
    parser.add_argument("--score-norm", help="such as '1.0[0,2]', or None; separated by ';'")
    parser.add_argument(
        "--k",
        type=int,
        help="candidates a query (10, of copydays 100, or all where there are fewer)",
    )
    parser.add_argument(
        "--global-candidates", action="store_true", help="the k * queries best pairs of all"
    )
    parser.add_argument(
        "--backend", default="jax", help="exact search by jax, scann or numpy (the same answers)"
    )
    add_distributed_option(parser)
    add_embedding_options(parser)
    parser.epilog += (
        f"\n\nSOURCE is {SOURCE}.\nNDEC's images are embedded at 224 pixels unless a size is given."
    )


def _evaluate(options, rest) -> None:
    benchmark = options.protocol
    for name in _FOREIGN[benchmark]:
        if getattr(options, name):
            options.usage_error(f"evaluate {benchmark} takes no --{name.replace('_', '-')}")
    names = ("model", "data", "queries", "references", "ground_truth")
    given = tuple(name for name in names if getattr(options, name))
    if given not in (("model", "data"), _FILES[benchmark]):
        files = ", ".join(f"--{name.replace('_', '-')}" for name in _FILES[benchmark])
        options.usage_error(f"evaluate {benchmark} takes either --model and --data, or {files}")
    if "model" not in given and (options.image_size or options.short_edge):
        options.usage_error(
            "--image-size and --short-edge go with --model; descriptors are made already"
        )
    shared = {
        "training": options.training,
        "codecs": options.codecs,
        "k": options.k,
        "backend": options.backend,
    }
    evaluated = _copydays if benchmark == "copydays" else _disc
    evaluated(options, "model" in given, shared)


def _disc(options, images: bool, shared: dict) -> None:
    from rdcd_jax.benchmarks import disc_runs

    shared |= {
        "benchmark": options.protocol,
        "score_norm": options.score_norm,
        "global_candidates": options.global_candidates,
    }
    if images:
        rows, _, unreadable = _from_images(options, disc_runs.evaluate_disc, shared)
    else:
        rows, _, unreadable = disc_runs.evaluate_disc_files(
            options.queries, options.references, options.ground_truth, options.out, **shared
        )
    if not hosts.is_first():
        return
    report_unreadable(len(unreadable), options.out / "unreadable.txt")
    print_rows(rows)


def _copydays(options, images: bool, shared: dict) -> None:
    from rdcd_jax.benchmarks import copydays_runs

    shared |= {"distractors": options.distractors}
    unreadable = []
    if images:
        rows, unreadable = _from_images(options, copydays_runs.evaluate_copydays_run, shared)
    else:
        rows = copydays_runs.evaluate_copydays_files(options.queries, options.out, **shared)
    if not hosts.is_first():
        return
    report_unreadable(len(unreadable), options.out / "unreadable.txt")
    print_copydays_rows(rows)
    print(f"Every kind of attack by itself: {options.out / 'copydays_blocks.csv'}")


def _from_images(options, evaluated, shared: dict):
    from rdcd_jax.benchmarks.disc_runs import IMAGE_SIZES

    model = chosen_model(options, IMAGE_SIZES.get(options.protocol))
    with reported() as report:
        return evaluated(
            model,
            options.data,
            options.out,
            batch_size=options.batch_size,
            on_progress=report,
            **shared,
        )


def print_rows(rows) -> None:
    """Prints a DISC table, figures in percent, and the score from which on nine of ten matches are true."""
    from rich.console import Console
    from rich.table import Table

    table = Table("codec", "score norm", "µAP", "accuracy@1", "recall@P90", "score there")
    for row in rows:
        codec, norm, *values = row.cells().values()
        threshold = row.metrics.threshold_at_p90
        table.add_row(
            codec,
            norm,
            *("-" if v is None else f"{100 * v:.1f}" for v in values),
            "-" if threshold is None else f"{threshold:.3f}",
        )
    Console(width=100 if not sys.stdout.isatty() else None).print(table)


def print_copydays_rows(rows) -> None:
    """Prints a Copydays table, figures in percent, and says where it is not of the whole benchmark."""
    from rich.console import Console
    from rich.table import Table

    from rdcd_jax.benchmarks.copydays import BLOCKS, IMAGES

    table = Table("codec", "strong mAP", "overall µAP")
    for row in rows:
        codec, *values = row.cells().values()
        table.add_row(codec, *(f"{100 * value:.1f}" for value in values))
    Console(width=100 if not sys.stdout.isatty() else None).print(table)
    blocks = rows[0].blocks
    images = sum(block.images for block in blocks)
    if (images, len(blocks)) != (IMAGES, BLOCKS):
        print(
            f"These are {images} images in {len(blocks)} parts and Copydays has {IMAGES} in {BLOCKS}: "
            "not to be compared with published figures.",
            file=sys.stderr,
        )

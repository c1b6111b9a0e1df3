"""`rdcd-jax embed`."""

import argparse

from rdcd_jax.cli.options import (
    add_beam_option,
    add_distributed_option,
    add_embedding_options,
    add_sources,
    choice_of,
    local_path,
    report_unreadable,
    reported,
    require_all,
    sources_of,
    verb,
)


def add_embed(verbs) -> None:
    """Adds the verb to the parser's."""
    parser = verb(
        verbs,
        "embed",
        "Embed images and write their descriptors, or go on where the same command was ended.",
        "rdcd-jax embed FOLDER --model=runs/first/export --out=descriptors.npz",
        _embed,
    )
    add_sources(parser, "the images")
    parser.add_argument(
        "--model", required=True, help="a shipped student, an export folder, or KIND:PATH"
    )
    parser.add_argument("--out", required=True, type=local_path, help="an .npz or .h5 file")
    parser.add_argument(
        "--process",
        type=_process,
        metavar="I/N",
        help="this is process I (from 0) of N that share the work and a file system; the last to end writes the file",
    )
    add_distributed_option(parser)
    add_beam_option(parser)
    add_embedding_options(parser)


def _process(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (index.isdecimal() and slash and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text} is not I/N with I from 0 to N - 1")
    return int(index), int(count)


def _embed(options, rest) -> None:
    from rdcd_jax.embedding.service import OnBeam, embed_to_file

    if options.beam_options is not None and options.process is not None:
        options.usage_error("--beam-options and --process are two ways to share the work; give one")
    images = sources_of(options)
    choice = choice_of(options)
    beam = None if options.beam_options is None else OnBeam(options.beam_options, choice)
    with reported() as report:
        found = embed_to_file(
            choice(),
            images,
            options.out,
            batch_size=options.batch_size,
            process=options.process,
            beam=beam,
            on_progress=report,
        )
    if found is None and options.process is None:
        return  # The first of the processes that joined says so.
    if found is None and options.out.exists():
        print(f"{options.out} is there; delete it to embed the images again.")
        return
    if found is None:
        print(f"This process's images are embedded; the last one to end writes {options.out}.")
        return
    report_unreadable(len(found.unreadable), f"{options.out}.unreadable.txt")
    print(f"{found.count} descriptors of {found.dim} dimensions in {options.out}.")
    require_all(options, images, len(found.unreadable))

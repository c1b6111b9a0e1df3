"""What the verbs of the command line share."""

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rdcd_jax.core.errors import UserError, one_line
from rdcd_jax.core.files import is_address

SOURCE = (
    "a folder, a text file of paths, a .zip or .tar, packed shards (also in a bucket: gs://BUCKET/FOLDER),"
    " tfds:NAME/SPLIT, or the bundled sample:queries, sample:references, sample:train"
)
# Matches and groups printed; a file gets them all.
SHOWN = 40
# As `weights.engines` has it, whose import takes a second.
AUTO = "auto"


def verb(
    verbs, name: str, about: str, example: str, run: Callable | None = None
) -> argparse.ArgumentParser:
    """Adds a verb to a parser's.

    Args:
        verbs: what `add_subparsers` gave.
        name: the verb.
        about: a sentence.
        example: a command line.
        run: called with the options and the words that are none; None for a verb that has verbs of its own.

    Returns:
        The verb's parser.
    """
    parser = verbs.add_parser(
        name,
        help=about,
        description=about,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if run is not None:
        parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
        parser.set_defaults(run=run, usage_error=parser.error)
    return parser


def local_path(text: str) -> pathlib.Path:
    """An option's file or folder; a bucket must be mounted."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; . is the current folder")
    if is_address(text):
        raise argparse.ArgumentTypeError(
            f"{text} is an address; give a path, such as one in a bucket that is mounted"
        )
    return pathlib.Path(text)


def positive(text: str) -> int:
    """An option's whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def score(text: str) -> float:
    """An option's score: a similarity, less what score normalisation takes off it."""
    from rdcd_jax.search.calibration import require_score

    number = float(text)
    try:
        require_score(number)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error
    return number


def add_ids_option(parser: argparse.ArgumentParser) -> None:
    """Adds --ids."""
    parser.add_argument(
        "--ids", choices=("name", "path"), default="name", help="what an image is called by"
    )


def add_sources(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds SOURCE..., --images, --ids and --strict; `sources_of` and `require_all` read them."""
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help=f"{what}: images, or {SOURCE}")
    parser.add_argument("--images", metavar="SOURCE", help="the same, one alone")
    add_ids_option(parser)
    add_strict_option(parser)


def add_strict_option(parser: argparse.ArgumentParser) -> None:
    """Adds --strict; `require_all` obeys it."""
    parser.add_argument(
        "--strict",
        action="store_true",
        help="exit with 1 where an image was left out; all others are done all the same",
    )


def require_all(options: argparse.Namespace, images, unreadable: int) -> None:
    """Fails, at the end of a verb, where images were left out and --strict was given.

    Args:
        options: of the verb.
        images: the set, or None.
        unreadable: how many of its images could not be read.

    Raises:
        UserError: saying how many.
    """
    from rdcd_jax.images.passed_over import lacking

    count = unreadable + (0 if images is None else lacking(images))
    if options.strict and count:
        raise UserError(f"{count} images were left out, see above, and --strict asks for all.")


def sources_of(options: argparse.Namespace):
    """The images of SOURCE... or --images.

    Raises:
        UserError: see `images_of`. A usage error where neither or both were given.
    """
    from rdcd_jax.images.given import images_of

    if bool(options.sources) == (options.images is not None):
        options.usage_error("name the images once: SOURCE..., or --images=SOURCE")
    return images_of(options.sources or [options.images], ids=options.ids)


def add_score_norm_option(parser: argparse.ArgumentParser) -> None:
    """Adds --score-norm of verbs that compare by a model's own background."""
    parser.add_argument(
        "--score-norm",
        choices=("auto", "none"),
        default="auto",
        help="none leaves similarities as they are; else the model's background, if it has one, normalises them",
    )


def add_engine_option(parser: argparse.ArgumentParser) -> None:
    """Adds --engine of verbs that embed many images."""
    parser.add_argument(
        "--engine",
        default=AUTO,
        help="what embeds: jax, onnxruntime-int8, or auto (default): the latter on CPUs where onnxruntime is installed",
    )


def add_distributed_option(parser: argparse.ArgumentParser) -> None:
    """Adds --distributed; `main` joins the other processes before the verb runs."""
    parser.add_argument(
        "--distributed",
        action=argparse.BooleanOptionalAction,
        help="share the work with the other processes of a cluster, or fail where none is found; without, that is done"
        " on a TPU slice, under Slurm or Open MPI, and where JAX_COORDINATOR_ADDRESS is set",
    )


def add_beam_option(parser: argparse.ArgumentParser) -> None:
    """Adds --beam-options."""
    parser.add_argument(
        "--beam-options",
        metavar="OPTIONS",
        help="of an Apache Beam pipeline that does the work on many machines, such as '--runner=FlinkRunner'; they need"
        " a common file system",
    )


def add_moved_model(parser: argparse.ArgumentParser) -> None:
    """Adds --model of verbs that go on with an index."""
    parser.add_argument(
        "--model", help="where the index's model lies now, if it was moved; its weights decide"
    )


def warn_left_out(unreadable) -> None:
    """Names each image that was left out on stderr."""
    for each in unreadable:
        print(f"left out: {one_line(each.reason)}", file=sys.stderr)


def add_embedding_options(parser: argparse.ArgumentParser) -> None:
    """Adds --image-size, --short-edge and --batch-size."""
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--image-size",
        type=positive,
        metavar="S",
        help="side in pixels; the model's own by default",
    )
    sizes.add_argument(
        "--short-edge",
        type=positive,
        metavar="S",
        help="shorter side in pixels; the longer one is S and the nearest multiple of 32 more, 3 S at most",
    )
    parser.add_argument(
        "--batch-size", type=positive, default=32, metavar="B", help="images at a time: 32"
    )


class Choice(NamedTuple):
    """The model that a command line names, which any process can load.

    Attributes:
        spec: --model.
        image_size: side or short edge of its images; its own for None.
        short_edge: see `Model.at_size`.
    """

    spec: str
    image_size: int | None
    short_edge: bool

    def __call__(self):
        """Loads it."""
        from rdcd_jax.weights.library import load_model

        return load_model(self.spec).at_size(self.image_size, short_edge=self.short_edge)


def choice_of(options: argparse.Namespace, image_size: int | None = None) -> Choice:
    """The model of --model at --image-size or --short-edge; at `image_size`, or its own without either."""
    if options.short_edge is not None:
        return Choice(options.model, options.short_edge, True)
    size = image_size if options.image_size is None else options.image_size
    return Choice(options.model, size, False)


def chosen_model(options: argparse.Namespace, image_size: int | None = None):
    """That model, loaded."""
    return choice_of(options, image_size)()


@contextlib.contextmanager
def reported() -> Iterator[Callable[[str, int, int], None]]:
    """Gives a progress callback (what, done, total) that shows one bar after another."""
    from rdcd_jax.core.progress import Reporter

    reporters: dict[tuple[str, int], Reporter] = {}
    # A bar left open by a failure would keep the terminal's cursor hidden.
    with contextlib.ExitStack() as shown:

        def report(what: str, done: int, total: int) -> None:
            # Two collections may be embedded one after the other.
            key = what, total
            if key not in reporters:
                shown.close()
                reporters[key] = shown.enter_context(Reporter(what, total, done))
            reporters[key].update(done)
            if done >= total:
                shown.close()

        yield report


def report_unreadable(count: int, where: object) -> None:
    """Says on stderr how many images were left out, if any, and what lists them."""
    if count:
        print(
            f"{count} images could not be read and were left out; {where} lists them.",
            file=sys.stderr,
        )

"""`rdcd-jax VERB`: parses, calls one library function, prints."""

import argparse
import os
import signal
import sys

from rdcd_jax import __version__
from rdcd_jax.cli.data import add_data
from rdcd_jax.cli.demo import add_demo
from rdcd_jax.cli.duplicates import add_duplicates
from rdcd_jax.cli.embed import add_embed
from rdcd_jax.cli.evaluate import add_evaluate
from rdcd_jax.cli.index import add_index
from rdcd_jax.cli.models import add_models
from rdcd_jax.cli.report import add_report
from rdcd_jax.cli.search import add_search
from rdcd_jax.cli.sweep import add_sweep
from rdcd_jax.cli.train import add_train
from rdcd_jax.cli.weights import add_weights
from rdcd_jax.core import hosts
from rdcd_jax.core.compiled import keep_compiled
from rdcd_jax.core.errors import UserError, one_line
from rdcd_jax.core.logs import show_warnings
from rdcd_jax.core.signals import Terminated, raised

DESCRIPTION = "Image copy detection with compact descriptors: RDCD and SSCD in pure JAX."


def main(argv: list[str] | None = None) -> int:
    """Runs a verb; the console script.

    Args:
        argv: the arguments; the process's own for None.

    Returns:
        0 for success, 1 for a failure reported in one sentence on stderr; a usage error exits with 2.
    """
    parser = make_parser()
    options, rest = parser.parse_known_args(argv)
    # A config's fields are known only when it is loaded.
    unknown = [
        word
        for word in rest
        if options.verb not in ("train", "sweep") or not word.startswith("--config.")
    ]
    dashes = unknown.index("--") if "--" in unknown else len(unknown)
    before, after = unknown[:dashes], unknown[dashes + 1 :]
    if not any(word.startswith("-") for word in before) and hasattr(options, "sources"):
        # argparse takes none that stand behind an option.
        options.sources = [*options.sources, *before, *after]
        unknown = []
    if unknown:
        words = ["rdcd-jax", options.verb, *filter(None, [getattr(options, "action", None)])]
        parser.error(f"unknown argument {unknown[0]}; see `{' '.join(words)} --help`")
    keep_compiled()
    show_warnings()
    joins = _joins(options)
    if joins:
        hosts.guarded()
    code = _run(options, rest, joins)
    if code:
        hosts.leave(code)
    return code


def _joins(options: argparse.Namespace) -> bool:
    """Whether this is one of several processes that share a verb's work and know of each other."""
    numbered = getattr(options, "process", None) is not None
    if numbered and options.distributed:
        options.usage_error("--process is for processes that do not join; leave --distributed out")
    if numbered or getattr(options, "dry_run", False) or not hasattr(options, "distributed"):
        return False
    if options.distributed is None:
        return hosts.named_cluster() is not None
    return options.distributed


def _run(options: argparse.Namespace, rest: list[str], joins: bool) -> int:
    """Runs the verb; gives the process's exit code."""
    try:
        with raised():
            if joins:
                hosts.join(preemptible=options.verb == "train")
            options.run(options, rest)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads the output, such as `head`, has seen enough; what is left goes nowhere. As rich ends then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, OSError, MemoryError) as error:
        if options.debug:
            raise
        print(f"rdcd-jax: {one_line(_sentence(error))}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        # XLA's own way to say that an array does not fit.
        full = "RESOURCE_EXHAUSTED" in str(error)
        if options.debug or not (full or hosts.is_end_of_another(error)):
            raise
        sentence = _sentence(MemoryError("on the device")) if full else hosts.ENDED
        print(f"rdcd-jax: {sentence}", file=sys.stderr)
        return 1
    except Terminated:
        print("rdcd-jax: ended by SIGTERM.", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        print("rdcd-jax: interrupted.", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line's parser, with a function `run(options, rest)` for each verb."""
    parser = argparse.ArgumentParser(prog="rdcd-jax", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"rdcd-jax {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add_demo(verbs)
    add_train(verbs)
    add_sweep(verbs)
    add_embed(verbs)
    add_evaluate(verbs)
    add_report(verbs)
    add_data(verbs)
    add_index(verbs)
    add_search(verbs)
    add_duplicates(verbs)
    add_weights(verbs)
    add_models(verbs)
    return parser


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        # Of two, the second is what a file written aside was to become.
        return f"{error.filename2 or error.filename}: {error.strerror}."
    if isinstance(error, MemoryError):
        return f"There is not enough memory ({error}); use smaller batches or images."
    return str(error)

"""`rdcd-jax VERB`: parses, calls one library function, prints."""

import argparse
import os
import pathlib
import sys

from rdcd_jax import __version__
from rdcd_jax.cli.data import SOURCE, add_data
from rdcd_jax.cli.evaluate import add_evaluate
from rdcd_jax.cli.index import add_index
from rdcd_jax.cli.options import (
    add_embedding_options,
    add_ids_option,
    chosen_model,
    report_unreadable,
    reported,
    verb,
)
from rdcd_jax.cli.report import add_report
from rdcd_jax.core.errors import UserError, one_line
from rdcd_jax.core.files import cache_folder

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
    unknown = [word for word in rest if options.verb != "train" or not word.startswith("--config.")]
    if unknown:
        words = ["rdcd-jax", options.verb, *filter(None, [getattr(options, "action", None)])]
        parser.error(f"unknown argument {unknown[0]}; see `{' '.join(words)} --help`")
    # JAX, which is imported later, keeps what it compiled there; the next start of the same program need not compile.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    try:
        options.run(options, rest)
    except (UserError, OSError, MemoryError) as error:
        if options.debug:
            raise
        print(f"rdcd-jax: {one_line(_sentence(error))}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        # XLA's own way to say that an array does not fit.
        if options.debug or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"rdcd-jax: {_sentence(MemoryError('on the device'))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rdcd-jax: interrupted.", file=sys.stderr)
        return 1
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line's parser, with a function `run(options, rest)` for each verb."""
    parser = argparse.ArgumentParser(prog="rdcd-jax", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"rdcd-jax {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_demo(verbs)
    _add_train(verbs)
    _add_embed(verbs)
    add_evaluate(verbs)
    add_report(verbs)
    add_data(verbs)
    add_index(verbs)
    _add_weights(verbs)
    _add_models(verbs)
    return parser


def _add_demo(verbs) -> None:
    parser = verb(
        verbs,
        "demo",
        "Distil a student from the teacher on the bundled images, and find edited copies with it.",
        "rdcd-jax demo --out=demo-out",
        _demo,
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("demo-out"))


def _demo(options, rest) -> None:
    from rdcd_jax.demo import run_demo

    run_demo(options.out)


def _add_train(verbs) -> None:
    parser = verb(
        verbs,
        "train",
        "Train a student, or continue the run that the workdir holds.",
        "rdcd-jax train --config=configs/rdcd.py:dim=128,data=FOLDER --workdir=runs/first --config.batch_size=64",
        _train,
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of the run")
    parser.add_argument("--init-from", metavar="MODEL", help="model to start the student from")
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE[:ARG]",
        help="config file and its argument; --config.a.b=VALUE changes one field",
    )


def _train(options, rest) -> None:
    from rdcd_jax.training.config import load_config
    from rdcd_jax.training.loop import train_and_evaluate

    config = load_config(options.config, rest)
    if options.init_from is not None:
        config.init_from = options.init_from
    state = train_and_evaluate(config, options.workdir)
    export = options.workdir / "export"
    if export.is_dir():
        print(f"The run is in {options.workdir}, its student in {export}.")
    else:
        print(
            f"Stopped and saved after step {int(state.step)}; the same command continues the run."
        )


def _add_embed(verbs) -> None:
    parser = verb(
        verbs,
        "embed",
        "Embed images and write their descriptors, or go on where the same command was ended.",
        "rdcd-jax embed --model=runs/first/export --images=FOLDER --out=descriptors.npz",
        _embed,
    )
    parser.add_argument(
        "--model", required=True, help="a shipped student, an export folder, or KIND:PATH"
    )
    parser.add_argument("--images", required=True, help=SOURCE)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="an .npz or .h5 file")
    parser.add_argument(
        "--process",
        type=_process,
        metavar="I/N",
        help="this is process I (from 0) of N that share the work and a file system; the last to end writes the file",
    )
    add_ids_option(parser)
    add_embedding_options(parser)


def _process(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (index.isdecimal() and slash and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text} is not I/N with I from 0 to N - 1")
    return int(index), int(count)


def _embed(options, rest) -> None:
    from rdcd_jax.embedding.service import embed_to_file
    from rdcd_jax.images.sources import find_images

    images = find_images(options.images, ids=options.ids)
    model = chosen_model(options)
    with reported() as report:
        found = embed_to_file(
            model,
            images,
            options.out,
            batch_size=options.batch_size,
            process=options.process,
            on_progress=report,
        )
    if found is None:
        print(f"This process's images are embedded; the last one to end writes {options.out}.")
        return
    report_unreadable(len(found.unreadable), f"{options.out}.unreadable.txt")
    print(f"{found.count} descriptors of {found.dim} dimensions in {options.out}.")


def _add_weights(verbs) -> None:
    parser = verb(
        verbs,
        "weights",
        "Import foreign weights into the user's cache, list what is there, or export a model.",
        "rdcd-jax weights import sscd-torchvision sscd_disc_mixup.torchvision.pt",
        _weights,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|import|export")
    actions.add_parser("list", help="what the cache and the package hold")
    importer = actions.add_parser("import", help="read a foreign checkpoint into the cache")
    importer.add_argument(
        "kind", help="sscd-torchvision, torchvision, timm, dino, rdcd, ...; see `rdcd-jax models`"
    )
    importer.add_argument(
        "path",
        nargs="?",
        help="the file; sscd-onnx and efficientnet-lite0 find the installed package's without",
    )
    exporter = actions.add_parser("export", help="write a model as another program takes it")
    exporter.add_argument(
        "--model", required=True, help="a shipped student, an export folder, or KIND:PATH"
    )
    exporter.add_argument(
        "--format",
        required=True,
        help="torch, safetensors, onnx, onnx-float16, onnx-int8 or stablehlo",
    )
    exporter.add_argument("--out", required=True, type=pathlib.Path, help="the file")
    exporter.add_argument(
        "--calibration",
        metavar="SOURCE",
        help="images to set onnx-int8's ranges by; the bundled training images by default",
    )


def _weights(options, rest) -> None:
    from rdcd_jax.weights import library, store

    if options.action == "import":
        path = options.path or store.find_installed(options.kind)
        if path is None:
            how = store.KINDS[options.kind].help
            raise UserError(f"weights import {options.kind} needs a file. {how}")
        kept = store.import_weights(options.kind, path)
        print(f"Kept as {kept}.\nLicence: {store.KINDS[options.kind].licence}.")
        return
    if options.action == "export":
        from rdcd_jax.weights.export import export_weights

        model = library.load_embedder(options.model)
        export_weights(model, options.format, options.out, calibration=options.calibration)
        print(f"{options.model} is in {options.out} ({options.out.stat().st_size / 1e6:.1f} MB).")
        return
    for name in library.shipped_names():
        print(f"{name}  (shipped)")
    for found in store.list_weights():
        print(f"{found.kind or 'damaged'}  {found.path}  from {found.source}; {found.licence}")
    if not library.shipped_names() and not store.list_weights():
        print(f"Nothing is imported yet. {store.TEACHER_HELP}")


def _add_models(verbs) -> None:
    verb(
        verbs,
        "models",
        "Print every network: its size, its descriptor, and which files hold weights for it.",
        "rdcd-jax models",
        _models,
    )


def _models(options, rest) -> None:
    from rdcd_jax.weights import catalogue

    print_networks(catalogue.networks(), catalogue.STUDENT_DIM, catalogue.IMAGE_SIZE)


def print_networks(networks, student_dim: int, image_size: int) -> None:
    """Prints the table of `rdcd-jax models`."""
    from rich.console import Console
    from rich.table import Table

    table = Table("network", "role")
    for title in ("parameters", "multiply-adds", "dimensions", "bytes"):
        table.add_column(title, justify="right")
    table.add_column("weights")
    for row in networks:
        table.add_row(
            row.name,
            row.role,
            f"{row.parameters / 1e6:.1f} M",
            f"{row.multiply_adds / 1e9:.2f} G",
            str(row.dim),
            str(row.descriptor_bytes),
            ", ".join((*row.shipped, *row.kinds)),
        )
    Console(width=120 if not sys.stdout.isatty() else None).print(table)
    print(
        f"Multiply-adds are of one image of {image_size} pixels; a student's dimensions are those you choose, here"
        f" {student_dim}, float32. Weights are shipped, or in a file that you give as KIND:PATH."
    )


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        # Of two, the second is what a file written aside was to become.
        return f"{error.filename2 or error.filename}: {error.strerror}."
    if isinstance(error, MemoryError):
        return f"There is not enough memory ({error}); use smaller batches or images."
    return str(error)

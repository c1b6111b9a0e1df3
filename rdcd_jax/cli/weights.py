"""`rdcd-jax weights ACTION`."""

from rdcd_jax.cli.options import local_path, verb
from rdcd_jax.core.errors import UserError


def add_weights(verbs) -> None:
    """Adds the verb to the parser's."""
    parser = verb(
        verbs,
        "weights",
        "Import foreign weights into the user's cache, list what is there, or export a model.",
        "rdcd-jax weights import sscd-torchvision sscd_disc_mixup.torchvision.pt",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|import|export")
    verb(
        actions,
        "list",
        "List what the package and the cache hold.",
        "rdcd-jax weights list",
        _list,
    )
    _add_import(actions)
    _add_export(actions)


def _list(options, rest) -> None:
    from rdcd_jax.weights import store
    from rdcd_jax.weights.shipped import list_models

    shipped, imported = list_models(), store.list_weights()
    for name in shipped:
        print(f"{name}  (shipped)")
    for found in imported:
        print(f"{found.kind or 'damaged'}  {found.path}  from {found.source}; {found.licence}")
    if not shipped and not imported:
        print(f"Nothing is imported yet. {store.TEACHER_HELP}")


def _add_import(actions) -> None:
    parser = verb(
        actions,
        "import",
        "Read a foreign checkpoint into the cache.",
        "rdcd-jax weights import sscd-torchvision sscd_disc_mixup.torchvision.pt",
        _import,
    )
    parser.add_argument(
        "kind", help="sscd-torchvision, torchvision, timm, dino, rdcd, ...; see `rdcd-jax models`"
    )
    parser.add_argument(
        "path",
        nargs="?",
        help="the file; sscd-onnx and efficientnet-lite0 find the installed package's without",
    )


def _import(options, rest) -> None:
    from rdcd_jax.weights import store

    path = options.path or store.find_installed(options.kind)
    if path is None:
        how = store.KINDS[options.kind].help
        raise UserError(f"weights import {options.kind} needs a file. {how}")
    kept = store.import_weights(options.kind, path)
    print(f"Kept as {kept}.\nLicence: {store.KINDS[options.kind].licence}.")


def _add_export(actions) -> None:
    parser = verb(
        actions,
        "export",
        "Write a model as another program takes it.",
        "rdcd-jax weights export --model=rdcd-effb0-128 --format=onnx --out=student.onnx",
        _export,
    )
    parser.add_argument(
        "--model", required=True, help="a shipped student, an export folder, or KIND:PATH"
    )
    parser.add_argument(
        "--format",
        required=True,
        help="torch, safetensors, onnx, onnx-float16, onnx-int8 or stablehlo",
    )
    parser.add_argument("--out", required=True, type=local_path, help="the file")
    parser.add_argument(
        "--range-images",
        metavar="SOURCE",
        help="images to measure onnx-int8's quantisation ranges on; the bundled training images by default",
    )


def _export(options, rest) -> None:
    from rdcd_jax.weights.export import export_weights
    from rdcd_jax.weights.library import load_model

    model = load_model(options.model)
    export_weights(model, options.format, options.out, range_images=options.range_images)
    print(f"{options.model} is in {options.out} ({options.out.stat().st_size / 1e6:.1f} MB).")

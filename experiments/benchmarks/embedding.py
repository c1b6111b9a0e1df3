"""Times descriptors from image files against PyTorch and onnxruntime doing the same.

    python -m experiments.benchmarks.embedding [--images sample:references] [--size 288] [--rounds 3]

Float32, the students' networks and the teacher's. Here: `embed_images`, as `rdcd-jax embed` runs it. PyTorch:
torchvision's and timm's networks in channels_last, the same decoding and resizing in a DataLoader with one worker for
each core but one. onnxruntime: `embed_images` with the files of `rdcd-jax weights export`, in float32 and in int8.
FastViT's branches are merged in all. They take turns in one run, each in a process of its own, and medians are
compared. The result goes to experiments/results/bench_embed.json.
"""

import argparse
import atexit
import functools
import json
import os
import pathlib
import shutil
import statistics
import tempfile
import time

from experiments.benchmarks import turns
from rdcd_jax.core.huge_pages import asking

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULT = ROOT / "experiments" / "results" / "bench_embed.json"

NETWORKS = {
    "efficientnet_b0": 128,
    "fastvit_t12": 128,
    "mobilenet_v3_large": 128,
    "resnet50": None,
}
BATCH = 32


def jax_runs(source: str, size: int):
    """Functions that embed all images, by network."""
    return {name: run_of(model_of(name, size), source) for name in NETWORKS}


def onnx_runs(form: str, source: str, size: int):
    """The same by onnxruntime, with the files of that form."""
    from rdcd_jax.weights.export import export_weights
    from rdcd_jax.weights.onnx_model import load_onnx_model

    def run(name: str, folder: str):
        path = pathlib.Path(folder) / f"{name}.onnx"
        export_weights(model_of(name, size), form, path)
        return run_of(load_onnx_model(name, path).at_size(size), source)

    # The files are read again when images are embedded.
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return {name: run(name, folder) for name in NETWORKS}


def model_of(name: str, size: int):
    """A network with random weights, ready to embed images."""
    from flax import nnx

    from rdcd_jax import models
    from rdcd_jax.weights.model import Model, evaluation_mode

    module = models.build(name, dim=NETWORKS[name], rngs=nnx.Rngs(0))
    return Model(name, name, evaluation_mode(module), size)


def run_of(model, source: str):
    """A function that embeds all images, and gives their number."""
    from rdcd_jax.embedding.stream import embed_images
    from rdcd_jax.images.sources import find_images

    images = find_images(source)
    return lambda: len(embed_images(model, images, batch_size=BATCH)[0].ids)


class Images:
    """Decoded images, as a torch DataLoader wants them."""

    def __init__(self, images, size: int):
        self.images, self.size = images, size

    def __len__(self) -> int:
        """How many there are."""
        return len(self.images)

    def __getitem__(self, position: int):
        """One image, uint8 [S, S, 3]."""
        import numpy as np

        from rdcd_jax.images.decode import resize_square

        image = self.images.decode(position, min_side_hint=self.size)
        return np.asarray(resize_square(image, self.size))


def torch_network(name: str):
    """A network in PyTorch as it embeds fastest."""
    import torch

    from experiments.benchmarks.plain_torch import Student, Teacher
    from tests.torch_support import import_timm

    dim = NETWORKS[name]
    network = Teacher() if dim is None else Student(dim, name)
    if name == "fastvit_t12":
        network = import_timm().utils.reparameterize_model(network.eval())
    return network.eval().to(memory_format=torch.channels_last)


def torch_runs(source: str, size: int):
    """The same in PyTorch."""
    import torch

    from rdcd_jax.images.sources import find_images
    from rdcd_jax.models.descriptor import IMAGENET_MEAN, IMAGENET_STD

    images = Images(find_images(source), size)
    mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))

    def run(name: str):
        network = torch_network(name)

        @torch.inference_mode()
        def embed() -> int:
            workers = max(1, (os.cpu_count() or 1) - 1)
            loader = torch.utils.data.DataLoader(images, BATCH, num_workers=workers)
            rows = []
            for batch in loader:
                x = (batch.permute(0, 3, 1, 2).float() / 255 - mean) / std
                rows.append(network(x)[1])
            return len(torch.cat(rows))

        return embed

    return {name: run(name) for name in NETWORKS}


def timed(make, source: str, size: int):
    """Functions that give the descriptors a second, by network."""

    def speed(run) -> float:
        begun = time.perf_counter()
        count = run()
        return count / (time.perf_counter() - begun)

    runs = make(source, size)
    for run in runs.values():
        run()
    return {name: functools.partial(speed, run) for name, run in runs.items()}, None


def main() -> None:
    """Lets them take turns, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", default="sample:references")
    parser.add_argument("--size", type=int, default=288)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    # As the command line does; GLIBC_TUNABLES=glibc.malloc.hugetlb=0 is obeyed.
    os.environ.update(asking(os.environ))
    makers = {
        "jax": jax_runs,
        "torch": torch_runs,
        "onnx": functools.partial(onnx_runs, "onnx"),
        "onnx-int8": functools.partial(onnx_runs, "onnx-int8"),
    }
    ready = {
        name: functools.partial(timed, make, options.images, options.size)
        for name, make in makers.items()
    }
    with turns.contest(ready) as contenders:
        speeds = contenders.rounds(NETWORKS, options.rounds)
    medians = {
        name: {network: statistics.median(found) for network, found in each.items()}
        for name, each in speeds.items()
    }
    result = {
        "settings": vars(options) | {"GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "")},
        "descriptors a second": speeds,
        **{
            f"{name} / torch": {
                network: round(medians[name][network] / medians["torch"][network], 3)
                for network in NETWORKS
            }
            for name in makers
            if name != "torch"
        },
    }
    print(json.dumps(result, indent=2))

    from rdcd_jax.core.files import write_json
    from rdcd_jax.training.record import environment

    write_json(RESULT, {"environment": environment(), **result})


if __name__ == "__main__":
    main()

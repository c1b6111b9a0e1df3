"""What embedding by each network costs: size, work, and time on one core, beside the same networks elsewhere.

    python -m experiments.benchmarks.cost [--size 288] [--images 40]

Ours are the students' networks with 128 dimensions and the teacher's, with random weights. Multiply-adds are counted in
our own programs and, beside them, by torch's counter in torchvision's and timm's networks with their classifiers, both
at the size that those are published at; where torchvision publishes counts of its own, they are given too. Times are of
one image at a time of `--size` pixels on one core, decoded already: JAX, onnxruntime with the files of `weights export`
in float32 and in 8-bit integers, and the same network in PyTorch (channels_last), each in a process of its own, in
turns.

Needs torch, torchvision, timm and onnxruntime (`make test TORCH=1` installs them). The result goes to
experiments/results/cost.json.
"""

import argparse
import functools
import os
import pathlib
import statistics
import tempfile
import time

from experiments.benchmarks import turns
from experiments.benchmarks.embedding import NETWORKS, model_of

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULT = ROOT / "experiments" / "results" / "cost.json"

# At which they are published, in pixels.
PUBLISHED_SIZE = {"fastvit_t12": 256}
FORMS = ("onnx", "onnx-int8")


def jax_runs(size: int):
    """Functions that embed one image, by network."""
    return {name: model_of(name, size).embed_batch for name in NETWORKS}


def torch_runs(size: int):
    """The same in PyTorch."""
    import torch

    from experiments.benchmarks.embedding import torch_network
    from rdcd_jax.models.descriptor import IMAGENET_MEAN, IMAGENET_STD

    torch.set_num_threads(1)
    mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))

    def run(name: str):
        network = torch_network(name)

        @torch.inference_mode()
        def embed(images):
            x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
            return network((x / 255 - mean) / std)[1].numpy()

        return embed

    return {name: run(name) for name in NETWORKS}


def onnx_runs(folder: str, form: str):
    """The same by onnxruntime."""
    from rdcd_jax.weights.onnx_model import load_onnx_model

    return {
        name: load_onnx_model(name, pathlib.Path(folder) / f"{name}.{form}").embed_batch
        for name in NETWORKS
    }


def on_one_core(make, arguments: tuple, size: int, count: int):
    """Functions that embed so many images one by one, by network, and give the median of their seconds."""
    os.sched_setaffinity(0, {0})
    import numpy as np

    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)

    def seconds(run) -> float:
        times = []
        for _ in range(count):
            begun = time.perf_counter()
            run(image)
            times.append(time.perf_counter() - begun)
        return statistics.median(times)

    runs = make(*arguments)
    for run in runs.values():
        run(image)
    return {name: functools.partial(seconds, run) for name, run in runs.items()}, None


def published(name: str) -> dict:
    """What torchvision's or timm's network with its classifier comes to."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tests.torch_support import import_timm, import_torchvision

    torchvision = import_torchvision()
    size, given = PUBLISHED_SIZE.get(name, 224), {}
    if hasattr(torchvision.models, name):
        network = torchvision.models.get_model(name)
        meta = next(iter(torchvision.models.get_model_weights(name))).meta
        given = {"parameters given": meta["num_params"], "multiply-adds given": meta["_ops"] * 1e9}
    else:
        timm = import_timm()
        network = timm.utils.reparameterize_model(timm.create_model(name).eval())
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.eval()(torch.zeros(1, 3, size, size))
    return {
        "from": "torchvision" if given else "timm",
        "size": size,
        "parameters": sum(each.numel() for each in network.parameters()),
        "multiply-adds": counter.get_total_flops() // 2,
        **given,
    }


def counted(name: str, size: int, folder: pathlib.Path) -> dict:
    """What our network comes to; its ONNX files are written to the folder."""
    from rdcd_jax.models.counts import multiply_adds, parameter_count
    from rdcd_jax.weights.export import export_weights

    model = model_of(name, size)
    theirs = published(name)
    for form in FORMS:
        export_weights(model, form, folder / f"{name}.{form}")
    parameters = parameter_count(model.module)
    return {
        "parameters": parameters,
        "bytes": {
            "float32": 4 * parameters,
            "float16": 2 * parameters,
            "onnx-int8": (folder / f"{name}.onnx-int8").stat().st_size,
        },
        "multiply-adds": {
            str(each): multiply_adds(model.module, each) for each in (theirs["size"], size)
        },
        "published": theirs,
    }


def timed(makers: dict, size: int, rounds: int, count: int) -> dict[str, dict[str, float]]:
    """Milliseconds an image by network and by what computes it."""
    pinned = {
        name: functools.partial(on_one_core, make, arguments, size, count)
        for name, (make, arguments) in makers.items()
    }
    with turns.contest(pinned) as contenders:
        times = contenders.rounds(NETWORKS, rounds)
    return {
        network: {
            name: round(1000 * statistics.median(found[network]), 2)
            for name, found in times.items()
        }
        for network in NETWORKS
    }


def table(networks: dict[str, dict], size: int) -> str:
    """The result in Markdown."""
    lines = [
        "| network | parameters, M: here, published | multiply-adds, G, at the published size: here, published"
        f" | at {size} | float16, int8, MB | ms an image of {size} px, one core: JAX | PyTorch | ONNX | ONNX int8 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in networks.items():
        theirs = row["published"]
        work = [row["multiply-adds"][str(theirs["size"])], theirs["multiply-adds"]]
        times = row["milliseconds an image on one core"]
        cells = [
            f"{name} ({theirs['from']})",
            f"{row['parameters'] / 1e6:.2f}, {theirs['parameters'] / 1e6:.2f}",
            f"{work[0] / 1e9:.3f}, {work[1] / 1e9:.3f} at {theirs['size']}",
            f"{row['multiply-adds'][str(size)] / 1e9:.2f}",
            f"{row['bytes']['float16'] / 1e6:.1f}, {row['bytes']['onnx-int8'] / 1e6:.1f}",
            *(f"{times[form]:.1f}" for form in ("jax", "torch", *FORMS)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Counts, times and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=288)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    from rdcd_jax.core.files import write_json
    from rdcd_jax.training.record import environment

    with tempfile.TemporaryDirectory() as folder:
        found = {name: counted(name, options.size, pathlib.Path(folder)) for name in NETWORKS}
        makers = {"jax": (jax_runs, (options.size,)), "torch": (torch_runs, (options.size,))}
        makers |= {form: (onnx_runs, (folder, form)) for form in FORMS}
        times = timed(makers, options.size, options.rounds, options.images // options.rounds)
    for name, each in times.items():
        found[name]["milliseconds an image on one core"] = each
        print(name, found[name], flush=True)
    write_json(RESULT, {"environment": environment(), "settings": vars(options), "networks": found})


if __name__ == "__main__":
    main()

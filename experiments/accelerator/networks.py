"""Every network on the accelerator against the CPU, and one step of every config.

    python -m experiments.accelerator.networks OUT.json [--seconds 120] [--small]

Random weights, the batch's own statistics. `max_difference` and `least_cosine` compare the accelerator's descriptors of
eight images with the CPU's in float32.
"""

import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.accelerator.rows import opened
from rdcd_jax import models
from rdcd_jax.images.decode import resize_square
from rdcd_jax.images.sources import find_images
from rdcd_jax.models.descriptor import normalize_images
from rdcd_jax.models.registry import NETWORKS
from rdcd_jax.training.config import load_config
from rdcd_jax.training.loop import train_and_evaluate

DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}
# Of each config one step, with a teacher and a start that need no download.
CONFIGS = {
    "rdcd": "rdcd:teacher=random:resnet50,data=sample:train",
    "sscd": "sscd:data=sample:train",
    "descriptor": "descriptor:init_from=rdcd-effb0-64,image_size=64,data=sample:train",
    "finetune": "finetune:start=rdcd-effb0-64,image_size=64,data=sample:train",
    "distill": "distill:data=sample:train",
    "warm_start": "warm_start:data=sample:train",
    "baselines": "baselines:data=sample:train,image_size=64",
}


def descriptors(network: str, dtype: str, size: int, device: jax.Device) -> np.ndarray:
    """Descriptors [8, D] float32 by random weights, the same on every device."""
    with jax.default_device(jax.devices("cpu")[0]):
        dim = 128 if NETWORKS[network].role == "student" else None
        module = models.build(network, dim=dim, rngs=nnx.Rngs(0), dtype=DTYPES[dtype])
        # By the batch's own statistics, since random weights with those of no training tell no images apart.
        graph, arrays = nnx.split(
            nnx.view(
                module, use_running_average=False, deterministic=True, raise_if_not_found=False
            )
        )
    images = find_images("sample:references")
    pixels = np.stack([np.asarray(resize_square(images.decode(i), size)) for i in range(8)])

    @jax.jit
    def run(arrays, pixels):
        return nnx.merge(graph, arrays)(normalize_images(pixels))[1]

    placed = jax.device_put((nnx.as_pure(arrays), pixels), device)
    return np.asarray(run(*placed), np.float32)


def compared(network: str, dtype: str, size: int) -> dict:
    """How far the accelerator's descriptors are from the CPU's."""
    cpu = descriptors(network, "float32", size, jax.devices("cpu")[0])
    found = descriptors(network, dtype, size, jax.devices()[0])
    cosine = (cpu * found).sum(1) / np.linalg.norm(cpu, axis=1) / np.linalg.norm(found, axis=1)
    return {
        "max_difference": float(np.abs(cpu - found).max()),
        "least_cosine": float(cosine.min()),
    }


def one_step(config: str, batch: int) -> dict:
    """Losses of one step of a config."""
    changes = {
        "batch_size": batch,
        "schedule.max_steps": 1,
        "queue.size": 4 * batch,
        "bank.size": 4 * batch,
        "evaluate.image_size": 64,
        "student.recalibrate": 0,
        "student.background": 0,
        "data.workers": 0,
    }
    if "teacher" not in config:
        changes["teacher.model"] = "random:resnet50"
    words = [f"--config.{name}={value}" for name, value in changes.items()]
    loaded = load_config(config, words)
    with tempfile.TemporaryDirectory() as workdir:
        train_and_evaluate(loaded, workdir)
        line = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()[0]
    return {"metrics": line[:400]}


def main() -> int:
    """Makes the rows that are missing."""
    rows, options = opened(__doc__, 120)
    networks = ["efficientnet_b0"] if options.small else list(NETWORKS)
    size = 64 if options.small else 224
    for network in networks:
        for dtype in DTYPES:
            rows.make(f"{network} {dtype}", lambda n=network, d=dtype: compared(n, d, size))
    for name, config in CONFIGS.items():
        batch = 8 if options.small else 64
        rows.make(f"step of {name}", lambda c=config, b=batch: one_step(c, b))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Times what making views inside the step adds to it, on whatever device JAX finds.

    python -m experiments.benchmarks.views [--batch 32] [--size 224] [--rounds 5] [--policy ADVANCED]

The paper's step (EfficientNet-B0, ResNet-50 teacher, queue and bank of 65,536; bfloat16 trunk with --bfloat16) with
views that arrive ready, and with the same images kept on the device and made into views in the step; both alternate.
The result goes to experiments/results/bench_views_PLATFORM.json. On an accelerator use a batch of 256 or more.
"""

import argparse
import json
import os
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.paper_step import paper_step
from rdcd_jax.augment.device.overlay import draw_atlas
from rdcd_jax.augment.policies import has_overlays
from rdcd_jax.core.files import write_json
from rdcd_jax.core.huge_pages import restart_with_huge_pages
from rdcd_jax.images.sources import find_images
from rdcd_jax.method.objective import Objective
from rdcd_jax.method.step import make_train_step
from rdcd_jax.training import feed
from rdcd_jax.training.config import load_config
from rdcd_jax.training.kept import keep_images
from rdcd_jax.training.record import environment

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"


def batches_of(options: argparse.Namespace) -> dict:
    """By how the views come what makes them in the step, and a batch."""
    config = load_config(f"{ROOT / 'configs' / 'rdcd.py'}:data=sample:train", [])
    config.image_size, config.data.policy = options.size, options.policy
    config.data.views = "device"
    images = find_images(config.data.train)
    images = images.subset(range(min(len(images), max(options.batch, 256))))
    kept = keep_images(images, feed.source_size(config), on_device=True)
    make_views = feed.make_views(config)
    position = np.arange(options.batch, dtype=np.int32) % len(images)
    pixels = {"pixels": kept.pixels, "aspects": kept.aspects, "index": position}
    if has_overlays(options.policy):
        pixels["atlas"] = draw_atlas()
    pixels = jax.device_put(pixels)
    ready = jax.jit(make_views)(pixels, jnp.int32(0))
    return {
        "views in the step": (make_views, pixels),
        "views ready": (None, {name: ready[name] for name in ("query", "key")}),
    }


def timed(options: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of every step, and those that compiling took, by how the views come."""
    dtype = jnp.bfloat16 if options.bfloat16 else None
    graph, optimizer, embed, state, teacher_arrays = paper_step(dtype)
    rng = jax.random.key(1)
    batches, steps, compile_seconds = batches_of(options), {}, {}
    for name, (maker, batch) in batches.items():
        begun = time.perf_counter()
        step = jax.jit(
            make_train_step(graph, optimizer, Objective(), embed, maker), donate_argnums=0
        )
        steps[name] = step.lower(state, teacher_arrays, batch, rng).compile()
        compile_seconds[name] = round(time.perf_counter() - begun, 1)
    times = {name: [] for name in steps}
    for number in range(options.rounds + 1):
        for name, step in steps.items():
            # Once unmeasured: in training one step follows the other.
            for _ in range(2):
                begun = time.perf_counter()
                state, metrics = step(state, teacher_arrays, batches[name][1], rng)
                jax.block_until_ready(metrics)
            if number:
                times[name].append(time.perf_counter() - begun)
    return times, compile_seconds


def main() -> None:
    """Alternates the two, and writes the result."""
    restart_with_huge_pages()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--policy", default="ADVANCED")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--result", type=pathlib.Path)
    options = parser.parse_args()
    path = options.result or RESULTS / f"bench_views_{jax.default_backend()}.json"
    times, compile_seconds = timed(options)
    medians = {name: statistics.median(found) for name, found in times.items()}
    settings = {"result": path.name, "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "")}
    share = 1 - medians["views ready"] / medians["views in the step"]
    result = {
        "environment": environment(),
        "settings": vars(options) | settings,
        "seconds a step": {name: round(value, 4) for name, value in medians.items()},
        "views' share of the step": round(share, 4),
        "seconds to compile": compile_seconds,
        "all": times,
    }
    print(json.dumps(result, indent=2))
    write_json(path, result)


if __name__ == "__main__":
    main()

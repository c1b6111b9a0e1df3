"""Times one RDCD step against the same step written plainly in PyTorch, and the parts of both.

    python -m experiments.benchmarks.step [--batch 32] [--size 224] [--rounds 5]

Float32, the paper's networks, queue and bank of 65,536. PyTorch runs torchvision's networks in channels_last. The two
alternate in one run, and medians are compared. Each turn runs its part twice and times the second, as in training one
step follows the other: while one waits, a virtual machine may take back the memory it had freed. Both keep a step's
memory for the next, as training does (`core/heap.py`). JAX's compile time is given beside, and GLIBC_TUNABLES, which
decides whether large arrays lie in huge pages.

Needs torch and torchvision (`make test TORCH=1` installs them); they run in a process of their own, so that two thread
pools never share the cores. The result goes to experiments/results/bench_step.json, or where --result says.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import time

from experiments.benchmarks import turns
from rdcd_jax.core.heap import keep_memory_of_steps
from rdcd_jax.core.huge_pages import asking

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULT = ROOT / "experiments" / "results" / "bench_step.json"

QUEUE, DIM, FEATURE = 65536, 128, 512
# Images a second that torch reached on an idle server of 2 cores; a machine that is busy says nothing.
IDLE_2_CORES = {
    "student forward and backward": 18.5,
    "student forward": 54,
    "teacher forward": 16.9,
}
PARTS = ("teacher forward", "student forward", "student forward and backward", "step")


def jax_parts(batch: int, size: int):
    """Functions that run each part once in JAX, and the seconds that compiling each took."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from experiments.benchmarks.paper_step import paper_step
    from rdcd_jax.method.objective import Objective
    from rdcd_jax.method.step import forward, make_train_step
    from rdcd_jax.models.descriptor import normalize_images

    graph, optimizer, embed_teacher, state, teacher_arrays = paper_step()
    rng = jax.random.key(1)
    pixels = np.random.default_rng(0).integers(0, 256, (2, batch, size, size, 3), dtype=np.uint8)
    views = {"query": jnp.asarray(pixels[0]), "key": jnp.asarray(pixels[1])}
    images = normalize_images(views["query"])

    def student_forward(params, batch_stats, x):
        return forward(graph, params, batch_stats, x, rng)[1]

    def sum_of_forward(params, batch_stats, x):
        feature, descriptor, new = forward(graph, params, batch_stats, x, rng)
        return jnp.sum(feature) + jnp.sum(descriptor), new

    gradient = jax.value_and_grad(sum_of_forward, has_aux=True)
    of_student = (*jax.tree.map(jnp.copy, (state.params, state.batch_stats)), images)
    step = make_train_step(graph, optimizer, Objective(), embed_teacher)
    programs = {
        "teacher forward": (embed_teacher, (teacher_arrays, images), {}),
        "student forward": (student_forward, of_student, {}),
        "student forward and backward": (gradient, of_student, {}),
        "step": (step, (state, teacher_arrays, views, rng), {"donate_argnums": 0}),
    }
    compiled, seconds = {}, {}
    for name, (function, arguments, options) in programs.items():
        begun = time.perf_counter()
        compiled[name] = jax.jit(function, **options).lower(*arguments).compile()
        seconds[name] = time.perf_counter() - begun
    held = [state]

    def run_step():
        held[0], metrics = compiled["step"](held[0], teacher_arrays, views, rng)
        return metrics

    runs = {
        name: functools.partial(compiled[name], *arguments)
        for name, (_, arguments, _) in programs.items()
    } | {"step": run_step}
    return {
        name: lambda run=run: jax.block_until_ready(run()) for name, run in runs.items()
    }, seconds


def torch_parts(batch: int, size: int):
    """The same in PyTorch."""
    from experiments.benchmarks.torch_step import TorchStep

    made = TorchStep(batch, size)
    return {
        "teacher forward": made.embed_teacher,
        "student forward": made.student_forward,
        "student forward and backward": made.forward_backward,
        "step": made.step,
    }


def timed(make, batch: int, size: int):
    """Functions that time each part, and the seconds that compiling each took."""
    # As training does; PyTorch's memory is kept too.
    keep_memory_of_steps()
    made = make(batch, size)
    runs, compile_seconds = made if isinstance(made, tuple) else (made, {})

    def seconds(run) -> float:
        # The first of two, which is not timed, brings the memory back.
        run()
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun

    for run in runs.values():
        run()
        run()
    return {name: functools.partial(seconds, run) for name, run in runs.items()}, compile_seconds


def main() -> None:
    """Alternates the two, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--result", type=pathlib.Path, default=RESULT)
    options = parser.parse_args()
    # As the command line does; GLIBC_TUNABLES=glibc.malloc.hugetlb=0 is obeyed.
    os.environ.update(asking(os.environ))
    makers = {
        name: functools.partial(timed, make, options.batch, options.size)
        for name, make in {"jax": jax_parts, "torch": torch_parts}.items()
    }
    with turns.contest(makers) as contenders:
        times = contenders.rounds(PARTS, options.rounds)
    speeds = {
        name: {part: options.batch / statistics.median(found) for part, found in parts.items()}
        for name, parts in times.items()
    }
    ratios = {part: round(speeds["jax"][part] / speeds["torch"][part], 3) for part in PARTS}
    result = {
        "ratio": ratios["step"],
        "settings": {
            "batch": options.batch,
            "size": options.size,
            "rounds": options.rounds,
            "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
        },
        "images a second": {
            name: {part: round(speed, 2) for part, speed in parts.items()}
            for name, parts in speeds.items()
        },
        "jax / torch": ratios,
        "seconds of each round": times,
        "seconds to compile in JAX, without a cache": contenders.about["jax"],
    }
    print(json.dumps(result, indent=2))
    slow = {
        part: (speeds["torch"][part], idle)
        for part, idle in IDLE_2_CORES.items()
        if speeds["torch"][part] < 0.9 * idle
    }
    if os.cpu_count() == 2 and slow and (options.batch, options.size) == (32, 224):
        stored = ", ".join(f"{part} {found:.1f} of {idle}" for part, (found, idle) in slow.items())
        raise SystemExit(
            f"Not written: this machine is busy or slow, torch runs at {stored} images/s."
        )

    from rdcd_jax.core.files import write_json
    from rdcd_jax.training.record import environment

    write_json(options.result, {"environment": environment(), **result})


if __name__ == "__main__":
    main()

"""The paper's step in JAX and in PyTorch on one GPU: images a second, and the share of the peak.

    python -m experiments.accelerator.steps OUT.json [--seconds 180] [--small]

Float32 (tf32 in products, both), and bfloat16 (PyTorch by autocast), batches of 128 to 1,024; PyTorch in channels_last,
eager and compiled. FLOP and bytes of the JAX step are the compiler's own count, and the peaks an H100's. Each program
runs in a process of its own, so that the memory of one is free for the next.
"""

import functools
import json
import subprocess
import sys
import time

from experiments.accelerator.rows import opened

# bfloat16 and tf32 arithmetic, and memory bandwidth, of an H100 SXM.
PEAK = {"bfloat16": 989e12, "float32": 495e12, "bytes": 3350e9}
CASES = [
    (batch, dtype, program)
    for batch in (256, 1024, 128, 512)
    for dtype in ("bfloat16", "float32")
    for program in ("jax", "torch", "torch compiled")
]


def timed(run, synchronise, rounds: int) -> float:
    """Seconds of one call: the median of several spans of calls."""
    spans = []
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(rounds):
            run()
        synchronise()
        spans.append((time.perf_counter() - begun) / rounds)
    return sorted(spans)[2]


def jax_step(batch: int, size: int, dtype: str, rounds: int) -> dict:
    """The step as a run compiles it, by `training.tracing`."""
    import jax
    import numpy as np

    from rdcd_jax.core.mesh import make_mesh, replicate, split_batch
    from rdcd_jax.core.rng import stream
    from rdcd_jax.training.config import load_config
    from rdcd_jax.training.setup import first_state, optimization
    from rdcd_jax.training.student import make_student
    from rdcd_jax.training.teacher import live_teacher
    from rdcd_jax.training.tracing import trace_step
    from rdcd_jax.weights.library import load_model

    jax.config.update("jax_default_matmul_precision", "tensorfloat32")
    fields = {"batch_size": batch, "image_size": size, "student.dtype": dtype}
    words = [f"--config.{name}={value}" for name, value in fields.items()]
    config = load_config("rdcd:data=sample:references", words)
    teacher = live_teacher(load_model("random:resnet50"), "running", (), dtype)
    student = make_student(config, teacher.feature_dim).module
    _, _, optimizer = optimization(config, 1_000_000)
    mesh = make_mesh(1)
    begun = time.perf_counter()
    program = trace_step(config, student, teacher, optimizer, mesh).lower().compile()
    compile_seconds = time.perf_counter() - begun
    state = replicate(first_state(config, student, optimizer, teacher.feature_dim), mesh)
    arrays, dropout = (replicate(each, mesh) for each in (teacher.arrays, stream(0, "dropout")))
    pixels = np.random.default_rng(0).integers(0, 256, (2, batch, size, size, 3), dtype=np.uint8)
    views = {"query": pixels[0], "key": pixels[1], "index": np.arange(batch, dtype=np.int32)}
    views = split_batch(views, mesh)
    held = [state]

    def run() -> None:
        held[0], _ = program(held[0], arrays, views, dropout)

    run()
    run()
    seconds = timed(run, lambda: jax.block_until_ready(held[0]), rounds)
    cost = program.cost_analysis()
    return {
        "compile_seconds": compile_seconds,
        "images_per_second": batch / seconds,
        "share_of_peak_flop": cost["flops"] / seconds / PEAK[dtype],
        "share_of_peak_bytes": cost["bytes accessed"] / seconds / PEAK["bytes"],
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
    }


def torch_step(batch: int, size: int, dtype: str, rounds: int, compiled: bool) -> dict:
    """The same step in PyTorch."""
    import torch

    from experiments.benchmarks.torch_step import make_torch_step

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    step = make_torch_step(batch, size, device, bfloat16=dtype == "bfloat16", compiled=compiled)
    begun = time.perf_counter()
    for _ in range(3):
        step()
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronise()
    compile_seconds = time.perf_counter() - begun
    return {
        "compile_seconds": compile_seconds,
        "images_per_second": batch / timed(step, synchronise, rounds),
    }


def measured(
    batch: int, size: int, dtype: str, program: str, rounds: int, *, seconds: float
) -> dict:
    """Runs a case in a process of its own, for so many seconds at most."""
    words = [str(batch), str(size), dtype, program, str(rounds)]
    code = "import sys; from experiments.accelerator.steps import case; case(sys.argv[1:])"
    ended = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=seconds
    )
    if ended.returncode:
        raise RuntimeError(ended.stderr.strip()[-400:])
    return json.loads(ended.stdout.splitlines()[-1])


def case(words: list[str]) -> None:
    """What the process does."""
    batch, size, rounds = (int(words[i]) for i in (0, 1, 4))
    dtype, program = words[2:4]
    if program == "jax":
        found = jax_step(batch, size, dtype, rounds)
    else:
        found = torch_step(batch, size, dtype, rounds, program != "torch")
    print(json.dumps(found))


def main() -> int:
    """Makes the rows that are missing."""
    rows, options = opened(__doc__, 180)
    for batch, dtype, program in CASES[:6] if options.small else CASES:
        batch, size, rounds = (4, 64, 1) if options.small else (batch, 224, 5)
        case_of = functools.partial(
            measured, batch, size, dtype, program, rounds, seconds=options.seconds
        )
        rows.make(f"{program}, {dtype}, batch {batch}", case_of)
    return 0


if __name__ == "__main__":
    sys.exit(main())

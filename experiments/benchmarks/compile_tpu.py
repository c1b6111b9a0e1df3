"""Compiles the RDCD step for TPUs that are not here, and counts what it needs of each chip.

    pip install --no-deps libtpu==0.0.42.1        # XLA's TPU compiler; the version of jax 0.10.2
    python -m experiments.benchmarks.compile_tpu [--only NAME] [--size 224]

The paper's step: EfficientNet-B0 student and its momentum encoder, ResNet-50 teacher, queue and bank of 65,536. Each
case is compiled by a process of its own, minutes on two cores, and its row is kept in
experiments/results/compile_tpu.json, so that a run that was ended goes on. Memory, arithmetic and bytes moved are what
the compiler says of its program; bytes of collectives are counted in the program's text.
"""

import argparse
import json
import math
import pathlib
import re
import subprocess
import sys
import time

import ml_collections
from flax import nnx

from experiments.benchmarks.tpu import described_devices, floor_ms
from rdcd_jax.core.files import write_json
from rdcd_jax.core.mesh import mesh_of
from rdcd_jax.models.counts import parameter_count
from rdcd_jax.training.config import load_config
from rdcd_jax.training.record import environment
from rdcd_jax.training.setup import optimization
from rdcd_jax.training.student import make_student
from rdcd_jax.training.teacher import Teacher, live_teacher
from rdcd_jax.training.tracing import trace_step
from rdcd_jax.weights.library import load_model

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULT = ROOT / "experiments" / "results" / "compile_tpu.json"
# Topology, images a chip, what the trunks compute in.
CASES = {
    "v5e-4": ("v5e:2x2", 128, "bfloat16"),
    "v5e-8-float32": ("v5e:2x4", 32, "float32"),
    "v5e-8": ("v5e:2x4", 128, "bfloat16"),
    "v5e-256": ("v5e:16x16", 16, "bfloat16"),
    "v6e-8": ("v6e:2x4", 128, "bfloat16"),
}
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def case_of(name: str, size: int) -> dict:
    """Compiles a case; its row of the result, without the name."""
    topology, images_per_chip, dtype = CASES[name]
    devices = described_devices(topology)

    batch = len(devices) * images_per_chip
    fields = {"batch_size": batch, "image_size": size, "student.dtype": dtype}
    words = [f"--config.{name}={value}" for name, value in fields.items()]
    config = load_config("rdcd:data=sample:references", words)
    teacher = live_teacher(load_model("random:resnet50"), "running", (), dtype)
    student = make_student(config, teacher.feature_dim).module
    row = {"topology": topology, "images_per_chip": images_per_chip, "dtype": dtype}
    return row | compiled_step(config, student, teacher, topology, devices)


def compiled_step(
    config: ml_collections.ConfigDict,
    student: nnx.Module,
    teacher: Teacher,
    topology: str,
    devices: list,
) -> dict:
    """Compiles a run's step for the devices of a topology, and counts what a chip needs.

    Args:
        config: of the run.
        student: see `student.make_student`.
        teacher: see `teacher.live_teacher`.
        topology: such as "v5e:2x4".
        devices: see `described_devices`.
    """

    _, _, optimizer = optimization(config, 1_000_000)
    begun = time.monotonic()
    traced = trace_step(config, student, teacher, optimizer, mesh_of(devices))
    program = traced.lower().compile()
    memory, cost = program.memory_analysis(), program.cost_analysis()
    dims = config.student.dim + teacher.feature_dim
    return {
        "chips": len(devices),
        "image_size": config.image_size,
        "flop": cost["flops"],
        "bytes_moved": cost["bytes accessed"],
        "bytes_per_image": cost["bytes accessed"] * len(devices) / config.batch_size,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        **collectives(program.as_text()),
        # Gradients, and the batch's keys and teacher features, in float32.
        "least_collective_bytes": 4 * (parameter_count(student) + config.batch_size * dims),
        "floor_ms": floor_ms(topology, cost["flops"], cost["bytes accessed"]),
        "compile_seconds": round(time.monotonic() - begun),
    }


def collectives(text: str) -> dict[str, int]:
    """How many collectives a program has, and the bytes of what they give.

    Args:
        text: of the compiled program.
    """
    sizes: dict[str, int] = {}
    for line in text.splitlines():
        found = re.match(r"\s*(?:ROOT )?%?[\w.-]+ = (.*?) ([\w-]+)\(", line)
        if found is None or found[2].removesuffix("-start") not in COLLECTIVES:
            continue
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", found[1])
        if found[2].endswith("-start"):
            # It gives its operands too.
            shapes = shapes[len(shapes) // 2 :]
        # One that overlaps with arithmetic is told in every piece of that.
        channel = re.search(r"channel_id=(\d+)", line)
        sizes[channel[1] if channel else line] = sum(
            BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in shapes
        )
    return {"collective_count": len(sizes), "collective_bytes": sum(sizes.values())}


def stored_rows() -> dict[str, dict]:
    """The rows of earlier runs by their cases' names."""
    if not RESULT.exists():
        return {}
    return {row["name"]: row for row in json.loads(RESULT.read_text(encoding="utf-8"))["rows"]}


def main() -> int:
    """Compiles the cases that have no row yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=CASES, help="this case alone, though it has a row")
    parser.add_argument("--size", type=int, default=224, help="side of the views, in pixels")
    options = parser.parse_args()
    if options.only is None:
        for name in CASES:
            if name not in stored_rows():
                words = ["--only", name, "--size", str(options.size)]
                subprocess.run([sys.executable, "-m", __spec__.name, *words], check=True, cwd=ROOT)
        return 0

    row = {"name": options.only, **case_of(options.only, options.size)}
    rows = stored_rows() | {options.only: row}
    kept = [rows[name] for name in CASES if name in rows]
    write_json(RESULT, {"rows": kept, "environment": environment()})
    print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())

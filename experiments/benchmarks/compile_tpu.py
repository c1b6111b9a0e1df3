"""Compiles the RDCD step for TPUs that are not here, and counts what it needs of each chip.

    pip install --no-deps libtpu==0.0.42.1        # XLA's TPU compiler; the version of jax 0.10.2
    python -m experiments.benchmarks.compile_tpu [--only NAME] [--size 224]

The paper's step: EfficientNet-B0 student and its momentum encoder, ResNet-50 teacher, queue and bank of 65,536. Each
case is compiled by a process of its own, minutes on two cores, and its row is kept in
experiments/results/compile_tpu.json, so that a run that was ended goes on. Memory, arithmetic and bytes accessed are
what the compiler says of its program; bytes of the chip's main memory and of collectives are counted in the program's
text.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import ml_collections
from flax import nnx

from experiments.benchmarks.program_text import collectives, memory_bytes
from experiments.benchmarks.tpu import described_devices, floor_ms
from rdcd_jax.core.files import write_json, write_text
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


def compiled_case(name: str, size: int) -> tuple[dict, str]:
    """Compiles a case; its row of the result, and the program's text."""
    topology, images_per_chip, dtype = CASES[name]
    devices = described_devices(topology)

    batch = len(devices) * images_per_chip
    fields = {"batch_size": batch, "image_size": size, "student.dtype": dtype}
    words = [f"--config.{name}={value}" for name, value in fields.items()]
    config = load_config("rdcd:data=sample:references", words)
    teacher = live_teacher(load_model("random:resnet50"), "running", (), dtype)
    student = make_student(config, teacher.feature_dim).module
    found, text = compiled_step(config, student, teacher, topology, devices)
    what = {"name": name, "topology": topology, "images_per_chip": images_per_chip, "dtype": dtype}
    return what | found, text


def compiled_step(
    config: ml_collections.ConfigDict,
    student: nnx.Module,
    teacher: Teacher,
    topology: str,
    devices: list,
) -> tuple[dict, str]:
    """Compiles a run's step for the devices of a topology; what a chip needs, and the program's text.

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
    memory, cost, text = program.memory_analysis(), program.cost_analysis(), program.as_text()
    dims = config.student.dim + teacher.feature_dim
    return {
        "chips": len(devices),
        "image_size": config.image_size,
        "flop": cost["flops"],
        "bytes_moved": cost["bytes accessed"],
        "bytes_per_image": cost["bytes accessed"] * len(devices) / config.batch_size,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "memory_bytes": memory_bytes(text),
        **collectives(text),
        # Gradients, and the batch's keys and teacher features, in float32.
        "least_collective_bytes": 4 * (parameter_count(student) + config.batch_size * dims),
        "floor_ms": floor_ms(topology, cost["flops"], memory_bytes(text)),
        "compile_seconds": round(time.monotonic() - begun),
    }, text


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
    parser.add_argument(
        "--texts", type=pathlib.Path, metavar="FOLDER", help="where the programs' texts go"
    )
    options = parser.parse_args()
    if options.only is None:
        for name in CASES:
            if name not in stored_rows():
                words = ["--only", name, *sys.argv[1:]]
                subprocess.run([sys.executable, "-m", __spec__.name, *words], check=True, cwd=ROOT)
        return 0

    row, text = compiled_case(options.only, options.size)
    if options.texts is not None:
        write_text(options.texts / f"{options.only}.txt", text)
    rows = stored_rows() | {options.only: row}
    kept = [rows[name] for name in CASES if name in rows]
    write_json(RESULT, {"rows": kept, "environment": environment()})
    print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())

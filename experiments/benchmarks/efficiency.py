"""What descriptors of 64 to 512 numbers cost, teacher beside student: a table from what was measured.

    python -m experiments.benchmarks.efficiency [--size 288]

Counts parameters and multiply-adds from the networks themselves, and takes the rest from the result files of
bench_embed.py (images a second), bench_search.py (query time) and index_million.py (the int8 index), saying what is
missing there. The result goes to experiments/results/efficiency.json, and as a table to efficiency.md.
"""

import argparse
import json
import pathlib
import sys

from flax import nnx

from experiments.benchmarks.search_plot import TARGET, best_at
from rdcd_jax import models
from rdcd_jax.core.files import write_json, write_text
from rdcd_jax.models.counts import multiply_adds, parameter_count
from rdcd_jax.training.record import environment

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULTS = ROOT / "experiments" / "results"
STUDENTS, TEACHER = ("efficientnet_b0", "mobilenet_v3_large", "fastvit_t12"), "resnet50"
DIMS = (64, 128, 256, 512)
ROWS = 1_000_000
FORMS = {"jax": "JAX", "onnx": "ONNX float32", "onnx-int8": "ONNX int8"}
MISSING = "not measured"


def known(name: str) -> dict:
    """A result file's content; empty where there is none."""
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def network_rows(size: int) -> list[dict]:
    """What embedding costs, for each student with each number of dimensions, and for the teacher."""
    embed = known("bench_embed.json").get("descriptors a second", {})
    rows = []
    for name, dim in [*((name, dim) for name in STUDENTS for dim in DIMS), (TEACHER, None)]:
        module = nnx.eval_shape(
            lambda name=name, dim=dim: models.build(name, dim=dim, rngs=nnx.Rngs(0))
        )
        # The size of the descriptor changes the last layer alone, so one was timed for all.
        speeds = {form: sorted(embed[form][name]) for form in FORMS if name in embed.get(form, {})}
        rows.append(
            {
                "network": name,
                "role": "teacher" if dim is None else "student",
                "dimensions": dim or 512,
                "parameters": parameter_count(module),
                "multiply-adds": multiply_adds(module, size),
                "pictures a second": {
                    FORMS[form]: round(found[len(found) // 2], 1) for form, found in speeds.items()
                },
            }
        )
    return rows


def search_rows() -> list[dict]:
    """What keeping and searching a million descriptors costs, for each number of dimensions."""
    cells, indexes = known("bench_search.json").get("cells", {}), known("index_million.json")
    rows = []
    for dim in DIMS:
        row = {
            "dimensions": dim,
            "descriptor bytes": {"float32": 4 * dim, "float16": 2 * dim, "int8": dim + 4},
        }
        cell, index = cells.get(f"{ROWS} x {dim}"), indexes.get(f"{ROWS} x {dim}")
        for method in ("JAX exact", "ScaNN AH"):
            best = best_at(cell["methods"][method]) if cell else None
            row[f"{method}, ms a query"] = best and round(1000 / best[1]["queries a second"], 3)
        row["int8 index, bytes"] = index and index["bytes on disk"]
        row["int8 index, ms a query"] = index and round(
            1000 * index["seconds, first and second"][1] / index["queries"], 3
        )
        row["int8 index, recall@1"] = index and index["recall@1 against float32"]
        rows.append(row)
    return rows


def table(result: dict) -> str:
    """The result in Markdown."""
    lines = [
        "# Cost, measured",
        "",
        f"By `benchmarks/efficiency.py`; multiply-adds of an image of {result['size']} pixels, the last columns"
        f" are images of {result['size embedded']} pixels embedded a second, as `benchmarks/embedding.py`"
        " measured them.",
        "",
        f"| network | numbers | parameters, M | multiply-adds, G | {' | '.join(FORMS.values())} |",
        "|---|---|---|---|" + "---|" * len(FORMS),
    ]
    for row in result["networks"]:
        speeds = (row["pictures a second"].get(form, MISSING) for form in FORMS.values())
        lines.append(
            f"| {row['network']} ({row['role']}) | {row['dimensions']} | {row['parameters'] / 1e6:.2f} |"
            f" {row['multiply-adds'] / 1e9:.2f} | {' | '.join(map(str, speeds))} |"
        )
    names = [name for name in result["search"][0] if name not in ("dimensions", "descriptor bytes")]
    lines += [
        "",
        f"A million descriptors, on the CPU; queries are asked many at once; ScaNN in the quickest setting that finds"
        f" the nearest row of {100 * TARGET:.0f} %.",
        "",
        f"| numbers | float32, float16, int8 bytes a descriptor | {' | '.join(names)} |",
        "|---|---|" + "---|" * len(names),
    ]
    for row in result["search"]:
        sizes = ", ".join(map(str, row["descriptor bytes"].values()))
        cells = (MISSING if row[name] is None else f"{row[name]:,}" for name in names)
        lines.append(f"| {row['dimensions']} | {sizes} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Writes the result and its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, help="that of bench_embed.py without")
    options = parser.parse_args()
    embedded = known("bench_embed.json").get("settings", {}).get("size", 288)
    size = options.size or embedded
    result = {
        "environment": environment(),
        "size": size,
        "size described": embedded,
        "networks": network_rows(size),
        "search": search_rows(),
    }
    write_json(RESULTS / "efficiency.json", result)
    stored = table(result)
    write_text(RESULTS / "efficiency.md", stored)
    print(stored)
    for name in ("bench_embed.json", "bench_search.json", "index_million.json"):
        if not known(name):
            print(f"{name} is missing: run the script of that name first.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

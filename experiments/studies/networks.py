"""What students of other networks come to by the shipped student's recipe, in JAX and by 8-bit integers.

    python -m experiments.studies.students train BENCHMARK/train OUT/NETWORK --network NETWORK --benchmark BENCHMARK
    python -m experiments.studies.students descriptors BENCHMARK/train OUT/NETWORK
    python -m experiments.studies.networks BENCHMARK OUT

OUT has a folder for each network. Measured is its descriptor, or the whitened feature of its last stage where no
descriptor has been trained yet, in its first 64, 128 and 256 dimensions: µAP and recall at 90 % precision in percent,
without and with score normalisation by every third training image (3,000). Images are embedded at the size that the
model was evaluated at, and each export gets its file in 8-bit integers. Written to experiments/results/networks.json,
with the stages that each trunk has seen.
"""

import argparse
import pathlib
from collections.abc import Sequence

from experiments.ablations.bench import shortened
from experiments.studies.percent import in_percent, shown
from experiments.studies.recorded import record
from experiments.studies.students import records, some_training_images
from rdcd_jax.benchmarks.disc import evaluate_descriptors
from rdcd_jax.benchmarks.ground_truth import GroundTruth, find_disc_layout, read_ground_truth
from rdcd_jax.benchmarks.settings import Settings
from rdcd_jax.embedding.descriptors import Descriptors
from rdcd_jax.embedding.stream import embed_images
from rdcd_jax.images.sources import find_images
from rdcd_jax.models.registry import NETWORKS
from rdcd_jax.training.record import environment
from rdcd_jax.weights.engines import INT8, JAX, with_engine, write_quantised
from rdcd_jax.weights.library import load_model
from rdcd_jax.weights.shipped import INT8_FILE

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULT = ROOT / "experiments" / "results" / "networks.json"
DIMS = (64, 128, 256)
FORMS = ("", " with SN")


def last_export(folder: pathlib.Path) -> pathlib.Path:
    """The export of a network's descriptor, or of its last stage.

    Raises:
        SystemExit: nothing has come to its end there.
    """
    found = [*sorted(folder.glob("stage*/export")), *folder.glob("nested/export")]
    if not found:
        raise SystemExit(f"{folder}: no stage has come to its end; `students train` goes on.")
    return found[-1]


def by_dimension(sets: Sequence[Descriptors], truth: GroundTruth) -> dict[str, dict]:
    """By size of descriptor what is found, of queries, references and training images."""
    found = {}
    for dim in DIMS:
        short = (shortened(each, dim) for each in sets)
        rows, _ = evaluate_descriptors(*short, truth, Settings.written(True))
        found[str(dim)] = in_percent(rows, FORMS)
    return found


def measured(folder: pathlib.Path, benchmark: pathlib.Path) -> dict:
    """All figures of one network, and how it came to them."""
    export = last_export(folder)
    if not (export / INT8_FILE).exists():
        write_quantised(export)
    layout = find_disc_layout(benchmark)
    truth = read_ground_truth(layout.ground_truth)
    sources = (layout.queries, layout.references, some_training_images(benchmark, folder))
    figures = {}
    for engine in (JAX, INT8):
        model = with_engine(load_model(str(export)), engine)
        sets = [embed_images(model, find_images(source))[0] for source in sources]
        figures[engine] = by_dimension(sets, truth)
    return {
        "measured": export.parent.name,
        "image_size": model.image_size,
        "int8 bytes": (export / INT8_FILE).stat().st_size,
        "figures": figures,
        "stages": records(folder, "stage*"),
        "descriptor": records(folder, "nested"),
    }


def table(networks: dict[str, dict]) -> str:
    """The result in Markdown."""
    lines = [
        "| network | views that it saw, size of the last | by | µAP at 64, 128, 256 | recall at P90 | µAP, scores"
        " normalised | recall at P90, scores normalised |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, network in networks.items():
        stages = network["stages"].values()
        views = sum(each["config"]["batch_size"] * each["curve"][-1]["step"] for each in stages)
        size = [each["config"]["image_size"] for each in stages][-1]
        about = f"{views:,}, {size} pixels"
        for engine, found in network["figures"].items():
            measures = list(zip(*(each.values() for each in found.values()), strict=True))
            cells = [", ".join(map(shown, measure)) for measure in measures]
            first = ("", "") if engine != JAX else (name, about)
            lines.append(f"| {' | '.join([*first, engine, *cells])} |")
    return "\n".join(lines)


def main() -> None:
    """Measures the networks, and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    options = parser.parse_args()
    networks = {}
    for folder in sorted(options.out / name for name in NETWORKS if (options.out / name).is_dir()):
        networks[folder.name] = measured(folder, options.benchmark)
        print(folder.name, networks[folder.name]["figures"], flush=True)
    if not networks:
        raise SystemExit(f"{options.out} has no folder that is called as a network; see above.")
    content = {
        "benchmark": options.benchmark.name,
        "environment": environment(),
        "networks": networks,
    }
    record(RESULT, content)
    print(table(networks))


if __name__ == "__main__":
    main()

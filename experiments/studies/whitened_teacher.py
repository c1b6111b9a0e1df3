"""The teacher itself, whitened to a student's size without training, as result files like a sweep's.

    rdcd-jax evaluate disc --model=sscd --data=BENCHMARK --out=TEACHER
    python -m experiments.studies.whitened_teacher TEACHER/descriptors BENCHMARK OUT [--dims 64 128 256]

Reads queries.npz, references.npz and training.npz as the first command leaves them, and writes OUT/whitened-D.json.
"""

import argparse
import pathlib
import sys
import tempfile

from rdcd_jax.benchmarks.disc_runs import evaluate_disc_files
from rdcd_jax.benchmarks.ground_truth import find_disc_layout
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.descriptors import read_descriptors
from rdcd_jax.training.record import environment
from rdcd_jax.training.results import Result

ROOT = pathlib.Path(__file__).resolve().parents[2]


def whitened(descriptors: pathlib.Path, benchmark: pathlib.Path, dim: int) -> Result:
    """The figures of descriptors whitened to `dim` numbers, fitted to training.npz.

    Raises:
        UserError: anything wrong with the files, or too few training images to whiten.
    """
    files = {name: descriptors / f"{name}.npz" for name in ("queries", "references", "training")}
    truth = find_disc_layout(benchmark).ground_truth
    with tempfile.TemporaryDirectory() as scratch:
        rows, _, _ = evaluate_disc_files(
            files["queries"],
            files["references"],
            truth,
            scratch,
            training=files["training"],
            codecs=f"PCAW{dim},L2norm,Flat",
        )
    training = read_descriptors(files["training"])
    about = environment()
    return Result(
        name=f"whitened-{dim}",
        overrides={"method": "whitened teacher", "student.dim": dim},
        seed=None,
        config={"teacher": {"model": training.model}, "student": {"dim": dim}},
        training_pictures=len(training),
        steps=0,
        training_seconds=0.0,
        benchmark=benchmark.resolve().name,
        figures=[row.cells() for row in rows],
        commits=[about.pop("git_revision")],
        environment=about,
    )


def main(argv: list[str] | None = None) -> int:
    """Writes a result for each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("descriptors", type=pathlib.Path)
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--dims", type=int, nargs="+", default=(64, 128, 256))
    options = parser.parse_args(argv)
    try:
        for dim in options.dims:
            result = whitened(options.descriptors, options.benchmark, dim)
            result.write(options.out / f"{result.name}.json")
            stored = (f"{row['score_norm']} {100 * row['uAP']:.2f}" for row in result.figures)
            print(f"{dim} numbers, µAP by score normalisation: {', '.join(stored)}")
    except UserError as error:
        print(f"whitened_teacher: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

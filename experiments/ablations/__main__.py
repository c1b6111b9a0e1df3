"""What each part of the method does: runs that differ in one setting, at several sizes of descriptor and three seeds.

    python -m experiments.ablations STUDY BENCHMARK OUT [--seeds 3] [--full] [--teacher MODEL]

BENCHMARK is a DISC-shaped folder (minidisc); only its training images are trained on. STUDY is a name of
`studies.STUDIES`, which trains one of two:

    descriptor  the trunk of `rdcd-effb0-256` stays as it is, its projector starts from whitening and is trained for 25
                epochs on cached features of views (`configs/descriptor.py`): a minute a run on two cores
    student     all of a student for six epochs of 64-pixel views (`configs/baselines.py`), from ImageNet's trunk but
                where the study says otherwise: ten minutes a run on two cores. With --full as the paper trains it,
                from fresh weights on an accelerator

The sizes of one descriptor are its first dimensions, each of them trained, so a run has figures for all. OUT keeps the
runs and what they share; the same command goes on where it ended.

Written to experiments/results/ablations/STUDY.json (STUDY-full.json with --full): for each setting, seed and size µAP
and recall at 90 % precision in percent, of descriptors as they are and whitened, without and with score normalisation
by every third training image (3,000), and stored as int8 and as bits; and the spectrum of the references' descriptors.
`python -m experiments.ablations.findings` makes a page of these.
"""

import argparse
import pathlib

from experiments.ablations.bench import Bench, Budget, run
from experiments.ablations.findings import RESULTS
from experiments.ablations.studies import STUDIES
from rdcd_jax.core.files import write_json
from rdcd_jax.training.record import environment
from rdcd_jax.training.results import portable


def main() -> None:
    """Runs what is not done yet of a study, and writes its result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--teacher", default="")
    options = parser.parse_args()
    study = STUDIES[options.study]
    bench = Bench(study, options.benchmark, options.out, Budget(options.full, options.teacher))
    runs: dict[str, list[dict]] = {name: [] for name in study.settings}
    for seed in range(options.seeds):
        for name in study.settings:
            found = run(bench, name, seed)
            if found is None:
                raise SystemExit("Stopped; the same command goes on.")
            runs[name].append(found)
            stored = {dim: each["µAP"] for dim, each in found["dims"].items()}
            print(f"{name}, seed {seed}: µAP {stored}", flush=True)
    suffix = "-full" if options.full else ""
    if options.teacher:
        suffix += f"-{pathlib.Path(options.teacher).stem}"
    write_json(
        RESULTS / f"{options.study}{suffix}.json",
        {
            "question": study.question,
            "trains": study.trains,
            "benchmark": options.benchmark.resolve().name,
            "environment": environment(),
            # Of the first setting; the fields of each stand with its runs.
            "config": portable(bench.config(next(iter(study.settings.values())), 0).to_dict()),
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()

"""Trains and evaluates every run of a config's `sweep(add)`, and writes one result file for each.

    python -m experiments.studies.sweep CONFIG[:ARG] OUT [--only=TEXT] [--config.a.b=VALUE ...]
    python -m experiments.studies.sweep configs/baselines.py:images=9145,epochs=20,data=BENCHMARK/train OUT

ARG and the --config words hold for all runs. OUT/NAME is a run's workdir, named by what the run sets, and
OUT/results/NAME.json its result: studies/tables.py makes tables and plots of these. The same command goes on with
a run that was stopped and passes over those that have their result. A run that fails is reported, and the others go on;
the exit status is then 1.
"""

import argparse
import pathlib
import sys
import traceback

import jax

from rdcd_jax.core.errors import UserError, one_line
from rdcd_jax.core.files import cache_folder
from rdcd_jax.training.loop import train_and_evaluate
from rdcd_jax.training.results import require_same, run_result
from rdcd_jax.training.sweep import Run, load_sweep

ROOT = pathlib.Path(__file__).resolve().parents[2]


def finish(run: Run, shared: str, words: list[str], out: pathlib.Path) -> str | None:
    """Trains and evaluates a run, and writes its result; or finds that done.

    Args:
        run: the run.
        shared: `FILE[:ARG]`.
        words: overrides of all runs.
        out: folder of the sweep.

    Returns:
        What came of it, in a few words; None where the run was stopped.

    Raises:
        UserError: for a config that cannot work.
    """
    config, overrides = run.config(shared, words)
    path = out / "results" / f"{run.name}.json"
    if path.is_file():
        require_same(path, config.to_dict())
        return "done before"
    if not config.evals.disc.data:
        raise UserError(
            "config.evals.disc.data is empty; give a benchmark, as --config.evals.disc.data=FOLDER."
        )
    state = train_and_evaluate(config, out / run.name)
    result = run_result(out / run.name, int(state.step), overrides)
    if result is None:
        return None
    result.write(path)
    best = max((row["uAP"] for row in result.figures if row["uAP"] is not None), default=0)
    return f"{result.steps} steps, best µAP {100 * best:.2f}, in {path}"


def main(argv: list[str] | None = None) -> int:
    """Finishes the runs one after another.

    Returns:
        0, or 1 where a run failed.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG[:ARG]")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--only", default="", help="only runs whose name contains this")
    options, words = parser.parse_known_args(argv)
    try:
        every = load_sweep(options.config)
    except UserError as error:
        print(f"sweep: {one_line(str(error))}", file=sys.stderr)
        return 1
    runs = [run for run in every if options.only in run.name]
    if not runs:
        names = ", ".join(run.name for run in every)
        print(f"sweep: no run's name contains {options.only!r}; there are {names}", file=sys.stderr)
        return 1
    failed = []
    for number, run in enumerate(runs, 1):
        print(f"[{number}/{len(runs)}] {run.name}", flush=True)
        try:
            stored = finish(run, options.config, words, options.out)
        except Exception as error:
            # Whatever it was, the other runs may do.
            if not isinstance(error, UserError | OSError):
                traceback.print_exc()
            print(f"{run.name} failed: {one_line(str(error))}", file=sys.stderr, flush=True)
            failed.append(run.name)
            continue
        if stored is None:
            print(f"{run.name} was stopped and saved; the same command continues.")
            return 0
        print(f"    {stored}", flush=True)
    if failed:
        print(
            f"sweep: {len(failed)} of {len(runs)} runs failed: {', '.join(failed)}", file=sys.stderr
        )
    return 1 if failed else 0


if __name__ == "__main__":
    # Runs that differ in a seed share their compiled programs.
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    sys.exit(main())

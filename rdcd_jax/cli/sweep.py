"""`rdcd-jax sweep`."""

import signal
import sys

from rdcd_jax.cli.options import local_path, verb
from rdcd_jax.cli.train import add_config_option
from rdcd_jax.core.errors import UserError


def add_sweep(verbs) -> None:
    """Adds the verb to the parser's."""
    parser = verb(
        verbs,
        "sweep",
        "Train and evaluate every run that a config's sweep(add) lists, and write a result file for each; the same"
        " command goes on with what was stopped.",
        "rdcd-jax sweep --config=baselines:data=BENCHMARK/train --out=runs/baselines"
        " --config.evals.disc.data=BENCHMARK",
        _sweep,
    )
    add_config_option(parser)
    parser.add_argument("--out", type=local_path, required=True, help="folder of the runs")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only runs whose name contains this"
    )


def _sweep(options, rest) -> None:
    from rdcd_jax.training.sweep import load_sweep, run_sweep

    every = load_sweep(options.config)
    runs = [run for run in every if options.only in run.name]
    if not runs:
        names = ", ".join(run.name for run in every)
        raise UserError(f"No run's name contains {options.only!r}; there are {names}.")
    failed, stopped = run_sweep(
        runs,
        options.config,
        rest,
        options.out,
        on_result=lambda text: print(text, flush=True),
        on_failure=lambda text: print(text, file=sys.stderr, flush=True),
    )
    if stopped:
        print("Stopped; the same command continues.")
        # Neither a script nor a cluster may take it for done.
        sys.exit(128 + signal.SIGTERM)
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")

"""`rdcd-jax train`."""

import argparse
import signal
import sys

from rdcd_jax.cli.options import add_distributed_option, local_path, verb
from rdcd_jax.core import hosts
from rdcd_jax.core.errors import UserError


def add_train(verbs) -> None:
    """Adds the verb to the parser's."""
    parser = verb(
        verbs,
        "train",
        "Train a student, or continue the run that the workdir holds.",
        "rdcd-jax train --config=rdcd:dim=128,data=FOLDER --workdir=runs/first --config.batch_size=64"
        "\n  rdcd-jax train --config=rdcd:dim=128,data=FOLDER --workdir=runs/first --dry-run",
        _train,
    )
    parser.add_argument("--workdir", type=local_path, required=True, help="folder of the run")
    parser.add_argument("--init-from", metavar="MODEL", help="model to start the student from")
    add_distributed_option(parser)
    add_config_option(parser)
    parser.add_argument(
        "--profile",
        type=_window,
        metavar="STEP:STEPS",
        help="trace so many steps from step STEP (counted from 0) on into profile/ of the workdir",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print every field and where it was set, the images, steps, parameters, the step's memory, and what is"
        " wrong; train nothing",
    )


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """Adds --config."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="CONFIG[:ARG]",
        help="a config file or the name of one of the project's (rdcd, sscd, descriptor, ...), and its argument;"
        " --config.a.b=VALUE changes one field, see docs/config.md",
    )


def _window(text: str) -> tuple[int, int]:
    first, colon, count = text.partition(":")
    if not (first.isdecimal() and colon and count.isdecimal() and int(count)):
        raise argparse.ArgumentTypeError(f"{text} is not STEP:STEPS, such as 100:20")
    return int(first), int(count)


def _train(options, rest) -> None:
    if options.init_from is not None:
        rest = [*rest, f"--config.init_from={options.init_from}"]
    if options.dry_run:
        _plan(options, rest)
        return
    from rdcd_jax.training.config import load_config
    from rdcd_jax.training.loop import run_training

    config = load_config(options.config, rest)
    state, finished = run_training(config, options.workdir, profile=options.profile)
    if finished and hosts.is_first():
        print(f"The run is in {options.workdir}, its student in {options.workdir / 'export'}.")
    elif hosts.is_first():
        print(
            f"Stopped and saved after step {int(state.step)}; the same command continues the run."
        )
    if not finished:
        # Neither a script nor a cluster may take it for done.
        sys.exit(128 + signal.SIGTERM)


def _plan(options, overrides: list[str]) -> None:
    from rdcd_jax.training.plan import make_plan

    plan = make_plan(options.config, overrides, options.workdir)
    for field in plan.fields:
        print(f"{field.name} = {field.value!r}    [{field.set_by}]\n    {field.help}")
    print()
    for fact in plan.facts:
        print(fact)
    if plan.problems:
        for problem in plan.problems[:-1]:
            print(f"wrong: {problem}")
        raise UserError(plan.problems[-1])
    print("Nothing is wrong with this config.")

"""`rdcd-jax report`."""

import pathlib

from rdcd_jax.cli.options import local_path, verb
from rdcd_jax.core.errors import UserError


def add_report(verbs) -> None:
    """Adds the verb `report`."""
    parser = verb(
        verbs,
        "report",
        "Write one HTML file that compares evaluations: figures, curves, recall by kind of edit, the worst mistakes.",
        "rdcd-jax report results/teacher results/student --out=report.html",
        _report,
    )
    parser.add_argument(
        "evaluations",
        nargs="+",
        metavar="EVAL_DIR",
        help="a folder that `rdcd-jax evaluate` wrote",
    )
    parser.add_argument("--out", type=local_path, default=pathlib.Path("report.html"))
    parser.add_argument(
        "--mistakes",
        type=int,
        default=12,
        metavar="N",
        help="false positives and missed copies shown of each evaluation, the worst first; 0 for none",
    )


def _report(options, rest) -> None:
    from rdcd_jax.report.page import write_report

    if options.mistakes < 0:
        raise UserError(f"--mistakes={options.mistakes} must be at least 0.")
    runs = write_report(options.evaluations, options.out, shown=options.mistakes)
    size = options.out.stat().st_size / 1e6
    print(f"{', '.join(run.name for run in runs)}: {options.out} ({size:.1f} MB).")

"""`rdcd-jax demo`."""

import pathlib

from rdcd_jax.cli.options import local_path, verb


def add_demo(verbs) -> None:
    """Adds the verb to the parser's."""
    parser = verb(
        verbs,
        "demo",
        "Find edited copies among the bundled images, then distil a student from the teacher.",
        "rdcd-jax demo --out=demo-out",
        _demo,
    )
    parser.add_argument("--out", type=local_path, default=pathlib.Path("demo-out"))


def _demo(options, rest) -> None:
    from rdcd_jax.demo import run_demo

    run_demo(options.out)

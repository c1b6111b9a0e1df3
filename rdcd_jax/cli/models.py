"""`rdcd-jax models`."""

import sys

from rdcd_jax.cli.options import verb


def add_models(verbs) -> None:
    """Adds the verb to the parser's."""
    verb(
        verbs,
        "models",
        "Print every network: its size, its descriptor, and which files hold weights for it.",
        "rdcd-jax models",
        _models,
    )


def _models(options, rest) -> None:
    from rdcd_jax.weights import catalogue

    print_networks(catalogue.networks(), catalogue.STUDENT_DIM, catalogue.IMAGE_SIZE)


def print_networks(networks, student_dim: int, image_size: int) -> None:
    """Prints the table of `rdcd-jax models`."""
    from rich.console import Console
    from rich.table import Table

    table = Table("network", "role")
    for title in ("parameters", "multiply-adds", "dimensions", "bytes"):
        table.add_column(title, justify="right")
    table.add_column("weights")
    for row in networks:
        table.add_row(
            row.name,
            row.role,
            f"{row.parameters / 1e6:.1f} M",
            f"{row.multiply_adds / 1e9:.2f} G",
            str(row.dim),
            str(row.descriptor_bytes),
            ", ".join((*row.shipped, *row.kinds)),
        )
    Console(width=120 if not sys.stdout.isatty() else None).print(table)
    print(
        f"Multiply-adds are of one image of {image_size} pixels; a student's dimensions are those you choose, here"
        f" {student_dim}, float32. Weights are shipped, or in a file that you give as KIND:PATH."
    )

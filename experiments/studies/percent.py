"""Figures of evaluations in percent, as result files hold them."""

from collections.abc import Sequence

from rdcd_jax.benchmarks.disc import DiscRow


def in_percent(rows: Sequence[DiscRow], forms: Sequence[str]) -> dict[str, float | None]:
    """µAP and recall at 90 % precision of each row, by the measure and what follows its name; None for never."""
    found = {}
    for row, form in zip(rows, forms, strict=True):
        recall = row.metrics.recall_at_p90
        found[f"µAP{form}"] = round(100 * row.metrics.average_precision, 2)
        found[f"recall at P90{form}"] = None if recall is None else round(100 * recall, 2)
    return found


HEADING = "µAP | recall at P90 | both, scores normalised"


def shown(percent: float | None) -> str:
    """A figure in a table; None is a precision that is never reached."""
    return "never" if percent is None else f"{percent:.1f}"


def cells(figures: dict[str, float | None]) -> str:
    """Figures without and with score normalisation as the cells under `HEADING`."""
    average, recall, *normalised = map(shown, figures.values())
    return f"{average} | {recall} | {', '.join(normalised)}"

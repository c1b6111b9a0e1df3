"""Draws the figures of docs/method.md: the step, and its three terms on real images.

    python -m experiments.studies.method_figures

Writes docs/step.png, a diagram of `rdcd_jax/method/step.py`, and docs/terms.png, of the bundled sample's references:
what relations a shipped student kept of the teacher's, how near each descriptor's nearest other image is, and how many
directions are used. The descriptors are those of `rdcd-effb0-64` and, before RDCD's terms were applied to them, of
`rdcd-effb0-64@0.1`, which was whitened. Needs the teacher, see docs/weights.md.
"""

import argparse
import importlib.resources
import pathlib
import sys

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from rdcd_jax.core.files import write_aside
from rdcd_jax.embedding.stream import embed_images
from rdcd_jax.images.sources import find_images
from rdcd_jax.method.losses import hard_negative, relational_kl
from rdcd_jax.report.charts import effective_rank
from rdcd_jax.training.fitting import featured
from rdcd_jax.weights.library import load_model

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRAINED, WHITENED, TEACHER = "rdcd-effb0-64", "rdcd-effb0-64@0.1", "sscd"
TEMPERATURE = 0.04
# Of the bank's images: how many are shown, and how many of a softmax's largest shares.
BANK, SHOWN = 120, 12
BLUE, GREY, RED = "#0b62a8", "#6b6f76", "#b3392b"

# Boxes of the diagram: name, (column, row), text, colour.
BOXES = (
    ("query", (0, 2.5), "view 1 [B, H, W, 3]", GREY),
    ("key", (0, 0), "view 2 [B, H, W, 3]", GREY),
    ("teacher", (1, 4), "teacher, fixed", GREY),
    ("student", (1, 2), "student", BLUE),
    ("encoder", (1, 0), "key encoder", GREY),
    ("target", (2, 4), "teacher's feature [B, F]", GREY),
    ("feature", (2, 2.7), "feature [B, F]", BLUE),
    ("descriptor", (2, 1.3), "descriptor [B, D]", BLUE),
    ("keys", (2, 0), "key [B, D]", GREY),
    ("rsd", (3, 3.35), "relational distillation\nto a bank of past features", RED),
    ("hn", (3, 1.9), "hard negatives\nfrom a queue of past keys", RED),
    ("nce", (3, 0.65), "InfoNCE\nown key against the queue", RED),
)
ARROWS = (
    ("query", "teacher"),
    ("query", "student"),
    ("key", "encoder"),
    ("teacher", "target"),
    ("student", "feature"),
    ("student", "descriptor"),
    ("encoder", "keys"),
    ("target", "rsd"),
    ("feature", "rsd"),
    ("descriptor", "hn"),
    ("descriptor", "nce"),
    ("keys", "nce"),
)


def draw_step(path: pathlib.Path) -> None:
    """Draws what goes where in a step."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(-0.45, 3.5)
    axes.set_ylim(-0.6, 4.5)
    drawn = {}
    for name, (x, y), text, colour in BOXES:
        box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": colour}
        drawn[name] = axes.text(x, y, text, ha="center", va="center", color=colour, bbox=box)
    for start, end in ARROWS:
        _arrow(axes, drawn[start], drawn[end])
    axes.annotate(
        "moves slowly after",
        (1, 0.4),
        xytext=(1, 1.55),
        ha="center",
        color=GREY,
        fontsize=9,
        arrowprops={"arrowstyle": "->", "color": GREY, "linestyle": "dotted"},
    )
    _save(figure, path)


def _arrow(axes: Axes, start: Text, end: Text) -> None:
    # From edge to edge of the boxes.
    ends = {"patchA": start.get_bbox_patch(), "patchB": end.get_bbox_patch()}
    style = {"arrowstyle": "->", "color": GREY, "shrinkA": 2, "shrinkB": 2, **ends}
    axes.annotate("", end.get_position(), xytext=start.get_position(), arrowprops=style)


def draw_terms(path: pathlib.Path) -> None:
    """Draws what each term does, on the sample's references."""
    sample = importlib.resources.files("rdcd_jax") / "sample" / "references"
    with importlib.resources.as_file(sample) as folder:
        images = find_images(folder)
        trained = load_model(TRAINED)
        compact = [
            ("whitened", GREY, embed_images(load_model(WHITENED), images).found.descriptors),
            ("RDCD's terms", BLUE, embed_images(trained, images).found.descriptors),
        ]
        few = images.subset(range(BANK))
        wide = [
            embed_images(model, few).found.descriptors
            for model in (featured(trained), load_model(TEACHER))
        ]
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    draw_relations(left, *wide)
    draw_nearest(middle, compact)
    draw_spectra(right, compact)
    _save(figure, path)


def draw_relations(axes: Axes, student: np.ndarray, teacher: np.ndarray) -> None:
    """Draws both distributions over a bank, of the image whose divergence is the median.

    Args:
        axes: where to.
        student: [N, F] features.
        teacher: [N, F] the teacher's of the same images; each image's bank is the others'.
    """
    student = student / np.linalg.norm(student, axis=1, keepdims=True)
    banks = [np.delete(teacher, image, axis=0) for image in range(len(teacher))]
    divergences = [
        float(relational_kl(student[[i]], teacher[[i]], bank, temperature=TEMPERATURE))
        for i, bank in enumerate(banks)
    ]
    image = int(np.argsort(divergences)[len(divergences) // 2])
    targets, kept = (
        jax.nn.softmax(features[image] @ banks[image].T / TEMPERATURE)
        for features in (teacher, student)
    )
    order = np.argsort(-targets)[:SHOWN]
    for shift, label, colour, shares in (
        (-0.2, "teacher", GREY, targets),
        (0.2, "student", BLUE, kept),
    ):
        axes.bar(np.arange(SHOWN) + shift, 100 * shares[order], 0.4, color=colour, label=label)
    axes.set_ylim(top=1.3 * axes.get_ylim()[1])
    axes.set_title(f"RSD: relations of one image, KL {divergences[image]:.2f}")
    axes.set_xlabel("image of the bank, by the teacher's order")
    axes.set_ylabel("share of the softmax, %")
    axes.legend()


def draw_nearest(axes: Axes, compact: list[tuple[str, str, np.ndarray]]) -> None:
    """Draws how similar each descriptor's nearest other image is, beside what that costs."""
    for label, colour, descriptors in compact:
        similarity = descriptors @ descriptors.T
        np.fill_diagonal(similarity, -1)
        axes.hist(similarity.max(axis=1), 40, range=(0, 1), color=colour, alpha=0.6, label=label)
    axes.set_title("Hard negatives: the nearest other image")
    axes.set_ylim(top=1.35 * axes.get_ylim()[1])
    axes.set_xlabel("its cosine similarity")
    axes.set_ylabel("images")
    axes.legend(loc="upper left")
    cost = axes.twinx()
    one = np.array([[1.0, 0.0]])
    scores = np.linspace(0, 1, 200)
    costs = [float(hard_negative(one, np.array([[s, 0.0]]))) for s in scores]
    cost.plot(scores, costs, color=RED)
    cost.set_ylabel("hard_negative", color=RED)


def draw_spectra(axes: Axes, compact: list[tuple[str, str, np.ndarray]]) -> None:
    """Draws the singular values of the centred descriptors."""
    for label, colour, descriptors in compact:
        values = np.linalg.svd(descriptors - descriptors.mean(axis=0), compute_uv=False)
        rank = effective_rank(values)
        axes.plot(
            np.arange(1, len(values) + 1),
            values,
            color=colour,
            label=f"{label}: effective rank {rank:.0f}",
        )
    axes.set_title("Directions used, of 64")
    axes.set_xlabel("direction")
    axes.set_ylabel("singular value")
    axes.set_ylim(bottom=0)
    axes.legend()


def _save(figure: Figure, path: pathlib.Path) -> None:
    with write_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=110, facecolor="white")


def main() -> int:
    """Draws both."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    draw_step(ROOT / "docs" / "step.png")
    draw_terms(ROOT / "docs" / "terms.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The table and the plot of bench_search.py."""

import math
import pathlib

from rdcd_jax.core.files import write_aside, write_text

# What fast settings must find to be compared with each other.
TARGET = 0.99


def unbeaten(settings: dict[str, dict], k: int, slack: float = 1.0) -> list[str]:
    """Settings that no other beats by `slack` in time without losing recall at 1 or at k."""

    def seconds(values: dict) -> float:
        return min(values["times"]) if "times" in values else 1 / values["queries a second"]

    def beaten(values: dict) -> bool:
        return any(
            slack * seconds(other) < seconds(values)
            and other["recall@1"] >= values["recall@1"]
            and other[f"recall@{k}"] >= values[f"recall@{k}"]
            for other in settings.values()
        )

    return [name for name, values in settings.items() if not beaten(values)]


def best_at(method: dict, recall: float = TARGET) -> tuple[str, dict] | None:
    """The quickest setting of a method that finds so many of the nearest rows, of those timed in all rounds."""
    rounds = max(values["rounds"] for values in method["settings"].values())
    able = [
        item
        for item in method["settings"].items()
        if item[1]["recall@1"] >= recall and item[1]["rounds"] == rounds
    ]
    return max(able, key=lambda item: item[1]["queries a second"], default=None)


def summary(cell: dict) -> dict:
    """One cell in a row: ScaNN over the best peer at the recall aimed at, exact JAX over FAISS's exact search."""
    able = {
        name: found[1]["queries a second"]
        for name, method in cell["methods"].items()
        if (found := best_at(method))
    }
    exact = ("JAX exact", "FAISS Flat", "ScaNN brute force")
    peers = {name: speed for name, speed in able.items() if name not in (*exact, "ScaNN AH")}
    peer = max(peers, key=peers.get, default=None)
    scann = able.get("ScaNN AH")
    return {
        "rows": cell["rows"],
        "dim": cell["dimensions"],
        "recall@1": TARGET,
        "scann": scann,
        "best_peer": peer,
        "peer": peers.get(peer),
        "scann_over_best_peer": round(scann / peers[peer], 2) if scann and peer else None,
        "exact": able["JAX exact"],
        "scann_exact": able["ScaNN brute force"],
        "faiss_flat": able["FAISS Flat"],
        "exact_over_faiss_flat": round(able["JAX exact"] / able["FAISS Flat"], 2),
        "scann_exact_over_faiss_flat": round(able["ScaNN brute force"] / able["FAISS Flat"], 2),
        "device": f"{cell['cores']} cores, {cell['processor']}",
        "commit": cell["environment"]["git_revision"],
        "exact_commit": cell.get("exact methods", cell)["environment"]["git_revision"],
    }


def summary_table(rows: list[dict]) -> str:
    """What `summary` gives of all cells, in Markdown."""
    lines = [
        "| rows, dimensions | `scann_ah` | the best peer | ratio | `jax` | `scann` | FAISS Flat | ratios | on |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        reached = "not reached" if row["scann"] is None else f"{row['scann']:,.0f}"
        peer = "none" if row["peer"] is None else f"{row['peer']:,.0f} ({row['best_peer']})"
        lines.append(
            f"| {row['rows']:,} x {row['dim']} | {reached} | {peer} | {row['scann_over_best_peer'] or ''} |"
            f" {row['exact']:,.0f} | {row['scann_exact']:,.0f} | {row['faiss_flat']:,.0f} |"
            f" {row['exact_over_faiss_flat']}, {row['scann_exact_over_faiss_flat']} | {row['device']} |"
        )
    return "\n".join(lines)


def draw(cells: dict[str, dict], path: pathlib.Path) -> None:
    """Writes the table to `path` with the suffix .md, the plot to .png."""
    write_text(path.with_suffix(".md"), table(cells))
    _plot(cells, path.with_suffix(".png"))


def table(cells: dict[str, dict]) -> str:
    """Of each method and cell the setting that counts, in Markdown."""
    lines = [
        "# Search, measured",
        "",
        "By `experiments/benchmarks/search.py`; of each method the quickest setting that finds the nearest row of"
        f" {100 * TARGET:.0f} % of the queries (recall@1), or else the setting that finds most.",
    ]
    for cell in cells.values():
        similarity = next(value for key, value in cell.items() if key.startswith("similarity"))
        lines += ["", f"## {cell['rows']:,} rows of {cell['dimensions']} numbers", ""]
        row = summary(cell)
        lines += [
            f"Exact JAX / FAISS Flat: {row['exact_over_faiss_flat']}  ",
            f"ScaNN AH / {row['best_peer']}: {row['scann_over_best_peer'] or 'not reached'}  ",
            f"{cell['real rows']:,} rows are descriptors of views"
            + (f"; {cell['other rows']}" if cell["other rows"] else "")
            + f". {cell['queries']:,} queries at once on {cell['cores']} cores. Similarity of a query to its"
            " nearest row (quantiles 0.1, 0.25, 0.5, 0.75, 0.9): "
            + "; ".join(
                f"{', '.join(map(str, value))} among {name}" for name, value in similarity.items()
            )
            + ".",
            "",
            "| method | setting | recall@1 | recall@10 | queries a second | build, s | bytes a descriptor |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, method in cell["methods"].items():
            most = max(method["settings"].items(), key=lambda item: item[1]["recall@1"])
            setting, values = best_at(method) or most
            figures = f"{values['recall@1']:.4f} | {values['recall@10']:.4f} | {values['queries a second']:,.0f}"
            cost = f"{method['build seconds']:.1f} | {method['bytes a descriptor']:.0f}"
            lines.append(f"| {name} | {setting} | {figures} | {cost} |")
    return "\n".join(lines) + "\n"


def _plot(cells: dict[str, dict], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    across = min(4, len(cells))
    down = math.ceil(len(cells) / across)
    figure, axes = plt.subplots(down, across, figsize=(4.2 * across, 3.6 * down), squeeze=False)
    for axis in axes.flat[len(cells) :]:
        axis.set_visible(False)
    for axis, cell in zip(axes.flat, cells.values(), strict=False):
        for number, (name, method) in enumerate(cell["methods"].items()):
            kept = [method["settings"][setting] for setting in unbeaten(method["settings"], 10)]
            points = sorted(
                (max(1 - each["recall@1"], 5e-4), each["queries a second"]) for each in kept
            )
            axis.plot(*zip(*points, strict=True), "o-", ms=4, label=name, color=f"C{number}")
        axis.axvline(1 - TARGET, color="grey", lw=0.8, ls=":")
        axis.set(
            xscale="log",
            yscale="log",
            xlim=(0.3, 4e-4),
            title=f"{cell['rows']:,} x {cell['dimensions']}",
        )
        axis.set_xticks([0.1, 0.01, 0.001], ["0.9", "0.99", "0.999"])
        axis.set(xlabel="recall@1", ylabel="queries a second")
        axis.grid(alpha=0.3)
    figure.tight_layout(rect=(0, 0.35 / figure.get_figheight(), 1, 1))
    figure.legend(
        *axes.flat[0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=7
    )
    with write_aside(path) as aside:
        figure.savefig(aside, dpi=110)
    plt.close(figure)

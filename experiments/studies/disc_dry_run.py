"""The path of docs/reproduce.md on a made-up tree of DISC2021's layout and size: does it stand a million images?

    python -m experiments.studies.disc_dry_run OUT [--images 1000000] [--queries 50000]

DISC's names, layout and numbers, but every image is one of a few tiny ones, by hard links, two million names of
less than 1 GB; descriptors are random, since a million
images take hours to embed. What is measured is what grows with the number of images: minutes and peak memory of packing
the training images, of starting to train on them (three steps of the paper's recipe at a small size, its queue and bank
of 65,536), and of the evaluation with score normalisation by all training images. Written to
experiments/results/disc_dry_run.json.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
from PIL import Image

from rdcd_jax.core.files import write_json, write_text
from rdcd_jax.embedding.codecs import unit_rows
from rdcd_jax.embedding.descriptors import Descriptors, id_array, write_descriptors
from rdcd_jax.training.record import environment

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULT = ROOT / "experiments" / "results" / "disc_dry_run.json"
# A file may have so many names on most file systems.
LINKS = 50_000
DIM = 128
# Letters and digits of DISC's names.
NAMES = {"train": ("T", 6), "references": ("R", 6), "queries": ("Q", 5)}


def ids_of(part: str, count: int) -> list[str]:
    """DISC's names."""
    letter, digits = NAMES[part]
    return [f"{letter}{number:0{digits}}" for number in range(count)]


def make_tree(tree: pathlib.Path, sizes: dict[str, int]) -> None:
    """Writes the folders, and a ground truth whose every fifth query is a copy, as in DISC."""
    rng = np.random.default_rng(0)
    for part, count in sizes.items():
        folder = tree / part
        if folder.exists():
            continue
        making = tree / f"{part}.making"
        # What a start that was killed left.
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        names = [making / f"{name}.jpg" for name in ids_of(part, count)]
        for begin in range(0, count, LINKS):
            Image.fromarray(rng.integers(256, size=(48, 64, 3), dtype=np.uint8)).save(names[begin])
            for name in names[begin + 1 : begin + LINKS]:
                os.link(names[begin], name)
        making.rename(folder)
    references = ids_of("references", sizes["references"])
    lines = [
        f"{query},{references[i] if i % 5 == 0 else ''}"
        for i, query in enumerate(ids_of("queries", sizes["queries"]))
    ]
    write_text(tree / "ground_truth.csv", "\n".join(["query_id,reference_id", *lines]) + "\n")


def make_descriptors(folder: pathlib.Path, sizes: dict[str, int]) -> None:
    """Writes random descriptors; a copy's is near its original's."""
    rng = np.random.default_rng(1)
    folder.mkdir(exist_ok=True)
    references = None
    for part in ("references", "queries", "train"):
        rows = unit_rows(rng.normal(size=(sizes[part], DIM)).astype(np.float32))
        if part == "references":
            references = rows
        if part == "queries":
            rows[::5] = unit_rows(references[: len(rows) : 5] + rows[::5])
        path = folder / f"{part}.npz"
        if not path.exists():
            write_descriptors(
                path, Descriptors(id_array(ids_of(part, sizes[part])), rows, "random")
            )


def measured(*arguments: str | os.PathLike) -> dict:
    """Runs a command of rdcd-jax; minutes, and its peak memory in GB."""
    command = [sys.executable, "-m", "rdcd_jax", *map(str, arguments)]
    print(" ".join(command[2:]), flush=True)
    begun = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[3]} ended with {process.returncode}")
    return {
        "minutes": round((time.monotonic() - begun) / 60, 2),
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
    }


STEPS = {
    "pack": "`data pack BENCHMARK/train`",
    "train": "`train` on the folder, to its third step",
    "train, packed": "`train` on the packed shards, to its third step",
    "evaluate": "`evaluate disc`, of descriptors, scores normalised by all training images",
}


def table(result: dict) -> str:
    """What each step took, in Markdown."""
    sizes = result["sizes"]
    of = f"{sizes['train']:,} training images, {sizes['references']:,} references, {sizes['queries']:,} queries"
    lines = [f"| {of} | minutes | peak memory, GB |", "|---|---|---|"]
    lines += [
        f"| {what} | {result[step]['minutes']:.1f} | {result[step]['peak_gb']:.1f} |"
        for step, what in STEPS.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Makes the tree, goes the path, and writes what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=50_000)
    options = parser.parse_args()
    out = options.out / f"{options.images}-{options.queries}"
    tree, rows, work = out / "disc", out / "descriptors", out / "work"
    # What is measured must not go on with what is there.
    shutil.rmtree(work, ignore_errors=True)
    sizes = dict(zip(NAMES, (options.images, options.images, options.queries), strict=True))
    make_tree(tree, sizes)
    make_descriptors(rows, sizes)
    taken = {"pack": measured("data", "pack", tree / "train", work / "packed", "--short-side=32")}
    for name, source in {"train": tree / "train", "train, packed": work / "packed"}.items():
        taken[name] = measured(
            "train",
            f"--config=rdcd:dim={DIM},data={source}",
            f"--workdir={work / name.replace(', ', '_')}",
            *("--config.image_size=32", "--config.batch_size=32", "--config.schedule.max_steps=3"),
            *("--config.student.background=0", "--config.log_every=1"),
        )
    taken["evaluate"] = measured(
        *("evaluate", "disc", f"--queries={rows / 'queries.npz'}"),
        *(f"--references={rows / 'references.npz'}", f"--training={rows / 'train.npz'}"),
        *(f"--ground-truth={tree / 'ground_truth.csv'}", f"--out={work / 'evaluation'}"),
    )
    write_json(RESULT, {"sizes": sizes, "dim": DIM, "environment": environment(), **taken})


if __name__ == "__main__":
    main()

"""Descriptors to search among: augmented views of real images, and more rows made from those.

    python -m experiments.benchmarks.search_rows IMAGES POOL [--views 7] [--size 128]

Embeds views (policy ADVANCED_NO_OVERLAY) of every image by the shipped 256-number student, whose first 64 and 128
numbers are the smaller students, and by the teacher as onnxruntime runs it. View 0 of each image is for queries, the
others are for the database. POOL holds a file for each view of 1,024 images, so the same command goes on where it
was ended, and with a larger --views adds to what is there.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import sys
import tempfile

import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import write_aside

ROOT = pathlib.Path(__file__).resolve().parents[2]

POLICY = "ADVANCED_NO_OVERLAY"
STUDENT, TEACHER = "rdcd-effb0-256", "onnxruntime"
# Which network embeds a row of so many numbers, and how many it gives.
NETWORKS = {
    64: ("student", 256),
    128: ("student", 256),
    256: ("student", 256),
    512: ("teacher", 512),
}
RULE = (
    "rows beyond the real ones: the mean of two views of an image plus half the difference of two views of another"
    " image, then of unit length"
)
_PART, _BATCH, _MADE = 1024, 32, 65_536


def embed_views(source: str, pool: pathlib.Path, n_views: int, size: int) -> None:
    """Fills the pool with what is missing of the first `n_views` views of each image.

    Args:
        source: the images, see `find_images`.
        pool: the folder.
        n_views: views of each image, the one for queries included.
        size: their side in pixels.

    Raises:
        UserError: no images, no teacher, or a pool of views of another size.
    """
    from rdcd_jax.augment.policies import make_view
    from rdcd_jax.images.sources import find_images
    from rdcd_jax.weights.export import export_weights
    from rdcd_jax.weights.library import load_model
    from rdcd_jax.weights.onnx_model import load_onnx_model

    images, view = find_images(source), make_view(POLICY, size)
    pool.mkdir(parents=True, exist_ok=True)
    about = f"{len(images)} images, views of {size} pixels"
    stored = pool / "about.txt"
    if stored.is_file() and stored.read_text() != about:
        raise UserError(
            f"{pool} is of {stored.read_text()}, and this would be of {about}; give another folder."
        )
    stored.write_text(about)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "student.onnx"
        export_weights(load_model(STUDENT), "onnx", path)
        models = {"student": load_onnx_model("student", path), "teacher": load_model(TEACHER)}

    def made(position: int, number: int) -> np.ndarray:
        pixels = images.decode(position, min_side_hint=2 * size)
        return view(pixels, np.random.default_rng((number, position)))

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        for number in range(n_views):
            for first in range(0, len(images), _PART):
                path = pool / f"view{number:03d}-{first:07d}.npz"
                if path.exists():
                    continue
                positions = range(first, min(first + _PART, len(images)))
                pixels = np.stack(
                    list(threads.map(lambda position: made(position, number), positions))
                )
                found = {
                    name: np.concatenate(
                        [
                            model.embed_batch(pixels[i : i + _BATCH])
                            for i in range(0, len(pixels), _BATCH)
                        ]
                    )
                    for name, model in models.items()
                }
                with write_aside(path) as aside:
                    np.savez(aside, images=np.asarray(positions), **found)
                print(
                    f"view {number + 1} of {n_views}: {positions[-1] + 1} of {len(images)}",
                    flush=True,
                )


@dataclasses.dataclass(frozen=True)
class Rows:
    """What is searched for what.

    Attributes:
        database: [M, D] float32 of unit length.
        queries: [N, D] float32 of unit length: views that are not in the database of images that are.
        real: how many rows of the database are descriptors of views; the others follow `RULE`.
    """

    database: np.ndarray
    queries: np.ndarray
    real: int


def read_rows(pool: pathlib.Path, n_rows: int, dim: int, n_queries: int) -> Rows:
    """Makes a database from a pool, the real views first, and draws queries for it.

    Raises:
        UserError: the pool has no views, or of too few images.
    """
    network, _ = NETWORKS[dim]
    found = []
    for path in sorted(pool.glob("view*.npz")):
        with np.load(path) as part:
            found.append((int(path.stem[4:7]), part["images"], part[network][:, :dim]))
    if len({number for number, _, _ in found}) < 3:
        raise UserError(f"{pool} holds too few views; embed at least 3 by search_rows.py.")
    queries = np.concatenate([rows for number, _, rows in found if number == 0])
    views = np.concatenate([rows for number, _, rows in found if number])
    images = np.concatenate([positions for number, positions, _ in found if number])
    queries, views = _unit(queries), _unit(views)
    rng = np.random.default_rng(0)
    # Which rows are taken does not depend on the dimensions.
    order = rng.permutation(len(views))[:n_rows]
    shown = np.flatnonzero(np.isin(np.unique(images), images[order]))
    queries = queries[rng.permutation(shown[shown < len(queries)])[:n_queries]]
    database = np.empty((n_rows, dim), np.float32)
    real = min(n_rows, len(views))
    database[:real] = views[order]
    for first in range(real, n_rows, _MADE):
        count = min(_MADE, n_rows - first)
        database[first : first + count] = _made(views, images, count, rng)
    return Rows(database, queries, real)


def nearest_similarity(rows: np.ndarray, queries: np.ndarray, n: int) -> list[float]:
    """Similarity of queries to the nearest of n rows drawn from all: least decile, quartile, median, and so on."""
    drawn = rows[np.random.default_rng(1).permutation(len(rows))[:n]]
    best = np.concatenate(
        [(queries[i : i + 256] @ drawn.T).max(axis=1) for i in range(0, len(queries), 256)]
    )
    return [round(float(x), 3) for x in np.quantile(best, (0.1, 0.25, 0.5, 0.75, 0.9))]


def _made(
    views: np.ndarray, images: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Rows by `RULE`: what views of an image share stays, and what sets them apart keeps its size."""
    order = np.argsort(images, kind="stable")
    starts = np.searchsorted(images[order], np.arange(images.max() + 2))
    sizes = np.diff(starts)
    several = np.flatnonzero(sizes > 1)

    def pairs() -> tuple[np.ndarray, np.ndarray]:
        which = several[rng.integers(len(several), size=count)]
        one = rng.integers(sizes[which])
        other = (one + 1 + rng.integers(sizes[which] - 1)) % sizes[which]
        return views[order[starts[which] + one]], views[order[starts[which] + other]]

    (first, second), (third, fourth) = pairs(), pairs()
    return _unit((first + second + third - fourth) / 2)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def main() -> int:
    """Embeds views."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images")
    parser.add_argument("pool", type=pathlib.Path)
    parser.add_argument("--views", type=int, default=7)
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    try:
        embed_views(options.images, options.pool, options.views, options.size)
    except UserError as error:
        print(f"search_rows: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

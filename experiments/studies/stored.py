"""What an index finds by how it keeps its descriptors: as float32, float16, int8 or bits.

    python -m experiments.studies.stored BENCHMARK [--models rdcd-effb0-128 ...]

The references of BENCHMARK, a DISC-shaped folder, are embedded once a model; an index of each type is made of them and
searched for the queries, as `index build --dtype` and `search` do it by default. Measured are the bytes of a descriptor
on disk, µAP over the ten nearest, what is found from the model's own threshold of 90 % precision on, and how much of it
is right. `bits on both sides` are queries rounded as well, `queries as they are` bits without `--variants=trim`, as
perceptual hashes are measured. The result goes to experiments/results/stored.json.
"""

import argparse
import dataclasses
import pathlib
import tempfile

from experiments.studies.found import found_by
from experiments.studies.recorded import record
from rdcd_jax.benchmarks.ground_truth import find_disc_layout, read_ground_truth
from rdcd_jax.embedding.descriptors import Descriptors, id_array
from rdcd_jax.images.sources import ImageSet, find_images
from rdcd_jax.index import Index, store
from rdcd_jax.index.manifest import BINARY, DTYPES
from rdcd_jax.search.background import BACKGROUND, read_background
from rdcd_jax.search.bits import rounded
from rdcd_jax.training.record import environment
from rdcd_jax.weights.shipped import list_models

ROOT = pathlib.Path(__file__).resolve().parents[2]

RESULT = ROOT / "experiments" / "results" / "stored.json"
BOTH, AS_THEY_ARE = "bits on both sides", "queries as they are"


def as_dtype(index: Index, folder: pathlib.Path, dtype: str) -> Index:
    """An index of the same images that keeps their descriptors otherwise."""
    found = index.contents()
    new = dataclasses.replace(index.manifest, dtype=dtype, segments=(), next=0)
    background = read_background(index.folder / BACKGROUND, new.dim)
    with store.writer(folder, new, background) as writer:
        writer.add(Descriptors(id_array(found.ids), found.rows, new.model), found.paths)
    made = Index(folder)
    made.embedder = index.embedder
    return made


class Rounding:
    """A model whose descriptors are bits; all else is the model's own."""

    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        return getattr(self._model, name)

    def embed_batch(self, images):
        """As the model's own."""
        return rounded(self._model.embed_batch(images))


def measured(name: str, references: str, queries: ImageSet, pairs: list) -> dict:
    """All figures of one model, by how descriptors are kept."""
    result = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        whole = Index.build(folder / "whole", references, model=name)
        for dtype in DTYPES:
            index = as_dtype(whole, folder / dtype, dtype)
            kept = [*index.folder.glob("segments/*.rows.npy")]
            kept += index.folder.glob("segments/*.scales.npy")
            # Less a header each.
            size = sum(path.stat().st_size - 128 for path in kept)
            result[dtype] = {
                "bytes of a descriptor": round(size / len(index), 2),
                **found_by(index, queries, pairs).percent(),
            }
            if dtype == BINARY:
                result[AS_THEY_ARE] = found_by(index, queries, pairs, ()).percent()
                index.embedder = Rounding(index.embedder)
                result[BOTH] = found_by(index, queries, pairs).percent()
    return result


def table(models: dict[str, dict]) -> str:
    """The result in Markdown, without bits on both sides."""
    lines = ["| | `--dtype` | bytes of a descriptor | found | of these right | µAP |"]
    lines.append("|---|---|---|---|---|---|")
    for name, rows in models.items():
        for number, dtype in enumerate(DTYPES):
            row = rows[dtype]
            found, right = (
                row[f"{each} from the threshold on"] for each in ("recall", "precision")
            )
            cells = ["" if number else f"`{name}`", dtype, f"{row['bytes of a descriptor']:g}"]
            cells += [f"{each:.1f}" for each in (found, right, row["µAP"])]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures every shipped student, and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", type=pathlib.Path)
    parser.add_argument("--models", nargs="+", default=list_models())
    options = parser.parse_args()
    layout = find_disc_layout(options.benchmark)
    pairs = list(read_ground_truth(layout.ground_truth).pairs)
    queries = find_images(layout.queries)
    models = {}
    for name in options.models:
        models[name] = measured(name, layout.references, queries, pairs)
        print(name, models[name], flush=True)
    content = {"benchmark": options.benchmark.name, "environment": environment(), "models": models}
    record(RESULT, content)
    print(table(models))


if __name__ == "__main__":
    main()

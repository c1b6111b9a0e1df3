"""An index's descriptors, ids, paths and sizes for other systems."""

import errno
import os
import pathlib

import numpy as np

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import require_writable, write_aside, write_csv
from rdcd_jax.images.naming import escaped
from rdcd_jax.index.manifest import Manifest
from rdcd_jax.index.places import BYTES, HEIGHT, WIDTH
from rdcd_jax.index.search import Index
from rdcd_jax.index.segments import Segment

COLUMNS = ("id", "path", "width", "height", "bytes")


def export_index(index: Index, path: str | os.PathLike, kind: str) -> int:
    """Writes what an index holds.

    Args:
        index: the index.
        path: the file; of faiss a second file beside it, `path` with `.csv`, has a line for each row.
        kind: "parquet" (columns id, path, width, height, bytes and descriptor, a list of D float32), "npz" (arrays of
            these names and `model`, which `read_descriptors` reads too) or "faiss" (an IndexFlatIP).

    Returns:
        How many descriptors it wrote, each of unit length; scores are not normalised in them.

    Raises:
        UserError: another kind, an empty index, or faiss is not installed.
    """
    if kind not in KINDS:
        raise UserError(f"There is no format '{kind}'; use one of {', '.join(KINDS)}.")
    path = pathlib.Path(path)
    require_writable(path)
    found = index.contents()
    if not len(found):
        raise UserError(f"{index.folder} is empty; add images to it first.")
    KINDS[kind](path, found, index.manifest)
    return len(found)


def _numbers(found: Segment) -> dict[str, np.ndarray]:
    """Width, height and bytes of each image, 0 where not known."""
    return {
        name: found.files[:, column]
        for name, column in (("width", WIDTH), ("height", HEIGHT), ("bytes", BYTES))
    }


def _write_parquet(path: pathlib.Path, found: Segment, manifest: Manifest) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    flat = pa.array(found.rows.ravel())
    columns = {
        "id": pa.array(found.ids),
        "path": pa.array([escaped(each) for each in found.paths]),
        **{
            name: pa.array(each, mask=each == 0)  # not known
            for name, each in _numbers(found).items()
        },
        "descriptor": pa.FixedSizeListArray.from_arrays(flat, manifest.dim),
    }
    about = {
        "model": manifest.model,
        "fingerprint": manifest.fingerprint,
        "image_size": str(manifest.image_size),
    }
    with write_aside(path) as aside:
        pa.parquet.write_table(pa.table(columns, metadata=about), aside)


def _write_npz(path: pathlib.Path, found: Segment, manifest: Manifest) -> None:
    with write_aside(path) as aside, aside.open("wb") as file:
        np.savez(
            file,
            ids=np.asarray(found.ids),
            paths=np.asarray([escaped(each) for each in found.paths]),
            **_numbers(found),
            descriptors=found.rows,
            model=np.asarray(manifest.model),
            fingerprint=np.asarray(manifest.fingerprint),
        )


def _write_faiss(path: pathlib.Path, found: Segment, manifest: Manifest) -> None:
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "The format faiss needs faiss; `pip install faiss-cpu`, or use parquet or npz."
        ) from error
    made = faiss.IndexFlatIP(manifest.dim)
    made.add(found.rows)
    numbers = (each.tolist() for each in _numbers(found).values())
    lines = zip(found.ids, found.paths, *numbers, strict=True)
    # Both are renamed when both are whole: a row of one names the image of the other's.
    with write_aside(path) as aside, write_aside(path.with_name(f"{path.name}.csv")) as names:
        write_csv(names, COLUMNS, lines)
        try:
            faiss.write_index(made, str(aside))
        except RuntimeError as error:
            raise OSError(errno.EIO, str(error).strip(), str(aside)) from error


KINDS = {"parquet": _write_parquet, "faiss": _write_faiss, "npz": _write_npz}

"""An index in memory's reach: pictures in, the most similar pictures of the index out."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from rdcd_jax.data.sources import ImageSet, find_images
from rdcd_jax.errors import UserError
from rdcd_jax.evaluation import search
from rdcd_jax.evaluation.descriptors import Descriptors
from rdcd_jax.evaluation.embed import Unreadable, embed_images
from rdcd_jax.index import store

# Pictures that are described and put into the index at a time: what a build that is killed has to do again.
CHUNK = 4096
# What may be done to a query before it is described, as well as nothing, by name.
VARIANTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "flip": lambda x: x[:, :, ::-1],
    "rotate90": lambda x: np.rot90(x, 1, (1, 2)),
    "rotate180": lambda x: np.rot90(x, 2, (1, 2)),
    "rotate270": lambda x: np.rot90(x, 3, (1, 2)),
}
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Match:
    """A picture of the index that resembles a query.

    Attributes:
        query: the query's id.
        reference: the id of the picture in the index.
        score: inner product of their descriptors, 1 at most.
        precision: estimated probability that the one is a copy of the other; None without a calibration.
        variant: what was done to the query to find it, a key of `VARIANTS`; empty for nothing.
    """

    query: str
    reference: str
    score: float
    precision: float | None = None
    variant: str = ""


class Index:
    """A persistent index of pictures.

        index = Index.build("my.index", "PICTURES", model="rdcd-effb0-128")
        for match in index.search("SUSPECTS"):
            print(match.query, match.reference, match.score)

    Args:
        folder: of an index that is there; `build` makes one.

    Raises:
        UserError: there is none, or it is damaged.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = pathlib.Path(folder)
        self.manifest = store.read_manifest(self.folder)

    @classmethod
    def build(
        cls,
        folder: str | os.PathLike,
        images: str | os.PathLike | ImageSet,
        *,
        model: str,
        dtype: str = "float32",
        image_size: int | None = None,
        on_progress: Progress | None = None,
    ) -> "Index":
        """Makes an index of pictures; the same call goes on with one that was ended.

        Args:
            folder: of the index.
            images: a source of pictures.
            model: see `load_describer`.
            dtype: of the descriptors on disk: float32, float16 or int8.
            image_size: side that pictures are resized to; the model's own for None.
            on_progress: told pictures done and in all.

        Raises:
            UserError: for pictures or a model that cannot be read; there is an index of another model or dtype.
        """
        if dtype not in store.DTYPES:
            raise UserError(f"There is no dtype '{dtype}'; use one of {', '.join(store.DTYPES)}.")
        from rdcd_jax.weights.library import load_describer

        describer = load_describer(model).at_size(image_size)
        new = store.Manifest(
            model=model,
            model_name=describer.name,
            image_size=describer.image_size,
            dim=describer.dim,
            dtype=dtype,
        )
        folder = pathlib.Path(folder)
        images = images if isinstance(images, ImageSet) else find_images(images)
        with store.writer(folder, new):
            there = store.read_manifest(folder)
        for name in ("model", "image_size", "dim", "dtype"):
            ours, theirs = getattr(new, name), getattr(there, name)
            if ours != theirs:
                raise UserError(
                    f"{folder} is an index with {name} {theirs}, and this would be one with {ours}; give another folder."
                )
        index = cls(folder)
        index.add(images, on_progress=on_progress)
        return index

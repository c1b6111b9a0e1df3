"""Training on a frozen trunk: the features of each image's views are computed once, and the projector learns on them.

    CACHE/unedited_features.npz features of the unedited images, at the evaluation's size
    CACHE/view_features.npy     [V, N, F] float16, of V edited views of each image; zeros where one is unreadable
    CACHE/view_features.json    what made them, and how many batches are done

CACHE is the run's folder, or config.data.cache, which several runs may share: the views do not depend on the seed.
"""

import contextlib
import dataclasses
import json
import pathlib

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from rdcd_jax.core import hosts
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import reserve, write_json
from rdcd_jax.core.locks import held
from rdcd_jax.core.mesh import local_mesh, replicate
from rdcd_jax.core.progress import Reporter
from rdcd_jax.embedding.descriptors import read_descriptors
from rdcd_jax.embedding.service import embed_to_file
from rdcd_jax.images.links import sizes_sha256
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.training import feed
from rdcd_jax.training.fitting import featured, trunk_of
from rdcd_jax.training.record import list_left_out
from rdcd_jax.weights.model import Model, digest_of

UNEDITED, EDITED = "unedited_features.npz", "view_features.npy"
PROGRESS = "view_features.json"
LOCK = "view_features.lock"
# The config's fields behind what made them.
_TOLD = {
    "unedited_size": "evaluate.image_size",
    "views": "data.cached_views",
    "dtype": "student.dtype",
    "trunk": "trunk (init_from)",
    "images": "data.train",
    "files": "set of images than data.train's (its files have other sizes)",
}
# Images whose views go through the trunk at a time, on however many devices: what is done is counted in them.
_BATCH = 64
# Batches whose features are lost with a process that is killed.
_KEPT_EVERY = 20


@dataclasses.dataclass(frozen=True)
class ViewFeatures:
    """Features of the views of N images, before their normalisation.

    Attributes:
        images: the images all of whose views could be read.
        unedited: [N, F] float32.
        edited: [V, M, F] float16 of all M images of the set, mapped from the file.
        positions: [N] where in `edited` the images stand.
    """

    images: ImageSet
    unedited: np.ndarray
    edited: np.ndarray
    positions: np.ndarray

    # They are small, and change from step to step.
    on_device = False

    def __call__(self, position: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """What a batch holds of an image: two of its views, see `pipeline.make_batches`."""
        count = 1 + len(self.edited)
        first = int(rng.integers(count))
        second = (first + 1 + int(rng.integers(count - 1))) % count
        return {
            "query": self._view(first, position),
            "key": self._view(second, position),
            "index": np.int64(position),
            "unreadable": np.int64(-1),
        }

    def _view(self, number: int, position: int) -> np.ndarray:
        if number == 0:
            return self.unedited[position]
        return self.edited_views(number - 1, position)

    def edited_views(self, numbers: int | np.ndarray, positions: int | np.ndarray) -> np.ndarray:
        """[M, F] float32, one edited view of each of M images by the views' numbers [M] from 0; of a single one [F]."""
        return self.edited[numbers, self.positions[positions]].astype(np.float32)

    def of(self, images: ImageSet) -> "ViewFeatures":
        """Those of some of the images, in their order."""
        position = {image_id: i for i, image_id in enumerate(self.images.ids)}
        kept = [position[image_id] for image_id in images.ids]
        return dataclasses.replace(
            self, images=images, unedited=self.unedited[kept], positions=self.positions[kept]
        )


def view_features(
    config: ml_collections.ConfigDict,
    images: ImageSet,
    model: Model,
    workdir: pathlib.Path,
) -> ViewFeatures:
    """Computes the features of every image, unedited and of its views, or goes on with what is there.

    Of several processes the first computes those of edited views, and all the others.

    Args:
        config: of the run. `data.cached_views` views of `image_size` are made as for any training, by the host or the
            devices; the unedited image is seen at `evaluate.image_size`.
        images: the training images.
        model: the student before training, at the evaluation's size.
        workdir: of the run, see the module.

    Raises:
        UserError: the folder holds features of other weights, images or views; no image can be read.
        OSError: there is no room for the features.
    """
    folder = pathlib.Path(config.data.cache).expanduser() if config.data.cache else workdir
    folder.mkdir(parents=True, exist_ok=True)
    made_by = {
        "trunk": digest_of(model, "backbone."),
        "image_size": config.image_size,
        "data": {name: config.data[name] for name in ("policy", "views", "source_size")},
        "views": config.data.cached_views,
        "unedited_size": config.evaluate.image_size,
        "images": images.fingerprint(),
        "files": sizes_sha256(images),
    }
    if config.student.dtype != "float32":
        # What does not say is of float32.
        made_by["dtype"] = config.student.dtype
    with contextlib.ExitStack() as stack:
        if hosts.is_first():
            # Of runs that share them one computes them, and the others wait.
            stack.enter_context(held(folder / LOCK, None))
        views = _computed(config, images, model, folder, made_by)
    list_left_out(workdir, images, views.images)
    return views


def _computed(
    config: ml_collections.ConfigDict,
    images: ImageSet,
    model: Model,
    folder: pathlib.Path,
    made_by: dict,
) -> ViewFeatures:
    """As `view_features`, of features `made_by` such weights, images and views."""
    done = _done(folder, made_by) if hosts.is_first() else 0
    hosts.wait("features begun")
    if not (folder / UNEDITED).exists():
        with Reporter("Features", len(images)) as reporter:
            embed_to_file(
                featured(model),
                images,
                folder / UNEDITED,
                on_progress=lambda _, done, total: reporter.update(done),
            )
    unedited = read_descriptors(folder / UNEDITED)
    if hosts.is_first():
        _make_edited(config, images, model, folder, made_by, done)
    hosts.wait("features of views")
    edited = np.load(folder / EDITED, mmap_mode="r")
    row = {image_id: i for i, image_id in enumerate(unedited.ids.tolist())}
    seen = np.all([rows.any(axis=1) for rows in edited], axis=0)
    positions = [i for i, image_id in enumerate(images.ids) if image_id in row and seen[i]]
    kept = images.subset(positions)
    rows = unedited.descriptors[[row[image_id] for image_id in kept.ids]]
    return ViewFeatures(kept, rows, edited, np.asarray(positions))


def _done(folder: pathlib.Path, made_by: dict) -> int:
    """Batches that were done by the same weights, images and views."""
    path = folder / PROGRESS
    if not path.exists():
        # Of whatever lies there else nothing is known.
        for name in (UNEDITED, EDITED):
            (folder / name).unlink(missing_ok=True)
        write_json(path, {**made_by, "done": 0})
        return 0
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        done = int(before.pop("done"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it to compute the features again."
        ) from error
    made_by = json.loads(json.dumps(made_by))
    if "files" not in before:
        # A record of before they were noted says nothing of them.
        del made_by["files"]
    for name in made_by | before:
        if before.get(name) != made_by.get(name):
            raise UserError(
                f"{path}: its features are of another {_TOLD.get(name, name)}; give another workdir or"
                " config.data.cache, or delete that file to compute them again."
            )
    return done if (folder / EDITED).exists() else 0


def _make_edited(
    config: ml_collections.ConfigDict,
    images: ImageSet,
    model: Model,
    folder: pathlib.Path,
    made_by: dict,
    done: int,
) -> None:
    """Writes features [V, N, F] of edited views, two for each image in each pass through the set."""
    mesh = local_mesh(batch=_BATCH)
    feeding = config.copy_and_resolve_references()
    feeding.seed = 0
    feeding.batch_size = _BATCH
    # A pass leaves out what does not fill a batch, so the first images fill the last one up.
    lacking = -len(images) % _BATCH
    padded = images.subset([position % len(images) for position in range(len(images) + lacking)])
    per_pass = len(padded) // _BATCH
    total = config.data.cached_views // 2 * per_pass
    shape = (config.data.cached_views, len(images), model.feature_dim)
    path = folder / EDITED
    if not done:
        rows = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        reserve(path)
    elif done < total:
        rows = np.lib.format.open_memmap(path, "r+")
    else:
        return
    kept = feed.kept_images(feeding, padded)
    compute, arrays = _features_of_views(feeding, model, mesh)
    with (
        jax.set_mesh(mesh),
        feed.read_batches(feeding, padded, kept, done, (0, 1)) as batches,
        Reporter("Features of views", total * _BATCH, done * _BATCH) as reporter,
    ):
        stream = feed.on_devices(batches, feeding, padded, kept, None, mesh, folder)
        for step, batch in zip(range(done, total), stream, strict=False):
            positions = np.asarray(batch["index"]) % len(images)
            for view, found in enumerate(compute(arrays, batch, step)):
                rows[2 * (step // per_pass) + view, positions] = np.asarray(found)
            reporter.update((step + 1) * _BATCH)
            if (step + 1) % _KEPT_EVERY == 0 or step + 1 == total:
                rows.flush()
                write_json(folder / PROGRESS, {**made_by, "done": step + 1})


def _features_of_views(config: ml_collections.ConfigDict, model: Model, mesh: Mesh):
    """A function of (arrays, batch, its number) to the features of its query and key views; the arrays."""
    features, arrays = trunk_of(model)
    make_views = feed.make_views(config)

    @jax.jit
    def compute(arrays, batch, step):
        views = batch if make_views is None else make_views(batch, step)
        return tuple(features(arrays, views[name]) for name in ("query", "key"))

    return compute, replicate(arrays, mesh)

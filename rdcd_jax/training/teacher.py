"""The teacher of a run: live in the step or beside it, or its descriptors of the training pictures, made once."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import jax
import ml_collections
import numpy as np
from flax import nnx

from rdcd_jax.core.errors import UserError
from rdcd_jax.core.progress import Reporter
from rdcd_jax.embedding.descriptors import read_descriptors, write_descriptors
from rdcd_jax.embedding.stream import embed_images
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.method.state import Tree
from rdcd_jax.models.layers import BatchNorm
from rdcd_jax.training.check import check_image_size
from rdcd_jax.training.record import TEACHER_FEATURES
from rdcd_jax.weights.library import load_describer
from rdcd_jax.weights.model import Model


@dataclasses.dataclass(frozen=True)
class Teacher:
    """What a run needs of its teacher; without one, the pictures alone.

    Attributes:
        images: the training pictures; with cached features, those that have one.
        feature_dim: F, which the student's feature follows; None where nothing asks for a size.
        describe: for the step: maps `arrays` and normalised images [B, H, W, 3] to features [B, F].
        arrays: the teacher's weights.
        features_of: for the host: maps a batch to features [B, F] float32, where the step does not make them.
    """

    images: ImageSet
    feature_dim: int | None = None
    describe: Callable[[Tree, jax.Array], jax.Array] | None = None
    arrays: Tree | None = None
    features_of: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None = None


def make_teacher(
    config: ml_collections.ConfigDict, images: ImageSet, workdir: pathlib.Path, image_size: int
) -> Teacher:
    """The teacher that a config's `teacher` part describes.

    Args:
        config: the `teacher` part of a run's config.
        images: the training pictures.
        workdir: see `cached_features`.
        image_size: side of the views that a live teacher is shown.

    Raises:
        UserError: see `live_teacher` and `cached_features`; for views that the teacher cannot take.
    """
    if config.features != "live":
        images, features = cached_features(config, images, workdir)
        return Teacher(
            images, features.shape[1], features_of=lambda batch: features[batch["index"]]
        )
    model = load_describer(config.model)
    if isinstance(model, Model):
        check_image_size(model.network, "image_size", image_size)
        describe, arrays = live_teacher(model, config.bn)
        return Teacher(images, model.feature_dim, describe=describe, arrays=arrays)
    return Teacher(images, model.dim, features_of=lambda batch: model.describe(batch["query"]))


def live_teacher(model: Model, bn: str) -> tuple[Callable[[Tree, jax.Array], jax.Array], Tree]:
    """A teacher that describes each query view inside the step.

    Args:
        model: the teacher; of a student that teaches, the relational feature.
        bn: what its batch norm uses, `running` (statistics) or `batch`.

    Returns:
        A function of (arrays, normalised images [B, H, W, 3]) to features [B, F]; the arrays.

    Raises:
        UserError: for `batch` with a teacher whose batch norm was folded away.
    """
    if bn == "batch" and is_folded(model.module):
        raise UserError(
            f"config.teacher.bn is 'batch', but the batch norm of {model.name} was folded into its convolutions and"
            " has no statistics of its own; use 'running', or the teacher's unfolded weights (sscd-torchvision:PATH)."
        )
    # A ViT has no batch norm.
    module = nnx.view(
        model.module,
        only=BatchNorm,
        use_running_average=bn == "running",
        raise_if_not_found=False,
    )
    graph, arrays = nnx.split(module)

    def describe(arrays: Tree, images: jax.Array) -> jax.Array:
        return nnx.merge(graph, arrays)(images)[0]

    return describe, nnx.as_pure(arrays)


def is_folded(module: nnx.Module) -> bool:
    """Whether every BatchNorm of a module only adds: mean 0 and scale 1 are what folding leaves."""
    norms = [node for _, node in nnx.iter_modules(module) if isinstance(node, BatchNorm)]
    return bool(norms) and all(
        bool((norm.mean[...] == 0).all()) and bool((norm.scale[...] == 1).all()) for norm in norms
    )


def cached_features(
    config: ml_collections.ConfigDict, images: ImageSet, workdir: pathlib.Path
) -> tuple[ImageSet, np.ndarray]:
    """The teacher's descriptor of every training picture, unedited, at the size that suits the teacher.

    Args:
        config: the `teacher` part of a run's config; `features` is `cached` or a descriptor file.
        images: the training pictures.
        workdir: keeps the descriptors as `teacher_features.npz` for the next start.

    Returns:
        The pictures that have a descriptor (those that cannot be read have none), and [N, F] float32 in their order.

    Raises:
        UserError: if a descriptor file lacks most of the pictures.
    """
    path = workdir / TEACHER_FEATURES
    if config.features != "cached":
        path = pathlib.Path(config.features)
    elif not path.exists():
        model = load_describer(config.model)
        with Reporter("Teacher's descriptors", len(images)) as reporter:
            found, _ = embed_images(
                model, images, on_progress=lambda done, total: reporter.update(done)
            )
        write_descriptors(path, found)
    found = read_descriptors(path)
    place = {image_id: i for i, image_id in enumerate(found.ids.tolist())}
    known = [i for i, image_id in enumerate(images.ids) if image_id in place]
    if 2 * len(known) < len(images):
        raise UserError(
            f"{path} has descriptors of only {len(known)} of the {len(images)} training pictures; make it from"
            f" {images.source} with `rdcd-jax embed`."
        )
    kept = images.subset(known)
    return kept, found.descriptors[[place[image_id] for image_id in kept.ids]]

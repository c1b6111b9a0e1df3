"""The teacher of a run, of one of three kinds: in the step, beside it on the host, or its features of each image."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Mapping

import jax
import ml_collections
import numpy as np
from flax import nnx

from rdcd_jax.core import hosts
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import file_sha256, write_json
from rdcd_jax.core.progress import Reporter
from rdcd_jax.embedding.codecs import unit_rows
from rdcd_jax.embedding.descriptors import read_descriptors
from rdcd_jax.embedding.service import embed_to_file
from rdcd_jax.images.links import sizes_sha256
from rdcd_jax.images.naming import escaped
from rdcd_jax.images.sources import ImageSet, changed
from rdcd_jax.method.objective import Objective
from rdcd_jax.method.state import Tree
from rdcd_jax.models.layers import BatchNorm
from rdcd_jax.training.check import check_image_size
from rdcd_jax.training.record import TEACHER_FEATURES, list_left_out
from rdcd_jax.weights.library import load_model
from rdcd_jax.weights.model import Model, computing_in
from rdcd_jax.weights.onnx_model import OnnxModel

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """What a run needs of its teacher; without one, the images alone.

    Attributes:
        images: the training images; with cached features, those that have one.
        feature_dim: F, which the student's feature follows; None where nothing asks for a size.
        embed: for the step: maps `arrays` and normalised images [B, H, W, 3] to features [B, F].
        arrays: the teacher's weights.
        features_of: for the host: maps a batch to features [B, F] float32, where the step does not make them.
        fingerprint: what distinguishes its weights, or its file of features, from others; None without a teacher.
        licences: of its weights, as far as they are known.
    """

    images: ImageSet
    feature_dim: int | None = None
    embed: Callable[[Tree, jax.Array], jax.Array] | None = None
    arrays: Tree | None = None
    features_of: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None = None
    fingerprint: str | None = None
    licences: tuple[str, ...] = ()


def make_teacher(
    config: ml_collections.ConfigDict, objective: Objective, images: ImageSet, workdir: pathlib.Path
) -> Teacher:
    """The teacher that a run's config names, if its objective needs one.

    Args:
        config: of the run.
        objective: of the run.
        images: the training images.
        workdir: see `cached_teacher`.

    Raises:
        UserError: see `live_teacher` and `cached_teacher`; for views that the teacher cannot take.
    """
    if not objective.needs_teacher:
        bare = config.student.projector == "none"
        return Teacher(images, config.student.dim if bare else None)
    if config.teacher.features != "live":
        return cached_teacher(config.teacher, images, workdir)
    model = load_model(config.teacher.model)
    if isinstance(model, Model):
        check_image_size(model.network, "image_size", config.image_size)
        return live_teacher(model, config.teacher.bn, images, config.teacher.dtype)
    return host_teacher(model, images)


def host_teacher(model: OnnxModel, images: ImageSet) -> Teacher:
    """A teacher that embeds each query view on the host, beside the step."""
    return Teacher(
        images,
        model.dim,
        features_of=lambda batch: model.embed_batch(batch["query"]),
        fingerprint=model.fingerprint,
        licences=model.licences,
    )


def live_teacher(model: Model, bn: str, images: ImageSet, dtype: str = "float32") -> Teacher:
    """A teacher that embeds each query view inside the step.

    Args:
        model: the teacher; of a student that teaches, the relational feature.
        bn: what its batch norm uses, `running` (statistics) or `batch`.
        images: the training images.
        dtype: what its trunk computes in; weights, statistics and head stay float32.

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
        (model if dtype == "float32" else computing_in(dtype, model)).module,
        only=BatchNorm,
        use_running_average=bn == "running",
        raise_if_not_found=False,
    )
    graph, arrays = nnx.split(module)

    def embed(arrays: Tree, images: jax.Array) -> jax.Array:
        return nnx.merge(graph, arrays)(images)[0]

    return Teacher(
        images,
        model.feature_dim,
        embed=embed,
        arrays=nnx.as_pure(arrays),
        fingerprint=model.fingerprint,
        licences=model.licences,
    )


def is_folded(module: nnx.Module) -> bool:
    """Whether every BatchNorm of a module only adds: mean 0 and scale 1 are what folding leaves."""
    norms = [node for _, node in nnx.iter_modules(module) if isinstance(node, BatchNorm)]
    return bool(norms) and all(
        bool((norm.mean[...] == 0).all()) and bool((norm.scale[...] == 1).all()) for norm in norms
    )


def cached_teacher(
    config: ml_collections.ConfigDict, images: ImageSet, workdir: pathlib.Path
) -> Teacher:
    """A teacher that embedded every training image once, unedited, at the size that suits it.

    Args:
        config: the `teacher` part of a run's config; `features` is `cached` or a descriptor file.
        images: the training images; those without a descriptor are left out with a warning.
        workdir: keeps the descriptors as `teacher_features.npz` for the next start, and beside them what made them.

    Raises:
        UserError: a descriptor file lacks most of the images; the workdir holds those of another teacher or set.
    """
    if config.features == "cached":
        path = workdir / TEACHER_FEATURES
        model = _embed_all(config.model, images, path)
        fingerprint, licences = model.fingerprint, model.licences
    else:
        path = pathlib.Path(config.features)
        fingerprint, licences = file_sha256(path) if path.is_file() else None, ()
    found = read_descriptors(path)
    position = {image_id: i for i, image_id in enumerate(found.ids.tolist())}
    known = [i for i, image_id in enumerate(images.ids) if image_id in position]
    if 2 * len(known) < len(images):
        raise UserError(
            f"{path} has descriptors of only {len(known)} of the {len(images)} training images; make it from"
            f" {images.source} with `rdcd-jax embed`."
        )
    kept = images.subset(known)
    if config.features == "cached":
        list_left_out(workdir, images, kept)
    elif len(known) < len(images):
        first = next(image_id for image_id in images.ids if image_id not in position)
        _log.warning(
            "%s has descriptors of %d of the %d training images; the others are left out (the first: %s).",
            path,
            len(known),
            len(images),
            escaped(first),
        )
    features = found.descriptors[[position[image_id] for image_id in kept.ids]]
    if config.features != "cached":
        # Another program's need not be of unit length, which every term takes for granted.
        features = unit_rows(features)
    return Teacher(
        kept,
        features.shape[1],
        features_of=lambda batch: features[batch["index"]],
        fingerprint=fingerprint,
        licences=licences,
    )


def _embed_all(spec: str, images: ImageSet, path: pathlib.Path) -> Model | OnnxModel:
    """Makes the file of a teacher's descriptors, or makes sure that the one there is its; gives the teacher."""
    model = load_model(spec)
    if hosts.is_first():
        _begin_or_check(spec, model.fingerprint, images, path)
    hosts.wait("teacher's descriptors begun")
    if not path.exists():
        with Reporter("Teacher's descriptors", len(images)) as reporter:
            embed_to_file(
                model, images, path, on_progress=lambda _, done, total: reporter.update(done)
            )
    return model


def _begin_or_check(spec: str, fingerprint: str, images: ImageSet, path: pathlib.Path) -> None:
    """Notes beside the file what makes it, or makes sure that this made the one there."""
    files = sizes_sha256(images)
    made_by = {"teacher": fingerprint, "images": images.fingerprint(), "files": files}
    beside = path.with_suffix(".json")
    if path.exists() and beside.exists():
        try:
            before = json.loads(beside.read_text(encoding="utf-8"))
            same = before["teacher"] == made_by["teacher"]
            difference = changed(before["images"], made_by["images"])
            if not difference and before.get("files", files) != files:
                difference = f"files of {images.source} have other sizes"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{beside} is damaged ({error}); delete it and {path.name} to embed the images again."
            ) from error
        if not same or difference:
            what = difference or f"they are of another teacher than {spec}"
            raise UserError(
                f"{path}: the features there do not belong to this run ({what}); give another workdir, or delete them"
                " to embed the images again."
            )
    if not path.exists():
        write_json(beside, made_by)
    elif not beside.exists():
        _log.warning("%s is of version 0.1, which did not note the teacher that made it.", path)

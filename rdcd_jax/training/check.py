"""Refuses a config that cannot train, before anything is compiled or written."""

import difflib
import importlib.util
import itertools
import logging
import os
import re

import ml_collections

from rdcd_jax.augment.device.views import make_device_view
from rdcd_jax.augment.policies import make_view
from rdcd_jax.core.errors import UserError
from rdcd_jax.core.files import is_address
from rdcd_jax.core.options import flat
from rdcd_jax.embedding.codecs import parse_codecs
from rdcd_jax.images.sources import ImageSet
from rdcd_jax.method.objective import TERMS, Objective
from rdcd_jax.models.registry import refuse_image_size
from rdcd_jax.search.score_norm import LEAST_BACKGROUND
from rdcd_jax.training.evaluators import evaluations, judging_images
from rdcd_jax.training.schema import defaults, known_option
from rdcd_jax.weights.onnx_model import KIND as ONNX_RUN

_log = logging.getLogger(__name__)

# The names of DISC2021's queries. A few of one's own images may be called so, but not a tenth of them, nor a hundred.
_DISC_QUERY = re.compile(r"Q\d{5}")
_SHARE, _COUNT = 0.1, 100


def check_config(config: ml_collections.ConfigDict) -> None:
    """Refuses impossible values.

    Raises:
        UserError: naming the field, its value and what it may be.
    """
    _check_fields(config)
    for name in ("image_size", "evaluate.image_size"):
        size = config.image_size if name == "image_size" else config.evaluate.image_size
        check_image_size(config.student.network, name, size)
    objective = Objective(**config.objective)
    _check_views(config, objective)
    _check_memory(config, objective)
    _check_terms(config, objective)
    _check_nested(config)
    _check_teacher(config, objective)
    if config.student.trainable == "projector":
        _check_frozen(config, objective)
    _check_statistics(config.student, config.init_from)
    if 0 < config.student.background < LEAST_BACKGROUND:
        raise UserError(
            f"config.student.background is {config.student.background}; scores are normalised by the nearest three,"
            " so it must be 3 or more, or 0 for none."
        )
    _check_checkpoint_dir(config.checkpoint_dir)
    for options in evaluations(config).values():
        parse_codecs(options.codecs)
    if not config.data.train:
        raise UserError("config.data.train is empty; give a folder of images, as data=FOLDER.")


def _check_fields(config: ml_collections.ConfigDict) -> None:
    """Every field is there, known, of its type and within its bounds."""
    fields, base = flat(config.to_dict()), defaults()
    for name in base:
        if name not in fields:
            raise UserError(
                f"The config has no field '{name}'; start from configs.common.base_config."
            )
    for name, value in fields.items():
        known = known_option(name)
        if known is None:
            near = difflib.get_close_matches(name, base, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else "; take it out."
            raise UserError(f"config.{name} is a field that nothing reads{hint}")
        # An evaluation of a config's own name has the fields of any.
        default = base.get(name, base.get(f"evals.disc.{name.rpartition('.')[2]}"))
        # A config file may say 1 where a fraction is meant.
        kinds = (float, int) if isinstance(default, float) else (type(default),)
        if isinstance(default, tuple):
            kinds = (tuple, list)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise UserError(
                f"config.{name} is {value!r}; it must be of type {type(default).__name__}."
            )
        known.refuse(name, value)


def _check_memory(config: ml_collections.ConfigDict, objective: Objective) -> None:
    """Queue and bank hold a batch, and one size where they are compared."""
    for name, used in {"queue": objective.needs("key"), "bank": objective.needs("bank")}.items():
        if used and config[name].size < config.batch_size:
            raise UserError(
                f"config.{name}.size is {config[name].size}, smaller than config.batch_size = {config.batch_size};"
                f" a {name} holds at least one batch."
            )
    if objective.compress_lambda and config.queue.size != config.bank.size:
        raise UserError(
            f"config.queue.size is {config.queue.size} and config.bank.size {config.bank.size}, but"
            " objective.compress_lambda compares them row by row; give both one size."
        )


def _check_terms(config: ml_collections.ConfigDict, objective: Objective) -> None:
    """There is a term, and the projector is trained where it is to be."""
    if not objective.terms:
        names = [term.weight for term in TERMS]
        raise UserError(
            f"config.objective has no term: set {', '.join(names[:-1])} or {names[-1]} above 0."
        )
    projector = config.student.projector
    if projector != "none" and objective.compares_views != (projector == "learned"):
        training = [term.weight for term in TERMS if term.needs & {"key", "both"}]
        weights = [f"{name} {getattr(objective, name)}" for name in training]
        raise UserError(
            f"config.student.projector is {projector!r} with objective.{', '.join(weights)}: only these train the"
            " projector, so use 'learned' with one of them, 'whitened' or 'start' without, or 'none'."
        )
    if objective.binary_lambda and projector in ("whitened", "start"):
        raise UserError(
            f"config.objective.binary_lambda is {objective.binary_lambda} with student.projector {projector!r}, whose"
            " descriptor is not the one that trains; use 'learned' or 'none', or set the weight to 0."
        )


def _check_statistics(student: ml_collections.ConfigDict, start: str) -> None:
    """Batch norm that keeps the start's statistics has a start, and nothing measures others."""
    if student.bn != "running":
        return
    what = "config.student.bn is 'running', so batch norm keeps the start's statistics"
    if not start:
        raise UserError(
            f"{what}, but config.init_from is empty; name the model that it starts from, or set bn to 'batch'."
        )
    if student.recalibrate:
        raise UserError(
            f"{what}, but config.student.recalibrate is {student.recalibrate}, which would measure others at the end;"
            " set it to 0, or bn to 'batch'."
        )


def _check_teacher(config: ml_collections.ConfigDict, objective: Objective) -> None:
    """Batch norm by the batch needs a teacher that JAX runs in the step."""
    teacher = config.teacher
    on_host = teacher.features != "live" or _is_on_host(teacher)
    if objective.needs_teacher and teacher.bn == "batch" and on_host:
        raise UserError(
            f"config.teacher.bn is 'batch', but the teacher {teacher.model} with features {teacher.features!r} does not"
            " run in the step; use 'running', or a teacher that JAX runs live (sscd-torchvision:PATH)."
        )


def _is_on_host(teacher: ml_collections.ConfigDict) -> bool:
    """Whether the teacher embeds views by onnxruntime."""
    return teacher.features == "live" and teacher.model.partition(":")[0] == ONNX_RUN


def _check_checkpoint_dir(folder: str) -> None:
    """Refuses what orbax cannot write to."""
    if not is_address(folder):
        return
    if not re.match("gs://[^/]+/[^/]", folder):
        raise UserError(
            f"config.checkpoint_dir is {folder!r}; checkpoints go to a folder, which may be a mounted bucket, or to"
            " gs://BUCKET/FOLDER."
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(
            f"config.checkpoint_dir is {folder!r}, which needs gcsfs: pip install 'rdcd-jax[gcs]'."
        )


def _check_nested(config: ml_collections.ConfigDict) -> None:
    dims = config.objective.nested_dims
    whole = isinstance(dims, tuple | list) and all(type(dim) is int and dim > 0 for dim in dims)
    if not whole or list(dims) != sorted(set(dims)) or (dims and dims[-1] != config.student.dim):
        raise UserError(
            f"config.objective.nested_dims is {dims!r}; give ascending sizes, the last of which is config.student.dim ="
            f" {config.student.dim}, or none."
        )


def _check_frozen(config: ml_collections.ConfigDict, objective: Objective) -> None:
    """Refuses what a trunk that stays as it is cannot do."""
    what = "config.student.trainable is 'projector'"
    if not config.init_from:
        raise UserError(
            f"{what}, but config.init_from is empty; name the model whose trunk is to stay."
        )
    if config.student.projector != "learned":
        raise UserError(
            f"{what}, but config.student.projector is {config.student.projector!r}; set it to 'learned'."
        )
    if objective.kld_lambda or objective.regress_lambda:
        raise UserError(
            f"{what}: objective.kld_lambda {objective.kld_lambda} and regress_lambda {objective.regress_lambda} are on"
            " the feature, which does not change; set both to 0."
        )
    if objective.compress_lambda and config.teacher.features == "live":
        raise UserError(
            f"{what}, so no teacher sees the views; set config.teacher.features to 'cached' or a descriptor file."
        )
    if config.student.recalibrate:
        raise UserError(
            f"{what}, but config.student.recalibrate is {config.student.recalibrate}, which would change the trunk's"
            " statistics; set it to 0."
        )
    if config.data.cached_views % 2:
        raise UserError(
            f"config.data.cached_views is {config.data.cached_views}; views are made in twos, so give an even number."
        )
    if config.data.mixup + config.data.cutmix:
        raise UserError(f"{what}: features cannot be mixed; set config.data.mixup and cutmix to 0.")


def check_image_size(network: str, field: str, image_size: int) -> None:
    """Refuses a size of images that a network cannot take.

    Raises:
        UserError: naming the field.
    """
    try:
        refuse_image_size(network, image_size)
    except UserError as error:
        raise UserError(f"config.{field} is {image_size}: {error}") from error


def _check_views(config: ml_collections.ConfigDict, objective: Objective) -> None:
    make_view(config.data.policy, config.image_size)
    if config.data.views == "device":
        make_device_view(config.data.policy, config.image_size)
    elif config.data.keep:
        raise UserError(
            f"config.data.keep is {config.data.keep!r} with views made on the host, which decodes for each; set"
            " config.data.views to 'device', or keep to ''."
        )
    teacher = config.teacher
    if _is_on_host(teacher) and config.data.views == "device":
        raise UserError(
            f"config.teacher.model = {teacher.model} embeds views on the host, but config.data.views is 'device';"
            " set it to 'host', or use a teacher that JAX runs."
        )
    mixed = config.data.mixup + config.data.cutmix
    if mixed > 1:
        raise UserError(
            f"config.data.mixup {config.data.mixup} and cutmix {config.data.cutmix} are probabilities that exclude each"
            " other; their sum is at most 1."
        )
    if mixed and (objective.moco_lambda or objective.needs_teacher or not objective.sscd_lambda):
        raise UserError(
            "config.data.mixup and cutmix need SSCD's objective alone, whose targets may be soft: set"
            " objective.sscd_lambda above 0, and moco_lambda, kld_lambda, regress_lambda and compress_lambda to 0."
        )


def check_training_set(images: ImageSet, config: ml_collections.ConfigDict) -> None:
    """Refuses to train on images that judge the result, and evaluations that cannot work.

    Raises:
        UserError: naming one of the images, or the evaluation.
    """
    queries = [image_id for image_id in images.ids if _DISC_QUERY.fullmatch(image_id)]
    if len(queries) > min(_SHARE * len(images.ids), _COUNT):
        raise UserError(
            f"{len(queries)} images of {images.source} have names of DISC's queries, such as {queries[0]}; training on"
            " evaluation queries makes every figure worthless. Give the training folder."
        )
    if queries:
        _log.warning(
            "The name %s in %s is one of DISC's queries (%d images in all); if they are those, figures on DISC will be"
            " worthless.",
            queries[0],
            images.source,
            len(queries),
        )
    judging = {
        name: judging_images(name, options, config.student.dim)
        for name, options in evaluations(config).items()
    }
    if images.reader is not None:
        return  # Records are copies: no path says of what.
    training = {os.path.realpath(path) for path in images.paths}
    for name, sets in judging.items():
        for path in itertools.chain.from_iterable(each.paths for each in sets):
            if os.path.realpath(path) in training:
                raise UserError(
                    f"{path} of config.evals.{name} is also a training image of {images.source}; train on others."
                )

"""Refuses a config that cannot train, before anything is compiled or written."""

import math
import os
import re

import ml_collections

from rdcd_jax.augment.device.views import make_device_view
from rdcd_jax.augment.policies import make_view
from rdcd_jax.benchmarks.ground_truth import find_disc_layout
from rdcd_jax.core.errors import UserError
from rdcd_jax.embedding.codecs import parse_codecs
from rdcd_jax.images.sources import ImageSet, find_images
from rdcd_jax.method.objective import Objective
from rdcd_jax.models.registry import refuse_image_size
from rdcd_jax.training.record import flat
from rdcd_jax.weights.onnx_model import KIND as ONNX_RUN

# The names of DISC2021's queries.
_DISC_QUERY = re.compile(r"Q\d{5}")

_CHOICES = {
    "data.views": ("host", "device"),
    "data.keep": ("", "host", "device"),
    "student.dtype": ("float32", "bfloat16"),
    "student.projector": ("learned", "whitened", "start", "none"),
    "student.trainable": ("all", "projector"),
    "student.bn": ("batch", "running"),
    "teacher.bn": ("running", "batch"),
    "optimizer.name": ("sgd", "adamw", "lars"),
}
_POSITIVE = (
    "batch_size",
    "image_size",
    "data.share",
    "data.mix_alpha",
    "student.dim",
    "data.cached_views",
    "schedule.epochs",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "evaluate.every",
    "evaluate.image_size",
    "objective.temperature",
    "objective.kld_temperature",
    "objective.sscd_temperature",
    "optimizer.learning_rate",
)
_NOT_NEGATIVE = (
    "seed",
    "data.workers",
    "data.picture_size",
    "data.mixup",
    "data.cutmix",
    "schedule.warmup_epochs",
    "schedule.max_steps",
    "objective.moco_lambda",
    "objective.hn_lambda",
    "objective.kld_lambda",
    "objective.sscd_lambda",
    "objective.entropy_lambda",
    "objective.regress_lambda",
    "objective.compress_lambda",
    "student.calibrate",
    "student.background",
    "optimizer.weight_decay",
)
# What is far beyond any use, and would overflow where it is counted or not fit where it is kept; others are integers of
# 32 bits.
_AT_MOST = {
    "data.share": 1,
    "image_size": 8192,
    "data.picture_size": 8192,
    "evaluate.image_size": 8192,
    "queue.size": 2**26,
    "bank.size": 2**26,
    "schedule.epochs": 10**6,
    "data.workers": 256,
    "data.cached_views": 1024,
}


def check_config(config: ml_collections.ConfigDict) -> None:
    """Refuses impossible values.

    Raises:
        UserError: naming the field, its value and what it may be.
    """
    value = {}
    for name in (*_CHOICES, *_POSITIVE, *_NOT_NEGATIVE, "queue.size", "bank.size", "data.train"):
        try:
            node = config
            for part in name.split("."):
                node = node[part]
        except KeyError as error:
            raise UserError(
                f"The config has no field '{name}'; start from configs.common.base_config."
            ) from error
        value[name] = node
    for name, number in flat(config.to_dict()).items():
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"config.{name} is {number}; it must be a finite number.")
        most = _AT_MOST.get(name, 2**31 - 1 if isinstance(number, int) else math.inf)
        if isinstance(number, int | float) and number > most:
            raise UserError(f"config.{name} is {number}; it must be at most {most}.")
    for name, choices in _CHOICES.items():
        if value[name] not in choices:
            raise UserError(f"config.{name} is {value[name]!r}; use one of {', '.join(choices)}.")
    for name in _POSITIVE:
        if not value[name] > 0:
            raise UserError(f"config.{name} is {value[name]}; it must be above 0.")
    for name in _NOT_NEGATIVE:
        if not value[name] >= 0:
            raise UserError(f"config.{name} is {value[name]}; it must not be negative.")
    for name in ("image_size", "evaluate.image_size"):
        check_image_size(config.student.network, name, value[name])
    _check_views(config)
    parse_codecs(config.evaluate.codecs)
    if not 0 <= config.objective.key_momentum <= 1:
        raise UserError(
            f"config.objective.key_momentum is {config.objective.key_momentum}; it lies between 0 and 1."
        )
    objective = Objective(**config.objective)
    used = {
        "queue": objective.moco_lambda + objective.compress_lambda,
        "bank": objective.kld_lambda + objective.compress_lambda,
    }
    for name, weight in used.items():
        if weight and config[name].size < config.batch_size:
            raise UserError(
                f"config.{name}.size is {config[name].size}, smaller than config.batch_size = {config.batch_size};"
                f" a {name} holds at least one batch."
            )
    if objective.compress_lambda and config.queue.size != config.bank.size:
        raise UserError(
            f"config.queue.size is {config.queue.size} and config.bank.size {config.bank.size}, but"
            " objective.compress_lambda compares them row by row; give both one size."
        )
    if not (objective.compares_views or objective.needs_teacher):
        raise UserError(
            "config.objective has no term: set moco_lambda, sscd_lambda, kld_lambda, regress_lambda or compress_lambda"
            " above 0."
        )
    projector = config.student.projector
    if projector != "none" and objective.compares_views != (projector == "learned"):
        raise UserError(
            f"config.student.projector is {projector!r} with objective.moco_lambda {objective.moco_lambda}, sscd_lambda"
            f" {objective.sscd_lambda} and compress_lambda {objective.compress_lambda}: only these train the projector,"
            " so use 'learned' with one of them, 'whitened' or 'start' without, or 'none'."
        )
    _check_nested(config)
    if config.student.trainable == "projector":
        _check_frozen(config, objective)
    if not value["data.train"]:
        raise UserError("config.data.train is empty; give a folder of pictures, as data=FOLDER.")


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
    if config.student.calibrate:
        raise UserError(
            f"{what}, but config.student.calibrate is {config.student.calibrate}, which would change the trunk's"
            " statistics; set it to 0."
        )
    if config.data.cached_views % 2:
        raise UserError(
            f"config.data.cached_views is {config.data.cached_views}; views are made in twos, so give an even number."
        )
    if config.data.mixup + config.data.cutmix:
        raise UserError(f"{what}: features cannot be mixed; set config.data.mixup and cutmix to 0.")


def check_image_size(network: str, field: str, image_size: int) -> None:
    """Refuses a size of pictures that a network cannot take.

    Raises:
        UserError: naming the field.
    """
    try:
        refuse_image_size(network, image_size)
    except UserError as error:
        raise UserError(f"config.{field} is {image_size}: {error}") from error


def _check_views(config: ml_collections.ConfigDict) -> None:
    make_view(config.data.policy, config.image_size)
    if config.data.views == "device":
        make_device_view(config.data.policy, config.image_size)
    elif config.data.keep:
        raise UserError(
            f"config.data.keep is {config.data.keep!r} with views made on the host, which decodes for each; set"
            " config.data.views to 'device', or keep to ''."
        )
    teacher = config.teacher
    on_host = teacher.features == "live" and teacher.model.partition(":")[0] == ONNX_RUN
    if on_host and config.data.views == "device":
        raise UserError(
            f"config.teacher.model = {teacher.model} describes views on the host, but config.data.views is 'device';"
            " set it to 'host', or use a teacher that JAX runs."
        )
    mixed = config.data.mixup + config.data.cutmix
    if mixed > 1:
        raise UserError(
            f"config.data.mixup {config.data.mixup} and cutmix {config.data.cutmix} are probabilities that exclude each"
            " other; their sum is at most 1."
        )
    objective = Objective(**config.objective)
    if mixed and (objective.moco_lambda or objective.needs_teacher or not objective.sscd_lambda):
        raise UserError(
            "config.data.mixup and cutmix need SSCD's objective alone, whose targets may be soft: set"
            " objective.sscd_lambda above 0, and moco_lambda, kld_lambda, regress_lambda and compress_lambda to 0."
        )


def check_training_set(images: ImageSet, config: ml_collections.ConfigDict) -> None:
    """Refuses to train on pictures that judge the result.

    Raises:
        UserError: naming one of them.
    """
    queries = [image_id for image_id in images.ids if _DISC_QUERY.fullmatch(image_id)]
    if queries:
        raise UserError(
            f"{images.source} holds {queries[0]} and {len(queries) - 1} more of DISC's query names; training on"
            " evaluation queries makes every figure worthless. Give the training folder."
        )
    if not config.evaluate.data:
        return
    layout = find_disc_layout(config.evaluate.data)
    if images.reader is not None:
        return  # Records are copies: no path tells of what.
    training = {os.path.realpath(path) for path in images.paths}
    for folder in (layout.queries, layout.references):
        for path in find_images(folder).paths:
            if os.path.realpath(path) in training:
                raise UserError(
                    f"{path} of config.evaluate.data is also a training picture of {images.source}; train on others."
                )

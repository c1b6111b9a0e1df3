"""What every config shares: parsing its argument, and the fields that all runs have.

A config's argument is a comma-separated list of `name=value`, or of bare names for switches:

    --config=configs/rdcd.py
    --config=configs/rdcd.py:student=efficientnet_b0,teacher=sscd_resnet50,dim=128,data=FOLDER
    --config=configs/rdcd.py:smoke
    --config=configs/rdcd.py:dim=64,data=FOLDER --config.batch_size=64 --config.optimizer.name=adamw
"""

import ml_collections

from rdcd_jax.training.schema import RunOptions, as_config_dict


def parse_arg(arg: str | None, **defaults: str | int | float | bool) -> ml_collections.ConfigDict:
    """Reads a config's argument.

    Args:
        arg: what follows the config file's colon, or None.
        **defaults: every name that may occur, with its default, whose type the value takes.

    Returns:
        The values by name.

    Raises:
        ValueError: for an unknown name or a value of another type.
    """
    values = dict(defaults)
    # A path may hold '=' but not ','; everything after the first '=' is the value.
    for item in filter(None, (arg or "").split(",")):
        name, equals, text = item.partition("=")
        if name not in defaults:
            raise ValueError(
                f"the config argument has no '{name}'; it takes {', '.join(sorted(defaults))}"
            )
        kind = type(defaults[name])
        try:
            if kind is bool:
                values[name] = {"true": True, "1": True, "false": False, "0": False}[
                    text.lower() if equals else "true"
                ]
            else:
                values[name] = kind(text)
        except (KeyError, ValueError):
            raise ValueError(
                f"the config argument {name}='{text}' is not of type {kind.__name__}"
            ) from None
    return ml_collections.ConfigDict(values)


def base_config(
    data: str = "", *, student: str = "efficientnet_b0", dim: int = 128
) -> ml_collections.ConfigDict:
    """The fields of every run, with the paper's values; docs/config.md tells what each is.

    Args:
        data: what to train on.
        student: the student's network.
        dim: dimensions in its descriptor.
    """
    config = as_config_dict(RunOptions())
    config.data.train = data
    config.student.network, config.student.dim = student, dim
    return config


def make_small(config: ml_collections.ConfigDict, *, batch_size: int, learning_rate: float) -> None:
    """Sets what runs of small budgets share: small batches of mildly edited views, AdamW, one epoch of warm-up, no
    dropout, BatchNorm's statistics measured at the end.

    Args:
        config: from `base_config`.
        batch_size: images in a step.
        learning_rate: per 256 images of the batch.
    """
    config.batch_size = batch_size
    config.data.policy = "MILD"
    config.student.dropout = False
    config.student.recalibrate = 2048
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = learning_rate
    config.optimizer.weight_decay = 0.05
    config.schedule.warmup_epochs = 1


def make_smoke(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Shrinks a config to some steps that take seconds anywhere, on the bundled sample where `data` is not given."""
    config.data.train = config.data.train or "sample:train"
    config.data.policy = "STRONG_BLUR"
    config.image_size = 32
    config.batch_size = 8
    config.devices = 1
    config.queue.size = config.bank.size = 64
    config.student.background = 0
    config.schedule.epochs, config.schedule.warmup_epochs = 1, 0
    config.schedule.max_steps = 4
    config.log_every = 1
    config.checkpoint_every = 2
    return config

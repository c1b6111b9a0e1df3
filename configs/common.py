"""What every config shares: parsing its argument, and the fields that all runs have.

A config's argument is a comma-separated list of `name=value`, or of bare names for switches:

    --config=configs/rdcd.py
    --config=configs/rdcd.py:student=efficientnet_b0,teacher=sscd_resnet50,dim=128,data=FOLDER
    --config=configs/rdcd.py:smoke
    --config=configs/rdcd.py:dim=64,data=FOLDER --config.batch_size=64 --config.optimizer.name=adamw
"""

import ml_collections


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
    """The fields of every run, with the paper's values.

    Args:
        data: what to train on.
        student: the student's network.
        dim: numbers in its descriptor.
    """
    config = ml_collections.ConfigDict()
    config.seed = 0
    # Over all devices and hosts.
    config.batch_size = 256
    config.image_size = 224
    # Devices of the mesh's data axis; 0 takes all.
    config.devices = 0
    # A model to start the student from: a shipped name, an export folder; empty for fresh weights.
    config.init_from = ""

    config.data = ml_collections.ConfigDict()
    # Any source of pictures (a folder, packed shards, tfds:NAME/SPLIT, ...), or sample:train, the bundled ones.
    config.data.train = data
    # The share of them to train on, drawn with the seed.
    config.data.share = 1.0
    # SIMCLR, STRONG_BLUR, ADVANCED or MILD, the last two also as ADVANCED_NO_OVERLAY and MILD_NO_OVERLAY; or one's own
    # steps, written out: "hflip 0.5; resized_crop 1 scale=0.3,1 ratio=0.75,1.33; blur 0.3 radius=0.3,1.5".
    config.data.policy = "ADVANCED"
    # Processes that decode and augment; 0 does it in a thread of the main process.
    config.data.workers = 0
    # Where views are made: host, or device (inside the step; the host only decodes).
    config.data.views = "host"
    # Side of the squares that the device cuts its views from; 0 for twice image_size.
    config.data.picture_size = 0
    # With views on the device: host or device keeps the decoded training set in its memory; empty reads each time.
    config.data.keep = ""
    # With student.trainable = "projector": edited views of each picture; an even number.
    config.data.cached_views = 4
    # Where their features are kept, for several runs to share; empty for the run's own folder.
    config.data.cache = ""
    # Probabilities that a view is mixed with another, and the Beta distribution's parameter (SSCD: 0.025 each, 2).
    config.data.mixup = 0.0
    config.data.cutmix = 0.0
    config.data.mix_alpha = 2.0

    config.student = ml_collections.ConfigDict()
    config.student.network = student
    config.student.dim = dim
    # What the trunk computes in: float32 or bfloat16.
    config.student.dtype = "float32"
    # Dropout and stochastic depth in training, as published.
    config.student.dropout = True
    # learned; for runs without a term on the descriptor whitened (fitted at the end to the student's own features) or
    # start (that of init_from, as it is); or none: the feature itself is the descriptor, of student.dim numbers, as of
    # SSCD.
    config.student.projector = "learned"
    # all: everything learns. projector: the trunk stays as it is, so the features of each picture, unedited and of
    # data.cached_views views of it, are computed once, and the projector alone learns on them. It starts as that of
    # init_from where that has student.dim numbers, else as the whitening of the unedited pictures' features.
    config.student.trainable = "all"
    # What batch norm uses in training: batch (statistics), or running: the start's own, which then stay as they are.
    config.student.bn = "batch"
    # Unedited training pictures to measure BatchNorm's statistics on at the end, at the evaluation size; 0 keeps the
    # training views' own.
    config.student.calibrate = 0
    # Training pictures whose descriptors the export carries, for score normalisation; 0 for none.
    config.student.background = 3000

    config.teacher = ml_collections.ConfigDict()
    # A model: sscd-onnx, sscd-torchvision:PATH, dino:PATH, an export folder; sscd takes whichever is at hand, and the
    # name of a network what was imported for it. The student's feature takes the teacher's size. onnxruntime:PATH, or
    # onnxruntime alone, leaves an ONNX file to onnxruntime on the host: a CPU runs the quantised SSCD far quicker so.
    config.teacher.model = "sscd"
    # What batch norm uses: running (statistics) or batch.
    config.teacher.bn = "running"
    # live: sees each query view. cached: described each training picture once, unedited.
    # A descriptor file: those descriptors, made by `rdcd-jax embed`.
    config.teacher.features = "live"

    config.queue = ml_collections.ConfigDict({"size": 65536})
    config.bank = ml_collections.ConfigDict({"size": 65536})

    config.objective = ml_collections.ConfigDict()
    config.objective.moco_lambda = 1.0
    config.objective.hn_lambda = 5.0
    config.objective.temperature = 0.07
    config.objective.kld_lambda = 1.0
    config.objective.kld_temperature = 0.04
    config.objective.bank_includes_batch = False
    config.objective.sscd_lambda = 0.0
    config.objective.entropy_lambda = 30.0
    config.objective.sscd_temperature = 0.05
    config.objective.regress_lambda = 0.0
    config.objective.compress_lambda = 0.0
    # Sizes of descriptors that nest, such as (64, 128, 256): the terms on the descriptor are summed over its first
    # numbers of these sizes, the last of which is student.dim. Empty for the whole descriptor alone.
    config.objective.nested_dims = ()
    config.objective.key_momentum = 0.99

    config.optimizer = ml_collections.ConfigDict()
    # sgd, adamw or lars.
    config.optimizer.name = "sgd"
    # Per 256 pictures of the batch: the rate is learning_rate * batch_size / 256.
    config.optimizer.learning_rate = 1.0
    config.optimizer.weight_decay = 1e-6
    config.optimizer.momentum = 0.9

    config.schedule = ml_collections.ConfigDict()
    config.schedule.epochs = 100
    config.schedule.warmup_epochs = 5
    # Ends the run after that many steps, on the same cosine; 0 for none.
    config.schedule.max_steps = 0

    # In steps.
    config.log_every = 50
    config.checkpoint_every = 1000
    config.keep_checkpoints = 2

    config.evaluate = ml_collections.ConfigDict()
    # A DISC-shaped folder to evaluate on; empty for none.
    config.evaluate.data = ""
    # Pictures to fit whitening and score normalisation to; empty takes the folder's own training pictures.
    config.evaluate.training = ""
    # In steps; also at the end of the run.
    config.evaluate.every = 5000
    config.evaluate.image_size = 288
    config.evaluate.codecs = "Flat"
    return config


def make_small(config: ml_collections.ConfigDict, *, batch_size: int, learning_rate: float) -> None:
    """Sets what runs of small budgets share: small batches of mildly edited views, AdamW, one epoch of warm-up, no
    dropout, BatchNorm's statistics measured at the end.

    Args:
        config: from `base_config`.
        batch_size: pictures in a step.
        learning_rate: per 256 pictures of the batch.
    """
    config.batch_size = batch_size
    config.data.policy = "MILD"
    config.student.dropout = False
    config.student.calibrate = 2048
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

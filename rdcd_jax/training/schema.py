"""The fields of a run, each with its help, its bounds, and whether it may change when the run is continued.

`configs/` start from `as_config_dict(RunOptions())`; the checks, the rule of what a continued run may change and the
reference page docs/config.md come from here too. Published values are the defaults.
"""

import dataclasses
from collections.abc import Mapping

import ml_collections

from rdcd_jax.core.options import Option, flat, group, option, options_of
from rdcd_jax.method.objective import Objective

_LARGEST_IMAGE = 8192
# More rows than this fit no device.
_LARGEST_QUEUE = 2**26


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """What is trained on, and how it becomes views."""

    train: str = option(
        "",
        "Any source of images (a folder, packed shards, tfds:NAME/SPLIT, ...), or sample:train, the bundled ones.",
    )
    share: float = option(
        1.0, "The share of them to train on, drawn with the seed.", above=0, at_most=1
    )
    policy: str = option(
        "ADVANCED",
        "SIMCLR, STRONG_BLUR, ADVANCED or MILD, the last two also as ADVANCED_NO_OVERLAY and MILD_NO_OVERLAY; or steps"
        " of one's own: 'hflip 0.5; resized_crop 1 scale=0.3,1 ratio=0.75,1.33; blur 0.3 radius=0.3,1.5'.",
    )
    workers: int = option(
        0,
        "Processes that decode and augment; 0 does it in a thread of the main process.",
        at_least=0,
        at_most=256,
        free=True,
    )
    views: str = option(
        "host",
        "Where views are made: host, or device (inside the step; the host only decodes).",
        choices=("host", "device"),
    )
    source_size: int = option(
        0,
        "Side of the squares that the device cuts its views from, in pixels; 0 for twice image_size.",
        at_least=0,
        at_most=_LARGEST_IMAGE,
    )
    keep: str = option(
        "",
        "With views on the device: host or device keeps the decoded training set in its memory; empty decodes each"
        " time.",
        choices=("", "host", "device"),
        free=True,
    )
    cached_views: int = option(
        4,
        "With student.trainable = projector: edited views of each image; an even number.",
        above=0,
        at_most=1024,
    )
    cache: str = option(
        "",
        "Where the features of these views are kept, for several runs to share; empty for the run's own folder.",
        free=True,
    )
    mixup: float = option(
        0.0, "Probability that a view is mixed with another (SSCD: 0.025).", at_least=0
    )
    cutmix: float = option(
        0.0, "Probability that a part of another view is pasted in (SSCD: 0.025).", at_least=0
    )
    mix_alpha: float = option(
        2.0, "Parameter of the Beta distribution that the share of either is drawn from.", above=0
    )


@dataclasses.dataclass(frozen=True)
class StudentOptions:
    """The network that learns."""

    network: str = option(
        "efficientnet_b0",
        "efficientnet_b0, mobilenet_v3_large or fastvit_t12; see `rdcd-jax models`.",
    )
    dim: int = option(128, "D, dimensions of its descriptor.", above=0)
    dtype: str = option("float32", "What the trunk computes in.", choices=("float32", "bfloat16"))
    dropout: bool = option(True, "Dropout and stochastic depth in training, as published.")
    projector: str = option(
        "learned",
        "learned; for runs without a term on the descriptor whitened (fitted at the end to the student's own features)"
        " or start (that of init_from, as it is); or none: the feature itself is the descriptor, as of SSCD.",
        choices=("learned", "whitened", "start", "none"),
    )
    trainable: str = option(
        "all",
        "all: everything learns. projector: the trunk stays as it is, so the features of each image, unedited and of"
        " data.cached_views views of it, are computed once, and the projector alone learns on them. It starts as that"
        " of init_from where that has student.dim dimensions, else as the whitening of the unedited images' features.",
        choices=("all", "projector"),
    )
    bn: str = option(
        "batch",
        "What batch norm uses in training: batch (statistics), or running: the start's own, which then stay.",
        choices=("batch", "running"),
    )
    recalibrate: int = option(
        0,
        "Unedited training images to measure BatchNorm's statistics on at the end, at the evaluation's size; 0 keeps"
        " the training views' own.",
        at_least=0,
    )
    background: int = option(
        3000,
        "Training images whose descriptors the export carries, for score normalisation; 0 for none.",
        at_least=0,
    )


@dataclasses.dataclass(frozen=True)
class TeacherOptions:
    """The network whose relations are learned."""

    model: str = option(
        "sscd",
        "A model: sscd-onnx, sscd-torchvision:PATH, dino:PATH, an export folder; sscd takes whichever is at hand, and"
        " the name of a network what was imported for it. onnxruntime:PATH, or onnxruntime alone, leaves an ONNX file"
        " to onnxruntime on the host: a CPU runs the quantised SSCD far quicker so.",
    )
    dtype: str = option(
        "float32",
        "What its trunk computes in, where it sees the views in the step.",
        choices=("float32", "bfloat16"),
    )
    bn: str = option("running", "What its batch norm uses.", choices=("running", "batch"))
    features: str = option(
        "live",
        "live: it sees each query view. cached: it embedded each training image once, unedited. Or a descriptor file"
        " made by `rdcd-jax embed`.",
    )


@dataclasses.dataclass(frozen=True)
class QueueOptions:
    """Past keys, as MoCo keeps them."""

    size: int = option(65536, "K, its rows.", above=0, at_most=_LARGEST_QUEUE)


@dataclasses.dataclass(frozen=True)
class BankOptions:
    """Past features of the teacher."""

    size: int = option(65536, "Its rows.", above=0, at_most=_LARGEST_QUEUE)


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """How weights follow gradients."""

    name: str = option("sgd", "The optimiser.", choices=("sgd", "adamw", "lars"))
    learning_rate: float = option(
        1.0,
        "Per 256 images of the batch: the rate is learning_rate * batch_size / 256.",
        above=0,
    )
    weight_decay: float = option(1e-6, "Weight decay.", at_least=0)
    momentum: float = option(0.9, "Momentum of sgd and lars.", at_least=0, at_most=1)


@dataclasses.dataclass(frozen=True)
class ScheduleOptions:
    """How long, and at what rate."""

    epochs: int = option(100, "Passes through the images.", above=0, at_most=10**6)
    warmup_epochs: int = option(5, "Of them with a rising rate; a cosine follows.", at_least=0)
    max_steps: int = option(
        0,
        "Ends the run after that many steps, on the same cosine; 0 for none.",
        at_least=0,
        free=True,
    )


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """When and how large the student is evaluated; on what says `evals`."""

    every: int = option(5000, "In steps; also at the end of the run.", above=0, free=True)
    image_size: int = option(
        288,
        "Side of the images, in pixels; ndec's own is 224. With student.trainable = projector it may not change:"
        " features are of it.",
        above=0,
        at_most=_LARGEST_IMAGE,
        free=True,
    )


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """One evaluation; an entry of `evals`, whose name names its figures."""

    protocol: str = option(
        "disc",
        "disc, ndec or copydays, on a folder of that benchmark; or pairs: DISC's protocol on sources of one's own.",
        choices=("disc", "ndec", "copydays", "pairs"),
        free=True,
    )
    data: str = option("", "The benchmark's folder; empty leaves the evaluation out.", free=True)
    queries: str = option("", "Of pairs: the queries, any source of images.", free=True)
    references: str = option("", "Of pairs: the references, any source of images.", free=True)
    ground_truth: str = option("", "Of pairs: a CSV file of query and reference ids.", free=True)
    training: str = option(
        "",
        "Images to fit whitening and score normalisation to; empty takes the benchmark's own, if it has some.",
        free=True,
    )
    codecs: str = option("Flat", "Codecs separated by ;, see `rdcd-jax evaluate disc`.", free=True)


@dataclasses.dataclass(frozen=True)
class Evals:
    """Evaluations during training and at its end; a config may add entries of any name."""

    disc: EvalOptions = group(EvalOptions)
    ndec: EvalOptions = group(EvalOptions, protocol="ndec")
    copydays: EvalOptions = group(EvalOptions, protocol="copydays")
    pairs: EvalOptions = group(EvalOptions, protocol="pairs")


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """A run."""

    seed: int = option(0, "Everything random follows from it.", at_least=0)
    batch_size: int = option(256, "Images in a step, over all devices and hosts.", above=0)
    image_size: int = option(224, "Side of the views, in pixels.", above=0, at_most=_LARGEST_IMAGE)
    devices: int = option(0, "Devices of the mesh's data axis; 0 takes all.", at_least=0, free=True)
    init_from: str = option(
        "",
        "A model to start the student from: a shipped name, an export folder; empty for fresh weights.",
    )
    data: DataOptions = group(DataOptions)
    student: StudentOptions = group(StudentOptions)
    teacher: TeacherOptions = group(TeacherOptions)
    queue: QueueOptions = group(QueueOptions)
    bank: BankOptions = group(BankOptions)
    objective: Objective = group(Objective)
    optimizer: OptimizerOptions = group(OptimizerOptions)
    schedule: ScheduleOptions = group(ScheduleOptions)
    log_every: int = option(50, "In steps.", above=0, free=True)
    checkpoint_every: int = option(1000, "In steps.", above=0, free=True)
    keep_checkpoints: int = option(2, "How many of them stay.", above=0, free=True)
    checkpoint_dir: str = option(
        "", "Folder for them, or `gs://BUCKET/FOLDER`; the workdir's where empty.", free=True
    )
    evaluate: EvaluateOptions = group(EvaluateOptions)
    evals: Evals = group(Evals)


OPTIONS = dict(options_of(RunOptions))
_EVAL_OPTIONS = dict(options_of(EvalOptions))
# Names of version 0.1, in run.json and results.
_FORMER = {
    "data.picture_size": "data.source_size",
    "student.calibrate": "student.recalibrate",
    "evaluate.data": "evals.disc.data",
    "evaluate.training": "evals.disc.training",
    "evaluate.codecs": "evals.disc.codecs",
}


def as_config_dict(options: object) -> ml_collections.ConfigDict:
    """A dataclass of options as the `ConfigDict` that `get_config` returns."""
    config = ml_collections.ConfigDict()
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        config[field.name] = as_config_dict(value) if dataclasses.is_dataclass(value) else value
    return config


def defaults() -> dict[str, object]:
    """Every field's default by its dotted name."""
    return flat(as_config_dict(RunOptions()).to_dict())


def known_option(name: str) -> Option | None:
    """What is known of a field by its dotted name; None of a field that there is not."""
    if name.startswith("evals.") and name.count(".") == 2:
        # Under whatever name a config has put it.
        return _EVAL_OPTIONS.get(name.rpartition(".")[2])
    return OPTIONS.get(name)


def is_free(name: str) -> bool:
    """Whether a field may change when a run is continued."""
    known = known_option(name)
    return known is not None and known.free


def present(fields: Mapping[str, object]) -> dict[str, object]:
    """A flat config of this or an earlier version under today's names; what it lacks has its default."""
    return defaults() | {_FORMER.get(name, name): value for name, value in fields.items()}


def reference_page() -> str:
    """docs/config.md: every field with its default, what it may be, and whether it may change on resume."""
    lines = [
        "# Fields of a run's config",
        "",
        "Written by `python -m rdcd_jax.training.schema > docs/config.md`; do not edit. `--config.NAME=VALUE` sets a",
        "field; `rdcd-jax train ... --dry-run` prints what a run would use and where each field was set.",
        "A field marked *free* may change when a run is continued. `evals` holds evaluations by name: `disc`, `ndec`,",
        "`copydays` and `pairs` are there, and a config file may add others, each with the fields below.",
        "",
        "| field | default | what it is |",
        "|---|---|---|",
    ]
    base = defaults()
    for name, known in OPTIONS.items():
        if not name.startswith("evals."):
            lines.append(_row(name, base[name], known))
    for name, known in _EVAL_OPTIONS.items():
        lines.append(_row(f"evals.NAME.{name}", base[f"evals.disc.{name}"], known))
    return "\n".join(lines) + "\n"


def _row(name: str, default: object, known: Option) -> str:
    parts = [known.help]
    if known.choices:
        parts.append(f"One of {', '.join(repr(each) for each in known.choices)}.")
    if known.above is not None:
        parts.append(f"Above {known.above:g}.")
    if known.at_least is not None:
        parts.append(f"At least {known.at_least:g}.")
    if known.at_most is not None:
        parts.append(f"At most {known.at_most:g}.")
    if known.free:
        parts.append("*Free.*")
    return f"| `{name}` | `{default!r}` | {' '.join(parts)} |"


if __name__ == "__main__":
    print(reference_page(), end="")

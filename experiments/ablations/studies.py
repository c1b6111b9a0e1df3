"""The questions, and the settings that answer them."""

import dataclasses
from collections.abc import Mapping

from rdcd_jax.augment.policies import ADVANCED, Step, policy_text

Fields = Mapping[str, int | float | bool | str]


@dataclasses.dataclass(frozen=True)
class Study:
    """A question, and the settings that answer it.

    Attributes:
        question: what the page of findings puts above the table.
        trains: "descriptor", on a trunk that stays as it is; or "student", all of it.
        settings: the config's fields of each, by what the setting is called. Others are compared with the first.
        dims: sizes of descriptors, which nest, so that a run has figures for all.
        measures: what the page shows.
        after: by a setting, the one whose student of the same seed it starts from.
    """

    question: str
    trains: str
    settings: Mapping[str, Fields]
    dims: tuple[int, ...] = (64, 128, 256)
    measures: tuple[str, ...] = ("µAP", "recall at P90")
    after: Mapping[str, str] = dataclasses.field(default_factory=dict)


def _hard_negatives(weight: float) -> Fields:
    # In the form within a batch the entropy term is half the hard negatives', up to constants.
    return {"objective.entropy_lambda": 2 * weight}


def _entropy_instead() -> Fields:
    """SSCD's entropy term at the weight that hard negatives have; of its other term as little as can be had."""
    # Hard negatives weigh 0.1 * 5, and the entropy is half their form.
    return {
        "objective.hn_lambda": 0.0,
        "objective.sscd_lambda": 0.001,
        "objective.entropy_lambda": 1000.0,
    }


def _framed(probability: float) -> Fields:
    """ADVANCED with borders of one colour round some views."""
    frame = Step("frame", probability, {"scale": (0.2, 0.9), "ratio": (0.5, 2)})
    after = 1 + [step.operation for step in ADVANCED].index("resized_crop")
    return {"data.policy": policy_text((*ADVANCED[:after], frame, *ADVANCED[after:]))}


def _queue(size: int, **objective: float) -> Fields:
    """RDCD's two terms against a queue of past keys, as the paper has them, in place of those within the batch."""
    terms = {"sscd_lambda": 0.0, "moco_lambda": 1.0} | objective
    return {"queue.size": size} | {f"objective.{name}": value for name, value in terms.items()}


def _relations(weight: float, **objective: float) -> Fields:
    """The teacher's relations distilled into the compact descriptor, beside the terms within the batch."""
    if not weight:
        return {}
    terms = {"compress_lambda": weight} | objective
    memory = {"teacher.features": "cached", "teacher.model": "onnxruntime"}
    memory |= {"queue.size": 4096, "bank.size": 4096}
    return memory | {f"objective.{name}": value for name, value in terms.items()}


def _temperatures(student: float, teacher: float) -> Fields:
    apart = {} if teacher == student else {"kld_teacher_temperature": teacher}
    return _relations(10.0, kld_temperature=student, **apart)


STUDIES = {
    "terms": Study(
        "What do relational distillation and hard negatives each add, where the whole student is trained?",
        "student",
        {
            "both": {},
            "no relational distillation": {"objective.kld_lambda": 0.0},
            "no hard negatives": {"objective.hn_lambda": 0.0},
            "neither": {"objective.kld_lambda": 0.0, "objective.hn_lambda": 0.0},
        },
    ),
    "entropy": Study(
        "Does SSCD's entropy within the batch do what hard negatives do, where the whole student is trained?",
        "student",
        {"hard negatives": {}, "entropy instead": _entropy_instead()},
    ),
    "hard_negatives": Study(
        "How much should hard negatives weigh, where the descriptor alone is trained?",
        "descriptor",
        {f"weight {weight:g}": _hard_negatives(weight) for weight in (5.0, 0.0, 2.5, 10.0, 20.0)},
    ),
    "collapse": Study(
        "Do descriptors of any size collapse without hard negatives?",
        "descriptor",
        {f"weight {weight:g}": _hard_negatives(weight) for weight in (5.0, 0.0)},
        (64, 128, 256, 512),
        ("µAP", "µAP whitened", "effective_rank"),
    ),
    "temperature": Study(
        "At what temperature should the descriptor tell images apart?",
        "descriptor",
        {
            f"temperature {value:g}": {"objective.sscd_temperature": value}
            for value in (0.07, 0.03, 0.05, 0.1, 0.2)
        },
    ),
    "negatives": Study(
        "Where should negatives come from: the batch, or a queue of past keys?",
        "descriptor",
        {
            "batch of 1,024": {},
            "batch of 256": {"batch_size": 256},
            "batch of 2,048": {"batch_size": 2048},
            "queue of 1,024": _queue(1024),
            "queue of 4,096": _queue(4096),
            "queue of 8,192": _queue(8192),
            "queue of 4,096, no hard negatives": _queue(4096, hn_lambda=0.0),
        },
    ),
    "momentum": Study(
        "How fast should the key encoder follow the student?",
        "descriptor",
        {
            f"momentum {value:g}": _queue(4096, key_momentum=value)
            for value in (0.99, 0.0, 0.9, 0.999)
        },
    ),
    "relations": Study(
        "Do the teacher's relations help the compact descriptor too?",
        "descriptor",
        {
            **{f"weight {weight:g}": _relations(weight) for weight in (0.0, 1.0, 10.0, 100.0)},
            "relations alone": _relations(1.0, sscd_lambda=0.0),
        },
    ),
    "relation_temperatures": Study(
        "At what temperatures should student and teacher compare images?",
        "descriptor",
        {
            f"student {student:g}, teacher {teacher:g}": _temperatures(student, teacher)
            for student, teacher in (
                *((0.04, 0.04), (0.02, 0.02), (0.07, 0.07), (0.1, 0.1)),
                *((0.04, 0.07), (0.07, 0.04), (0.1, 0.04)),
            )
        },
    ),
    "rounds": Study(
        "Does a second round, which starts from the student of the first, bring more?",
        "descriptor",
        {
            "one round": {},
            "one of twice the epochs": {"schedule.epochs": 50},
            "a second round": {},
        },
        after={"a second round": "one round"},
    ),
    "binary": Study(
        "What do descriptors find as bits, one for each dimension, and can they be trained for it?",
        "descriptor",
        {
            f"weight {weight:g}": {"objective.binary_lambda": weight}
            for weight in (0.0, 3.0, 10.0, 30.0)
        },
        measures=("recall at P90", "recall at P90 int8", "recall at P90 binary", "µAP binary"),
    ),
    "frames": Study(
        "Do borders round some training views help with framed copies, such as screenshots?",
        "descriptor",
        {f"a frame round {share:.0%} of views": _framed(share) for share in (0.0, 0.2)},
    ),
    "distillation": Study(
        "How should relations be distilled into the feature?",
        "student",
        {
            "weight 1, temperature 0.04": {},
            "weight 0.3": {"objective.kld_lambda": 0.3},
            "weight 3": {"objective.kld_lambda": 3.0},
            "temperature 0.02": {"objective.kld_temperature": 0.02},
            "temperature 0.1": {"objective.kld_temperature": 0.1},
            "teacher's temperature 0.02": {"objective.kld_teacher_temperature": 0.02},
            "teacher's temperature 0.1": {"objective.kld_teacher_temperature": 0.1},
            "bank of 512": {"bank.size": 512},
            "bank of 8,192": {"bank.size": 8192},
            "the batch in front of the bank": {"objective.bank_includes_batch": True},
        },
    ),
    "students": Study(
        "Which student learns most?",
        "student",
        {
            "EfficientNet-B0": {"init_from": ""},
            "MobileNetV3-Large": {"init_from": "", "student.network": "mobilenet_v3_large"},
            "FastViT-T12": {"init_from": "", "student.network": "fastvit_t12"},
        },
    ),
    "teacher_bn": Study(
        # Needs a teacher whose batch norm is not folded away: --teacher=sscd-torchvision:PATH.
        "Should the teacher's batch norm use its own statistics or the batch's?",
        "student",
        {name: {"teacher.bn": name} for name in ("running", "batch")},
    ),
}

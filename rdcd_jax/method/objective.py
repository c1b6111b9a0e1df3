"""What a student is trained for: the terms of its loss, each a small function, and their weights.

A new term is one function here, listed in `TERMS`, and one field of `Objective` that weighs it. Its field is then a
field of every config, it is logged under its own name, and the step brings it what it needs.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from rdcd_jax.core.options import option
from rdcd_jax.method import losses
from rdcd_jax.models.layers import l2_normalize

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a term may look at; what no term needs is None.

    Attributes:
        feature: [B, F] of the query views, by the student.
        descriptor: [B, D] of the query views, by the student.
        both: [2 B, D] of query and key views, by the student.
        targets: of `both`, see `losses.sscd_info_nce`; [2 B] positions of images, or [2 B, B] where views are mixed.
        key: [B, D] of the key views, by the key encoder.
        teacher: [B, F] of the query views, by the teacher.
        queue: [K, D] past keys, this batch's not among them.
        bank: [KB, F] past teacher features, this batch's not among them.
    """

    feature: jax.Array
    descriptor: jax.Array
    both: jax.Array | None
    targets: jax.Array | None
    key: jax.Array | None
    teacher: jax.Array | None
    queue: jax.Array
    bank: jax.Array


@dataclasses.dataclass(frozen=True)
class Term:
    """A part of the loss.

    Attributes:
        weight: the field of `Objective` that weighs it; at 0 the term is left out of the computation.
        parts: gives its scalars by name; their sum, weighed, joins the loss.
        needs: any of `key` (the key encoder and its queue), `both` (the student embeds the key views too), `teacher`
            (its features), `bank` (the past ones are kept). A term with `key` or `both` compares two views of an image.
    """

    weight: str
    parts: Callable[["Objective", Seen], Metrics]
    needs: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The weights and temperatures of the loss, and the key encoder's momentum.

    loss = moco_lambda * (InfoNCE + hn_lambda * hard negative) + kld_lambda * relational KL
           + sscd_lambda * (SSCD's InfoNCE + entropy_lambda * entropy term) + regress_lambda * regression
           + compress_lambda * relational KL of the descriptor + binary_lambda * quantization

    RDCD has the first two; the others are SSCD's own objective, a regression of the teacher's feature, and a
    distillation of the compact descriptor itself, for warm starts and baselines, and what brings it near to bits.
    """

    moco_lambda: float = option(
        1.0, "Weight of the two terms on the compact descriptor against the queue.", at_least=0
    )
    hn_lambda: float = option(
        5.0, "Weight of the hard-negative term within moco_lambda's.", at_least=0
    )
    temperature: float = option(0.07, "Temperature of InfoNCE against the queue.", above=0)
    kld_lambda: float = option(1.0, "Weight of the relational KL on the wide feature.", at_least=0)
    kld_temperature: float = option(
        0.04, "Temperature of the softmaxes of a relational KL.", above=0
    )
    kld_teacher_temperature: float = option(
        0.0,
        "Temperature of the teacher's softmax alone, as SEED has one for each side; 0 takes kld_temperature.",
        at_least=0,
    )
    bank_includes_batch: bool = option(
        False,
        "Puts the batch's own teacher features in front of the bank, for the relational KL on the feature.",
    )
    sscd_lambda: float = option(
        0.0,
        "Weight of SSCD's two terms on the descriptors of both views within the batch.",
        at_least=0,
    )
    entropy_lambda: float = option(
        30.0, "Weight of the entropy term within sscd_lambda's; SSCD's is 30.", at_least=0
    )
    sscd_temperature: float = option(0.05, "Temperature of SSCD's InfoNCE.", above=0)
    regress_lambda: float = option(0.0, "Weight of 1 - <feature, teacher's feature>.", at_least=0)
    compress_lambda: float = option(
        0.0,
        "Weight of the relational KL between the descriptor against the queue of past keys and the teacher's feature"
        " against the bank. Row i of either is of the same image, so both have one size.",
        at_least=0,
    )
    binary_lambda: float = option(
        0.0,
        "Weight of 1 - cosine between the descriptor and its signs, for descriptors that are to be stored as bits.",
        at_least=0,
    )
    nested_dims: tuple[int, ...] = option(
        (),
        "Sizes of descriptors that nest, such as (64, 128, 256): each term that trains the descriptor is summed over"
        " its first dimensions of these sizes, each brought to unit length, the last being student.dim. Empty for the"
        " whole descriptor alone.",
    )
    key_momentum: float = option(
        0.99, "m of the key encoder's moving average.", at_least=0, at_most=1
    )

    @property
    def terms(self) -> list[Term]:
        """The terms at work."""
        return [term for term in TERMS if getattr(self, term.weight) > 0]

    def needs(self, *any_of: str) -> bool:
        """Whether a term at work needs one of these, see `Term.needs`."""
        return any(term.needs & {*any_of} for term in self.terms)

    @property
    def compares_views(self) -> bool:
        """Whether a term is on the descriptors of two views of an image; such a term trains the projector."""
        return self.needs("key", "both")

    @property
    def needs_teacher(self) -> bool:
        """Whether a term is on the teacher's features."""
        return self.needs("teacher")

    @property
    def relational_temperatures(self) -> dict[str, float]:
        """Those of `losses.relational_kl`."""
        return {
            "temperature": self.kld_temperature,
            "teacher_temperature": self.kld_teacher_temperature or self.kld_temperature,
        }

    def loss(self, seen: Seen) -> tuple[jax.Array, Metrics]:
        """The loss, and every term's share of it by name."""
        total, metrics = jnp.zeros((), seen.feature.dtype), {}
        for term in self.terms:
            weight = getattr(self, term.weight)
            shares = {name: weight * part for name, part in term.parts(self, seen).items()}
            metrics |= shares
            total += sum(shares.values())
        return total, metrics

    def nested(self, *descriptors: jax.Array) -> Iterator[tuple[jax.Array, ...]]:
        """For each nested size d descriptors cut to [N, d] and brought to unit length; as they are without sizes."""
        if not self.nested_dims:
            yield descriptors
        for dim in self.nested_dims:
            yield tuple(l2_normalize(each[:, :dim]) for each in descriptors)


def sscd(objective: Objective, seen: Seen) -> Metrics:
    """SSCD's objective within the batch."""
    targets = seen.targets
    if targets is None:
        targets = jnp.tile(jnp.arange(len(seen.both) // 2), 2)
    info_nce, entropy = 0.0, 0.0
    for (part,) in objective.nested(seen.both):
        info_nce += losses.sscd_info_nce(part, targets, temperature=objective.sscd_temperature)
        entropy += objective.entropy_lambda * losses.differential_entropy(part, targets)
    return {"sscd_info_nce": info_nce, "entropy": entropy}


def moco(objective: Objective, seen: Seen) -> Metrics:
    """InfoNCE and hard negatives against the queue of past keys."""
    info_nce, hard = 0.0, 0.0
    for query, key, queue in objective.nested(seen.descriptor, seen.key, seen.queue):
        info_nce += losses.info_nce_queue(query, key, queue, temperature=objective.temperature)
        hard += objective.hn_lambda * losses.hard_negative(query, queue)
    return {"info_nce": info_nce, "hard_negative": hard}


def relational(objective: Objective, seen: Seen) -> Metrics:
    """Relational self-supervised distillation: the feature's relations to the bank follow the teacher's."""
    bank = seen.bank
    if objective.bank_includes_batch:
        bank = jnp.concatenate([seen.teacher, bank])
    found = losses.relational_kl(
        seen.feature, seen.teacher, bank, **objective.relational_temperatures
    )
    return {"relational_kl": found}


def regression(objective: Objective, seen: Seen) -> Metrics:
    """The feature itself follows the teacher's."""
    return {"regression": 1 - jnp.mean(jnp.sum(seen.feature * seen.teacher, axis=-1))}


def compress(objective: Objective, seen: Seen) -> Metrics:
    """CompRess: the compact descriptor's relations to past keys follow the teacher's to its bank."""
    found = 0.0
    for query, queue in objective.nested(seen.descriptor, seen.queue):
        found += losses.relational_kl(
            query,
            seen.teacher,
            seen.bank,
            student_bank=queue,
            **objective.relational_temperatures,
        )
    return {"compress_kl": found}


def binary(objective: Objective, seen: Seen) -> Metrics:
    """The descriptor comes near to its signs."""
    return {
        "quantization": sum(losses.quantization(d) for (d,) in objective.nested(seen.descriptor))
    }


TERMS = (
    Term("sscd_lambda", sscd, frozenset({"both"})),
    Term("moco_lambda", moco, frozenset({"key"})),
    Term("kld_lambda", relational, frozenset({"teacher", "bank"})),
    Term("regress_lambda", regression, frozenset({"teacher"})),
    Term("compress_lambda", compress, frozenset({"key", "teacher", "bank"})),
    Term("binary_lambda", binary, frozenset()),
)

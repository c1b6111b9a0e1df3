"""What a student is trained for: the terms of its loss and their weights."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Objective:
    """The weights and temperatures of the total loss, and the key encoder's momentum.

    total = moco_lambda * (InfoNCE + hn_lambda * hard negative) + kld_lambda * relational KL
            + sscd_lambda * (SSCD's InfoNCE + entropy_lambda * entropy term) + regress_lambda * regression
            + compress_lambda * relational KL of the descriptor

    RDCD has the first two; the others are SSCD's own objective, a regression of the teacher's feature, and a
    distillation of the compact descriptor itself, for warm starts and baselines. A term of weight 0 is left out of the
    computation; without `moco_lambda` and `compress_lambda` there is no key encoder at work, and with `sscd_lambda` the
    student itself describes both views.

    Attributes:
        moco_lambda: weight of the two terms on the compact descriptor.
        hn_lambda: weight of the hard-negative term within them.
        temperature: of InfoNCE.
        kld_lambda: weight of the relational KL on the wide feature.
        kld_temperature: of the softmaxes of a relational KL.
        bank_includes_batch: puts the batch's own teacher features in front of the bank.
        sscd_lambda: weight of the two terms on the descriptors of both views within the batch.
        entropy_lambda: weight of the entropy term within them (30 in SSCD).
        sscd_temperature: of SSCD's InfoNCE.
        regress_lambda: weight of 1 - <feature, teacher's feature>.
        nested_dims: sizes, ascending, the last D: each term on the descriptor is summed over its first dimensions of
            these sizes, each brought to unit length, so that every one of them serves as a descriptor. Empty for the
            whole descriptor alone.
        compress_lambda: weight of the relational KL between the descriptor against the queue of past keys and the
            teacher's feature against the bank; row i of either is of the same picture, so both have one size.
        key_momentum: m of the key encoder's moving average.
    """

    moco_lambda: float = 1.0
    hn_lambda: float = 5.0
    temperature: float = 0.07
    kld_lambda: float = 1.0
    kld_temperature: float = 0.04
    bank_includes_batch: bool = False
    sscd_lambda: float = 0.0
    entropy_lambda: float = 30.0
    sscd_temperature: float = 0.05
    regress_lambda: float = 0.0
    compress_lambda: float = 0.0
    nested_dims: tuple[int, ...] = ()
    key_momentum: float = 0.99

    @property
    def compares_views(self) -> bool:
        """Whether a term is on the descriptors of two views of a picture; such a term trains the projector."""
        return self.moco_lambda + self.sscd_lambda + self.compress_lambda > 0

    @property
    def needs_teacher(self) -> bool:
        """Whether a term is on the teacher's features."""
        return self.kld_lambda + self.regress_lambda + self.compress_lambda > 0

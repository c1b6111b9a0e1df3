"""The losses of RDCD and SSCD as pure functions of descriptors.

None of them normalises: descriptors arrive with unit length, and queue and bank are used as given. All compute in
the dtype of their inputs (float32 in training) with full-precision products, whatever the accelerator's default.
"""

import functools

import jax
import jax.numpy as jnp
import optax

_product = functools.partial(jnp.matmul, precision="highest")


def info_nce_queue(
    query: jax.Array, key: jax.Array, queue: jax.Array, *, temperature: float
) -> jax.Array:
    """InfoNCE of each query against its own key and all of the queue.

    Args:
        query: [B, D] descriptors of the query views.
        key: [B, D] descriptors of the key views; row i is query i's positive. Takes no gradient.
        queue: [K, D] past keys, the negatives. Takes no gradient.
        temperature: divides the similarities (0.07 in the paper).

    Returns:
        Scalar, the batch mean of -log softmax of the positive among 1 + K.

    Source: MoCo (He et al. 2020), eq. 1.
    """
    key, queue = jax.lax.stop_gradient((key, queue))
    positive = jnp.sum(query * key, axis=-1) / temperature
    negatives = jax.nn.logsumexp(_product(query, queue.T) / temperature, axis=-1)
    # -log(e^p / (e^p + e^n)) = softplus(n - p), which keeps its digits where the loss is nearly zero.
    return jnp.mean(jax.nn.softplus(negatives - positive))


def hard_negative(query: jax.Array, queue: jax.Array, *, floor: float = 1e-3) -> jax.Array:
    """Pushes each query away from the nearest row of the queue.

    Args:
        query: [B, D] descriptors.
        queue: [K, D] past keys; the positive is not among them. Takes no gradient.
        floor: below this distance 1 - similarity counts as `floor` and gives no gradient.

    Returns:
        Scalar, mean of -log max(1 - max_j <query, queue_j>, floor), without its weight (5 in the paper).

    Source: RDCD, the hard-negative loss; up to constants the KoLeo term taken against the queue.
    """
    nearest = jnp.max(_product(query, jax.lax.stop_gradient(queue).T), axis=-1)
    return jnp.mean(-jnp.log(jnp.maximum(1 - nearest, floor)))


def relational_kl(
    student: jax.Array,
    teacher: jax.Array,
    bank: jax.Array,
    *,
    temperature: float,
    teacher_temperature: float | None = None,
    student_bank: jax.Array | None = None,
) -> jax.Array:
    """How far the student's relations to a bank are from the teacher's own.

    Args:
        student: [B, F] relational features of the query views; of any size [B, D] with a bank of its own.
        teacher: [B, F] teacher features of the same views. Takes no gradient.
        bank: [K, F] past teacher features. Takes no gradient.
        temperature: of both softmaxes (0.04 in the paper).
        teacher_temperature: of the teacher's softmax, where that is another.
        student_bank: [K, D] the student's own descriptors, row i of the image of the bank's row i, for the student to
            be compared with; the bank itself where not given. Takes no gradient.

    Returns:
        Scalar, batch mean of KL(softmax(teacher . bank / Tt) || softmax(student . student_bank / T)).

    Source: RDCD's relational self-supervised distillation, in CompRess's single-queue form (Koohpayegani et al. 2020);
    with `student_bank` its two-queue form. SEED (Fang et al. 2021) has the same loss, with one queue and a temperature
    for each side.
    """
    student_bank = bank if student_bank is None else student_bank
    teacher_temperature = temperature if teacher_temperature is None else teacher_temperature
    teacher, bank, student_bank = jax.lax.stop_gradient((teacher, bank, student_bank))
    targets = jax.nn.log_softmax(_product(teacher, bank.T) / teacher_temperature)
    predictions = jax.nn.log_softmax(_product(student, student_bank.T) / temperature)
    return jnp.mean(optax.losses.kl_divergence_with_log_targets(predictions, targets))


def sscd_info_nce(descriptors: jax.Array, labels: jax.Array, *, temperature: float) -> jax.Array:
    """SSCD's InfoNCE with repeated augmentation inside one batch.

    Args:
        descriptors: [N, D], several views of each image.
        labels: [N] int, the image each view is of; or [N, P], how much of each image a mixed view shows.
        temperature: divides the similarities (0.05 in the paper).

    Returns:
        Scalar, mean over views of the sum (of mixed views: the mean) over their positives j of
        -log(x_j / (x_j + sum of negatives + 1e-6)), with x = exp(similarity / temperature). Positives are the other
        views that show some of the same image, negatives those that show none.

    Source: SSCD, eq. 2 (one process; global batch under a mesh), and section 3.4 for mixed views.
    """
    logits = _product(descriptors, descriptors.T) / temperature
    same = _same_image(labels)
    positive = same & ~jnp.eye(len(labels), dtype=bool)
    # log(sum of negatives + 1e-6), where a view may have no negative at all.
    floor = jnp.full((len(labels), 1), jnp.log(jnp.asarray(1e-6, logits.dtype)))
    negatives = jnp.concatenate([jnp.where(same, -jnp.inf, logits), floor], axis=-1)
    background = jax.nn.logsumexp(negatives, axis=-1, keepdims=True)
    terms = jnp.where(positive, jax.nn.softplus(background - logits), 0)
    if labels.ndim == 2:
        terms /= jnp.maximum(jnp.sum(positive, axis=-1, keepdims=True, dtype=terms.dtype), 1)
    return jnp.sum(terms) / len(labels)


def quantization(descriptors: jax.Array) -> jax.Array:
    """How far descriptors are from their signs, for descriptors that are to be stored as bits.

    Args:
        descriptors: [N, D] of unit length.

    Returns:
        Scalar in [0, 1), the mean of 1 - <x, sign(x)> / sqrt(D), which is 1 minus the cosine between the two.

    Source: the quantisation error of deep hashing (Zhu et al. 2016, Deep Hashing Network), in its cosine form.
    """
    return 1 - jnp.mean(jnp.sum(jnp.abs(descriptors), axis=-1)) / descriptors.shape[-1] ** 0.5


def _same_image(labels: jax.Array) -> jax.Array:
    """[N, N]: whether two views show some of the same image."""
    if labels.ndim == 1:
        return labels[:, None] == labels[None, :]
    shows = (labels > 0).astype(jnp.float32)
    return shows @ shows.T > 0


def differential_entropy(descriptors: jax.Array, labels: jax.Array) -> jax.Array:
    """SSCD's entropy term: minus the mean log distance to the nearest view of another image.

    Args:
        descriptors: [N, D], several views of each image.
        labels: as of `sscd_info_nce`.

    Returns:
        Scalar, mean of -log sqrt(max(2 - 2 max_k <i, k>, 1e-6)) over views k of other images, without its weight
        (30 in the paper).

    Source: SSCD, eq. 4 (the Kozachenko-Leonenko estimator, after Sablayrolles et al. 2019).
    """
    similarity = _product(descriptors, descriptors.T)
    same = _same_image(labels)
    # -2 is below any similarity, and keeps a view without other images finite. Of equally near views the first
    # takes the gradient, as in torch; `max` would share it out.
    others = jnp.where(same, -2, similarity)
    first = jnp.argmax(others, axis=-1, keepdims=True)
    nearest = jnp.take_along_axis(others, first, axis=-1)
    return -0.5 * jnp.mean(jnp.log(jnp.maximum(2 - 2 * nearest, 1e-6)))

"""Contrastive losses over the global batch, and the numbers that are logged beside them.

Q queries, P passages, D width, K passages drawn for one query (its positive first).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from hrsa_jax.embedding.pooling import l2_normalize
from hrsa_jax.runtime.metrics import Mean


def info_nce(
    queries_QD: jax.Array,
    passages_PD: jax.Array,
    positive_Q: jax.Array,
    *,
    temperature: float = 0.02,
    mask_QP: jax.Array | None = None,
) -> jax.Array:
    """Query -> passage InfoNCE: mean cross-entropy of the positive among all passages, on cosine / temperature.

    Logits are float32 whatever the inputs' dtype (bfloat16 logits at temperature 0.02 are off by up to 0.22).

    Args:
      queries_QD: query vectors, any length: rows are normalised here.
      passages_PD: passage vectors, likewise: the positives and hard negatives of all queries.
      positive_Q: int, the column of each query's positive.
      temperature: > 0.
      mask_QP: bool, False = not a negative for this query; the positive always counts. None = all True.

    Returns:
      float32 scalar.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    cosine_QP = _cosine(queries_QD, passages_PD)
    return _cross_entropy(cosine_QP, positive_Q, temperature, mask_QP)


def symmetric_info_nce(
    queries_QD: jax.Array,
    passages_PD: jax.Array,
    positive_Q: jax.Array,
    *,
    temperature: float = 0.02,
    mask_QP: jax.Array | None = None,
) -> jax.Array:
    """Mean of `info_nce` and of its mirror image: each query's positive finds its query among all queries.

    A query that the mask hides from a passage is no negative of that passage either. Arguments as in `info_nce`.
    """
    mirrored_QQ = None if mask_QP is None else mask_QP[:, positive_Q].T
    diagonal_Q = jnp.arange(queries_QD.shape[0])
    back = info_nce(passages_PD[positive_Q], queries_QD, diagonal_Q, temperature=temperature, mask_QP=mirrored_QQ)
    forth = info_nce(queries_QD, passages_PD, positive_Q, temperature=temperature, mask_QP=mask_QP)
    return 0.5 * (forth + back)


def matryoshka(
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    queries_QD: jax.Array,
    passages_PD: jax.Array,
    dimensions: Sequence[int],
) -> jax.Array:
    """Mean of `loss(queries, passages)` over vectors cut to their first d numbers, for every d (Kusupati et al., 2022).

    Args:
      loss: normalises its rows itself, as `info_nce` does.
      dimensions: each in 1..D; give D itself where the whole vector counts.
    """
    width = queries_QD.shape[1]
    if not dimensions or any(not 1 <= size <= width for size in dimensions):
        raise ValueError(f"dimensions {tuple(dimensions)} must be one or more numbers in 1..{width}")
    return jnp.mean(jnp.stack([loss(queries_QD[:, :size], passages_PD[:, :size]) for size in dimensions]))


def distillation_loss(
    queries_QD: jax.Array,
    passages_PD: jax.Array,
    own_QK: jax.Array,
    teacher_QK: jax.Array,
    *,
    temperature: float = 0.02,
    teacher_temperature: float = 0.02,
) -> Mean:
    """KL(teacher || student) over each query's own passages, softmaxed scores on both sides.

    Args:
      own_QK: int, the columns of a query's own passages.
      teacher_QK: the teacher's scores of them; a query with a NaN among its scores has no teacher and does not count.

    Returns:
      Mean over the queries that have a teacher (0 where none has).
    """
    cosine_QK = jnp.take_along_axis(_cosine(queries_QD, passages_PD), own_QK, axis=1)
    student_QK = jax.nn.log_softmax(cosine_QK / temperature, axis=1)
    taught_Q = jnp.isfinite(teacher_QK).all(axis=1)
    scores_QK = jnp.where(taught_Q[:, None], teacher_QK, 0.0).astype(jnp.float32)
    log_teacher_QK = jax.nn.log_softmax(scores_QK / teacher_temperature, axis=1)
    divergence_Q = (jnp.exp(log_teacher_QK) * (log_teacher_QK - student_QK)).sum(axis=1)
    return Mean.of(divergence_Q, taught_Q)


def mask_by_score(
    queries_QD: jax.Array, passages_PD: jax.Array, positive_Q: jax.Array, margin: float, mask_QP: jax.Array | None
) -> jax.Array:
    """Hides likely false negatives: passages whose cosine is above the positive's by more than `margin`.

    Returns:
      bool (Q, P), `mask_QP` (None = all True) with those set to False; carries no gradient.
    """
    cosine_QP = jax.lax.stop_gradient(_cosine(queries_QD, passages_PD))
    limit_Q1 = jnp.take_along_axis(cosine_QP, positive_Q[:, None], axis=1) + margin
    below_QP = cosine_QP <= limit_Q1
    return below_QP if mask_QP is None else mask_QP & below_QP


def contrastive_metrics(
    queries_QD: jax.Array, passages_PD: jax.Array, positive_Q: jax.Array, *, mask_QP: jax.Array | None = None
) -> dict[str, Mean]:
    """Numbers to log as (sum, count), all on normalised rows.

    gap: mean over queries of cos(positive) - highest cos of a negative. alignment: mean squared distance of query and
    positive. uniformity: log mean exp(-2 squared distance) over pairs of different queries (Wang and Isola, 2020).
    """
    queries_QD, passages_PD = l2_normalize(queries_QD), l2_normalize(passages_PD)
    cosine_QP = _cosine(queries_QD, passages_PD)
    is_positive_QP = jnp.arange(passages_PD.shape[0]) == positive_Q[:, None]
    negative_QP = ~is_positive_QP if mask_QP is None else mask_QP & ~is_positive_QP
    positive_score_Q = jnp.take_along_axis(cosine_QP, positive_Q[:, None], axis=1)[:, 0]
    best_negative_Q = jnp.max(jnp.where(negative_QP, cosine_QP, -1.0), axis=1)
    squared_QQ = 2.0 - 2.0 * _cosine(queries_QD, queries_QD)
    different_QQ = ~jnp.eye(len(queries_QD), dtype=bool)
    return {
        "gap": Mean.of(positive_score_Q - best_negative_Q),
        "alignment": Mean.of(2.0 - 2.0 * positive_score_Q),
        "uniformity": Mean.of(jnp.exp(-2.0 * squared_QQ), different_QQ, logarithm=True),
    }


def _cosine(queries_QD: jax.Array, passages_PD: jax.Array) -> jax.Array:
    # Under jit with rows split over the mesh this product is already over the global batch (own and others' passages).
    return jnp.matmul(
        l2_normalize(queries_QD),
        l2_normalize(passages_PD).T,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _cross_entropy(
    cosine_QP: jax.Array, positive_Q: jax.Array, temperature: float, mask_QP: jax.Array | None
) -> jax.Array:
    logits_QP = cosine_QP / temperature
    positive_logit_Q = jnp.take_along_axis(logits_QP, positive_Q[:, None], axis=1)[:, 0]
    if mask_QP is not None:
        is_positive_QP = jnp.arange(logits_QP.shape[1]) == positive_Q[:, None]
        logits_QP = jnp.where(mask_QP | is_positive_QP, logits_QP, -jnp.inf)
    return jnp.mean(jax.nn.logsumexp(logits_QP, axis=1) - positive_logit_Q)

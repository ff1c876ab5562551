"""The contrastive loss (InfoNCE over the global batch) and the numbers that are logged beside it.

Q queries, P passages, D width.
"""

import jax
import jax.numpy as jnp

from hrsa_jax.embedding.pooling import l2_normalize


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


def contrastive_metrics(
    queries_QD: jax.Array, passages_PD: jax.Array, positive_Q: jax.Array, *, mask_QP: jax.Array | None = None
) -> dict[str, jax.Array]:
    """Numbers to log, float32 scalars, all on normalised rows.

    gap: mean over queries of cos(positive) - highest cos of a negative. alignment: mean squared distance of query and
    positive (Wang and Isola, 2020). uniformity: log mean exp(-2 squared distance) over pairs of different queries.
    """
    queries_QD, passages_PD = l2_normalize(queries_QD), l2_normalize(passages_PD)
    cosine_QP = _cosine(queries_QD, passages_PD)
    is_positive_QP = jnp.arange(passages_PD.shape[0]) == positive_Q[:, None]
    negative_QP = ~is_positive_QP if mask_QP is None else mask_QP & ~is_positive_QP
    positive_score_Q = jnp.take_along_axis(cosine_QP, positive_Q[:, None], axis=1)[:, 0]
    best_negative_Q = jnp.max(jnp.where(negative_QP, cosine_QP, -1.0), axis=1)
    squared_QQ = 2.0 - 2.0 * _cosine(queries_QD, queries_QD)
    pairs = jnp.where(jnp.eye(len(queries_QD), dtype=bool), 0.0, jnp.exp(-2.0 * squared_QQ)).sum()
    count = max(1, len(queries_QD) * (len(queries_QD) - 1))
    return {
        "gap": jnp.mean(positive_score_Q - best_negative_Q),
        "alignment": jnp.mean(2.0 - 2.0 * positive_score_Q),
        "uniformity": jnp.log(jnp.maximum(pairs / count, 1e-30)),
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

"""The contrastive step: vectors of a batch, encoded in chunks, and the loss over the global batch.

R rows, T tokens a row, S segments a row, D width, Q queries, P passages.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from hrsa_jax.data.packing import PackedRows
from hrsa_jax.embedding.batches import ContrastiveBatch
from hrsa_jax.embedding.loss import (
    contrastive_metrics,
    distillation_loss,
    info_nce,
    mask_by_score,
    matryoshka,
    symmetric_info_nce,
)
from hrsa_jax.embedding.pooling import pool_segments
from hrsa_jax.embedding.recipe import ConversionConfig
from hrsa_jax.runtime.mesh import constrain
from hrsa_jax.runtime.metrics import Mean


def contrastive_loss_fn(
    graphdef: Any, config: ConversionConfig
) -> Callable[[Any, Any, ContrastiveBatch], tuple[jax.Array, dict[str, Any]]]:
    """The loss of one step, for runtime/loop.py.

    Args:
      graphdef: of a Decoder split into trainable and frozen state.
      config: the recipe.

    Returns:
      loss_fn(trainable, frozen, batch) -> (loss, metrics): the loss is over every passage of the global batch,
      whatever the number of chunks or devices; metrics are Means gap, alignment, uniformity (and distillation), and
      float32 scalars tokens, padding and purity.
    """

    def loss_fn(trainable: Any, frozen: Any, batch: ContrastiveBatch) -> tuple[jax.Array, dict[str, Any]]:
        vectors = [_encode_in_chunks(graphdef, trainable, frozen, rows, config) for rows in batch.blocks]
        pooled_ND = jnp.concatenate([block.reshape(-1, block.shape[-1]) for block in vectors])
        queries_QD = constrain(pooled_ND[batch.query_slot_Q], ("batch", None))
        passages_PD = constrain(pooled_ND[batch.passage_slot_P], ("batch", None))
        loss, metrics = batch_loss(queries_QD, passages_PD, batch, config)
        slots = sum(rows.tokens_RT.size for rows in batch.blocks)
        metrics |= {"tokens": batch.tokens, "padding": 1.0 - batch.tokens / slots, "purity": batch.purity}
        return loss, jax.lax.stop_gradient(metrics)

    return loss_fn


def batch_loss(
    queries_QD: jax.Array, passages_PD: jax.Array, batch: ContrastiveBatch, config: ConversionConfig
) -> tuple[jax.Array, dict[str, Any]]:
    """The recipe's loss of pooled vectors: InfoNCE in the chosen form, plus distillation.

    Returns:
      float32 (), and the metrics that depend on vectors alone.
    """
    mask_QP = batch.mask_QP
    if config.false_negative_margin is not None:
        mask_QP = mask_by_score(queries_QD, passages_PD, batch.positive_Q, config.false_negative_margin, mask_QP)
    form = symmetric_info_nce if config.symmetric else info_nce

    def info(queries_Qd: jax.Array, passages_Pd: jax.Array) -> jax.Array:
        return form(queries_Qd, passages_Pd, batch.positive_Q, temperature=config.temperature, mask_QP=mask_QP)

    if config.matryoshka:
        loss = matryoshka(info, queries_QD, passages_PD, config.matryoshka)
    else:
        loss = info(queries_QD, passages_PD)
    metrics: dict[str, Mean] = contrastive_metrics(queries_QD, passages_PD, batch.positive_Q, mask_QP=mask_QP)
    if batch.teacher_QK is not None:
        taught = distillation_loss(
            queries_QD,
            passages_PD,
            batch.positive_Q[:, None] + jnp.arange(batch.teacher_QK.shape[1]),
            batch.teacher_QK,
            temperature=config.temperature,
            teacher_temperature=config.distillation_temperature,
        )
        loss = loss + config.distillation_weight * taught.value
        metrics["distillation"] = taught
    return loss, dict(metrics)


def _encode_in_chunks(
    graphdef: Any, trainable: Any, frozen: Any, rows: PackedRows, config: ConversionConfig
) -> jax.Array:
    """Pooled vectors (R, S, D) float32; with several chunks, each is recomputed in the backward pass (GradCache)."""

    def encode_chunk(rows: PackedRows) -> jax.Array:
        decoder = nnx.merge(graphdef, trainable, frozen)
        output = decoder(
            rows.tokens_RT,
            rows.segment_ids_RT,
            rows.positions_RT,
            attention=config.attention,
            dtype=jnp.dtype(config.dtype),
            implementation=config.attention_kernel,
            remat=config.remat,
        )
        return pool_segments(output.last_BTD, rows.segment_ids_RT, rows.pool_mask_RT, config.segments, config.pooling)

    count, row_length = rows.tokens_RT.shape
    chunks = config.chunk_count(count, row_length)
    if chunks == 1:
        return encode_chunk(rows)
    if count % chunks:
        raise ValueError(f"{count} rows cannot be cut into {chunks} equal chunks")

    # Chunk i takes rows i, i + chunks, ...: every device keeps an equal part of every chunk, and no row moves.
    def split(x: jax.Array) -> jax.Array:
        parts = jnp.swapaxes(x.reshape(count // chunks, chunks, *x.shape[1:]), 0, 1)
        return constrain(parts, (None, "batch") + (None,) * (x.ndim - 1))

    pooled_CRSD = jax.lax.map(jax.checkpoint(encode_chunk), jax.tree.map(split, rows))
    return jnp.swapaxes(pooled_CRSD, 0, 1).reshape(count, *pooled_CRSD.shape[2:])

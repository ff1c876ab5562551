"""Conversion of a backbone into an embedding model: packed batches and the chunked contrastive loss.

R rows, T tokens a row, S segments a row, D width, Q queries, P passages, N distinct texts.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hrsa_jax.data.packing import Array, PackedLayout, PackedRows, fill_rows, pack
from hrsa_jax.data.prompts import QUERY_TEMPLATE, query_prompt
from hrsa_jax.data.sampler import Group, PairSampler, data_order_hash, purity
from hrsa_jax.data.sources import Pair
from hrsa_jax.data.tokenize import tokenize_texts
from hrsa_jax.embedding.loss import contrastive_metrics, info_nce
from hrsa_jax.embedding.pooling import Pooling, pool_segments
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.mesh import constrain

_ROW_UNIT = 16  # a chosen row length is a multiple of this,
_LONGEST_ROW = 256  # at most this (or twice the longest text),
_TRIED_STEPS = 32  # and the best one for this many steps


@dataclasses.dataclass(frozen=True)
class ConversionConfig:
    """The conversion recipe: together with `OptimConfig` and the LoRA settings, what both models of a pair share."""

    steps: int
    batch_size: int = 16  # queries a step, over all devices
    hard_negatives: int = 3
    temperature: float = 0.02
    pooling: Pooling = "mean"
    attention: Literal["causal", "bidirectional"] = "bidirectional"
    template: str = QUERY_TEMPLATE
    max_query_length: int = 512  # tokens, instruction included
    max_passage_length: int = 512
    row_length: int | None = None  # tokens a packed row; None takes the length that wastes least
    max_segments: int = 32  # texts a packed row
    chunks: int = 1  # parts the batch is encoded in; memory is that of one
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of the computation; master weights stay float32
    remat: bool = True
    mixing_exponent: float = 1.0
    mask_false_negatives: bool = True  # passages known to answer a query are no negatives of it
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "chunks", "max_query_length", "max_passage_length", "max_segments"):
            if getattr(self, name) < 1:
                raise InputError(f"The conversion has {name}={getattr(self, name)}; it must be at least 1.")


class ContrastiveBatch(NamedTuple):
    """One step's arrays. Slots index the pooled vectors of all rows, flattened to (R * max_segments, D)."""

    rows: PackedRows
    query_slot_Q: Array
    passage_slot_P: Array  # group by group: the positive, then its hard negatives
    positive_Q: Array
    mask_QP: Array  # False: not a negative for this query


class _TextStore:
    """Token ids of every distinct text of a run, tokenised once, keyed by (prompt | None for a passage, text)."""

    def __init__(self, tokenizer: Any, keys: Sequence[tuple[str | None, str]], config: ConversionConfig):
        self.ids: dict[tuple[str | None, str], np.ndarray] = {}
        self.start: dict[tuple[str | None, str], int] = {}
        self.share_truncated: dict[str, float] = {}
        for role, length in (("query", config.max_query_length), ("passage", config.max_passage_length)):
            mine = [key for key in keys if (key[0] is None) == (role == "passage")]
            prompts = [prompt or "" for prompt, _ in mine]
            tokens = tokenize_texts(tokenizer, [text for _, text in mine], prompt=prompts, max_length=length)
            if tokens.empty.any():
                raise InputError(
                    f"The training {role} {mine[int(tokens.empty.argmax())][1]!r} has no tokens; "
                    f"drop the row or fill the text in."
                )
            self.ids.update(zip(mine, tokens.ids, strict=True))
            self.start.update(zip(mine, tokens.pool_start.tolist(), strict=True))
            self.share_truncated[role] = float(tokens.truncated.mean()) if mine else 0.0

    def lengths(self, keys: Sequence[tuple[str | None, str]]) -> list[int]:
        return [len(self.ids[key]) for key in keys]


def conversion_batches(
    pairs: Sequence[Pair], tokenizer: Any, config: ConversionConfig, *, row_multiple: int = 1
) -> tuple[Callable[[int], ContrastiveBatch], dict[str, Any]]:
    """Prepares the batches of a whole run.

    All steps are laid out beforehand (the order is a pure function of seed and step), so that every batch has the
    same shapes and the step compiles once.

    Args:
      pairs: training rows.
      tokenizer: a transformers fast tokenizer.
      config: the recipe.
      row_multiple: the number of rows is a multiple of this times `config.chunks` (devices that split the rows).

    Returns:
      batch_at: step -> ContrastiveBatch of numpy arrays; pure.
      stats: JSON values: sizes, lengths, shares truncated and padded, purity, data_order_hash.

    Raises:
      InputError: a data set smaller than a batch, an empty text, an instruction that fills the maximum length.
    """
    sampler = PairSampler(
        pairs,
        batch_size=config.batch_size,
        hard_negatives=config.hard_negatives,
        mixing_exponent=config.mixing_exponent,
        seed=config.seed,
    )
    negatives = config.hard_negatives if any(pair.negatives for pair in pairs) else 0
    steps = [sampler.groups_at(step) for step in range(config.steps)]
    store = _TextStore(tokenizer, list(dict.fromkeys(k for g in steps for k in _text_keys(g, config))), config)
    lengths = [store.lengths(_text_keys(groups, config)) for groups in steps]
    unit = config.chunks * row_multiple
    row_length = _row_length(lengths, unit, config)
    rows = _round_up(max(pack(step, row_length, max_segments=config.max_segments).rows for step in lengths), unit)

    def batch_at(step: int) -> ContrastiveBatch:
        groups = sampler.groups_at(step)
        mine = store.lengths(_text_keys(groups, config))
        layout = pack(mine, row_length, max_segments=config.max_segments, rows=rows)
        return _assemble(groups, layout, store, negatives, config)

    stats = _statistics(pairs, sampler, steps, store) | {
        "steps": config.steps,
        "row_length": row_length,
        "rows_per_batch": rows,
        "padding_share": 1.0 - sum(map(sum, lengths)) / (config.steps * rows * row_length),
    }
    return batch_at, stats


def contrastive_loss_fn(
    graphdef: Any, config: ConversionConfig
) -> Callable[[Any, Any, ContrastiveBatch], tuple[jax.Array, dict[str, jax.Array]]]:
    """The loss of one step, for runtime/loop.py.

    Args:
      graphdef: of a Decoder split into trainable and frozen state.
      config: the recipe; pooling, attention, temperature, chunks, dtype and remat are used.

    Returns:
      loss_fn(trainable, frozen, batch) -> (loss, metrics): loss is InfoNCE over every passage of the global batch,
      whatever the number of chunks or devices; metrics are float32 scalars gap, alignment, uniformity, tokens and
      padding.
    """

    def loss_fn(trainable: Any, frozen: Any, batch: ContrastiveBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        pooled_RSD = _encode_in_chunks(graphdef, trainable, frozen, batch.rows, config)
        pooled_ND = pooled_RSD.reshape(-1, pooled_RSD.shape[-1])
        queries_QD = constrain(pooled_ND[batch.query_slot_Q], ("batch", None))
        passages_PD = constrain(pooled_ND[batch.passage_slot_P], ("batch", None))
        loss = info_nce(
            queries_QD, passages_PD, batch.positive_Q, temperature=config.temperature, mask_QP=batch.mask_QP
        )
        used_RT = batch.rows.segment_ids_RT > 0
        metrics = contrastive_metrics(queries_QD, passages_PD, batch.positive_Q, mask_QP=batch.mask_QP)
        metrics = jax.lax.stop_gradient(metrics)
        metrics["tokens"] = used_RT.sum().astype(jnp.float32)
        metrics["padding"] = 1.0 - used_RT.mean(dtype=jnp.float32)
        return loss, metrics

    return loss_fn


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
            remat=config.remat,
        )
        return pool_segments(
            output.last_BTD, rows.segment_ids_RT, rows.pool_mask_RT, config.max_segments, config.pooling
        )

    if config.chunks == 1:
        return encode_chunk(rows)
    count = rows.tokens_RT.shape[0]
    if count % config.chunks:
        raise ValueError(f"{count} rows cannot be cut into {config.chunks} equal chunks")

    # Chunk i takes rows i, i + chunks, ...: every device keeps an equal part of every chunk, and no row moves.
    def split(x: jax.Array) -> jax.Array:
        parts = jnp.swapaxes(x.reshape(count // config.chunks, config.chunks, *x.shape[1:]), 0, 1)
        return constrain(parts, (None, "batch") + (None,) * (x.ndim - 1))

    pooled_CRSD = jax.lax.map(jax.checkpoint(encode_chunk), jax.tree.map(split, rows))
    return jnp.swapaxes(pooled_CRSD, 0, 1).reshape(count, *pooled_CRSD.shape[2:])


def _row_length(lengths: Sequence[Sequence[int]], unit: int, config: ConversionConfig) -> int:
    """Tokens a row: as configured (longer if a text is), or what gives the smallest batch over the steps tried."""
    longest = max(max(step) for step in lengths)
    if config.row_length is not None:
        return max(config.row_length, _round_up(longest, _ROW_UNIT))
    shortest = _round_up(longest, _ROW_UNIT)

    def slots(row_length: int) -> int:
        tried = (pack(step, row_length, max_segments=config.max_segments).rows for step in lengths[:_TRIED_STEPS])
        return _round_up(max(tried), unit) * row_length

    return min(range(shortest, max(_LONGEST_ROW, 2 * shortest) + 1, _ROW_UNIT), key=slots)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _text_keys(groups: Sequence[Group], config: ConversionConfig) -> list[tuple[str | None, str]]:
    """The distinct texts of a batch in order of first use; equal texts share one slot."""
    keys: dict[tuple[str | None, str], None] = {}
    for group in groups:
        keys[_query_key(group, config)] = None
        for text in (group.positive, *group.negatives):
            keys[None, text] = None
    return list(keys)


def _query_key(group: Group, config: ConversionConfig) -> tuple[str, str]:
    return query_prompt(group.instruction, config.template), group.query


def _assemble(
    groups: Sequence[Group], layout: PackedLayout, store: _TextStore, negatives: int, config: ConversionConfig
) -> ContrastiveBatch:
    keys = _text_keys(groups, config)
    rows = fill_rows(layout, [store.ids[key] for key in keys], [store.start[key] for key in keys])
    slot_of = dict(zip(keys, layout.slots(config.max_segments).tolist(), strict=True))
    passages: list[str] = []
    absent: list[int] = []
    for group in groups:
        # A pair without hard negatives fills its places with its positive, masked below, to keep the shapes static.
        mine = [group.positive, *(group.negatives or (group.positive,) * negatives)]
        if not group.negatives:
            absent += range(len(passages) + 1, len(passages) + 1 + negatives)
        passages += mine
    positive_Q = np.arange(len(groups), dtype=np.int32) * (1 + negatives)
    mask_QP = np.ones((len(groups), len(passages)), bool)
    if config.mask_false_negatives:
        _mask_known_positives(mask_QP, groups, passages, positive_Q)
    mask_QP[:, absent] = False
    return ContrastiveBatch(
        rows=rows,
        query_slot_Q=np.array([slot_of[_query_key(group, config)] for group in groups], np.int32),
        passage_slot_P=np.array([slot_of[None, text] for text in passages], np.int32),
        positive_Q=positive_Q,
        mask_QP=mask_QP,
    )


def _mask_known_positives(
    mask_QP: np.ndarray, groups: Sequence[Group], passages: Sequence[str], positive_Q: np.ndarray
) -> None:
    """Sets False where a passage is known to answer the query: one of its positives, or of an equal query's."""
    columns: dict[str, list[int]] = {}
    for column, text in enumerate(passages):
        columns.setdefault(text, []).append(column)
    answers: dict[str, set[str]] = {}
    for group in groups:
        answers.setdefault(group.query, set()).update(group.all_positives)
    for row, group in enumerate(groups):
        for text in answers[group.query]:
            mask_QP[row, columns.get(text, [])] = False
        mask_QP[row, positive_Q[row]] = True


def _statistics(
    pairs: Sequence[Pair], sampler: PairSampler, steps: Sequence[Sequence[Group]], store: _TextStore
) -> dict[str, Any]:
    """What is known of the data before step 0, as JSON values."""
    sizes = Counter(pair.dataset for pair in pairs)
    return {
        "steps_per_epoch": sampler.steps_per_epoch,
        "pairs": len(pairs),
        "datasets": {name: sizes[name] for name in sampler.names},
        "dataset_shares": dict(zip(sampler.names, map(float, sampler.shares), strict=True)),
        "pairs_without_negatives": sum(not pair.negatives for pair in pairs),
        "duplicate_pairs": len(pairs) - len({(pair.query, pair.positives) for pair in pairs}),
        "share_truncated": store.share_truncated,
        "tokens": {"query": _length_summary(store, passage=False), "passage": _length_summary(store, passage=True)},
        "purity": float(np.mean([purity(groups) for groups in steps])),
        "data_order_hash": data_order_hash(steps),
    }


def _length_summary(store: _TextStore, *, passage: bool) -> dict[str, float]:
    lengths = [len(ids) for key, ids in store.ids.items() if (key[0] is None) == passage]
    return {"mean": float(np.mean(lengths)), "p95": float(np.percentile(lengths, 95)), "max": int(max(lengths))}

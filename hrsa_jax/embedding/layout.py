"""Where the texts of a batch stand: packed rows (CPU, TPU) or one text a row in length buckets (GPU).

A plan made from the first steps fixes the shapes, so that nearly every step of a run has the same ones and the step
compiles once. A batch that does not fit gets the next larger shape; its shape depends on its texts only.

R rows, T tokens a row, S segments a row, N texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hrsa_jax.data.packing import PackedRows, fill_rows, pack
from hrsa_jax.embedding.recipe import ConversionConfig
from hrsa_jax.runtime.errors import InputError

_ROW_UNIT = 16  # a chosen row length is a multiple of this,
_LONGEST_ROW = 256  # at most this (or twice the longest text)
_GROWTH = 8  # a batch beyond the plan gets rows by eighths of it


@dataclass(frozen=True)
class Plan:
    """Rows by row length, ascending: one entry when packed, one for each bucket otherwise."""

    rows: dict[int, int]
    bucketed: bool
    multiple: int  # rows that the devices split evenly

    @property
    def slots(self) -> int:
        """Token slots of a batch that fits."""
        return sum(length * rows for length, rows in self.rows.items())


def make_plan(lengths: Sequence[Sequence[int]], config: ConversionConfig, multiple: int) -> Plan:
    """Shapes that hold each of the given batches.

    Args:
      lengths: for each batch tried, the tokens of its texts.
      multiple: the number of rows of every part that is encoded at once is a multiple of this.
    """
    if config.bucketed:
        return _plan_buckets(lengths, config, multiple)
    row_length = _row_length(lengths, config, multiple)
    rows = max(pack(batch, row_length, max_segments=config.max_segments).rows for batch in lengths)
    return Plan({row_length: round_rows(rows, row_length, config, multiple)}, False, multiple)


def lay_out(
    ids: Sequence[np.ndarray], starts: Sequence[int], plan: Plan, config: ConversionConfig
) -> tuple[tuple[PackedRows, ...], np.ndarray]:
    """Fills rows with texts.

    Args:
      ids: token ids of N texts.
      starts: the first token of each text that is pooled.

    Returns:
      One PackedRows for each row length, and (N,) int32 where each text's vector stands when the pooled (R, S, D)
      of all of them are flattened and put one behind the other.
    """
    lengths = [len(text) for text in ids]
    if plan.bucketed:
        return _fill_buckets(ids, starts, lengths, plan, config)
    row_length, rows = _packed_shape(lengths, plan, config)
    layout = pack(lengths, row_length, max_segments=config.max_segments, rows=rows)
    return (fill_rows(layout, ids, starts),), layout.slots(config.max_segments)


def round_rows(rows: int, row_length: int, config: ConversionConfig, multiple: int) -> int:
    """The least number of rows from `rows` on that falls into equal parts, each a multiple of `multiple`.

    Raises:
      InputError: a part of `chunk_tokens` has not room for one row a device.
    """
    if config.chunk_tokens is not None and multiple * row_length > config.chunk_tokens:
        raise InputError(
            f"chunk_tokens={config.chunk_tokens} has no room for {multiple} rows of {row_length} tokens; raise it to "
            f"{multiple * row_length} or shorten the texts."
        )
    rows = _round_up(max(rows, 1), multiple)
    while rows % (config.chunk_count(rows, row_length) * multiple):
        rows += multiple
    return rows


def _packed_shape(lengths: Sequence[int], plan: Plan, config: ConversionConfig) -> tuple[int, int]:
    [(row_length, planned)] = plan.rows.items()
    while row_length < max(lengths):
        row_length, planned = 2 * row_length, -(-planned // 2)
    needed = pack(lengths, row_length, max_segments=config.max_segments).rows
    if needed > planned:
        step = max(1, planned // _GROWTH)
        needed = planned + _round_up(needed - planned, step)
    return row_length, round_rows(max(needed, planned), row_length, config, plan.multiple)


def _row_length(lengths: Sequence[Sequence[int]], config: ConversionConfig, multiple: int) -> int:
    """Tokens a row: as configured (longer if a text is), or what gives the smallest batch over the steps tried."""
    shortest = _round_up(max(max(batch) for batch in lengths), _ROW_UNIT)
    if config.row_length is not None:
        return max(config.row_length, shortest)

    def slots(row_length: int) -> int:
        rows = max(pack(batch, row_length, max_segments=config.max_segments).rows for batch in lengths)
        return round_rows(rows, row_length, config, multiple) * row_length

    return min(range(shortest, max(_LONGEST_ROW, 2 * shortest) + 1, _ROW_UNIT), key=slots)


def _bucket_lengths(longest: int) -> list[int]:
    """32, 48, 64, 96, 128, 192, ... up to `longest`: a text fills at least two thirds of its row from 33 tokens on."""
    found = [32]
    while found[-1] < longest:
        found.append(found[-1] * 3 // 2 if len(found) % 2 else found[-2] * 2)
    return found


def _plan_buckets(lengths: Sequence[Sequence[int]], config: ConversionConfig, multiple: int) -> Plan:
    buckets = _bucket_lengths(max(config.max_query_length, config.max_passage_length))
    counts = np.array([np.bincount(np.searchsorted(buckets, batch), minlength=len(buckets)) for batch in lengths])
    # The mean and a little more: what is above it in one batch goes to the next bucket, which then is below its own.
    wanted = np.ceil(counts.mean(axis=0) * 1.1)
    rows = {
        length: round_rows(int(count), length, config, multiple)
        for length, count in zip(buckets, wanted, strict=True)
        if count
    }
    return Plan(rows, True, multiple)


def _fill_buckets(
    ids: Sequence[np.ndarray], starts: Sequence[int], lengths: Sequence[int], plan: Plan, config: ConversionConfig
) -> tuple[tuple[PackedRows, ...], np.ndarray]:
    buckets = sorted(plan.rows)
    longest = max(lengths)
    if longest > buckets[-1]:
        buckets.append(_bucket_lengths(longest)[-1])
    room = {length: plan.rows.get(length, 0) for length in buckets}
    texts: dict[int, list[int]] = {length: [] for length in buckets}
    for text in sorted(range(len(ids)), key=lambda i: (-lengths[i], i)):
        fitting = [length for length in buckets if length >= lengths[text]]
        # The smallest row with room; where none is left, the largest bucket grows.
        chosen = next((length for length in fitting if len(texts[length]) < room[length]), fitting[-1])
        texts[chosen].append(text)
    blocks, slot_N, before = [], np.zeros(len(ids), np.int32), 0
    for length in buckets:
        rows = room[length]
        if len(texts[length]) > rows:
            rows += _round_up(len(texts[length]) - rows, max(1, sum(plan.rows.values()) // _GROWTH))
        rows = round_rows(rows, length, config, plan.multiple)
        blocks.append(_one_a_row([ids[i] for i in texts[length]], [starts[i] for i in texts[length]], rows, length))
        slot_N[texts[length]] = before + np.arange(len(texts[length]))
        before += rows
    return tuple(blocks), slot_N


def _one_a_row(ids: Sequence[np.ndarray], starts: Sequence[int], rows: int, row_length: int) -> PackedRows:
    # A row without a text holds one token that is not pooled: fused kernels give NaN for rows of length 0.
    tokens_RT, segment_ids_RT = np.zeros((rows, row_length), np.int32), np.zeros((rows, row_length), np.int32)
    segment_ids_RT[:, 0] = 1
    pool_mask_RT = np.zeros((rows, row_length), bool)
    for row, (text, start) in enumerate(zip(ids, starts, strict=True)):
        tokens_RT[row, : len(text)] = text
        segment_ids_RT[row, : len(text)] = 1
        pool_mask_RT[row, start : len(text)] = True
    positions_RT = np.where(segment_ids_RT > 0, np.arange(row_length, dtype=np.int32), 0).astype(np.int32)
    return PackedRows(tokens_RT, segment_ids_RT, positions_RT, pool_mask_RT)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit

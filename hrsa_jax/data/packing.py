"""Packing: several short texts in one row of fixed length, told apart by segment ids.

R rows, T tokens a row, S segments a row, N texts. Segment 0 is padding; positions restart in every segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Array = Any  # np.ndarray on the host, jax.Array once on the devices


@dataclass(frozen=True)
class PackedLayout:
    """Where each of N texts stands: row, segment (1-based, counted within the row) and first column."""

    row_N: np.ndarray
    segment_N: np.ndarray
    start_N: np.ndarray
    length_N: np.ndarray
    rows: int
    row_length: int
    segments: int  # largest number of texts in a row

    @property
    def padding_share(self) -> float:
        """Share of the rows x row_length slots that hold no token."""
        return 1.0 - float(self.length_N[self.row_N >= 0].sum()) / max(1, self.rows * self.row_length)

    def slots(self, segments: int) -> np.ndarray:
        """(N,) index of each text in the pooled array (rows, segments, D) flattened to two dimensions."""
        if segments < self.segments:
            raise ValueError(f"segments is {segments}, but a row of this layout holds {self.segments}")
        return (self.row_N * segments + self.segment_N - 1).astype(np.int32)


class PackedRows(NamedTuple):
    """Arrays of one packed batch (a pytree); all int32 but the mask, which is bool."""

    tokens_RT: Array
    segment_ids_RT: Array  # 1..S, 0 = padding
    positions_RT: Array  # restart at 0 in every segment
    pool_mask_RT: Array  # True from each text's pool_start on


def pack(
    lengths: Sequence[int] | np.ndarray,
    row_length: int,
    *,
    max_segments: int | None = None,
    rows: int | None = None,
    filler_N: np.ndarray | None = None,
) -> PackedLayout:
    """Lays N texts out in as few rows as best-fit-decreasing finds.

    Deterministic; equal lengths keep their order.

    Args:
      lengths: (N,) tokens of each text, each in 1..row_length.
      row_length: T.
      max_segments: at most so many texts a row.
      rows: the layout gets exactly so many rows (the last may be empty); as many as needed when None.
      filler_N: bool, True for texts that may only fill gaps that the others leave; one that finds no gap gets
        row -1.

    Raises:
      ValueError: a text longer than a row, an empty text, or more rows needed than `rows`.
    """
    length_N = np.asarray(lengths, dtype=np.int32)
    if length_N.ndim != 1:
        raise ValueError(f"lengths must be one-dimensional, got shape {length_N.shape}")
    if length_N.size and (length_N.min() < 1 or length_N.max() > row_length):
        worst = int(length_N.min() if length_N.min() < 1 else length_N.max())
        raise ValueError(f"lengths must be in 1..{row_length} (the row length), got {worst}")
    count = length_N.size
    row_N, segment_N, start_N = (np.zeros(count, np.int32) for _ in range(3))
    rows_with_room: list[list[int]] = [[] for _ in range(row_length + 1)]  # index: free slots
    used: list[int] = []
    filled: list[int] = []
    order = np.lexsort((-length_N,) if filler_N is None else (-length_N, filler_N))
    for text in order:
        length = int(length_N[text])
        room = next((free for free in range(length, row_length) if rows_with_room[free]), row_length)
        if room < row_length:
            row = rows_with_room[room].pop()
        elif filler_N is not None and filler_N[text]:
            row_N[text] = -1
            continue
        else:
            row = len(used)
            used.append(0)
            filled.append(0)
        row_N[text], segment_N[text], start_N[text] = row, filled[row] + 1, used[row]
        used[row] += length
        filled[row] += 1
        if used[row] < row_length and (max_segments is None or filled[row] < max_segments):
            rows_with_room[row_length - used[row]].append(row)
    if rows is not None and len(used) > rows:
        raise ValueError(f"rows is {rows}, but the texts need {len(used)} rows of {row_length} tokens")
    return PackedLayout(
        row_N,
        segment_N,
        start_N,
        length_N,
        len(used) if rows is None else rows,
        row_length,
        max(filled, default=0),
    )


def fill_rows(
    layout: PackedLayout,
    ids: Sequence[np.ndarray],
    pool_start: Sequence[int] | np.ndarray,
    *,
    pad_id: int = 0,
) -> PackedRows:
    """Writes the texts' tokens into the rows of a layout.

    Args:
      layout: from `pack`.
      ids: N arrays of token ids, of the layout's lengths.
      pool_start: (N,) first token of each text that the mask marks (for pooling, or for a loss).
      pad_id: token id of the padding (never attended to, never pooled).
    """
    shape = (layout.rows, layout.row_length)
    tokens_RT = np.full(shape, pad_id, np.int32)
    segment_ids_RT, positions_RT = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    pool_mask_RT = np.zeros(shape, bool)
    for text, text_ids in enumerate(ids):
        row, start, length = layout.row_N[text], layout.start_N[text], int(layout.length_N[text])
        if len(text_ids) != length:
            raise ValueError(f"ids[{text}] has {len(text_ids)} tokens, but the layout holds {length}")
        span = slice(start, start + length)
        tokens_RT[row, span] = text_ids
        segment_ids_RT[row, span] = layout.segment_N[text]
        positions_RT[row, span] = np.arange(length)
        pool_mask_RT[row, start + int(pool_start[text]) : start + length] = True
    return PackedRows(tokens_RT, segment_ids_RT, positions_RT, pool_mask_RT)

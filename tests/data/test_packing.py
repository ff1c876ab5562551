"""Packed rows: every text is there once, nothing overlaps, and little is wasted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrsa_jax.data.packing import fill_rows, pack


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 32), max_size=60), st.integers(1, 8))
def test_layout_holds_every_text_once(lengths, max_segments):
    layout = pack(lengths, 32, max_segments=max_segments)
    ids = [np.full(length, text + 1, np.int32) for text, length in enumerate(lengths)]
    starts = [length // 2 for length in lengths]
    rows = fill_rows(layout, ids, starts, pad_id=-1)
    assert layout.segments <= max_segments
    assert (rows.tokens_RT >= 0).sum() == sum(lengths)
    for text, length in enumerate(lengths):
        row, segment = layout.row_N[text], layout.segment_N[text]
        here = rows.segment_ids_RT[row] == segment
        assert (rows.tokens_RT[row][here] == text + 1).all()
        assert rows.positions_RT[row][here].tolist() == list(range(length))
        assert rows.pool_mask_RT[row][here].sum() == length - length // 2
    assert (rows.segment_ids_RT == 0).sum() == rows.tokens_RT.size - sum(lengths)
    assert not rows.pool_mask_RT[rows.segment_ids_RT == 0].any()


def test_packing_is_tight_on_a_realistic_mix():
    lengths = np.random.default_rng(0).integers(5, 90, 400)
    layout = pack(lengths, 128)
    assert layout.padding_share < 0.03
    again = pack(lengths, 128)
    assert (layout.row_N == again.row_N).all()
    assert (layout.start_N == again.start_N).all()


def test_slots_point_into_the_flattened_pool():
    layout = pack([4, 4, 4], 8, rows=3)
    assert layout.rows == 3
    assert sorted(layout.slots(5).tolist()) == [0, 1, 5]
    with pytest.raises(ValueError, match="holds 2"):
        layout.slots(1)


def test_texts_that_may_not_open_a_row_fill_gaps_only():
    layout = pack([6, 7, 2, 1, 3], 8, filler_N=np.array([False, False, True, True, True]))
    assert layout.rows == 2
    assert layout.row_N.tolist() == [1, 0, 1, 0, -1]


@pytest.mark.parametrize(
    ("lengths", "rows", "message"),
    [([9], None, "got 9"), ([0], None, "got 0"), ([8, 8], 1, "need 2 rows"), ([[1]], None, "one-dimensional")],
)
def test_impossible_layouts_are_refused(lengths, rows, message):
    with pytest.raises(ValueError, match=message):
        pack(lengths, 8, rows=rows)


def test_ids_must_have_the_lengths_of_the_layout():
    with pytest.raises(ValueError, match=r"ids\[0\] has 3 tokens"):
        fill_rows(pack([2], 8), [np.zeros(3, np.int32)], [0])

"""Hard negatives against a written-out search in float64."""

import numpy as np
import pytest

from hrsa_jax.data.negatives import add_negatives
from hrsa_jax.data.sources import Pair


def vectors(texts):
    rows = np.stack([np.random.default_rng(list(text.encode())).normal(size=8) + 1.0 for text in texts])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


PAIRS = [Pair(f"q{i}", "", (f"p{i}",), (), "a" if i % 3 else "b") for i in range(90)]


@pytest.mark.parametrize("block", [7, 1024])
def test_negatives_equal_a_plain_search_and_stay_in_their_data_set(block):
    mined = add_negatives(PAIRS, vectors, count=2, relative_margin=0.1, block=block)
    for pair in mined:
        rivals = [p for p in PAIRS if p.dataset == pair.dataset and p.query != pair.query]
        query = vectors([pair.query])[0].astype(np.float64)
        limit = 0.9 * float(query @ vectors(pair.positives)[0])
        ranked = sorted(rivals, key=lambda p: -float(query @ vectors(p.positives)[0]))
        ranked = ranked[: (len(rivals) + 1) // 10]
        expected = [p.positives[0] for p in ranked if float(query @ vectors(p.positives)[0]) <= limit]
        assert list(pair.negatives) == expected[:2]
    assert any(pair.negatives for pair in mined)
    assert [pair.query for pair in mined] == [pair.query for pair in PAIRS]


def test_an_equal_querys_answer_is_never_a_negative():
    pairs = [Pair("same", "", ("p0",)), Pair("same", "", ("p1",)), *(Pair(f"q{i}", "", (f"x{i}",)) for i in range(40))]
    mined = add_negatives(pairs, vectors, count=40, relative_margin=0.0)
    for pair in mined[:2]:
        assert not {"p0", "p1"} & set(pair.negatives)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="count is 0"):
        add_negatives(PAIRS, vectors, count=0)

"""Hard negatives against a written-out search in float64."""

import numpy as np
import pytest

from hrsa_jax.data.negatives import MiningRule, add_negatives, filter_by_margin, margin, mine_block
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


def brute_force(queries, corpus, answers, best, rule):
    """Every score in float64, one query after the other."""
    found = []
    for query, known, positive in zip(queries.astype(np.float64), answers, best, strict=True):
        scores = corpus.astype(np.float64) @ query
        ranked = [int(p) for p in np.lexsort((np.arange(len(corpus)), -scores)) if int(p) not in known]
        inside = ranked[rule.first_rank : rule.ranks(len(corpus))]
        limit = min(positive - rule.relative_margin * abs(positive), positive - rule.absolute_margin)
        kept = [p for p in inside if scores[p] <= limit][: rule.count]
        found.append((kept, scores[kept]))
    return found


@pytest.fixture(scope="module")
def planted():
    """2,000 queries, 5,000 passages in 24 dimensions, one to three positives near each query."""
    random = np.random.default_rng(0)
    corpus = random.normal(size=(5_000, 24)).astype(np.float32)
    corpus /= np.linalg.norm(corpus, axis=1, keepdims=True)
    answers = [set(random.choice(5_000, size=random.integers(1, 4), replace=False).tolist()) for _ in range(2_000)]
    queries = np.stack([corpus[sorted(known)].mean(0) for known in answers]) + 0.1 * random.normal(size=(2_000, 24))
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    return queries, corpus, answers


@pytest.mark.parametrize(
    "rule",
    [
        MiningRule(),
        MiningRule(count=7, relative_margin=0.2, absolute_margin=0.3),
        MiningRule(count=5, relative_margin=0.0, first_rank=10, last_rank=30),
    ],
)
def test_mining_equals_brute_force_in_float64(planted, rule):
    queries, corpus, answers = planted
    positives = [corpus[sorted(known)] for known in answers]
    blocks = (corpus[start : start + 700] for start in range(0, 5_000, 700))
    mined = mine_block(queries, positives, answers, blocks, 5_000, rule)
    best = [one.positive for one in mined]
    np.testing.assert_allclose(
        best, [(p.astype(np.float64) @ q).max() for p, q in zip(positives, queries.astype(np.float64), strict=True)]
    )
    expected = brute_force(queries, corpus, answers, best, rule)
    assert [list(one.places) for one in mined] == [places for places, _ in expected]
    for one, (_, scores) in zip(mined, expected, strict=True):
        np.testing.assert_allclose(one.scores, scores, rtol=1e-12)
        assert all(score <= rule.limit(one.positive) for score in one.scores)
    assert np.mean([len(one.places) for one in mined]) > 1


def test_margins_and_ranks_are_as_documented():
    rule = MiningRule(count=3, relative_margin=0.05)
    assert rule.limit(0.8) == pytest.approx(0.76)
    assert rule.limit(-0.2) == pytest.approx(-0.21)  # a margin below, whatever the sign
    assert MiningRule(relative_margin=0.0, absolute_margin=0.1).limit(0.5) == pytest.approx(0.4)
    assert [rule.ranks(n) for n in (10, 400, 5_000)] == [3, 40, 100]
    assert MiningRule(first_rank=10, last_rank=50).ranks(10**6) == 50
    for wrong in ({"count": 0}, {"relative_margin": 1.0}, {"absolute_margin": -1.0}, {"first_rank": 5, "last_rank": 5}):
        with pytest.raises(ValueError, match="need"):
            MiningRule(**wrong)


def test_the_margin_filter_keeps_what_lies_within_its_bounds():
    pairs = [
        Pair(f"q{i}", "", ("p",), ("n", "m"), "d", (), (), (0.9,), (s, 0.1)) for i, s in enumerate((0.2, 0.5, 0.85))
    ]
    bare = Pair("bare", "", ("p",), ("n",))
    assert [round(margin(pair), 9) for pair in pairs] == [0.7, 0.4, 0.05]
    assert margin(bare) is None
    assert list(filter_by_margin([*pairs, bare], at_least=0.3)) == pairs[:2]
    assert list(filter_by_margin([*pairs, bare], at_most=0.4 + 1e-9)) == pairs[1:]
    assert list(filter_by_margin([*pairs, bare])) == pairs

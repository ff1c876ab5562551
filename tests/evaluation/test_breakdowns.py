"""Families of comparisons, groups of tasks, bootstraps over queries."""

import numpy as np
import pytest

from hrsa_jax.evaluation.breakdowns import by_group, compare_all, query_bootstrap, query_ndcg
from hrsa_jax.evaluation.statistics import crossed_interval, one_seed_interval


def planted(mean, sd=0.2, shape=(12, 3), seed=0):
    d_TS = np.random.default_rng(seed).normal(0, sd, shape)
    return d_TS - d_TS.mean() + mean


def test_pairs_and_benchmarks_share_one_adjustment():
    tables = {
        ("qwen", "mteb"): planted(3.0),
        ("qwen", "bright"): planted(-3.0, seed=1),
        ("llama", "mteb"): planted(0.0, seed=2),
        ("llama", "bright"): planted(0.3, sd=6.0, seed=3),
    }
    control = planted(-8.0, seed=4)
    found = {(c.pair, c.benchmark): c for c in compare_all(tables, 1.0, controls={"mteb": control, "bright": control})}
    words = [c.word.split(" (")[0] for c in found.values()]
    assert words == ["advantage", "disadvantage", "no advantage", "inconclusive"]
    assert found["qwen", "mteb"].p == pytest.approx(2 / 2**12)
    assert found["qwen", "mteb"].p_holm == pytest.approx(4 * 2 / 2**12)
    assert all(c.p_holm >= c.p for c in found.values())
    [alone] = compare_all({("qwen", "mteb"): planted(3.0)}, 1.0)
    assert alone.p_holm == alone.p
    assert alone.word == "advantage; sensitivity not shown"
    assert compare_all({}, 1.0) == []


def test_groups_have_intervals_but_no_words():
    d_TS = np.concatenate([planted(2.0, shape=(5, 3)), planted(-1.0, shape=(3, 3), seed=1), [[0.5, 0.7, 0.9]]])
    large, small, single = by_group(d_TS, ["STS"] * 5 + ["Retrieval"] * 3 + ["Summarization"])
    assert (large.name, large.tasks, large.estimate) == ("STS", 5, pytest.approx(2.0))
    assert (large.low, large.high) == crossed_interval(d_TS[:5])[1:3]
    assert small.estimate == pytest.approx(-1.0)
    assert (single.estimate, single.low, single.high) == (pytest.approx(0.7), None, None)
    one_seed = by_group(d_TS[:, :1], ["x"] * 9)[0]
    assert (one_seed.low, one_seed.high) == one_seed_interval(d_TS[:, 0])[1:3]
    with pytest.raises(ValueError, match="2 entries for 9 tasks"):
        by_group(d_TS, ["a", "b"])


def test_bootstrap_over_queries_counts_every_task_once_and_sees_their_noise():
    rng = np.random.default_rng(0)
    tasks = [rng.normal(1.0, 5.0, (50, 3)), rng.normal(3.0, 5.0, (500, 3))]
    estimate, low, high = query_bootstrap(tasks)
    assert estimate == pytest.approx((tasks[0].mean() + tasks[1].mean()) / 2)
    assert low < estimate < high
    assert (estimate, low, high) == query_bootstrap(tasks)
    same = [np.full((50, 3), 1.0), np.full((5, 3), 1.0)]
    assert query_bootstrap(same) == pytest.approx((1.0, 1.0, 1.0))
    few, many = ([np.tile(rng.normal(0, 9, (n, 1)), 3) for _ in range(30)] for n in (5, 400))
    width = [high - low for _, low, high in map(query_bootstrap, (few, many))]
    assert width[0] > 3 * width[1]
    with pytest.raises(ValueError, match="at least two"):
        query_bootstrap([same[0]])
    with pytest.raises(ValueError, match="same seeds"):
        query_bootstrap([same[0], np.ones((4, 2))])


def test_query_ndcg_by_hand():
    found = {"a": {"x": 0.9, "y": 0.8, "z": 0.1}, "b": {"x": 1.0}}
    relevant = {"a": {"y": 2, "z": 1}, "b": {"y": 1}, "c": {"x": 1}, "d": {"x": 0}}
    scores = query_ndcg(found, relevant)
    ideal = 2 + 1 / np.log2(3)
    assert scores["a"] == pytest.approx((2 / np.log2(3) + 1 / np.log2(4)) / ideal)
    assert scores["b"] == scores["c"] == 0.0
    assert "d" not in scores
    assert query_ndcg(found, relevant, k=2)["a"] == pytest.approx(2 / np.log2(3) / ideal)

"""The sampler: pure batches, exact epochs, exact shares, and an order that depends on (seed, step) only."""

from collections import Counter

import numpy as np
import pytest

from hrsa_jax.data.sampler import MIXED, PairSampler, data_order_hash, purity, recipe_hash
from hrsa_jax.data.sources import LazyPairs, Pair
from hrsa_jax.runtime.errors import InputError


def make_pairs(sizes, *, negatives=2, positives=1):
    return [
        Pair(
            f"q{name}{i}",
            "",
            tuple(f"p{name}{i}.{j}" for j in range(positives)),
            tuple(f"n{name}{i}.{j}" for j in range(negatives)),
            name,
        )
        for name, size in sizes.items()
        for i in range(size)
    ]


def test_one_epoch_shows_every_row_once_and_drops_the_remainder():
    sampler = PairSampler(make_pairs({"a": 21, "b": 12}), batch_size=4, seed=3)
    assert sampler.steps_per_epoch == 8
    groups = [group for step in range(8) for group in sampler.groups_at(step)]
    counts = Counter(group.query for group in groups)
    assert set(counts.values()) == {1}
    assert len(counts) == 32


def test_shares_and_purity_over_ten_thousand_steps():
    sampler = PairSampler(make_pairs({"a": 900, "b": 300, "c": 60}), batch_size=4, mixing_exponent=0.5)
    names = Counter(sampler.rows_at(step)[0] for step in range(10_000))
    expected = np.sqrt([225, 75, 15]) / np.sqrt([225, 75, 15]).sum()
    for name, share in zip("abc", expected, strict=True):
        assert abs(names[name] / 10_000 - share) < 0.001
    assert all(len({data for data, _ in sampler.rows_at(step)[1]}) == 1 for step in range(10_000))
    assert all(purity(sampler.groups_at(step)) == 1.0 for step in range(0, 10_000, 97))


@pytest.mark.parametrize("exponent", [1.0, 0.5])
@pytest.mark.parametrize("leftovers", ["drop", "mix"])
def test_full_batches_of_three_files_are_pure_and_mixed_as_asked(exponent, leftovers):
    """10,000 steps: purity 1 for every batch that is not named left-overs; weights within 1%."""
    sizes = {"a": 902, "b": 303, "c": 59}
    sampler = PairSampler(make_pairs(sizes), batch_size=4, mixing_exponent=exponent, leftovers=leftovers, seed=5)
    names = Counter()
    for step in range(10_000):
        name, rows = sampler.rows_at(step)
        names[name] += 1
        assert len(rows) == len(set(rows)) == 4
        assert name == MIXED or {data for data, _ in rows} == {name}
    batches = {name: size // 4 for name, size in sizes.items()}
    if leftovers == "mix":
        batches[MIXED] = sum(size % 4 for size in sizes.values()) // 4
    weights = np.array(list(batches.values()), float) ** exponent
    for (name, _), share in zip(batches.items(), weights / weights.sum(), strict=True):
        assert abs(names[name] / 10_000 - share) <= 0.01 * share + 1e-3, name


@pytest.mark.parametrize("step", [0, 1, 137, 4_321])
@pytest.mark.parametrize("leftovers", ["drop", "mix"])
def test_a_run_resumed_at_any_step_sees_the_same_next_thousand_batches(step, leftovers):
    pairs = make_pairs({"a": 90, "b": 41, "c": 22}, positives=2, negatives=4)
    options = {"batch_size": 4, "mixing_exponent": 0.7, "seed": 3, "leftovers": leftovers}
    straight, resumed = PairSampler(pairs, **options), PairSampler(pairs, **options)
    for earlier in range(step):
        straight.rows_at(earlier)
    assert [straight.groups_at(step + i) for i in range(1000)] == [resumed.groups_at(step + i) for i in range(1000)]


def test_leftovers_fill_an_epoch_and_small_data_sets_take_part():
    pairs = make_pairs({"a": 21, "b": 14, "tiny": 3})
    sampler = PairSampler(pairs, batch_size=4, leftovers="mix", seed=2)
    assert sampler.steps_per_epoch == 5 + 3 + 1
    for epoch in range(3):
        steps = range(epoch * 9, epoch * 9 + 9)
        rows = [row for step in steps for row in sampler.rows_at(step)[1]]
        assert len(set(rows)) == len(rows) == 36  # of 38: the last two fill no batch
        assert purity(sampler.groups_at(next(s for s in steps if sampler.rows_at(s)[0] == MIXED))) < 1
    with pytest.raises(InputError, match="'tiny' has 3 pairs"):
        PairSampler(make_pairs({"a": 20, "tiny": 3}), batch_size=4, leftovers="mix")


def test_rows_given_by_data_set_are_read_only_when_their_batch_is_made():
    reads = []
    pairs = make_pairs({"a": 40})

    def read(i):
        reads.append(i)
        return pairs[i]

    sampler = PairSampler({"a": LazyPairs(40, read)}, batch_size=4)
    sampler.rows_at(5)
    assert reads == []
    groups = sampler.groups_at(5)
    assert reads == [row for _, row in sampler.rows_at(5)[1]]
    assert groups == PairSampler(pairs, batch_size=4).groups_at(5)


def test_ids_and_scores_follow_the_passages_that_are_drawn():
    pair = Pair(
        "q", "", ("p0", "p1"), ("n0", "n1", "n2"), "a", ("0", "1"), ("x", "y", "z"), (0.9, 0.8), (0.1, 0.2, 0.3)
    )
    for seed in range(8):
        group = PairSampler([pair], batch_size=1, hard_negatives=2, seed=seed).groups_at(0)[0]
        ids = dict(zip((*pair.positives, *pair.negatives), (*pair.positive_ids, *pair.negative_ids), strict=True))
        scores = dict(zip(ids, (*pair.positive_scores, *pair.negative_scores), strict=True))
        drawn = (group.positive, *group.negatives)
        assert group.ids == tuple(ids[text] for text in drawn)
        assert group.scores == tuple(scores[text] for text in drawn)


def test_order_is_a_pure_function_of_seed_and_step():
    pairs = make_pairs({"a": 40, "b": 40}, positives=3)
    straight = PairSampler(pairs, batch_size=4, seed=1)
    forward = [straight.groups_at(step) for step in range(60)]
    resumed = PairSampler(pairs, batch_size=4, seed=1)
    assert [resumed.groups_at(step) for step in range(59, 29, -1)] == forward[59:29:-1]
    assert PairSampler(pairs, batch_size=4, seed=2).groups_at(0) != forward[0]
    first, second = data_order_hash(forward), data_order_hash(forward[:-1])
    assert first == data_order_hash(resumed.groups_at(step) for step in range(60))
    assert first != second


def test_a_group_has_one_positive_and_k_negatives_repeated_when_fewer():
    pairs = make_pairs({"a": 4}, negatives=2, positives=3)
    groups = [group for step in range(40) for group in PairSampler(pairs, batch_size=4, seed=0).groups_at(step)]
    assert {len(group.negatives) for group in groups} == {3}
    for group in groups:
        assert len(set(group.negatives)) == 2
        assert group.positive in group.all_positives
    assert len({group.positive for group in groups if group.query == "qa0"}) == 3
    three_of_five = PairSampler(make_pairs({"a": 4}, negatives=5), batch_size=4).groups_at(0)
    assert all(len(set(group.negatives)) == 3 for group in three_of_five)
    assert PairSampler(make_pairs({"a": 4}, negatives=0), batch_size=4).groups_at(0)[0].negatives == ()


def test_purity_of_a_mixed_batch():
    sampler = PairSampler(make_pairs({"a": 4, "b": 4}), batch_size=4)
    mixed = sampler.groups_at(0)[:3] + next(
        sampler.groups_at(step)[:1] for step in range(9) if sampler.rows_at(step)[0] != sampler.rows_at(0)[0]
    )
    assert purity(mixed) == 0.75


def test_batch_larger_than_data_is_refused():
    with pytest.raises(InputError, match="'b' has 3 pairs, fewer than the batch of 4"):
        PairSampler(make_pairs({"a": 8, "b": 3}), batch_size=4)
    with pytest.raises(InputError, match="no training pairs"):
        PairSampler([], batch_size=4)
    with pytest.raises(ValueError, match="batch_size 0"):
        PairSampler(make_pairs({"a": 4}), batch_size=0)


def test_recipe_hash_ignores_key_order_only():
    assert recipe_hash({"a": 1, "b": (1, 2)}) == recipe_hash({"b": [1, 2], "a": 1})
    assert recipe_hash({"a": 1}) != recipe_hash({"a": 2})
    assert len(recipe_hash({})) == 64

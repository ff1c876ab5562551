"""The sampler: pure batches, exact epochs, exact shares, and an order that depends on (seed, step) only."""

from collections import Counter

import numpy as np
import pytest

from hrsa_jax.data.sampler import PairSampler, data_order_hash, purity, recipe_hash
from hrsa_jax.data.sources import Pair
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
    assert all(purity(sampler.groups_at(step)) == 1.0 for step in range(0, 10_000, 97))


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

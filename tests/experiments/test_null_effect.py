"""From benchmark rows to the claim: pairing, controls, power, and what is missing."""

import numpy as np
import pytest

from experiments.null_effect import null_effect
from hrsa_jax.runtime.errors import InputError

TASKS, SEEDS = [f"Task{i}" for i in range(8)], (0, 1, 2)


def rows(reasoning=0.0, control=-10.0, spread=0.1, seeds=SEEDS):
    """Benchmark rows whose differences in points are `reasoning` and `control`, with noise of `spread`."""
    random = np.random.default_rng(0)
    found = []
    for number, task in enumerate(TASKS):
        for seed in seeds:
            base = 0.5 + 0.03 * number
            shifts = {"base-Emb": 0.0, "reasoning-Emb": reasoning, "control-Emb": control}
            for model, shift in shifts.items():
                score = base + (shift + spread * random.standard_normal()) / 100
                found.append({"model": model, "seed": seed, "task": task, "score": score})
    return found


@pytest.mark.parametrize(
    ("reasoning", "word"),
    [(0.0, "no advantage (equivalent within 1.0)"), (3.0, "advantage"), (-3.0, "disadvantage")],
)
def test_a_planted_difference_gets_its_word_once_the_control_is_seen(reasoning, word):
    found = null_effect(rows(reasoning), (), 1.0, SEEDS, "trained too little")
    assert found["word"] == word
    assert found["estimate"] == pytest.approx(reasoning, abs=0.1)
    assert found["positive_control"]["shows"]
    assert found["positive_control"]["interval90"][1] < -1
    assert found["power"]["power"] > 0.99
    assert null_effect(rows(reasoning), (), 1.0, SEEDS)["word"] == word + "; sensitivity not shown"


def test_a_control_that_shows_nothing_is_said_not_to_show():
    found = null_effect(rows(control=-0.5), (), 1.0, SEEDS, "trained too little")
    assert not found["positive_control"]["shows"]
    assert found["word"].endswith("; sensitivity not shown")


def test_seeds_of_one_backbone_are_compared_with_each_other():
    same = null_effect(rows(), (), 1.0, SEEDS)["aa"]
    assert [pair["seeds"] for pair in same["pairs"]] == [[0, 1], [0, 2], [1, 2]]
    assert same["holds"]
    noisy = null_effect(rows(spread=20.0), (), 1.0, SEEDS)["aa"]
    assert not noisy["holds"]
    one = null_effect(rows(seeds=(0,)), (), 1.0, (0,))
    assert one["aa"] is None
    assert one["power"] is None
    assert one["word"].startswith("inconclusive")


def test_tasks_without_every_score_and_tasks_tuned_on_stay_out():
    table = rows()
    table[0]["score"] = None
    found = null_effect(table, {"Task7"}, 1.0, SEEDS, "trained too little")
    assert found["tasks"] == TASKS[1:7]
    assert found["left_out"] == ["Task7"]
    assert np.shape(found["differences"]) == (6, 3)
    with pytest.raises(InputError, match="only 1 benchmark tasks have scores of both"):
        null_effect(table, TASKS[2:], 1.0, SEEDS)

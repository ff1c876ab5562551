"""The step of GRPO in the loop: planted task, resumption after SIGKILL, several updates, collapse, hacking signs."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted import LETTERS, SETTINGS, planted, planted_run, start

from hrsa_jax.models.lora import LoRAConfig, add_lora
from hrsa_jax.reasoning.grpo import Guard
from hrsa_jax.reasoning.policy import CollapseWatch, grpo_step
from hrsa_jax.reasoning.rollout import Sampler, repetition
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.loop import OptimConfig, make_optimizer


def test_learns_a_planted_verifiable_task(decoder, tokenizer):
    problems, reward = planted(tokenizer)
    optimizer = make_optimizer(OptimConfig(learning_rate=1e-2, weight_decay=0.0), 100)
    graphdef, state = start(decoder, optimizer, lora=False)
    step, batch_at = grpo_step(graphdef, SETTINGS, optimizer, problems, tokenizer, reward=reward)
    rewards = []
    for number in range(100):
        state, metrics = step(state, batch_at(number))
        rewards.append(metrics["reward"])
        assert metrics["sampler_mismatch"] < 1e-4
        assert min(metrics[f"seconds_{part}"] for part in ("sample", "score", "train")) > 0
    assert np.mean(rewards[:2]) < 0.4
    assert np.mean(rewards[-5:]) > 0.9


def test_adapters_are_their_own_reference_and_a_resumed_step_samples_the_same(decoder, tokenizer):
    problems, reward = planted(tokenizer)
    optimizer = make_optimizer(OptimConfig(learning_rate=5e-2, schedule="constant"), 10)
    adapted = add_lora(decoder, LoRAConfig(rank=2, alpha=4.0), seed=0)
    graphdef, state = start(adapted, optimizer, lora=True)
    config = dataclasses.replace(SETTINGS, kl_coef=0.05)
    step, batch_at = grpo_step(graphdef, config, optimizer, problems, tokenizer, reward=reward)
    kl = []
    for number in range(3):
        kept = jax.tree.map(jnp.copy, state)
        state, metrics = step(state, batch_at(number))
        kl.append(metrics["kl"])
    assert kl[0] < 1e-9
    assert kl[2] > 1e-5
    again, repeated = step(kept, batch_at(2))
    assert repeated["reward"] == metrics["reward"]
    for left, right in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_killed_run_continues_with_the_same_samples_and_weights(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    code = f"from planted import planted_run; planted_run({str(killed)!r}, kill_at=3)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    continued, rewards = planted_run(killed)
    expected, all_rewards = planted_run(whole)
    assert len(all_rewards) == 5
    assert rewards == all_rewards  # those of the killed part and of the continued part together
    for left, right in zip(jax.tree.leaves(continued), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(left, right)


def test_further_updates_are_clipped_and_count_as_one_step_and_a_collapsed_run_is_stopped(decoder, tokenizer):
    problems, reward = planted(tokenizer)
    optimizer = make_optimizer(OptimConfig(learning_rate=5e-2, schedule="constant"), 40)
    graphdef, state = start(decoder, optimizer, lora=False)
    config = dataclasses.replace(SETTINGS, updates=3)
    seen = [{"reward": 1.0, "surprisal": 1.0}] * 20  # of the steps before, all solved
    worth = [1.0]
    step, batch_at = grpo_step(
        graphdef, config, optimizer, problems, tokenizer, seen=seen, reward=lambda *args: worth[0] * reward(*args)
    )
    state, metrics = step(state, batch_at(0))
    assert int(state.step) == 1
    assert metrics["outside_clip"] > 0  # the third update sees a policy that has moved
    assert metrics["finite"]
    worth[0] = 0.0  # nothing is right any more
    with pytest.raises(InputError, match=r"GRPO: collapsed at step \d+: mean reward"):
        _run_on(step, state, batch_at)


def _run_on(step, state, batch_at):
    for number in range(1, 12):
        state, _ = step(state, batch_at(number))


def test_the_reward_for_form_is_counted_apart(decoder, tokenizer):
    problems, _ = planted(tokenizer)
    config = dataclasses.replace(SETTINGS, format_reward=0.5)
    rollout = Sampler(config, problems, tokenizer, lambda problem, text: 0.0).rollout(decoder, None, np.arange(8), 0)
    assert 0 < rollout.formed_B.mean() < 1
    np.testing.assert_array_equal(rollout.reward_B, 0.5 * rollout.formed_B)
    assert rollout.format_share == 1.0


def test_repetition():
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([7] * 12) == pytest.approx(0.9)
    assert repetition([1, 2]) == 0.0


@pytest.mark.parametrize(
    ("rows", "sign"),
    [
        ([{"reward": 0.5, "kl": 0.1, "surprisal": 1.0}] * 12, None),
        (
            [{"reward": 0.5, "kl": 0.1, "surprisal": 1.0}] * 6 + [{"reward": 0.5, "kl": 9.0, "surprisal": 1.0}] * 6,
            "nats",
        ),
        ([{"reward": 0.8, "surprisal": 1.0}] * 6 + [{"reward": 0.1, "surprisal": 1.0}] * 6, r"reward 0.1 after 0.8"),
        ([{"reward": 0.5, "repetition": 0.9, "surprisal": 1.0}] * 6, "90% of trigrams"),
        ([{"reward": 0.2, "surprisal": 0.0}] * 6, "surprisal 0 at mean reward 0.2"),
        ([{"reward": 1.0, "surprisal": 0.0}] * 6, None),  # solved, not collapsed
    ],
)
def test_collapse_is_seen(rows, sign):
    watch = CollapseWatch(Guard(window=4))
    found = [watch.look(row) for row in rows]
    assert found[:3] == [None] * 3
    if sign is None:
        assert found == [None] * len(rows)
    else:
        assert sign in found[-1]
        resumed = CollapseWatch(Guard(window=4), rows[:-1])  # as after a resumption
        assert resumed.look(rows[-1]) == found[-1]


def test_batches_of_questions_are_pure_and_visit_each_once_an_epoch(decoder, tokenizer):
    problems, reward = planted(tokenizer)
    optimizer = make_optimizer(OptimConfig(learning_rate=1e-2), 10)
    graphdef, state = start(decoder, optimizer, lora=False)
    config = dataclasses.replace(SETTINGS, questions=5)
    _, batch_at = grpo_step(graphdef, config, optimizer, problems, tokenizer, reward=reward)
    assert sorted([*batch_at(0), *batch_at(1)]) == list(range(len(LETTERS)))
    assert sorted([*batch_at(2), *batch_at(3)]) == list(range(len(LETTERS)))
    np.testing.assert_array_equal(batch_at(3), batch_at(3))
    with pytest.raises(InputError, match="10 problems for 11 questions"):
        grpo_step(graphdef, dataclasses.replace(SETTINGS, questions=11), optimizer, problems, tokenizer)
    step, _ = grpo_step(graphdef, dataclasses.replace(SETTINGS, kl_coef=0.1), optimizer, problems, tokenizer)
    with pytest.raises(InputError, match="needs a reference"):
        step(state, batch_at(0))


@pytest.mark.parametrize("change", [{"group": 1}, {"questions": 0}, {"temperature": 0.0}, {"updates": 0}])
def test_settings_that_cannot_learn_are_refused(change):
    with pytest.raises(InputError, match="GRPO: "):
        dataclasses.replace(SETTINGS, **change)

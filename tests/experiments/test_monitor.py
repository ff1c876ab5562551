"""Evaluation between steps: when it is due, which weights are best, when patience ends, what a killed run repeats."""

import os

import jax.numpy as jnp
import pytest

from experiments.monitor import Monitor, MonitorConfig
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.loop import TrainState


def state_at(step):
    return TrainState(jnp.int32(step), {"w": jnp.full(2, float(step))}, {}, {})


@pytest.fixture
def follow(tmp_path):
    """Runs `steps` steps of a monitor over given scores; returns (monitor, steps done, steps scored)."""

    def run(scores, *, steps, start=1, **settings):
        asked = []

        def score(done, state):
            asked.append(done)
            return {"task": 0.5, "mean": scores[done]}

        log = RunLog(tmp_path, stream=open(os.devnull, "w"))  # noqa: SIM115
        monitor = Monitor(MonitorConfig(**settings), steps, "run", tmp_path, log, score)
        done = start
        for done in range(start, steps + 1):
            if monitor.on_step(done, state_at(done)):
                break
        return monitor, done, asked

    return run


def test_scores_are_taken_when_due_and_after_the_last_step(follow):
    monitor, done, asked = follow({3: 0.1, 6: 0.3, 7: 0.2}, steps=7, every=3)
    assert (done, asked) == (7, [3, 6, 7])
    assert [(row["step"], row["mean"]) for row in monitor.curve()] == [(3, 0.1), (6, 0.3), (7, 0.2)]
    assert monitor.best_step() == 6
    best = monitor.restore_best(state_at(7))
    assert best.trainable["w"].tolist() == [6.0, 6.0]
    assert int(best.step) == 7
    monitor.__exit__()


def test_patience_counts_evaluations_without_a_new_best(follow):
    scores = {1: 0.2, 2: 0.5, 3: 0.4, 4: 0.5, 5: 0.9}
    monitor, done, _ = follow(scores, steps=5, every=1, patience=2)
    assert done == monitor.stopped_at() == 4
    assert monitor.best_step() == 2  # the earlier of two equal ones
    monitor.__exit__()


def test_a_run_that_was_killed_after_its_last_checkpoint_scores_again(follow):
    scores = {1: 0.2, 2: 0.5, 3: 0.4, 4: 0.3}
    first, _, _ = follow(scores, steps=3, every=1, patience=9)
    first.__exit__()
    again, _, asked = follow(scores, steps=4, start=2, every=1, patience=9)
    assert asked == [2, 3, 4]
    assert [row["step"] for row in again.curve()] == [1, 2, 3, 4]
    assert again.restore_best(state_at(4)).trainable["w"].tolist() == [2.0, 2.0]
    again.__exit__()


def test_settings_must_be_positive():
    with pytest.raises(InputError, match="every=0"):
        MonitorConfig(every=0)

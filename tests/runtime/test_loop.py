"""The training loop: schedule, bit-exact resume, NaN stop, SIGTERM."""

import dataclasses
import json
import logging
import os
import resource
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hrsa_jax.runtime.checkpoint import Checkpoints
from hrsa_jax.runtime.errors import InputError, Interrupted
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.loop import OptimConfig, init_state, make_optimizer, make_step, train
from hrsa_jax.runtime.mesh import make_mesh, named_sharding

STEPS = 12


def loss_fn(trainable, frozen, batch):
    prediction = batch["x"] @ (trainable["w"] + frozen["w"]) + trainable["bias"]
    loss = jnp.mean((prediction - batch["y"]) ** 2)
    return loss, {"tokens": jnp.float32(batch["x"].shape[0])}


def batch_at(step):
    rng = np.random.default_rng([7, step])
    x = rng.normal(size=(8, 3)).astype(np.float32)
    return {"x": x, "y": x @ np.array([1.0, -2.0, 0.5], np.float32) + 0.3}


def fresh():
    tx = make_optimizer(OptimConfig(learning_rate=0.1, warmup_steps=2), STEPS)
    trainable = {"w": jnp.zeros(3), "bias": jnp.zeros(())}
    return init_state(trainable, {"w": jnp.zeros(3)}, tx), make_step(loss_fn, tx)


def run(folder, batches=batch_at, **kwargs):
    state, step = fresh()
    log = RunLog(folder, stream=open(os.devnull, "w"))  # noqa: SIM115
    return train(state, step, batches, steps=STEPS, directory=folder, checkpoint_every=3, log=log, label="t", **kwargs)


def test_schedule_reaches_its_peak_after_the_warmup_and_zero_at_the_end():
    rate = OptimConfig(learning_rate=1.0, warmup_steps=3).learning_rate_at(100)
    np.testing.assert_allclose([rate(0), rate(1), rate(2), rate(3)], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    assert float(rate(100)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("steps", "warmup"), [(0, 0), (4, 4)])
def test_a_warmup_as_long_as_the_run_is_refused(steps, warmup):
    with pytest.raises(InputError, match=r"optimiser: . steps with warmup_steps=."):
        make_optimizer(OptimConfig(learning_rate=0.1, warmup_steps=warmup), steps)


def test_the_loop_learns_and_logs_every_step(tmp_path):
    state = run(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    assert int(state.step) == STEPS


@pytest.mark.parametrize("devices", [1, 8])
def test_a_step_compiles_once_for_a_fresh_state_its_own_results_and_a_restored_one(tmp_path, caplog, devices):
    tx = make_optimizer(OptimConfig(learning_rate=0.1), STEPS)
    trainable = {"w": jnp.zeros(3), "bias": jnp.zeros(())}
    if devices > 1:
        trainable["w"] = jax.device_put(trainable["w"], named_sharding(make_mesh(data=devices), (None,), (3,)))
    state, step = init_state(trainable, {"w": jnp.zeros(3)}, tx), make_step(loss_fn, tx)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for number in range(3):
            state, _ = step(state, jax.tree.map(jnp.asarray, batch_at(number)))
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(3, state.saved())
            checkpoints.wait()
            restored = checkpoints.restore(state.saved())
        step(dataclasses.replace(state, **restored), jax.tree.map(jnp.asarray, batch_at(3)))
    assert sum("Compiling jit(update)" in record.getMessage() for record in caplog.records) == 1


def test_resume_is_bit_exact_and_rewrites_no_history(tmp_path):
    whole = run(tmp_path / "whole") if (tmp_path / "whole").mkdir() is None else None
    (tmp_path / "cut").mkdir()

    def die_at_seven(step):
        if step == 8:
            raise KeyboardInterrupt
        return batch_at(step)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", die_at_seven)
    resumed = run(tmp_path / "cut")
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    assert losses[0] == losses[1]


def test_nan_stops_at_its_step_keeps_the_last_good_checkpoint_and_saves_the_batch(tmp_path):
    def poisoned(step):
        batch = batch_at(step)
        if step == 7:
            batch["x"][0, 0] = np.nan
        return batch

    with pytest.raises(InputError, match=r"loss nan .* at step 7.*last good checkpoint is step 6"):
        run(tmp_path, poisoned)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 6
    assert np.isnan(np.load(tmp_path / "bad_batch_step7.npz")["['x']"][0, 0])


def test_the_old_state_is_donated_and_the_callers_arrays_are_not():
    state, step = fresh()
    weights = {"w": jnp.ones(3), "bias": jnp.zeros(())}
    copied = init_state(weights, {}, make_optimizer(OptimConfig(learning_rate=0.1), STEPS))
    assert copied.trainable["w"] is not weights["w"]
    new, _ = step(state, batch_at(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.saved()))
    assert not state.frozen["w"].is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_moments_are_split_as_their_parameters_are(accumulate):
    mesh = make_mesh(data=2, fsdp=4)
    weights = {"kernel": jax.device_put(jnp.ones((8, 8)), named_sharding(mesh, ("embed", None), (8, 8)))}
    state = init_state(weights, {}, make_optimizer(OptimConfig(0.1, accumulate=accumulate), STEPS))
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert len(moments) == 2 + (accumulate > 1)
    assert all(leaf.sharding == weights["kernel"].sharding for leaf in moments)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.opt_state) if not leaf.ndim)


class Lazy:
    """A number on the device: notes when somebody waits for it."""

    def __init__(self, name, value, events):
        self.name, self.value, self.events = name, value, events

    def __array__(self, dtype=None, copy=None):
        self.events.append(f"read {self.name}")
        return np.asarray(self.value, dtype)


def test_nothing_waits_for_a_step_before_the_next_one_is_dispatched(tmp_path):
    events = []

    def step(state, batch):
        number = int(batch["number"])
        events.append(f"dispatch {number}")
        return state, {"loss": Lazy(number, 1.0, events), "grad_norm": 1.0, "finite": True}

    state, _ = fresh()
    log = RunLog(None, stream=open(os.devnull, "w"))  # noqa: SIM115
    options = {"directory": tmp_path, "checkpoint_every": 100, "log": log, "label": "t"}
    train(state, step, lambda n: {"number": np.int32(n)}, steps=6, place=lambda batch: batch, **options)
    for number in range(4):
        assert events.index(f"read {number}") > events.index(f"dispatch {number + 1}")
    assert events[-1] == "read 5"


def test_batches_are_prepared_ahead_in_another_thread(tmp_path):
    made = []

    def noting(step):
        made.append((step, threading.current_thread().name))
        return batch_at(step)

    ahead = []
    run(tmp_path, noting, on_step=lambda done, state: ahead.append(len(made) - done) or time.sleep(0.02))
    assert {name for _, name in made} == {"batches"}
    assert [step for step, _ in made] == list(range(STEPS))
    assert max(ahead) >= 2


def test_on_step_may_end_the_run_with_a_checkpoint(tmp_path):
    state = run(tmp_path, on_step=lambda done, state: done == 5)
    assert int(state.step) == 5
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 5


def test_out_of_memory_names_the_step_the_batch_and_the_last_checkpoint(tmp_path):
    """A real allocation that no machine can make, asked for by the shape of one batch."""

    def hungry(trainable, frozen, batch):
        loss, metrics = loss_fn(trainable, frozen, batch)
        if batch["x"].shape[0] == 9:
            huge = jnp.broadcast_to(batch["x"][:, :1, None], (9, 1 << 24, 1 << 20)) * trainable["bias"]
            loss = loss + jnp.cumsum(huge, axis=1).mean()
        return loss, metrics

    def longer(step):
        batch = batch_at(step)
        if step == 8:
            batch = {"x": np.ones((9, 3), np.float32), "y": np.ones(9, np.float32)}
        return batch

    tx = make_optimizer(OptimConfig(learning_rate=0.1), STEPS)
    state = init_state({"w": jnp.zeros(3), "bias": jnp.zeros(())}, {"w": jnp.zeros(3)}, tx)
    log = RunLog(None, stream=open(os.devnull, "w"))  # noqa: SIM115
    options = {"steps": STEPS, "directory": tmp_path, "checkpoint_every": 3, "log": log, "label": "t"}
    with pytest.raises(InputError, match=r"ran out of memory on arrays \(9, 3\) at step 8.*checkpoint is step 6"):
        train(state, make_step(hungry, tx), longer, **options)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 6
    assert np.load(tmp_path / "bad_batch_step8.npz")["['x']"].shape == (9, 3)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    """Real failing writes: the process may not write files beyond a few bytes from step 5 on."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(done, state):
        while done == 5 and not (tmp_path / "checkpoints" / "3").exists():
            time.sleep(0.01)
        if done == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))

    try:
        with pytest.raises(InputError, match=r"checkpoint 6 in .* cannot be written \(.*\); .* step 3: free space"):
            run_quietly(tmp_path, on_step=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 3
    whole = run_quietly(tmp_path / "other")
    for one, other in zip(jax.tree.leaves(run_quietly(tmp_path)), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def run_quietly(folder, **kwargs):
    """`run` without log files of its own."""
    state, step = fresh()
    log = RunLog(None, stream=open(os.devnull, "w"))  # noqa: SIM115
    options = {"directory": folder, "checkpoint_every": 3, "log": log, "label": "t"}
    return train(state, step, batch_at, steps=STEPS, **options, **kwargs)


def test_speed_padding_and_utilisation_are_logged(tmp_path):
    run(tmp_path, flops_per_token=1e6)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"], rel=1e-6)
        assert 0 < row["mfu"] < 1


def test_each_step_has_its_own_seconds_the_last_one_too(tmp_path):
    state, step = fresh()

    def slow(*arguments):
        time.sleep(0.05)
        return step(*arguments)

    log = RunLog(tmp_path, stream=open(os.devnull, "w"))  # noqa: SIM115
    train(state, slow, batch_at, steps=STEPS, directory=tmp_path, checkpoint_every=STEPS, log=log, label="t")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert min(row["seconds"] for row in rows) > 0.045


def test_sigterm_saves_and_the_same_call_continues(tmp_path):
    def send(done, state):
        if done == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="after step 5 of 12"):
        run(tmp_path, on_step=send)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 5
    assert int(run(tmp_path).step) == STEPS


def test_restore_names_a_checkpoint_that_does_not_fit(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        with pytest.raises(InputError, match="no complete checkpoint"):
            checkpoints.restore({"a": jnp.zeros(3)})
        checkpoints.save(1, {"a": jnp.arange(3.0)})
    with Checkpoints(tmp_path / "c") as checkpoints:
        np.testing.assert_array_equal(checkpoints.restore({"a": jnp.zeros(3)})["a"], np.arange(3.0))
        with pytest.raises(InputError, match=r"checkpoint 1 in .* cannot be restored"):
            checkpoints.restore({"b": jnp.zeros(3)})


def test_checkpoint_moves_between_meshes(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    tree = {"a": jax.device_put(jnp.arange(16.0), rows)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, tree)
    with Checkpoints(tmp_path) as checkpoints:
        single = checkpoints.restore({"a": jnp.zeros(16)})
    np.testing.assert_array_equal(single["a"], np.arange(16.0))
    assert len(single["a"].devices()) == 1

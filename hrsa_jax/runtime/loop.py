"""The one training loop: conversion, SFT and GRPO differ in their loss and their batches only.

    state = init_state(trainable, frozen, optimizer)
    step = make_step(loss_fn, optimizer)
    state = train(state, step, batch_at, steps=..., directory=..., ...)

`batch_at(step)` is a pure function, so a resumed run sees the batches it would have seen. Nothing in the loop waits
for the device except one step behind: the numbers of step k are read while step k + 1 runs.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hrsa_jax.runtime.checkpoint import Checkpoints
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import RunLog

PyTree = Any
Metrics = dict[str, jax.Array]
LossFn = Callable[[PyTree, PyTree, PyTree], tuple[jax.Array, Metrics]]


class Interrupted(Exception):
    """SIGTERM arrived: the checkpoint is written and the same command continues."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """step: int32 (); trainable: fp32 masters; frozen: arrays never updated nor saved; opt_state: optax's."""

    step: jax.Array
    trainable: PyTree
    frozen: PyTree
    opt_state: PyTree

    def saved(self) -> dict[str, PyTree]:
        """The part that a checkpoint holds."""
        return {"step": self.step, "trainable": self.trainable, "opt_state": self.opt_state}


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with a warm-up and a schedule; the run's length is given where it is used."""

    learning_rate: float
    warmup_steps: int = 0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def learning_rate_at(self, steps: int) -> optax.Schedule:
        """step -> learning rate over a run of `steps`: the peak when the warm-up ends, 0 at the end of the run.

        Raises:
            InputError: no steps, or a warm-up that is not shorter than the run.
        """
        if steps < 1 or not 0 <= self.warmup_steps < steps:
            raise InputError(
                f"optimiser: {steps} steps with warmup_steps={self.warmup_steps}: "
                "give at least one step and a warm-up shorter than the run"
            )
        rest = steps - self.warmup_steps
        after = {
            "cosine": lambda: optax.cosine_decay_schedule(self.learning_rate, rest),
            "linear": lambda: optax.linear_schedule(self.learning_rate, 0.0, rest),
            "constant": lambda: optax.constant_schedule(self.learning_rate),
        }[self.schedule]()
        # The first step already moves the weights: at step s of w warm-up steps the rate is peak * (s + 1) / (w + 1).
        first = self.learning_rate / (self.warmup_steps + 1)
        warmup = optax.linear_schedule(first, self.learning_rate, self.warmup_steps)
        return optax.join_schedules([warmup, after], [self.warmup_steps])


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; weight decay on matrices only, as is usual for norms and biases."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            config.learning_rate_at(steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=_is_matrix,
        ),
    )


def _is_matrix(params: PyTree) -> PyTree:
    """True for kernels, tables and adapter factors. Stacked norms and biases are (L, D): decided by name."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim >= 2 and not any(word in jax.tree_util.keystr(path) for word in ("norm", "bias")),
        params,
    )


def init_state(trainable: PyTree, frozen: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0. `trainable` is copied: the loop donates its buffers, the caller's model stays usable."""
    trainable = jax.tree.map(jnp.copy, trainable)
    # Jitted so that the moments take the parameters' shardings instead of landing on one device.
    opt_state = jax.jit(optimizer.init)(trainable)
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, opt_state)


def make_step(loss_fn: LossFn, optimizer: optax.GradientTransformation) -> Callable[[TrainState, PyTree], Any]:
    """Compiles one update.

    Args:
        loss_fn: (trainable, frozen, batch) -> (loss fp32 scalar, metrics of scalars).
        optimizer: from `make_optimizer`.

    Returns:
        step(state, batch) -> (state, metrics): metrics gains loss, grad_norm and finite. Where the loss or the
        gradient is not finite the state comes back unchanged (finite = 0), so that no bad update is ever applied.
    """

    def update(saved: dict[str, PyTree], frozen: PyTree, batch: PyTree) -> tuple[dict[str, PyTree], Metrics]:
        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(saved["trainable"], frozen, batch)
        grad_norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates, opt_state = optimizer.update(grads, saved["opt_state"], saved["trainable"])
        new = {
            "step": saved["step"] + 1,
            "trainable": optax.apply_updates(saved["trainable"], updates),
            "opt_state": opt_state,
        }
        kept = jax.tree.map(lambda fresh, old: jnp.where(finite, fresh, old), new, saved)
        return kept, {**metrics, "loss": loss, "grad_norm": grad_norm, "finite": finite}

    compiled = jax.jit(update, donate_argnums=0)

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        saved, metrics = compiled(state.saved(), state.frozen, batch)
        return TrainState(saved["step"], saved["trainable"], state.frozen, saved["opt_state"]), metrics

    return step


def train(
    state: TrainState,
    step: Callable[[TrainState, PyTree], tuple[TrainState, Metrics]],
    batch_at: Callable[[int], PyTree],
    *,
    steps: int,
    directory: Path,
    checkpoint_every: int,
    log: RunLog,
    label: str,
    place: Callable[[PyTree], PyTree] = lambda batch: jax.tree.map(jnp.asarray, batch),
    on_step: Callable[[int, TrainState], None] | None = None,
) -> TrainState:
    """Runs (or continues) training until `steps` updates are done.

    Args:
        batch_at: step -> pytree of numpy arrays; pure, called ahead of the device in a thread.
        directory: holds the checkpoints; the newest complete one is continued, bit for bit on CPU.
        checkpoint_every: steps between checkpoints (the last step is always saved).
        place: puts a host batch on the devices.
        on_step: called with (steps done, state) after each update: snapshots, evaluation.

    Raises:
        InputError: loss or gradient became NaN or infinite; the batch is saved and no later state is.
        Interrupted: SIGTERM arrived; the checkpoint was written first.
    """
    with Checkpoints(directory / "checkpoints") as checkpoints, _sigterm_flag() as stopped:
        if checkpoints.latest() is not None:
            state = TrainState(frozen=state.frozen, **checkpoints.restore(state.saved()))
        start = int(state.step)
        log.rewind(label, start)
        reader = _MetricsReader(log, label, directory, checkpoints)
        with log.progress(label, steps, done=start) as progress:
            for number, batch in _prefetch(batch_at, start, steps):
                state, metrics = step(state, place(batch))
                reader.push(number, metrics, batch, progress)
                if on_step is not None:
                    on_step(number + 1, state)
                last = number + 1 == steps or stopped.is_set()
                if last or (number + 1) % checkpoint_every == 0:
                    reader.drain(progress)
                    checkpoints.save(number + 1, state.saved())
                if stopped.is_set() and number + 1 < steps:
                    checkpoints.close()
                    raise Interrupted(f"{label} stopped after step {number + 1} of {steps}; its checkpoint is saved")
    return state


class _MetricsReader:
    """Reads each step's numbers one step late, writes them down, and stops the run when one is not finite."""

    def __init__(self, log: RunLog, label: str, directory: Path, checkpoints: Checkpoints):
        self._log, self._label, self._directory, self._checkpoints = log, label, directory, checkpoints
        self._pending: tuple[int, Metrics, PyTree] | None = None
        self._clock = time.monotonic()

    def push(self, number: int, metrics: Metrics, batch: PyTree, progress: Any) -> None:
        self.drain(progress)
        self._pending = (number, metrics, batch)

    def drain(self, progress: Any) -> None:
        if self._pending is None:
            return
        number, metrics, batch = self._pending
        self._pending = None
        values = {key: np.asarray(value).item() for key, value in jax.device_get(metrics).items()}
        if not values.pop("finite"):
            self._fail(number, values, batch)
        now = time.monotonic()
        values["seconds"], self._clock = now - self._clock, now
        if "tokens" in values:
            values["tokens_per_second"] = values["tokens"] / max(values["seconds"], 1e-9)
        self._log.metrics(self._label, number, values)
        progress.update(1, f"loss {values['loss']:.3f}")

    def _fail(self, number: int, values: dict[str, float], batch: PyTree) -> None:
        path = self._directory / f"bad_batch_step{number}.npz"
        flat = {jax.tree_util.keystr(key): leaf for key, leaf in jax.tree_util.tree_leaves_with_path(batch)}
        np.savez(path, **flat)
        self._checkpoints.close()
        newest = self._checkpoints.latest()
        kept = "no checkpoint was due yet" if newest is None else f"the last good checkpoint is step {newest}"
        raise InputError(
            f"{self._label}: loss {values['loss']:.4g} with gradient norm {values['grad_norm']:.4g} at step {number}, "
            f"so training stopped; {kept}, the batch is in {path}: lower the learning rate or look at that batch"
        )


def _prefetch(batch_at: Callable[[int], PyTree], start: int, steps: int, ahead: int = 2) -> Iterator[tuple[int, Any]]:
    """Yields (step, batch) in order; a thread prepares up to `ahead` batches while the device works."""
    ready: queue.Queue[tuple[int, Any, BaseException | None]] = queue.Queue(maxsize=ahead)
    abandoned = threading.Event()

    def produce() -> None:
        for number in range(start, steps):
            item: tuple[int, Any, BaseException | None]
            try:
                item = (number, batch_at(number), None)
            except BaseException as error:
                item = (number, None, error)
            while not abandoned.is_set():
                try:
                    ready.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if abandoned.is_set() or item[2] is not None:
                return

    thread = threading.Thread(target=produce, name="batches", daemon=True)
    thread.start()
    try:
        for _ in range(start, steps):
            number, batch, error = ready.get()
            if error is not None:
                raise error
            yield number, batch
    finally:
        abandoned.set()
        thread.join()


@contextmanager
def _sigterm_flag() -> Iterator[threading.Event]:
    """Turns SIGTERM into an event while the loop runs (signals reach the main thread only)."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, previous)

"""The one training loop: conversion, SFT and GRPO differ in their loss and their batches only.

    state = init_state(trainable, frozen, optimizer)
    step = make_step(loss_fn, optimizer)
    state = train(state, step, batch_at, steps=..., directory=..., ...)

`batch_at(step)` is a pure function, so a resumed run sees the batches it would have seen. Nothing in the loop waits
for the device except one step behind: the numbers of step k are read while step k + 1 runs.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from hrsa_jax.runtime.checkpoint import Checkpoints
from hrsa_jax.runtime.errors import InputError, Interrupted
from hrsa_jax.runtime.flops import peak_flops
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.metrics import read
from hrsa_jax.runtime.optim import OptimConfig, ParameterGroup, make_optimizer
from hrsa_jax.runtime.processes import index, sigterm_asks

__all__ = [
    "OptimConfig",
    "ParameterGroup",
    "TrainState",
    "init_state",
    "make_optimizer",
    "make_step",
    "optimizer_shardings",
    "train",
    "update_program",
]

PyTree = Any
Metrics = dict[str, Any]  # float32 scalars, or runtime/metrics.Mean
LossFn = Callable[[PyTree, PyTree, PyTree], tuple[jax.Array, Metrics]]


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


def init_state(trainable: PyTree, frozen: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """Step 0. `trainable` is copied: the loop donates its buffers, the caller's model stays usable.

    Where weights are split over a mesh, arrays that are on no mesh (adapters, counters) are held by all its devices.
    On one device all arrays are committed to it, as a step's results are: else the second step would compile again.
    """
    step = jnp.zeros((), jnp.int32)
    step, trainable, frozen = _on_one_mesh((step, jax.tree.map(jnp.copy, trainable), frozen))
    opt_state = jax.jit(optimizer.init, out_shardings=optimizer_shardings(optimizer, trainable))(trainable)
    return TrainState(step, trainable, frozen, opt_state)


def optimizer_shardings(optimizer: optax.GradientTransformation, trainable: PyTree) -> PyTree:
    """Shardings of `optimizer.init(trainable)`: moments lie as their parameters do, counters on every device.

    Left to the compiler, moments are zeros that depend on no parameter, so every device would hold all of them.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, trainable)
    first = jax.tree.leaves(shardings)[0]
    everywhere = NamedSharding(first.mesh, PartitionSpec()) if isinstance(first, NamedSharding) else first
    return optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, trainable),
        shardings,
        transform_non_params=lambda _: everywhere,
    )


def _on_one_mesh(tree: PyTree) -> PyTree:
    meshes = [leaf.sharding.mesh for leaf in jax.tree.leaves(tree) if isinstance(leaf.sharding, NamedSharding)]

    def place(leaf: jax.Array) -> jax.Array:
        if isinstance(leaf.sharding, NamedSharding) or not meshes:
            return jax.device_put(leaf, leaf.sharding)
        value = np.asarray(leaf)
        everywhere = NamedSharding(meshes[0], PartitionSpec())
        return jax.make_array_from_callback(value.shape, everywhere, lambda index: value[index])

    return jax.tree.map(place, tree)


def update_program(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    saved: dict[str, PyTree],
    *,
    learning_rate: Callable[[jax.Array], Any] | None = None,
) -> Any:
    """The jitted update(saved, frozen, batch) -> (saved, metrics) that `make_step` wraps; `lower` it to see its cost.

    Args:
        saved: arrays or ShapeDtypeStructs, from `TrainState.saved`. The new state is laid out as they are, so that
            one program serves all steps; the update donates them.
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
        rate = {} if learning_rate is None else {"learning_rate": learning_rate(saved["step"])}
        return kept, {**metrics, **rate, "loss": loss, "grad_norm": grad_norm, "finite": finite}

    layout = jax.tree.map(lambda leaf: leaf.sharding, saved)
    meshed = all(isinstance(leaf, NamedSharding) for leaf in jax.tree.leaves(layout))
    return jax.jit(update, donate_argnums=0, out_shardings=(layout, None) if meshed else None)


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    learning_rate: Callable[[jax.Array], Any] | None = None,
) -> Callable[[TrainState, PyTree], Any]:
    """Compiles one update; the old state's buffers are donated to the new one.

    Args:
        loss_fn: (trainable, frozen, batch) -> (loss fp32 scalar, metrics of scalars or Means).
        optimizer: from `make_optimizer`.
        learning_rate: step -> rate, to be logged beside the metrics.

    Returns:
        step(state, batch) -> (state, metrics): metrics gains loss, grad_norm and finite (and learning_rate). Where
        the loss or the gradient is not finite the state comes back unchanged (finite = 0): no bad update is applied.
    """

    compiled: Any = None

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        nonlocal compiled
        if compiled is None:
            compiled = update_program(loss_fn, optimizer, state.saved(), learning_rate=learning_rate)
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
    bucket: str = "",
    place: Callable[[PyTree], PyTree] = lambda batch: jax.tree.map(jnp.asarray, batch),
    on_step: Callable[[int, TrainState], bool | None] | None = None,
    flops_per_token: float | None = None,
) -> TrainState:
    """Runs (or continues) training until `steps` updates are done.

    Args:
        batch_at: step -> pytree of numpy arrays; pure, called ahead of the device in a thread.
        directory: holds the checkpoints; the newest complete one is continued, bit for bit on CPU.
        checkpoint_every: steps between checkpoints (the last step is always saved).
        bucket: gs:// address of the checkpoints, in place of the folder below `directory`.
        place: puts a host batch on the devices.
        on_step: called with (steps done, state) after each update: snapshots, evaluation. The state's buffers are
            the next step's to use up. True ends the run here (early stopping), with a checkpoint.
        flops_per_token: model FLOPs of one training token; the share of the devices' speed that is used is logged.

    Raises:
        InputError: loss or gradient became NaN or infinite, or the devices' memory ran out: the batch is saved and no
            later state is. A checkpoint that could not be written: the earlier ones are kept.
        Interrupted: SIGTERM arrived; the checkpoint was written first.
    """
    with Checkpoints(bucket or directory / "checkpoints") as checkpoints, sigterm_asks() as asked_to_stop:
        if checkpoints.latest() is not None:
            if bucket and not log.history(label):  # what the earlier steps measured would be missing from the results
                raise InputError(
                    f"{bucket} holds the checkpoint of step {checkpoints.latest()}, but this workdir has no step of "
                    f"{label}: give the workdir it belongs to, or another address"
                )
            state = TrainState(frozen=state.frozen, **checkpoints.restore(state.saved()))
        start = int(state.step)
        log.rewind(label, start)
        watch = _Watch(log, label, directory, checkpoints, flops_per_token)
        with log.progress(label, steps, done=start) as progress:
            for number, batch in _prefetch(batch_at, start, steps):
                with watch.memory(number, batch):
                    state, metrics = step(state, place(batch))
                watch.push(number, metrics, batch, progress)
                enough = on_step is not None and bool(on_step(number + 1, state))
                stopped = asked_to_stop(number)
                last = number + 1 == steps or stopped or enough
                if last or (number + 1) % checkpoint_every == 0:
                    watch.drain(progress)
                    checkpoints.save(number + 1, state.saved())
                if stopped:
                    checkpoints.close()
                    raise Interrupted(f"{label} stopped after step {number + 1} of {steps}; its checkpoint is saved")
                if enough:
                    break
        checkpoints.close()
    return state


class _Watch:
    """Reads each step's numbers one step late, writes them down, and stops the run when something is wrong."""

    def __init__(
        self, log: RunLog, label: str, directory: Path, checkpoints: Checkpoints, flops_per_token: float | None
    ):
        self._log, self._label, self._directory, self._checkpoints = log, label, directory, checkpoints
        self._pending: tuple[int, Metrics, PyTree] | None = None
        self._flops_per_token = flops_per_token
        self._peak = peak_flops() if flops_per_token else 0.0
        self._clock = time.monotonic()

    def push(self, number: int, metrics: Metrics, batch: PyTree, progress: Any) -> None:
        """Takes the numbers of a step that may still be running, and reads those of the step before."""
        self.drain(progress)
        self._pending = (number, metrics, batch)
        arrays = [leaf for leaf in jax.tree.leaves(metrics) if isinstance(leaf, jax.Array)]
        if arrays and all(device.platform == "cpu" for array in arrays for device in array.devices()):
            self.drain(progress)  # computed within the call or nearly: read late, it would get the next one's time

    def drain(self, progress: Any) -> None:
        """Waits for the step that was pushed last; the time since the last reading was that step's."""
        if self._pending is None:
            return
        number, metrics, batch = self._pending
        self._pending = None
        with self.memory(number, batch):
            values = read(metrics)
        if not values.pop("finite"):
            what = f"loss {values['loss']:.4g} with gradient norm {values['grad_norm']:.4g}"
            raise self._stop(what, number, batch, "lower the learning rate or look at that batch")
        values["seconds"] = time.monotonic() - self._clock
        self._clock += values["seconds"]
        note = f"loss {values['loss']:.3f}"
        if "tokens" in values:
            speed = values["tokens_per_second"] = values["tokens"] / max(values["seconds"], 1e-9)
            note += f", {speed:.0f} tokens/s"
            if self._peak and self._flops_per_token:
                values["mfu"] = speed * self._flops_per_token / self._peak
                note += f", MFU {values['mfu']:.0%}"
        if "padding" in values:
            note += f", padding {values['padding']:.0%}"
        self._log.metrics(self._label, number, values)
        progress.update(1, note)

    @contextmanager
    def memory(self, number: int, batch: PyTree) -> Iterator[None]:
        """Turns a device that is out of memory into the one sentence; any other error passes."""
        try:
            yield
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            shapes = sorted({str(np.shape(leaf)) for leaf in jax.tree.leaves(batch) if np.ndim(leaf) > 1})
            what = f"the devices ran out of memory on arrays {', '.join(shapes)}"
            remedy = "compute the batch in more chunks, shorten the texts or use more devices"
            raise self._stop(what, number, batch, remedy) from error

    def _stop(self, what: str, number: int, batch: PyTree, remedy: str) -> InputError:
        path = self._directory / f"bad_batch_step{number}.npz"
        flat = {jax.tree_util.keystr(key): leaf for key, leaf in jax.tree_util.tree_leaves_with_path(batch)}
        if index() == 0:
            np.savez(path, **flat)
        self._checkpoints.close()
        newest = self._checkpoints.latest()
        kept = "no checkpoint was due yet" if newest is None else f"the last good checkpoint is step {newest}"
        return InputError(
            f"{self._label}: {what} at step {number}, so training stopped; {kept}, the batch is in {path}: {remedy}"
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

"""The optimiser of every training run, from optax: AdamW or Lion, schedule, clipping, groups, accumulation."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from hrsa_jax.runtime.errors import InputError

PyTree = Any


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters whose path matches `pattern` (a regular expression, e.g. "embed"): their share of the learning
    rate (0 freezes them), and whether weight decay applies to them."""

    pattern: str
    rate: float = 1.0
    decay: bool = True

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise InputError(f"optimiser: group pattern {self.pattern!r} is no regular expression ({error})") from error


@dataclass(frozen=True)
class OptimConfig:
    """AdamW (or Lion) with a warm-up and a schedule; the run's length is given where it is used.

    The warm-up is `warmup_steps`, or `warmup_share` of the run. With `accumulate` k the gradients of k batches are
    averaged into one update (a contrastive loss then takes its negatives from each batch alone: to compute one large
    batch in little memory, use the recipe's chunks).
    """

    learning_rate: float
    warmup_steps: int = 0
    warmup_share: float = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    optimizer: Literal["adamw", "lion"] = "adamw"
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    accumulate: int = 1
    groups: tuple[ParameterGroup, ...] = ()

    def learning_rate_at(self, steps: int) -> optax.Schedule:
        """update -> learning rate over a run of `steps`: the peak when the warm-up ends, 0 at the end of the run.

        Raises:
            InputError: no steps, or a warm-up that is not shorter than the run.
        """
        updates = steps // self.accumulate if self.accumulate > 0 else 0
        warmup = self.warmup_steps or round(self.warmup_share * updates)
        if updates < 1 or not 0 <= warmup < updates:
            raise InputError(
                f"optimiser: {steps} steps with warmup_steps={warmup} and accumulate={self.accumulate}: "
                "give at least one step, accumulate of at least 1 and a warm-up shorter than the run"
            )
        rest = updates - warmup
        after = {
            "cosine": lambda: optax.cosine_decay_schedule(self.learning_rate, rest),
            "linear": lambda: optax.linear_schedule(self.learning_rate, 0.0, rest),
            "constant": lambda: optax.constant_schedule(self.learning_rate),
        }[self.schedule]()
        # The first step already moves the weights: at step s of w warm-up steps the rate is peak * (s + 1) / (w + 1).
        first = self.learning_rate / (warmup + 1)
        return optax.join_schedules([optax.linear_schedule(first, self.learning_rate, warmup), after], [warmup])


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW or Lion; weight decay on matrices only, as is usual for norms and biases."""
    rate = config.learning_rate_at(steps)
    decay: dict[str, Any] = {"weight_decay": config.weight_decay, "mask": _decays(config.groups)}
    kind = (
        optax.adamw(rate, b1=config.b1, b2=config.b2, eps=config.eps, **decay)
        if config.optimizer == "adamw"
        else optax.lion(rate, b1=config.b1, b2=config.b2, **decay)
    )
    parts = [optax.clip_by_global_norm(config.clip_norm), kind]
    # An update is proportional to the learning rate, weight decay included, so a group's rate scales its update.
    parts += [optax.masked(optax.scale(group.rate), _matches(group)) for group in config.groups if group.rate != 1.0]
    optimizer = optax.chain(*parts)
    if config.accumulate == 1:
        return optimizer
    return optax.MultiSteps(optimizer, every_k_schedule=config.accumulate).gradient_transformation()


def _matches(group: ParameterGroup) -> Callable[[PyTree], PyTree]:
    def mask(params: PyTree) -> PyTree:
        found = jax.tree_util.tree_map_with_path(
            lambda path, _: re.search(group.pattern, jax.tree_util.keystr(path)) is not None, params
        )
        if not any(jax.tree.leaves(found)):
            raise InputError(f"optimiser: no parameter matches the group pattern {group.pattern!r}; correct it")
        return found

    return mask


def _decays(groups: tuple[ParameterGroup, ...]) -> Callable[[PyTree], PyTree]:
    """True for kernels, tables and adapter factors. Stacked norms and biases are (L, D): decided by name."""

    def decays(path: Any, leaf: Any) -> bool:
        name = jax.tree_util.keystr(path)
        spared = any(not group.decay and re.search(group.pattern, name) for group in groups)
        return leaf.ndim >= 2 and not spared and not any(word in name for word in ("norm", "bias"))

    return lambda params: jax.tree_util.tree_map_with_path(decays, params)

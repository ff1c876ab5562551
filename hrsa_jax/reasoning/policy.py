"""The training step of GRPO: sample, score, update. It goes through the one loop of runtime/loop.py.

Its batches are numbers of questions, a pure function of the step. The first update after sampling is made by the very
policy that sampled, so its importance ratio is exactly one; further updates of the same rollout are clipped against it.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.lora import has_lora, remove_lora
from hrsa_jax.reasoning.grpo import GRPOConfig, Guard, grpo_loss, k3_divergence
from hrsa_jax.reasoning.rollout import Rollout, Sampler
from hrsa_jax.reasoning.sft import token_logps
from hrsa_jax.reasoning.tasks import Problem, score
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import counted
from hrsa_jax.runtime.loop import TrainState, make_step

Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]]


def grpo_loss_fn(graphdef: Any, config: GRPOConfig) -> Callable[[Any, Any, Rollout], tuple[jax.Array, dict[str, Any]]]:
    """loss_fn(trainable, frozen, rollout) -> (GRPO loss, metrics)."""

    def loss_fn(trainable: Any, frozen: Any, rollout: Rollout) -> tuple[jax.Array, dict[str, Any]]:
        decoder = nnx.merge(graphdef, trainable, frozen)
        weight_BM = rollout.solution.weight_RM
        logp_BM = token_logps(decoder, rollout.solution, jnp.dtype(config.dtype), config.remat, config.block)
        old_logp_BM = jax.lax.stop_gradient(logp_BM) if rollout.old_logp_BM is None else rollout.old_logp_BM
        loss = grpo_loss(
            logp_BM,
            old_logp_BM,
            rollout.ref_logp_BM,
            rollout.advantage_B,
            weight_BM > 0,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            kl_coef=config.kl_coef,
        )

        def mean(values_BM: jax.Array) -> jax.Array:
            return jnp.sum(values_BM * weight_BM) / jnp.sum(weight_BM)

        metrics = {
            "reward": jnp.mean(rollout.reward_B),
            "length": jnp.mean(jnp.sum(weight_BM, axis=1)),
            "truncated": jnp.mean(rollout.truncated_B),
            "well_formed": jnp.mean(rollout.formed_B),
            "repetition": jnp.mean(rollout.repetition_B),
            "format_share": rollout.format_share,
            "mixed_groups": rollout.mixed_groups,
            "surprisal": -mean(logp_BM),  # of sampled tokens: an unbiased estimate of the entropy at temperature 1
            "sampler_mismatch": mean(jnp.abs(old_logp_BM - rollout.sampler_logp_BM)),
        }
        if rollout.old_logp_BM is not None:
            ratio_BM = jnp.exp(logp_BM - old_logp_BM)
            outside_BM = (ratio_BM > 1 + config.clip_high) | (ratio_BM < 1 - config.clip_low)
            metrics["outside_clip"] = mean(outside_BM.astype(jnp.float32))
        if rollout.ref_logp_BM is not None:
            metrics["kl"] = mean(k3_divergence(logp_BM, rollout.ref_logp_BM))
        return loss, metrics

    return loss_fn


class CollapseWatch:
    """Judges the metrics of each step by a Guard; `seen` are the rows of the steps before a resumption."""

    def __init__(self, guard: Guard, seen: Iterable[Mapping[str, Any]] = ()):
        self._guard = guard
        self._rows: deque[Mapping[str, Any]] = deque(maxlen=guard.window)
        self._best = 0.0
        for row in seen:
            self.look(row)

    def look(self, row: Mapping[str, Any]) -> str | None:
        """Takes a step's metrics; a sentence when the run has collapsed, None while it is well."""
        guard = self._guard
        self._rows.append(row)
        if len(self._rows) < guard.window:
            return None
        mean = {
            name: float(np.mean([row.get(name, 0.0) for row in self._rows]))
            for name in ("reward", "kl", "repetition", "surprisal")
        }
        self._best = max(self._best, mean["reward"])
        found = {
            f"{mean['kl']:.3g} nats per token from the reference (more than {guard.max_kl})": mean["kl"] > guard.max_kl,
            f"mean reward {mean['reward']:.3g} after {self._best:.3g}": mean["reward"]
            < guard.reward_share * self._best,
            f"{mean['repetition']:.0%} of trigrams repeated": mean["repetition"] > guard.max_repetition,
            f"surprisal {mean['surprisal']:.3g} at mean reward {mean['reward']:.3g}": (
                mean["surprisal"] < guard.min_surprisal and mean["reward"] < 0.5
            ),
        }
        signs = [sign for sign, true in found.items() if true]
        return ", ".join(signs) or None


def grpo_step(
    graphdef: Any,
    config: GRPOConfig,
    optimizer: Any,
    problems: Sequence[Problem],
    tokenizer: Any,
    *,
    reference: Decoder | None = None,
    reward: Callable[[Problem, str], float] = score,
    stop_ids: Sequence[int] = (),
    seen: Iterable[Mapping[str, Any]] = (),
    place: Callable[[Any], Any] = jax.device_put,
) -> tuple[Step, Callable[[int], np.ndarray]]:
    """The step and the batches that `runtime.loop.train` takes.

    Args:
        graphdef: from `split_trainable`.
        config: sampling and loss.
        optimizer: from `make_optimizer`, for `config.updates` updates a step.
        problems: training questions.
        tokenizer: of the model.
        reference: for the KL term and its curve; with adapters it is the policy without them and need not be given.
        reward: (problem, completion text) -> [0, 1].
        stop_ids: of the model, beside the tokenizer's end of text.
        seen: metrics of the steps done before, when a run is continued.
        place: puts a rollout's arrays on the devices.

    Returns:
        (step(state, question numbers) -> (state, metrics), batch_at(step) -> question numbers (Q,)). The step raises
        InputError when the run has collapsed (see Guard).

    Raises:
        InputError: fewer problems than questions in a step, or a KL term without a reference.
    """
    if len(problems) < config.questions:
        raise InputError(
            f"GRPO: {counted(len(problems), 'problem')} for {counted(config.questions, 'question')} a step: "
            "give more problems"
        )
    sampler = Sampler(config, problems, tokenizer, reward, stop_ids)
    update = make_step(grpo_loss_fn(graphdef, config), optimizer)
    watch = CollapseWatch(config.guard, seen)

    def step(state: TrainState, chosen_Q: Any) -> tuple[TrainState, dict[str, Any]]:
        number = int(state.step)
        policy = nnx.merge(graphdef, state.trainable, state.frozen)
        base = reference
        if base is None and has_lora(policy):
            base = remove_lora(policy)
        if base is None and config.kl_coef:
            raise InputError(f"GRPO: kl_coef={config.kl_coef} needs a reference: give one, or tune adapters")
        # sampling depends on the seed and the step only, so that a resumed run draws the same samples
        seed = int(np.random.default_rng([config.seed, number]).integers(2**31))
        rollout = place(sampler.rollout(policy, base, np.asarray(chosen_Q), seed))
        del policy, base  # the update uses up the state's buffers
        started = time.monotonic()
        state, metrics = update(state, rollout._replace(old_logp_BM=None))
        for _ in range(config.updates - 1):
            state, later = update(state, rollout)
            metrics |= {name: later[name] for name in ("loss", "grad_norm", "outside_clip")}
            metrics["finite"] = metrics["finite"] & later["finite"]
        if bool(metrics["finite"]):
            # A step of the loop, whatever its updates; placed as it was, or the next update would be compiled anew.
            state = replace(state, step=jax.device_put(np.int32(number + 1), state.step.sharding))
        values = {name: np.asarray(value).item() for name, value in jax.device_get(metrics).items()}
        values |= sampler.seconds | {"seconds_train": time.monotonic() - started}
        collapsed = watch.look(values)
        if collapsed and values["finite"]:
            raise InputError(
                f"GRPO: collapsed at step {number}: {collapsed}; the last checkpoint is from before: lower "
                "optim.learning_rate or raise kl_coef (limits: guard)"
            )
        return state, values

    def batch_at(number: int) -> np.ndarray:
        epoch, index = divmod(number, len(problems) // config.questions)
        order = np.random.default_rng([config.seed, epoch]).permutation(len(problems))
        return order[index * config.questions : (index + 1) * config.questions]

    return step, batch_at

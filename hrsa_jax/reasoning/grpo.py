"""Group-relative policy optimisation (GRPO, arXiv 2402.03300; asymmetric clip: DAPO, arXiv 2503.14476).

Letters here: Q questions, G samples of each question (a group), B = Q * G samples, T tokens, M completion tokens.
Pure functions and settings; rollout.py samples and scores, policy.py makes the training step.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from hrsa_jax.reasoning.tasks import Style
from hrsa_jax.runtime.errors import InputError


def group_advantages(rewards_QG: jax.Array | np.ndarray, *, scale_by_std: bool = True) -> jax.Array:
    """Advantage of a sample over its group: (reward - mean) / population standard deviation, no epsilon.

    Args:
        rewards_QG: (Q, G) rewards.
        scale_by_std: False leaves the division out (Dr. GRPO, arXiv 2503.20783).

    Returns:
        (Q, G) advantages; exactly 0 throughout a group whose rewards are all equal.
    """
    rewards_QG = jnp.asarray(rewards_QG)
    if rewards_QG.ndim != 2:
        raise ValueError(f"rewards_QG must have two axes (questions, samples), it has shape {rewards_QG.shape}")
    if not jnp.issubdtype(rewards_QG.dtype, jnp.floating):
        rewards_QG = rewards_QG.astype(jnp.float32)
    # equality is tested on the rewards: the rounded mean of three times 0.1 is not 0.1, and without an epsilon
    # the rounding error would be blown up to an advantage of one
    mixed_Q1 = jnp.max(rewards_QG, axis=1, keepdims=True) > jnp.min(rewards_QG, axis=1, keepdims=True)
    centred_QG = rewards_QG - jnp.mean(rewards_QG, axis=1, keepdims=True)
    if not scale_by_std:
        return jnp.where(mixed_Q1, centred_QG, 0)
    std_Q1 = jnp.sqrt(jnp.mean(jnp.square(centred_QG), axis=1, keepdims=True))
    return jnp.where(mixed_Q1, centred_QG / jnp.where(mixed_Q1, std_Q1, 1), 0)


def grpo_loss(
    logp_BT: jax.Array,
    old_logp_BT: jax.Array,
    ref_logp_BT: jax.Array | None,
    advantage_B: jax.Array,
    mask_BT: jax.Array,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coef: float = 0.0,
) -> jax.Array:
    """Clipped policy-gradient loss, averaged over tokens.

    With ratio = exp(logp - old_logp) and the k3 estimate kl = exp(ref - logp) - (ref - logp) - 1:

        loss = - sum_counted [min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) - kl_coef kl] / #counted

    A token counts when its mask is true and its sample's advantage is not exactly zero. An exact zero is how
    `group_advantages` marks a group of equal rewards: such groups leave the numerator, the KL term and the
    denominator. (With 0/1 rewards no sample of a mixed group is at zero; with graded rewards one that sits
    exactly on its group's mean is left out too.)

    Args:
        logp_BT: (B, T) log-probabilities of the sampled tokens under the policy being trained.
        old_logp_BT: (B, T) the same under the policy that sampled; no gradient flows into it.
        ref_logp_BT: (B, T) the same under the reference, or None when there is none.
        advantage_B: (B,) advantages.
        mask_BT: (B, T) True at completion tokens; values elsewhere are ignored, infinities included.
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        kl_coef: weight of the KL term; needs ref_logp_BT when not zero.

    Returns:
        Scalar loss; 0 when no token counts.
    """
    if logp_BT.ndim != 2 or old_logp_BT.shape != logp_BT.shape or mask_BT.shape != logp_BT.shape:
        raise ValueError(
            f"logp_BT {logp_BT.shape}, old_logp_BT {old_logp_BT.shape} and mask_BT {mask_BT.shape} "
            "must be one and the same (B, T)"
        )
    if advantage_B.shape != logp_BT.shape[:1]:
        raise ValueError(f"advantage_B has shape {advantage_B.shape}, logp_BT has {logp_BT.shape[0]} samples")
    if kl_coef and ref_logp_BT is None:
        raise ValueError(f"kl_coef is {kl_coef} but ref_logp_BT is None: give a reference or set kl_coef to 0")
    advantage_B1 = jax.lax.stop_gradient(advantage_B)[:, None]
    counted_BT = mask_BT.astype(bool) & (advantage_B1 != 0)
    # the masked values are replaced before the exponential: an infinity there would make the gradient NaN
    logp_BT = jnp.where(counted_BT, logp_BT, 0)
    old_logp_BT = jnp.where(counted_BT, jax.lax.stop_gradient(old_logp_BT), 0)
    ratio_BT = jnp.exp(logp_BT - old_logp_BT)
    clipped_BT = jnp.clip(ratio_BT, 1 - clip_low, 1 + clip_high)
    objective_BT = jnp.minimum(ratio_BT * advantage_B1, clipped_BT * advantage_B1)
    if kl_coef and ref_logp_BT is not None:
        ref_logp_BT = jnp.where(counted_BT, jax.lax.stop_gradient(ref_logp_BT), 0)
        objective_BT = objective_BT - kl_coef * k3_divergence(logp_BT, ref_logp_BT)
    tokens = jnp.sum(counted_BT).astype(objective_BT.dtype)
    return -jnp.sum(jnp.where(counted_BT, objective_BT, 0)) / jnp.maximum(tokens, 1)


def k3_divergence(logp_BT: jax.Array, ref_logp_BT: jax.Array) -> jax.Array:
    """Per-token k3 estimate of KL(policy || reference) at sampled tokens, (B, T), never negative."""
    difference_BT = ref_logp_BT - logp_BT
    return jnp.exp(difference_BT) - difference_BT - 1


@dataclass(frozen=True)
class Guard:
    """When to stop a run that has collapsed, judged on means over the last `window` steps.

    max_kl: nats per token from the reference. reward_share: mean reward below this share of the best window's.
    max_repetition: share of repeated token trigrams. min_surprisal: nats per sampled token below which groups cannot
    differ any more; it counts only while less than half of the reward is earned.
    """

    window: int = 8
    max_kl: float = 1.0
    reward_share: float = 0.4
    max_repetition: float = 0.5
    min_surprisal: float = 1e-3

    def __post_init__(self) -> None:
        if self.window < 1:
            raise InputError(f"GRPO: guard.window={self.window}: give at least one step")


@dataclass(frozen=True)
class GRPOConfig:
    """One step: `questions` x `group` samples, used for `updates` updates.

    clip_low, clip_high, kl_coef, scale_by_std: see `grpo_loss` and `group_advantages`; kl_coef needs a reference.
    format_reward: added to the reward of a text from which an answer can be read, right or wrong.
    style, max_new_tokens, temperature, top_p, stop_strings: how solutions are asked for and sampled.
    sampler_rows: rows decoded together. dtype, remat and block are those of SFTConfig.
    """

    questions: int = 8
    group: int = 8
    updates: int = 1
    max_new_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    stop_strings: tuple[str, ...] = ()
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    scale_by_std: bool = True
    format_reward: float = 0.0
    guard: Guard = field(default_factory=Guard)
    seed: int = 0
    style: Style = "few_shot"
    sampler_rows: int = 64
    dtype: str = "bfloat16"
    remat: bool = True
    block: int = 128

    def __post_init__(self) -> None:
        if self.group < 2 or self.questions < 1 or self.updates < 1:
            raise InputError(
                f"GRPO: questions={self.questions}, group={self.group}, updates={self.updates}: an advantage needs a "
                "group of at least two samples, a step at least one question and one update"
            )
        if self.temperature <= 0:
            raise InputError(f"GRPO: temperature={self.temperature}: greedy samples of a group are all equal; raise it")
        if self.format_reward < 0:
            raise InputError(f"GRPO: format_reward={self.format_reward}: give 0 or more")

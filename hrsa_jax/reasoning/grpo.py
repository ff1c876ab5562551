"""Group-relative policy optimisation (GRPO, arXiv 2402.03300; asymmetric clip: DAPO, arXiv 2503.14476).

Letters here: Q questions, G samples of each question (a group), B = Q * G samples, T tokens, M completion tokens.
The trainer goes through the one loop of runtime/loop.py: its batches are numbers of questions (a pure function of the
step), and its step samples, scores, and then makes one compiled update. Each rollout is used once, so the policy that
samples is the policy that is updated and the ratio is exactly one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.generate import Samples, generate_tokens
from hrsa_jax.models.lora import has_lora, remove_lora
from hrsa_jax.reasoning.sft import Array, SolutionBatch, newline_ids, token_logps
from hrsa_jax.reasoning.tasks import Problem, Style, prompt, score
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.loop import TrainState, make_step


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
class GRPOConfig:
    """One update: `questions` x `group` samples.

    kl_coef needs a reference; style, max_new_tokens, temperature and top_p say how solutions are asked for and
    sampled; dtype, remat and block are those of SFTConfig.
    """

    questions: int = 8
    group: int = 8
    max_new_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    scale_by_std: bool = True
    seed: int = 0
    style: Style = "few_shot"
    dtype: str = "bfloat16"
    remat: bool = True
    block: int = 128

    def __post_init__(self) -> None:
        if self.group < 2 or self.questions < 1:
            raise InputError(
                f"GRPO: questions={self.questions}, group={self.group}: an advantage needs a group of at least two "
                "samples and a step at least one question"
            )
        if self.temperature <= 0:
            raise InputError(f"GRPO: temperature={self.temperature}: greedy samples of a group are all equal; raise it")


class Rollout(NamedTuple):
    """Scored samples (a pytree), one per row of `solution`; M completion tokens, padded as its weights say.

    sampler_logp_BM float32; ref_logp_BM float32 or None without a reference; advantage_B, reward_B, truncated_B
    float32; mixed_groups: share of groups whose rewards differ.
    """

    solution: SolutionBatch
    sampler_logp_BM: Array
    ref_logp_BM: Array | None
    advantage_B: Array
    reward_B: Array
    truncated_B: Array
    mixed_groups: Array


def rollout_rows(prompts: Sequence[Sequence[int]], samples: Samples, prompt_length: int, new: int) -> SolutionBatch:
    """Prompt and completion of each sample in a row of its own, (B, prompt_length + new), completions scored."""
    B, T = len(prompts), prompt_length + new
    tokens_BT, segments_BT = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    index_BM, target_BM = np.zeros((B, new), np.int32), np.zeros((B, new), np.int32)
    weight_BM = np.zeros((B, new), np.float32)
    for row, (asked, completion) in enumerate(zip(prompts, samples.tokens, strict=True)):
        P, M = len(asked), len(completion)
        tokens_BT[row, : P + M] = [*asked, *completion]
        segments_BT[row, : P + M] = 1
        index_BM[row, :M] = np.arange(P - 1, P + M - 1)
        target_BM[row, :M] = completion
        weight_BM[row, :M] = 1.0
    positions_BT = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    return SolutionBatch(tokens_BT, segments_BT, positions_BT, index_BM, target_BM, weight_BM)


def grpo_loss_fn(graphdef: Any, config: GRPOConfig) -> Callable[[Any, Any, Rollout], tuple[jax.Array, dict[str, Any]]]:
    """loss_fn(trainable, frozen, rollout) -> (GRPO loss, metrics)."""

    def loss_fn(trainable: Any, frozen: Any, rollout: Rollout) -> tuple[jax.Array, dict[str, Any]]:
        decoder = nnx.merge(graphdef, trainable, frozen)
        weight_BM = rollout.solution.weight_RM
        logp_BM = token_logps(decoder, rollout.solution, jnp.dtype(config.dtype), config.remat, config.block)
        loss = grpo_loss(
            logp_BM,
            jax.lax.stop_gradient(logp_BM),
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
            "mixed_groups": rollout.mixed_groups,
            "surprisal": -mean(logp_BM),  # of sampled tokens: an unbiased estimate of the entropy at temperature 1
            "sampler_mismatch": mean(jnp.abs(logp_BM - rollout.sampler_logp_BM)),
        }
        if rollout.ref_logp_BM is not None:
            metrics["kl"] = mean(k3_divergence(logp_BM, rollout.ref_logp_BM))
        return loss, metrics

    return loss_fn


_logps = jax.jit(token_logps, static_argnames=("dtype", "remat", "block"))


class Sampler:
    """Samples groups of solutions for numbered problems and scores them."""

    def __init__(
        self,
        config: GRPOConfig,
        problems: Sequence[Problem],
        tokenizer: Any,
        reward: Callable[[Problem, str], float],
    ):
        self.config, self.problems, self.tokenizer, self.reward = config, problems, tokenizer, reward
        texts = [prompt(problem, config.style, tokenizer=tokenizer) for problem in problems]
        self.prompts = [tokenizer(text, add_special_tokens=config.style != "chat")["input_ids"] for text in texts]
        self.prompt_length = -(-max(map(len, self.prompts)) // 32) * 32
        stops = {tokenizer.eos_token_id} | (newline_ids(tokenizer) if config.style == "few_shot" else set())
        self.stops = sorted(stops - {None})

    def rollout(self, policy: Decoder, reference: Decoder | None, chosen_Q: np.ndarray, seed: int) -> Rollout:
        """Groups of samples for the chosen problems; a function of the weights, the problems and the seed."""
        config = self.config
        rows = np.repeat(chosen_Q, config.group)
        prompts = [self.prompts[i] for i in rows]
        dtype = jnp.dtype(config.dtype)
        samples = generate_tokens(
            policy,
            prompts,
            max_new_tokens=config.max_new_tokens,
            eos_ids=self.stops,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=seed,
            batch_size=len(rows),
            dtype=dtype,
        )
        solution = rollout_rows(prompts, samples, self.prompt_length, config.max_new_tokens)
        sampler_logp_BM = np.zeros(solution.weight_RM.shape, np.float32)
        for row, logps in enumerate(samples.logps):
            sampler_logp_BM[row, : len(logps)] = logps
        texts = [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in samples.tokens]
        scored = [self.reward(self.problems[i], text) for i, text in zip(rows, texts, strict=True)]
        reward_B = np.asarray(scored, np.float32)
        reward_QG = reward_B.reshape(-1, config.group)
        ref_logp_BM = None
        if reference is not None:
            ref_logp_BM = _logps(reference, solution, dtype=dtype, remat=False, block=config.block)
        return Rollout(
            solution,
            sampler_logp_BM,
            ref_logp_BM,
            np.asarray(group_advantages(reward_QG, scale_by_std=config.scale_by_std)).reshape(-1),
            reward_B,
            samples.truncated.astype(np.float32),
            np.float32(np.mean(reward_QG.max(1) > reward_QG.min(1))),
        )


def grpo_step(
    graphdef: Any,
    config: GRPOConfig,
    optimizer: Any,
    problems: Sequence[Problem],
    tokenizer: Any,
    *,
    reference: Decoder | None = None,
    reward: Callable[[Problem, str], float] = score,
) -> tuple[Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]], Callable[[int], np.ndarray]]:
    """The step and the batches that `runtime.loop.train` takes.

    Args:
        graphdef: from `split_trainable`.
        config: sampling and loss.
        optimizer: from `make_optimizer`.
        problems: training questions.
        tokenizer: of the model.
        reference: for the KL term and its curve; with adapters it is the policy without them and need not be given.
        reward: (problem, completion text) -> [0, 1].

    Returns:
        (step(state, question numbers) -> (state, metrics), batch_at(step) -> question numbers (Q,)).

    Raises:
        InputError: fewer problems than questions in a step, or a KL term without a reference.
    """
    if len(problems) < config.questions:
        raise InputError(f"GRPO: {len(problems)} problems for {config.questions} questions a step: give more problems")
    sampler = Sampler(config, problems, tokenizer, reward)
    update = make_step(grpo_loss_fn(graphdef, config), optimizer)

    def step(state: TrainState, chosen_Q: Any) -> tuple[TrainState, dict[str, Any]]:
        policy = nnx.merge(graphdef, state.trainable, state.frozen)
        base = reference
        if base is None and has_lora(policy):
            base = remove_lora(policy)
        if base is None and config.kl_coef:
            raise InputError(f"GRPO: kl_coef={config.kl_coef} needs a reference: give one, or tune adapters")
        # sampling depends on the seed and the step only, so that a resumed run draws the same samples
        seed = int(np.random.default_rng([config.seed, int(state.step)]).integers(2**31))
        return update(state, sampler.rollout(policy, base, np.asarray(chosen_Q), seed))

    def batch_at(number: int) -> np.ndarray:
        epoch, index = divmod(number, len(problems) // config.questions)
        order = np.random.default_rng([config.seed, epoch]).permutation(len(problems))
        return order[index * config.questions : (index + 1) * config.questions]

    return step, batch_at

"""Groups of sampled solutions, scored: what one step of GRPO learns from, and the signs of reward hacking in it.

Q questions, G samples of each question (a group), B = Q * G samples, T tokens, M completion tokens.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.generate import Samples, generate_tokens
from hrsa_jax.reasoning.accuracy import ends
from hrsa_jax.reasoning.grpo import GRPOConfig, group_advantages, k3_divergence
from hrsa_jax.reasoning.sft import Array, SolutionBatch, encode_prompts, token_logps
from hrsa_jax.reasoning.tasks import Problem, Style, well_formed

_ROUND = 8  # rows are padded to a multiple, so that few shapes are compiled


class Rollout(NamedTuple):
    """Scored samples (a pytree), one per row of `solution`; M completion tokens, padded as its weights say.

    sampler_logp_BM, ref_logp_BM (None without a reference), old_logp_BM (None where each rollout is used once): float32
    log-probabilities of the sampler, the reference, and the policy that sampled, recomputed. advantage_B, reward_B,
    truncated_B, formed_B (an answer could be read), repetition_B: float32. mixed_groups: share of groups whose rewards
    differ. format_share: share of all reward that was given for form alone.
    """

    solution: SolutionBatch
    sampler_logp_BM: Array
    ref_logp_BM: Array | None
    old_logp_BM: Array | None
    advantage_B: Array
    reward_B: Array
    truncated_B: Array
    formed_B: Array
    repetition_B: Array
    mixed_groups: Array
    format_share: Array


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


def repetition(tokens: Sequence[int]) -> float:
    """Share of a completion's token trigrams that occurred earlier in it; 0 for fewer than four tokens."""
    trigrams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return 0.0 if len(trigrams) < 2 else 1.0 - len(set(trigrams)) / len(trigrams)


_logps = jax.jit(token_logps, static_argnames=("dtype", "remat", "block"))


class Sampler:
    """Samples groups of solutions for numbered problems and scores them. seconds: of the last rollout, by part."""

    def __init__(
        self,
        config: GRPOConfig,
        problems: Sequence[Problem],
        tokenizer: Any,
        reward: Callable[[Problem, str], float],
        stop_ids: Sequence[int] = (),
    ):
        self.config, self.problems, self.tokenizer, self.reward = config, problems, tokenizer, reward
        self.prompts = encode_prompts(tokenizer, problems, config.style)
        self.prompt_length = -(-max(map(len, self.prompts)) // _ROUND) * _ROUND
        self.stops = ends(tokenizer, config.style, stop_ids)
        self.seconds: dict[str, float] = {}

    def rollout(self, policy: Decoder, reference: Decoder | None, chosen_Q: np.ndarray, seed: int) -> Rollout:
        """Groups of samples for the chosen problems; a function of the weights, the problems and the seed."""
        config, started = self.config, time.monotonic()
        rows = np.repeat(chosen_Q, config.group)
        prompts = [self.prompts[i] for i in rows]
        dtype = jnp.dtype(config.dtype)
        samples = generate_tokens(
            policy,
            prompts,
            max_new_tokens=config.max_new_tokens,
            eos_ids=self.stops,
            stop_strings=config.stop_strings,
            tokenizer=self.tokenizer,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=seed,
            batch_size=min(config.sampler_rows, len(rows)),
            dtype=dtype,
        )
        sampled = time.monotonic()
        solution = rollout_rows(prompts, samples, self.prompt_length, config.max_new_tokens)
        sampler_logp_BM = np.zeros(solution.weight_RM.shape, np.float32)
        for row, logps in enumerate(samples.logps):
            sampler_logp_BM[row, : len(logps)] = logps
        texts = [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in samples.tokens]
        solved_B = np.asarray([self.reward(self.problems[i], text) for i, text in zip(rows, texts, strict=True)])
        formed_B = np.asarray([well_formed(self.problems[i], text) for i, text in zip(rows, texts, strict=True)])
        reward_B = (solved_B + config.format_reward * formed_B).astype(np.float32)
        reward_QG = reward_B.reshape(-1, config.group)
        old_logp_BM = ref_logp_BM = None
        if config.updates > 1:
            old_logp_BM = _logps(policy, solution, dtype=dtype, remat=False, block=config.block)
        if reference is not None:
            ref_logp_BM = jax.block_until_ready(
                _logps(reference, solution, dtype=dtype, remat=False, block=config.block)
            )
        self.seconds = {"seconds_sample": sampled - started, "seconds_score": time.monotonic() - sampled}
        return Rollout(
            solution,
            sampler_logp_BM,
            ref_logp_BM,
            old_logp_BM,
            np.asarray(group_advantages(reward_QG, scale_by_std=config.scale_by_std)).reshape(-1),
            reward_B,
            samples.truncated.astype(np.float32),
            formed_B.astype(np.float32),
            np.asarray([repetition(tokens) for tokens in samples.tokens], np.float32),
            np.float32(np.mean(reward_QG.max(1) > reward_QG.min(1))),
            np.float32(1.0 - solved_B.sum() / reward_B.sum() if reward_B.sum() > 0 else 0.0),
        )


def divergence(
    policy: Decoder,
    base: Decoder,
    tokenizer: Any,
    problems: Sequence[Problem],
    *,
    style: Style,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    seed: int = 0,
    dtype: Any = jnp.bfloat16,
) -> float:
    """KL(policy || base) in nats per token (k3 estimate), over one solution per problem sampled from the policy."""
    prompts = encode_prompts(tokenizer, problems, style)
    samples = generate_tokens(
        policy,
        prompts,
        max_new_tokens=max_new_tokens,
        eos_ids=ends(tokenizer, style, stop_ids),
        temperature=1.0,
        seed=seed,
        dtype=dtype,
    )
    solution = rollout_rows(prompts, samples, -(-max(map(len, prompts)) // _ROUND) * _ROUND, max_new_tokens)
    ours, theirs = (_logps(model, solution, dtype=jnp.dtype(dtype), remat=False, block=128) for model in (policy, base))
    weight_BM = solution.weight_RM
    return float((np.asarray(k3_divergence(ours, theirs)) * weight_BM).sum() / weight_BM.sum())

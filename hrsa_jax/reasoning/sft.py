"""Supervised tuning on worked solutions: packed rows, loss on the solution only; and what is measured around it.

R rows, T tokens a row, M scored tokens a row (padded), n problems. A solution starts where the prompt ends and closes
with the end-of-text id; prompt and solution are tokenised apart, as generation sees them.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy import stats

from hrsa_jax.data.packing import PackedRows, fill_rows, pack
from hrsa_jax.models.decoder import Decoder
from hrsa_jax.reasoning.tasks import Problem, Style, prompt
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import counted
from hrsa_jax.runtime.mesh import to_host

Array = Any  # numpy on the host, jax.Array inside a compiled step


@dataclass(frozen=True)
class SFTConfig:
    """One update sees `rows` packed rows of `row_length` tokens.

    dtype: of the matmul operands (sums and masters are float32). remat: recompute blocks in the backward pass.
    block: scored positions whose logits exist at one time, per row.
    """

    rows: int = 4
    row_length: int = 512
    seed: int = 0
    style: Style = "question"
    dtype: str = "bfloat16"
    remat: bool = True
    block: int = 128


class SolutionBatch(NamedTuple):
    """A packed batch (a pytree of numpy or jax arrays).

    tokens, segment ids, positions int32 (R, T); index_RM: the column whose state predicts a scored token; target_RM:
    that token; weight_RM float32: 1 where there is one, 0 in the padding.
    """

    tokens_RT: Array
    segment_ids_RT: Array
    positions_RT: Array
    index_RM: Array
    target_RM: Array
    weight_RM: Array


def encode_prompts(tokenizer: Any, problems: Sequence[Problem], style: Style) -> list[list[int]]:
    """The ids of each problem's prompt; the chat template writes the special tokens itself."""
    texts = [prompt(problem, style, tokenizer=tokenizer) for problem in problems]
    return tokenizer(texts, add_special_tokens=style != "chat")["input_ids"]


def encode_problem(tokenizer: Any, problem: Problem, style: Style) -> tuple[np.ndarray, int]:
    """(ids of prompt + solution + end-of-text int32, index of the solution's first token)."""
    (asked,) = encode_prompts(tokenizer, [problem], style)
    solved = tokenizer(problem.solution, add_special_tokens=False)["input_ids"]
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer names no end-of-text token, so solutions cannot be ended: set eos_token")
    return np.asarray([*asked, *solved, tokenizer.eos_token_id], np.int32), len(asked)


def _solution_rows(packed: PackedRows) -> SolutionBatch:
    """Finds the scored tokens of packed rows whose mask marks the solutions."""
    scored_RT = packed.pool_mask_RT
    M = -(-max(1, int(scored_RT.sum(axis=1).max())) // 64) * 64  # few shapes, few compilations
    shape = (scored_RT.shape[0], M)
    index_RM, target_RM = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    weight_RM = np.zeros(shape, np.float32)
    for row, scored_T in enumerate(scored_RT):
        columns = np.flatnonzero(scored_T)
        index_RM[row, : columns.size] = columns - 1  # a prompt is never empty, so the column before is its own text's
        target_RM[row, : columns.size] = packed.tokens_RT[row, columns]
        weight_RM[row, : columns.size] = 1.0
    return SolutionBatch(packed.tokens_RT, packed.segment_ids_RT, packed.positions_RT, index_RM, target_RM, weight_RM)


def sft_batches(
    problems: Sequence[Problem], tokenizer: Any, config: SFTConfig
) -> tuple[Callable[[int], SolutionBatch], dict[str, float]]:
    """Packs problems into rows once; each epoch visits the rows in a new order.

    Returns:
        batch_at(step), a pure function of (config.seed, step) with one static shape, and facts about the packing:
        problems, dropped (longer than a row), rows, steps_per_epoch, padding_share, solution_tokens (mean).

    Raises:
        InputError: no problem fits, or there are fewer rows than one batch holds.
    """
    encoded = [encode_problem(tokenizer, problem, config.style) for problem in problems]
    kept = [(ids, start) for ids, start in encoded if len(ids) <= config.row_length]
    if not kept:
        raise InputError(f"none of {len(problems)} problems fits in {config.row_length} tokens: raise row_length")
    layout = pack([len(ids) for ids, _ in kept], config.row_length)
    if layout.rows < config.rows:
        raise InputError(
            f"{counted(len(kept), 'problem')} fill {counted(layout.rows, 'row')} of {config.row_length} tokens, fewer "
            f"than one batch of {counted(config.rows, 'row')}: give more problems or lower rows"
        )
    everything = _solution_rows(fill_rows(layout, [ids for ids, _ in kept], [start for _, start in kept]))
    steps_per_epoch = layout.rows // config.rows

    def batch_at(step: int) -> SolutionBatch:
        epoch, index = divmod(step, steps_per_epoch)
        order = np.random.default_rng([config.seed, epoch]).permutation(layout.rows)
        chosen = order[index * config.rows : (index + 1) * config.rows]
        return SolutionBatch(*(array[chosen] for array in everything))

    facts = {
        "problems": len(kept),
        "dropped": len(problems) - len(kept),
        "rows": layout.rows,
        "steps_per_epoch": steps_per_epoch,
        "padding_share": layout.padding_share,
        "solution_tokens": float(np.mean([len(ids) - start for ids, start in kept])),
    }
    return batch_at, facts


def token_logps(decoder: Decoder, batch: SolutionBatch, dtype: Any, remat: bool, block: int) -> jax.Array:
    """log p of a batch's scored tokens, float32 (R, M); logits are formed at scored positions only."""
    last_RTD = decoder(
        batch.tokens_RT,
        batch.segment_ids_RT,
        batch.positions_RT,
        attention="causal",
        dtype=dtype,
        remat=remat,
    ).last_BTD
    scored_RMD = jnp.take_along_axis(last_RTD, batch.index_RM[..., None], axis=1)
    return decoder.log_probs(scored_RMD, batch.target_RM, dtype=dtype, block=block)


def sft_loss_fn(graphdef: Any, config: SFTConfig) -> Callable[[Any, Any, SolutionBatch], tuple[jax.Array, dict]]:
    """loss_fn(trainable, frozen, batch) -> (mean negative log-likelihood per solution token, metrics)."""

    def loss_fn(trainable: Any, frozen: Any, batch: SolutionBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        decoder = nnx.merge(graphdef, trainable, frozen)
        logp_RM = token_logps(decoder, batch, jnp.dtype(config.dtype), config.remat, config.block)
        tokens = jnp.sum(batch.weight_RM)
        loss = -jnp.sum(logp_RM * batch.weight_RM) / jnp.maximum(tokens, 1)
        return loss, {"solution_tokens": tokens, "tokens": jnp.sum(batch.segment_ids_RT > 0)}

    return loss_fn


@dataclass(frozen=True)
class SolutionLoss:
    """Negative log-likelihood of solutions: nll_N, sums over each problem's solution; tokens_N, their lengths."""

    nll_N: np.ndarray
    tokens_N: np.ndarray

    @property
    def mean(self) -> float:
        """Nats per solution token, over all tokens."""
        return float(self.nll_N.sum() / self.tokens_N.sum())

    @property
    def per_problem_N(self) -> np.ndarray:
        """Nats per solution token of each problem."""
        return self.nll_N / self.tokens_N

    @property
    def interval95(self) -> tuple[float, float]:
        """95% t interval of `mean` over problems (ratio estimate: problems are drawn, not tokens)."""
        return _ratio_interval(self.nll_N, self.tokens_N)

    def change(self, before: "SolutionLoss") -> tuple[float, tuple[float, float]]:
        """(relative change of the mean against `before`, 95% interval), paired by problem; -0.2 is a fall by 20%."""
        if not np.array_equal(self.tokens_N, before.tokens_N):
            raise ValueError("before must hold the same problems in the same order")
        return self.mean / before.mean - 1, _ratio_interval(self.nll_N - before.nll_N, before.nll_N)


def _ratio_interval(top_N: np.ndarray, bottom_N: np.ndarray) -> tuple[float, float]:
    """95% t interval of sum(top) / sum(bottom), by linearisation."""
    n = len(top_N)
    ratio = float(top_N.sum() / bottom_N.sum())
    if n < 2:
        return math.nan, math.nan
    error = float(np.std(top_N - ratio * bottom_N, ddof=1) / math.sqrt(n) / np.mean(bottom_N))
    reach = float(stats.t.ppf(0.975, n - 1)) * error
    return ratio - reach, ratio + reach


@functools.partial(jax.jit, static_argnames="dtype")
def _scored(decoder: Decoder, batch: SolutionBatch, dtype: Any) -> jax.Array:
    return token_logps(decoder, batch, dtype, False, 128)


def solution_loss(
    decoder: Decoder,
    tokenizer: Any,
    problems: Sequence[Problem],
    *,
    style: Style = "question",
    dtype: Any = jnp.bfloat16,
    rows: int = 4,
    row_length: int = 512,
) -> SolutionLoss:
    """The loss of SFT on given problems, problem by problem.

    Args:
        rows, row_length: rows run at a time; a problem longer than `row_length` gets longer rows.
        dtype: of the matmul operands.
    """
    if not problems:
        raise InputError("solution_loss needs at least one problem")
    encoded = [encode_problem(tokenizer, problem, style) for problem in problems]
    row_length = max(row_length, -(-max(len(ids) for ids, _ in encoded) // 128) * 128)
    lengths = [len(ids) for ids, _ in encoded]
    needed = pack(lengths, row_length).rows
    layout = pack(lengths, row_length, rows=-(-needed // rows) * rows)
    batch = _solution_rows(fill_rows(layout, [ids for ids, _ in encoded], [start for _, start in encoded]))
    logp_RM = np.concatenate(
        [
            to_host(_scored(decoder, SolutionBatch(*(a[i : i + rows] for a in batch)), jnp.dtype(dtype)))
            for i in range(0, layout.rows, rows)
        ]
    )
    segment_RM = np.take_along_axis(batch.segment_ids_RT, batch.index_RM, axis=1)
    nll_N = np.zeros(len(problems))
    tokens_N = np.zeros(len(problems), np.int64)
    for i, (ids, start) in enumerate(encoded):
        row = layout.row_N[i]
        own_M = (segment_RM[row] == layout.segment_N[i]) & (batch.weight_RM[row] > 0)
        nll_N[i], tokens_N[i] = -logp_RM[row][own_M].sum(dtype=np.float64), len(ids) - start
    return SolutionLoss(nll_N, tokens_N)

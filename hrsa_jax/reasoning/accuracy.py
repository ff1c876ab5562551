"""What a model solves: sampled solutions, scored, and the figures reported before and after tuning."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import stats

from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.generate import generate_tokens
from hrsa_jax.reasoning.sft import encode_prompts
from hrsa_jax.reasoning.tasks import Problem, Style, score, well_formed
from hrsa_jax.runtime.errors import InputError


@dataclass(frozen=True)
class Accuracy:
    """rate: share of problems scored 1. wilson95: its Wilson interval. mean_length: completion tokens.

    share_truncated: cut off at the length limit. share_well_formed: an answer could be read. texts: completions.
    """

    rate: float
    n: int
    wilson95: tuple[float, float]
    share_truncated: float
    mean_length: float
    share_well_formed: float
    texts: tuple[str, ...]


def wilson_interval(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927)."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes is {successes} of n = {n}: need 0 <= successes <= n and n >= 1")
    z = float(stats.norm.ppf(0.5 + level / 2))
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def accuracy(
    decoder: Decoder,
    tokenizer: Any,
    problems: Sequence[Problem],
    *,
    style: Style = "few_shot",
    max_new_tokens: int = 16,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
    batch_size: int = 32,
    dtype: Any = jnp.bfloat16,
) -> Accuracy:
    """Generates one solution per problem and scores it; a few-shot answer ends with its line."""
    if not problems:
        raise InputError("accuracy needs at least one problem")
    samples = generate_tokens(
        decoder,
        encode_prompts(tokenizer, problems, style),
        max_new_tokens=max_new_tokens,
        eos_ids=ends(tokenizer, style, stop_ids),
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        batch_size=batch_size,
        dtype=dtype,
    )
    texts = tuple(tokenizer.decode(tokens, skip_special_tokens=True) for tokens in samples.tokens)
    solved = sum(score(problem, text) >= 1.0 for problem, text in zip(problems, texts, strict=True))
    formed = sum(well_formed(problem, text) for problem, text in zip(problems, texts, strict=True))
    n = len(problems)
    return Accuracy(
        rate=solved / n,
        n=n,
        wilson95=wilson_interval(solved, n),
        share_truncated=float(samples.truncated.mean()),
        mean_length=float(np.mean([len(tokens) for tokens in samples.tokens])),
        share_well_formed=formed / n,
        texts=texts,
    )


def ends(tokenizer: Any, style: Style, stop_ids: Sequence[int] = ()) -> list[int]:
    """The ids that end a completion: end of text, the model's own stops, and line breaks for few-shot answers."""
    found = {*stop_ids, tokenizer.eos_token_id} | (newline_ids(tokenizer) if style == "few_shot" else set())
    return sorted(found - {None})


@functools.lru_cache(maxsize=4)
def newline_ids(tokenizer: Any) -> frozenset[int]:
    """Every token whose text holds a line break: what ends a one-line answer."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return frozenset(i for i, text in enumerate(texts) if "\n" in text)

"""Traces: sampled solutions with their verdicts and a difficulty, as JSON lines that HRSA reads as labelled texts."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.generate import generate_tokens
from hrsa_jax.reasoning.accuracy import ends
from hrsa_jax.reasoning.sft import encode_prompts
from hrsa_jax.reasoning.tasks import Problem, Style, score
from hrsa_jax.runtime.errors import InputError


@dataclass(frozen=True)
class TraceConfig:
    """samples of each question, drawn at `temperature`; a question solved by more than `easy` of them is easy, by
    fewer than `hard` hard, otherwise moderate."""

    samples: int = 8
    style: Style = "few_shot"
    max_new_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    easy: float = 2 / 3
    hard: float = 1 / 3
    seed: int = 0
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.samples < 1 or not 0 <= self.hard <= self.easy <= 1:
            raise InputError(
                f"traces: samples={self.samples}, hard={self.hard}, easy={self.easy}: give at least one sample and "
                "0 <= hard <= easy <= 1"
            )


def write_traces(
    path: Path,
    decoder: Decoder,
    tokenizer: Any,
    problems: Sequence[Problem],
    config: TraceConfig,
    *,
    stop_ids: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """Samples solutions and writes one JSON object a line, so that the file is there whole or not at all.

    Fields: text (question and solution, what HRSA reads), label and difficulty ("easy", "moderate", "hard"), question,
    solution, correct, length (tokens), solve_rate (share of this question's samples that are correct), family.
    """
    prompts = encode_prompts(tokenizer, problems, config.style)
    rows = [i for i in range(len(problems)) for _ in range(config.samples)]
    samples = generate_tokens(
        decoder,
        [prompts[i] for i in rows],
        max_new_tokens=config.max_new_tokens,
        eos_ids=ends(tokenizer, config.style, stop_ids),
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
        dtype=jnp.dtype(config.dtype),
    )
    texts = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in samples.tokens]
    correct = [score(problems[i], text) >= 1.0 for i, text in zip(rows, texts, strict=True)]
    found = []
    for number, (i, text) in enumerate(zip(rows, texts, strict=True)):
        own = correct[i * config.samples : (i + 1) * config.samples]
        rate = sum(own) / len(own)
        difficulty = "easy" if rate > config.easy else "hard" if rate < config.hard else "moderate"
        found.append(
            {
                "text": f"{problems[i].question}\n{text}",
                "label": difficulty,
                "question": problems[i].question,
                "solution": text,
                "correct": correct[number],
                "length": len(samples.tokens[number]),
                "difficulty": difficulty,
                "solve_rate": rate,
                "family": problems[i].family,
            }
        )
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8")
    os.replace(temporary, path)
    return found


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows, their difficulties, share correct and mean length."""
    return {
        "rows": len(rows),
        "difficulty": dict(sorted(Counter(row["difficulty"] for row in rows).items())),
        "correct": sum(row["correct"] for row in rows) / len(rows),
        "mean_length": sum(row["length"] for row in rows) / len(rows),
    }

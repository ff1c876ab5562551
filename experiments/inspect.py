"""What a model is: parameters, layers, types, attention mode, pooling, tokenizer, memory.

python launch.py --config=configs/inspect.py --config.model=MODEL
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from flax import nnx

from hrsa_jax.embedding.encoder import DEFAULT_MAX_LENGTH, working_memory
from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.facts import ModelFacts, model_facts
from hrsa_jax.models.lora import LoRAConfig, stacked_linears
from hrsa_jax.runtime.config import build
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import print_facts

_ITEMSIZE = {"float32": 4, "bfloat16": 2}
_TRAINED = 4 + 4 + 8  # bytes a trained number takes: its float32 value, its gradient, AdamW's two moments


@dataclass(frozen=True)
class InspectConfig:
    """The memory of encoding is that of one batch of `batch_tokens` tokens in rows of `row_length`."""

    model: str
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    batch_tokens: int = 4096
    row_length: int = 512

    def __post_init__(self) -> None:
        if not 1 <= self.row_length <= self.batch_tokens:
            raise InputError(
                f"config.row_length={self.row_length}, config.batch_tokens={self.batch_tokens}: a batch holds at least "
                "one row of at least one token"
            )


def run(config: dict[str, Any]) -> int:
    """Prints the facts; returns the exit status."""
    setting = build(InspectConfig, config)
    facts = model_facts(setting.model)
    print_facts([*_model(facts), *_layers(facts.config), *_use(facts), *_tokenizer(facts), *_memory(facts, setting)])
    return 0


def _model(facts: ModelFacts) -> Iterator[tuple[str, str]]:
    yield "model", facts.source
    yield "read from", f"{facts.path}{f' (revision {facts.revision})' if facts.revision else ''}"
    yield "licence", facts.licence or "not stated"
    yield "family", facts.config.family
    shares = ", ".join(f"{name} {size:,}" for name, size in facts.layers.items())
    yield "parameters", f"{facts.parameters:,} ({shares})"
    types = ", ".join(f"{name} {_share(size / facts.parameters)}" for name, size in facts.stored.items())
    yield "stored as", f"{types}; {_size(facts.bytes_on_disk)}"


def _layers(config: ModelConfig) -> Iterator[tuple[str, str]]:
    yield "layers", f"{config.num_layers} ({config.num_layers + 1} hidden states)"
    yield "width", f"{config.hidden_size}, feed-forward {config.intermediate_size}"
    yield "heads", f"{config.num_heads} of {config.head_dim}, {config.num_kv_heads} for keys and values"
    windows = sorted({window for window in config.windows if window is not None})
    if windows:
        share = sum(window is not None for window in config.windows)
        yield "sliding window", f"{windows[0]} tokens on {share} of {config.num_layers} layers"
    rope = config.rope
    scaling = "" if rope.kind == "default" else f", {rope.kind} scaling by {rope.factor:g}"
    yield "positions", f"{config.max_position_embeddings:,}, rope theta {rope.theta:,.0f}{scaling}"
    yield "head", "none" if not config.has_head else "tied to the embedding" if config.tie_word_embeddings else "own"


def _use(facts: ModelFacts) -> Iterator[tuple[str, str]]:
    yield "attention", f"{facts.attention} (its native mode)"
    stored = facts.embedding
    if stored is None:
        yield "embedding", "no sentence-transformers files: mean pooling, normalised, unless told otherwise"
        yield "longest text", f"{_longest(facts):,} tokens, unless told otherwise"
        return
    yield "pooling", f"{stored.pooling}{', normalised' if stored.normalize else ''}"
    yield "longest text", f"{_longest(facts):,} tokens"
    for name, prompt in stored.prompts.items():
        yield "prompt", f"{name}{' (default)' if name == stored.default_prompt else ''}: {prompt!r}"


def _tokenizer(facts: ModelFacts) -> Iterator[tuple[str, str]]:
    tokenizer, rows = facts.tokenizer, facts.config.vocab_size
    unused = f", {rows - tokenizer.vocabulary:,} rows without a token" if rows > tokenizer.vocabulary else ""
    yield "vocabulary", f"{tokenizer.vocabulary:,} tokens ({tokenizer.kind}), {rows:,} embedding rows{unused}"
    around = " ".join([*tokenizer.before, "TEXT", *tokenizer.after])
    yield "a text becomes", f"{around}; padding token {tokenizer.padding or 'none'}"
    yield "chat template", "yes" if tokenizer.chat_template else "no"
    yield "example", " ".join(tokenizer.probe)


def _memory(facts: ModelFacts, setting: InspectConfig) -> Iterator[tuple[str, str]]:
    size = _ITEMSIZE[setting.dtype]
    yield (
        "weights",
        f"{_size(facts.parameters * 4)} in float32 as loaded; an encoder in bfloat16 adds a copy of half that",
    )
    rows = setting.batch_tokens // setting.row_length
    work = working_memory(
        facts.config, rows=rows, row_length=setting.row_length, attention=facts.attention, dtype=setting.dtype
    )
    yield "encoding", f"{_size(work)} more for {rows} rows of {setting.row_length} tokens in {setting.dtype}, here"
    yield "generating", f"{_size(facts.cache_bytes(itemsize=size))} of cache for every token of every row"
    adapter = _adapter_parameters(facts.config, LoRAConfig())
    yield (
        "training all",
        f"{_size(facts.parameters * _TRAINED)} of weights, gradients and AdamW state, without activations",
    )
    yield (
        "training LoRA",
        f"{_size(facts.parameters * 4 + adapter * _TRAINED)} (rank 16 on every linear layer), without activations",
    )


def _adapter_parameters(config: ModelConfig, lora: LoRAConfig) -> int:
    linears = stacked_linears(nnx.eval_shape(lambda: Decoder(config)))
    shapes = [linears[name].kernel.get_value().shape for name in lora.targets]
    return sum(layers * lora.rank * (inputs + outputs) for layers, inputs, outputs in shapes)


def _longest(facts: ModelFacts) -> int:
    stored = facts.embedding.max_length if facts.embedding else None
    return min(stored or DEFAULT_MAX_LENGTH, facts.config.max_position_embeddings)


def _share(value: float) -> str:
    return "below 0.1%" if value < 0.001 else f"{value:.1%}"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"

"""Qwen3 (dense): RMS norms on every query and key head, an explicit head_dim, optional windows."""

from typing import Any

from hrsa_jax.models.families.base import (
    TENSORS,
    Family,
    Fields,
    TensorRule,
    qwen_windows,
    spell_qwen_windows,
)


def _biases(fields: Fields) -> tuple[bool, bool, bool]:
    attention = bool(fields.get("attention_bias"))
    return attention, attention, False


def _spell(config: Any) -> dict[str, Any]:
    return {"attention_bias": config.qkv_bias, **spell_qwen_windows(config)}


QWEN3 = Family(
    model_type="qwen3",
    class_prefix="Qwen3",
    fields=frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types", "attention_bias"}),
    defaults={
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    biases=_biases,
    windows=qwen_windows,
    spell=_spell,
    qk_norm=True,
    tensors={
        **TENSORS,
        "blocks.q_norm.scale": TensorRule("layers.{layer}.self_attn.q_norm.weight", "blk.{layer}.attn_q_norm.weight"),
        "blocks.k_norm.scale": TensorRule("layers.{layer}.self_attn.k_norm.weight", "blk.{layer}.attn_k_norm.weight"),
    },
)

"""LLaMA 1-3 and everything that calls itself `llama` (SmolLM, TinyLlama, R1-distilled LLaMA, ...)."""

from typing import Any

from hrsa_jax.models.families.base import Family, Fields, no_windows


def _biases(fields: Fields) -> tuple[bool, bool, bool]:
    attention = bool(fields.get("attention_bias"))
    return attention, attention, bool(fields.get("mlp_bias"))


def _spell(config: Any) -> dict[str, Any]:
    return {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}


LLAMA = Family(
    model_type="llama",
    class_prefix="Llama",
    fields=frozenset({"attention_bias", "mlp_bias", "layer_types"}),
    defaults={"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    biases=_biases,
    windows=no_windows,
    spell=_spell,
    gguf_permuted=True,
)

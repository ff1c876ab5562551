"""Mistral 7B and its descendants: LLaMA with a sliding window on every layer and an explicit head_dim."""

from typing import Any

from hrsa_jax.models.families.base import Family, FieldError, Fields


def _biases(fields: Fields) -> tuple[bool, bool, bool]:
    for name in ("attention_bias", "mlp_bias"):
        if fields.get(name):
            raise FieldError(f"{name} is true, but Mistral layers have no biases")
    return False, False, False


def _windows(fields: Fields) -> tuple[int | None, ...]:
    types = set(fields.get("layer_types") or ())
    if types - {"sliding_attention" if fields["sliding_window"] else "full_attention"}:
        raise FieldError(f"layer_types has {sorted(types)}, but Mistral uses one kind of attention on all layers")
    return (fields["sliding_window"],) * fields["num_hidden_layers"]


def _spell(config: Any) -> dict[str, Any]:
    return {"sliding_window": config.windows[0]}


MISTRAL = Family(
    model_type="mistral",
    class_prefix="Mistral",
    fields=frozenset({"sliding_window", "layer_types", "attention_bias", "mlp_bias"}),
    defaults={
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    biases=_biases,
    windows=_windows,
    spell=_spell,
)

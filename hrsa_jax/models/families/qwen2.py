"""Qwen2 and Qwen2.5 (dense): biases on q, k and v only, optional windows on the upper layers."""

from hrsa_jax.models.families.base import Family, FieldError, Fields, qwen_windows, spell_qwen_windows


def _biases(fields: Fields) -> tuple[bool, bool, bool]:
    if fields.get("attention_bias") is False:
        raise FieldError("attention_bias is false, but Qwen2 always has biases on q, k and v")
    return True, False, False


QWEN2 = Family(
    model_type="qwen2",
    class_prefix="Qwen2",
    fields=frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types", "attention_bias"}),
    defaults={"max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28},
    biases=_biases,
    windows=qwen_windows,
    spell=spell_qwen_windows,
)

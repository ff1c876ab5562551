"""Sizes of models as in their own config.json, for plans and benchmarks without weights. Not a config of its own."""

from typing import Any

QWEN = {"model_type": "qwen2", "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6}
LLAMA = {"model_type": "llama", "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 5e5}


def _sizes(
    name: str, family: dict[str, Any], V: int, D: int, F: int, L: int, N: int, K: int, *, tied: bool = False
) -> dict[str, Any]:
    return {
        "name": name,
        **family,
        "vocab_size": V,
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": L,
        "num_attention_heads": N,
        "num_key_value_heads": K,
        "tie_word_embeddings": tied,
    }


ARCHITECTURES = (
    _sizes("Qwen2.5-0.5B", QWEN, 151936, 896, 4864, 24, 14, 2, tied=True),
    _sizes("Qwen2.5-1.5B", QWEN, 151936, 1536, 8960, 28, 12, 2, tied=True),
    _sizes("Qwen2.5-7B", QWEN, 152064, 3584, 18944, 28, 28, 4),
    _sizes("Llama-3.1-8B", LLAMA, 128256, 4096, 14336, 32, 32, 8),
    _sizes("Llama-3.1-70B", LLAMA, 128256, 8192, 28672, 80, 64, 8),
)

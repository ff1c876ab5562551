"""Noise floor and seed ceiling from models: what "the same" looks like before two models are called different.

The floor runs ONE model in other ways that should not matter (bfloat16, another batch size, longer padding) and
compares it with itself; no difference below it is real. The ceiling compares two embedding models of one backbone
that differ by their training seed only.
"""

from __future__ import annotations

from collections.abc import Sequence

from hrsa_jax.hrsa.activations import Attention, Runnable, token_states
from hrsa_jax.hrsa.results import Comparison
from hrsa_jax.hrsa.series import compare_quickly
from hrsa_jax.hrsa.states import TokenStates, shared_row_mask


def model_noise_floor(
    model: Runnable,
    texts: Sequence[str],
    *,
    max_tokens: int = 64,
    attention: Attention | None = None,
    seed: int = 0,
) -> dict[str, Comparison]:
    """The model against itself: {"bfloat16", "one text a batch", "longer padding"}: correlation, cka and k-NN by layer.

    At least 8 texts; rows are those without sinks in any of the runs.
    """
    reference = token_states(model, texts, max_tokens=max_tokens, attention=attention)
    runs: dict[str, TokenStates] = {
        "bfloat16": token_states(model, texts, max_tokens=max_tokens, attention=attention, dtype="bfloat16"),
        "one text a batch": token_states(model, texts, max_tokens=max_tokens, attention=attention, batch_tokens=1),
        "longer padding": token_states(model, texts, max_tokens=max_tokens, attention=attention, extra_padding=64),
    }
    mask = shared_row_mask(reference, *runs.values())
    return {name: compare_quickly(reference, states, row_mask=mask, seed=seed) for name, states in runs.items()}

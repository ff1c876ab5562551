"""The four model families, by config.json's model_type."""

from collections.abc import Mapping

from hrsa_jax.models.families.base import Family, FieldError, TensorRule
from hrsa_jax.models.families.llama import LLAMA
from hrsa_jax.models.families.mistral import MISTRAL
from hrsa_jax.models.families.qwen2 import QWEN2
from hrsa_jax.models.families.qwen3 import QWEN3

FAMILIES: Mapping[str, Family] = {family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3)}

__all__ = ["FAMILIES", "Family", "FieldError", "TensorRule"]

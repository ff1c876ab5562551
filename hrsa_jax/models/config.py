"""ModelConfig: everything config.json says about the forward pass, each field used or refused by name.

Both spellings are read: transformers 5 (`rope_parameters`, `layer_types`, `dtype`) and older (`rope_theta`,
`rope_scaling`, `torch_dtype`). GGUF metadata comes through here too, rewritten as config.json fields (`gguf.py`).
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hrsa_jax.models.families import FAMILIES, Family, FieldError
from hrsa_jax.runtime.errors import InputError

_LARGEST = 1 << 53  # of any whole number in a config: exact in JSON's and numpy's floats
_MOST_LAYERS = 10_000

ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: fields of all families that this module uses
_USED = _words(
    "model_type architectures vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim hidden_act rms_norm_eps rope_theta rope_scaling rope_parameters "
    "original_max_position_embeddings partial_rotary_factor tie_word_embeddings max_position_embeddings "
    "bos_token_id eos_token_id pad_token_id is_causal quantization_config auto_map is_decoder is_encoder_decoder "
    "add_cross_attention num_experts num_local_experts rope_interleaved"
)

#: fields that change training, generation defaults or bookkeeping, and not the forward pass
_NO_EFFECT = _words(
    "_name_or_path _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash "
    "transformers_version torch_dtype dtype initializer_range use_cache attention_dropout hidden_dropout "
    "hidden_dropout_prob resid_pdrop pretraining_tp return_dict output_hidden_states output_attentions "
    "torchscript use_bfloat16 tf_legacy_loss pruned_heads chunk_size_feed_forward cross_attention_hidden_size "
    "id2label label2id num_labels tie_encoder_decoder finetuning_task problem_type task_specific_params "
    "tokenizer_class prefix sep_token_id unk_token_id decoder_start_token_id max_length min_length do_sample "
    "early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p "
    "repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids "
    "num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id "
    "remove_invalid_values suppress_tokens begin_suppress_tokens exponential_decay_length_penalty unsloth_version "
    "unsloth_fixed is_llama_config max_sequence_length transformers.js_config model_name "
    "base_model_name_or_path"
)

_ROPE_FIELDS = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset({"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}),
}
_ROPE_ALWAYS = frozenset(
    {"rope_type", "type", "rope_theta", "original_max_position_embeddings", "partial_rotary_factor"}
)


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: `kind` is one of ROPE_KINDS; the fields a kind does not use keep their defaults."""

    kind: str = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    max_position_embeddings: int = 0  # dynamic: the trained length
    original_max_position_embeddings: int | None = None  # llama3, yarn
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float = 1.0  # yarn: factor on cos and sin
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def to_hf(self) -> dict[str, Any]:
        """The `rope_parameters` dict of transformers 5."""
        spelled: dict[str, Any] = {"rope_type": self.kind, "rope_theta": self.theta}
        if self.kind != "default":
            spelled["factor"] = self.factor
        if self.kind in ("llama3", "yarn"):
            spelled["original_max_position_embeddings"] = self.original_max_position_embeddings
        if self.kind == "llama3":
            spelled |= {"low_freq_factor": self.low_freq_factor, "high_freq_factor": self.high_freq_factor}
        if self.kind == "yarn":
            spelled |= {
                "attention_factor": self.attention_factor,
                "beta_fast": self.beta_fast,
                "beta_slow": self.beta_slow,
                "truncate": self.truncate,
            }
        return spelled


@dataclass(frozen=True)
class ModelConfig:
    """What the decoder needs to know of a model. `windows` has one entry per layer, None for full attention."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]
    max_position_embeddings: int
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    is_causal: bool = True
    has_head: bool = True  # False for a base-model export: hidden states, but no logits

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any], where: str = "config.json") -> "ModelConfig":
        """Reads a config.json dict; `where` names it in errors.

        Raises:
            InputError: a field is missing, has a wrong type or value, or is not known.
        """
        if not isinstance(fields, Mapping):
            raise InputError(f"{where} holds {type(fields).__name__} where a JSON object of config fields should be")
        try:
            return _read(_Fields(fields))
        except FieldError as error:
            raise InputError(f"{where}: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """config.json in transformers 5's spelling (without `dtype`, which `save_hf` adds)."""
        family = FAMILIES[self.family]
        eos = list(self.eos_token_ids)
        spelled = {
            "architectures": [family.class_prefix + ("ForCausalLM" if self.has_head else "Model")],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": self.rope.to_hf(),
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos if len(eos) > 1 else eos[0] if eos else None,
            "pad_token_id": self.pad_token_id,
            **family.spell(self),
        }
        if not self.is_causal:
            spelled["is_causal"] = False
        return spelled


class _Fields(dict[str, Any]):
    """config.json fields with typed look-ups; None counts as missing."""

    def integer(self, name: str, minimum: int = 1) -> int:
        value = self.get(name)
        if value is None:
            raise FieldError(f"{name} is missing; it must be an integer >= {minimum}")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise FieldError(f"{name} is {value!r}; it must be an integer >= {minimum}")
        if value > _LARGEST:
            raise FieldError(f"{name} is {value}, larger than in any model: fetch the file again")
        self[name] = value
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name)
        value = default if value is None else value
        if value is None:
            raise FieldError(f"{name} is missing; it must be a positive number")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
            raise FieldError(f"{name} is {value!r}; it must be a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise FieldError(f"{name} is {value!r}; it must be true or false")
        return value

    def token(self, name: str) -> int | None:
        return None if self.get(name) is None else self.integer(name, minimum=0)


def _family(fields: _Fields) -> Family:
    kind = fields.get("model_type")
    if kind is None:
        raise FieldError(f"model_type is missing; supported are {', '.join(FAMILIES)}")
    for name in ("num_experts", "num_local_experts"):
        if fields.get(name):
            raise FieldError(f"{name} is {fields[name]!r}: mixture-of-experts models are not supported")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise FieldError(f"model_type is {kind!r}; supported are {', '.join(FAMILIES)} (dense)")
    return FAMILIES[kind]


def _has_head(fields: _Fields, family: Family) -> bool:
    architectures = fields.get("architectures") or [family.class_prefix + "ForCausalLM"]
    known = {family.class_prefix + "ForCausalLM": True, family.class_prefix + "Model": False}
    if not isinstance(architectures, list) or architectures not in [[name] for name in known]:
        raise FieldError(f"architectures is {architectures!r}; supported for {family.model_type} are {sorted(known)}")
    return known[architectures[0]]


def _refuse_unknown(fields: _Fields, family: Family) -> None:
    unknown = sorted(
        name for name, value in fields.items() if value is not None and name not in _USED | _NO_EFFECT | family.fields
    )
    if unknown:
        raise FieldError(
            f"field(s) {', '.join(unknown)} are not known for {family.model_type}, so the model might not be run as "
            f"it was meant: remove them if they do not change the forward pass"
        )
    if fields.get("quantization_config"):
        raise FieldError("quantization_config is set; save the model unquantised (or as GGUF) first")
    if fields.get("auto_map"):
        raise FieldError("auto_map points to remote code, which is never run; use a checkpoint of the stock class")
    for name in ("is_encoder_decoder", "add_cross_attention"):
        if fields.get(name):
            raise FieldError(f"{name} is true; only decoder-only models are supported")
    if fields.get("rope_interleaved"):
        raise FieldError("rope_interleaved is true; only the half-split rotary layout of transformers is supported")
    if fields.get("hidden_act", "silu") not in ("silu", "swish"):
        raise FieldError(f"hidden_act is {fields['hidden_act']!r}; supported is silu")


def _read(fields: _Fields) -> ModelConfig:
    family = _family(fields)
    _refuse_unknown(fields, family)
    # An explicit null stays null for sliding_window only, where it means "no window".
    for name, value in family.defaults.items():
        if name not in fields or (
            fields[name] is None and name not in ("sliding_window", "bos_token_id", "eos_token_id")
        ):
            fields[name] = value
    layers, heads = fields.integer("num_hidden_layers"), fields.integer("num_attention_heads")
    if layers > _MOST_LAYERS:
        raise FieldError(f"num_hidden_layers is {layers}, which no model has: fetch the file again")
    hidden = fields.integer("hidden_size")
    kv_heads = fields.integer("num_key_value_heads") if fields.get("num_key_value_heads") is not None else heads
    if heads % kv_heads:
        raise FieldError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if fields.get("head_dim") is None and hidden % heads:
        raise FieldError(
            f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and head_dim is missing"
        )
    head_dim = fields.integer("head_dim") if fields.get("head_dim") is not None else hidden // heads
    if head_dim % 2:
        raise FieldError(f"head_dim is {head_dim}; rotary embeddings need an even one")
    if fields.get("sliding_window") is not None:
        fields.integer("sliding_window")
    qkv_bias, output_bias, mlp_bias = family.biases(fields)
    for name in ("attention_bias", "mlp_bias", "use_sliding_window"):
        fields.flag(name, False)
    if fields.get("max_window_layers") is not None:
        fields.integer("max_window_layers", 0)
    types = fields.get("layer_types")
    if types is not None and not (isinstance(types, list) and all(isinstance(kind, str) for kind in types)):
        raise FieldError(f"layer_types is {types!r}; it must be a list of names")
    eos = fields.get("eos_token_id")
    return ModelConfig(
        family=family.model_type,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=_read_rope(fields, fields.integer("max_position_embeddings")),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        qk_norm=family.qk_norm,
        windows=family.windows(fields),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        bos_token_id=fields.token("bos_token_id"),
        eos_token_ids=tuple(_Fields(eos_token_id=one).integer("eos_token_id", 0) for one in eos)
        if isinstance(eos, list)
        else ()
        if eos is None
        else (fields.integer("eos_token_id", 0),),
        # LLaMA 1 and 2 checkpoints spell "no padding token" as -1.
        pad_token_id=None if fields.get("pad_token_id") == -1 else fields.token("pad_token_id"),
        is_causal=fields.flag("is_causal", True),
        has_head=_has_head(fields, family),
    )


def _rope_fields(fields: _Fields) -> _Fields:
    """The one rope dict of a config, whichever spelling it uses."""
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise FieldError(f"rope_parameters is {rope!r}; it must be an object")
    nested = [value for key, value in rope.items() if key in ("full_attention", "sliding_attention") and value]
    if nested:
        if any(entry != nested[0] for entry in nested[1:]):
            raise FieldError("rope_parameters differ between layer types, which is not supported")
        rope = nested[0]
    merged = _Fields(rope)
    merged.setdefault("rope_theta", fields.get("rope_theta"))
    for name in ("original_max_position_embeddings", "partial_rotary_factor"):
        if fields.get(name) is not None:
            merged[name] = fields[name]
    return merged


def _read_rope(fields: _Fields, max_positions: int) -> RopeConfig:
    rope = _rope_fields(fields)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ROPE_KINDS:
        raise FieldError(f"rope_type is {kind!r}; supported are {', '.join(ROPE_KINDS)}")
    unknown = sorted(k for k, v in rope.items() if v is not None and k not in _ROPE_ALWAYS | _ROPE_FIELDS[kind])
    if unknown:
        raise FieldError(f"rope_parameters has {', '.join(unknown)}, which rope_type {kind!r} does not use")
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise FieldError(f"partial_rotary_factor is {rope['partial_rotary_factor']!r}; only 1.0 is supported")
    theta = rope.number("rope_theta", 10_000.0)
    original = rope.get("original_max_position_embeddings")
    original = max_positions if original is None else rope.integer("original_max_position_embeddings")
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind in ("linear", "dynamic"):
        trained = max_positions if kind == "dynamic" else 0
        return RopeConfig(kind, theta, rope.number("factor"), max_position_embeddings=trained)
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if high <= low:
            raise FieldError(f"high_freq_factor {high} must be larger than low_freq_factor {low}")
        return RopeConfig(
            kind,
            theta,
            rope.number("factor"),
            original_max_position_embeddings=original,
            low_freq_factor=low,
            high_freq_factor=high,
        )
    return _read_yarn(rope, theta, original, max_positions)


def _read_yarn(rope: _Fields, theta: float, original: int, max_positions: int) -> RopeConfig:
    factor = rope.number("factor", max_positions / original)

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.get("attention_factor") is not None:
        attention_factor = rope.number("attention_factor")
    elif rope.get("mscale") and rope.get("mscale_all_dim"):
        attention_factor = magnitude(rope.number("mscale")) / magnitude(rope.number("mscale_all_dim"))
    else:
        attention_factor = magnitude(1.0)
    return RopeConfig(
        "yarn",
        theta,
        factor,
        original_max_position_embeddings=original,
        attention_factor=attention_factor,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.flag("truncate", True),
    )

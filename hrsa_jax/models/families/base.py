"""What a model family is: its config particulars and its weight table.

The four families run through one decoder. A family says which config fields it has, what transformers assumes when
one is missing, which linear layers carry a bias, which layers attend through a window, and how tensors are named.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Fields = Mapping[str, Any]


class FieldError(ValueError):
    """A config field that cannot be used; `config.py` adds the file's name."""


@dataclass(frozen=True)
class TensorRule:
    """Where one decoder parameter lives in checkpoints; "{layer}" in a name stands for the layer's number."""

    hf: str
    gguf: str
    transpose: bool = False  # torch's Linear keeps (out, in), ours (in, out)


def _linear(path: str, hf: str, gguf: str) -> dict[str, TensorRule]:
    return {
        f"{path}.kernel": TensorRule(f"{hf}.weight", f"{gguf}.weight", transpose=True),
        f"{path}.bias": TensorRule(f"{hf}.bias", f"{gguf}.bias"),
    }


#: decoder parameter -> checkpoint tensors; biases and q/k norms are looked up only where the config has them.
#: Hugging Face names lack the leading "model." in base-model exports; `weights.py` adds it where it belongs.
TENSORS: Mapping[str, TensorRule] = {
    "embed": TensorRule("embed_tokens.weight", "token_embd.weight"),
    "blocks.input_norm.scale": TensorRule("layers.{layer}.input_layernorm.weight", "blk.{layer}.attn_norm.weight"),
    **_linear("blocks.q_proj", "layers.{layer}.self_attn.q_proj", "blk.{layer}.attn_q"),
    **_linear("blocks.k_proj", "layers.{layer}.self_attn.k_proj", "blk.{layer}.attn_k"),
    **_linear("blocks.v_proj", "layers.{layer}.self_attn.v_proj", "blk.{layer}.attn_v"),
    **_linear("blocks.o_proj", "layers.{layer}.self_attn.o_proj", "blk.{layer}.attn_output"),
    "blocks.post_norm.scale": TensorRule(
        "layers.{layer}.post_attention_layernorm.weight", "blk.{layer}.ffn_norm.weight"
    ),
    **_linear("blocks.gate_proj", "layers.{layer}.mlp.gate_proj", "blk.{layer}.ffn_gate"),
    **_linear("blocks.up_proj", "layers.{layer}.mlp.up_proj", "blk.{layer}.ffn_up"),
    **_linear("blocks.down_proj", "layers.{layer}.mlp.down_proj", "blk.{layer}.ffn_down"),
    "norm.scale": TensorRule("norm.weight", "output_norm.weight"),
    "head.kernel": TensorRule("lm_head.weight", "output.weight", transpose=True),
}


@dataclass(frozen=True)
class Family:
    """One model family; `fields` and `defaults` use config.json's names."""

    model_type: str
    class_prefix: str  # transformers' class names start with it: LlamaForCausalLM, LlamaModel
    fields: frozenset[str]  # fields of this family beyond those every family has
    defaults: Mapping[str, Any]  # what transformers assumes for a field that is missing
    biases: Callable[[Fields], tuple[bool, bool, bool]]  # (q/k/v, attention output, mlp)
    windows: Callable[[Fields], tuple[int | None, ...]]  # one per layer; None = full attention
    spell: Callable[[Any], dict[str, Any]]  # ModelConfig -> this family's own fields
    qk_norm: bool = False
    tensors: Mapping[str, TensorRule] = field(default_factory=lambda: TENSORS)
    gguf_permuted: bool = False  # llama.cpp interleaves the rotary halves of q and k in this architecture


def no_windows(fields: Fields) -> tuple[int | None, ...]:
    """Full attention everywhere; a layer_types that says otherwise is refused."""
    types = fields.get("layer_types")
    if types is not None and set(types) - {"full_attention"}:
        raise FieldError(f"layer_types has {sorted(set(types) - {'full_attention'})}, which this family does not have")
    return (None,) * fields["num_hidden_layers"]


def qwen_windows(fields: Fields) -> tuple[int | None, ...]:
    """use_sliding_window switches windows on; layer_types, or else max_window_layers, says where."""
    layers = fields["num_hidden_layers"]
    window = fields.get("sliding_window") if fields.get("use_sliding_window") else None
    types = fields.get("layer_types")
    if types is None:
        first = fields["max_window_layers"]
        return tuple(window if i >= first else None for i in range(layers))
    if len(types) != layers:
        raise FieldError(f"layer_types has {len(types)} entries for num_hidden_layers {layers}")
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown:
        raise FieldError(f"layer_types has {unknown}; known are full_attention and sliding_attention")
    if window is None and "sliding_attention" in types:
        raise FieldError("layer_types has sliding_attention but use_sliding_window or sliding_window is not set")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def spell_qwen_windows(config: Any) -> dict[str, Any]:
    """The window fields of a Qwen config.json."""
    windows = [w for w in config.windows if w is not None]
    return {
        "use_sliding_window": bool(windows),
        "sliding_window": windows[0] if windows else None,
        "max_window_layers": next((i for i, w in enumerate(config.windows) if w), config.num_layers),
        "layer_types": ["full_attention" if w is None else "sliding_attention" for w in config.windows],
    }

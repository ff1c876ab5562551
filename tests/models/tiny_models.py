"""Tiny random transformers models of the four families, saved to disk and loaded back by our loader."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers

from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.safetensors_files import SafetensorsFolder, read_json
from hrsa_jax.models.weights import load_weights

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}

#: name -> (family, what differs from SIZES)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied-mha-biases": (
        "llama",
        {
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        },
    ),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "llama-dynamic": (
        "llama",
        {
            "max_position_embeddings": 8,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        },
    ),
    "llama-llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e3,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "llama-yarn": (
        "llama",
        {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e3,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 4.0,
            },
        },
    ),
    "llama-yarn-mscale": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e3,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "mscale": 2.0,
                "mscale_all_dim": 1.0,
                "truncate": False,
            }
        },
    ),
    "mistral-window": ("mistral", {"sliding_window": 4, "head_dim": 16}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1, "num_key_value_heads": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen3-windows": (
        "qwen3",
        {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}


def hf_model(variant: str, *, seed: int = 0, **overrides: Any) -> torch.nn.Module:
    """A transformers model with random weights, norms and biases included."""
    family, changes = VARIANTS[variant]
    config = getattr(transformers, CLASSES[family] + "Config")(**(SIZES | changes | overrides))
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = getattr(transformers, CLASSES[family] + "ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=0.2)
    return model


def save(model: torch.nn.Module, folder: Path, **options: Any) -> Path:
    """The model as transformers saves it."""
    model.save_pretrained(str(folder), **options)
    return folder


def load_decoder(folder: Path, **options: Any) -> Decoder:
    """The folder through our reader, without a tokenizer."""
    config = ModelConfig.from_hf(read_json(folder / "config.json"), str(folder / "config.json"))
    return load_weights(config, SafetensorsFolder(folder), where=str(folder), **options)


def right_padded(lengths: list[int], vocab_size: int = 97, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(tokens (B, T) int32, mask (B, T) bool) of random tokens."""
    mask = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
    tokens = np.random.default_rng(seed).integers(3, vocab_size, mask.shape)
    return np.where(mask, tokens, 0).astype(np.int32), mask


@functools.partial(jax.jit, static_argnames=("attention", "implementation"))
def run(
    decoder: Decoder, tokens: Any, segments: Any, positions: Any, attention: str, implementation: str = "auto"
) -> tuple[jax.Array, jax.Array]:
    """(hidden states (L+1, B, T, D), logits (B, T, V))."""
    out = decoder(tokens, segments, positions, attention=attention, collect=lambda h: h, implementation=implementation)
    return out.collected, decoder.logits(out.last_BTD)


def our_states(
    decoder: Decoder, tokens: np.ndarray, mask: np.ndarray, attention: str, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """`run` on right-padded rows."""
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    states, logits = run(decoder, tokens, mask.astype(np.int32), positions, attention, **options)
    return np.asarray(states), np.asarray(logits)


def their_states(model: Any, tokens: np.ndarray, mask: np.ndarray, attention: str) -> tuple[np.ndarray, np.ndarray]:
    """The same from transformers."""
    model.config.is_causal = attention == "causal"
    with torch.no_grad():
        out = model(
            torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(mask, dtype=torch.long),
            output_hidden_states=True,
            use_cache=False,
        )
    return np.stack([state.numpy() for state in out.hidden_states]), out.logits.numpy()


def assert_close(ours: np.ndarray, theirs: np.ndarray, *, rms: float = 1e-5, largest: float = 5e-5) -> None:
    """Error relative to the root mean square of `theirs`."""
    scale = np.sqrt(np.mean(np.square(theirs, dtype=np.float64)))
    error = np.abs(ours.astype(np.float64) - theirs)
    assert np.sqrt(np.mean(error**2)) <= rms * scale
    assert error.max() <= largest * scale


def tiny_tokenizer(words: int = 60) -> transformers.PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of fewer than 97 ids, trained on a few letters; <s> is put before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=words, special_tokens=["<pad>", "<s>", "</s>", "<unk>"])
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog 0123456789 . , : ?"] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def save_with_tokenizer(model: torch.nn.Module, folder: Path, **options: Any) -> Path:
    """A complete model folder, as a user would have it."""
    tiny_tokenizer().save_pretrained(str(folder))
    return save(model, folder, **options)

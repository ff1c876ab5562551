"""A whole model folder of a few kilobytes: random LLaMA weights and a byte-level tokenizer, made in a second."""

from pathlib import Path

from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.weights import save_hf

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def write_tokenizer(folder: Path, vocab_size: int = 320) -> None:
    """Byte-level BPE with two special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["the sum of two numbers is the answer", "def return self value in the list"], trainer
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(str(folder))


def write_model(folder: Path, *, seed: int = 0, **changes: object) -> Path:
    """An HF folder with config.json, safetensors and tokenizer; `changes` go into config.json's fields."""
    folder.mkdir(parents=True, exist_ok=True)
    config = ModelConfig.from_hf({**CONFIG, **changes}, where="tiny")
    save_hf(Decoder(config, seed=seed), folder)
    write_tokenizer(folder, config.vocab_size)
    return folder

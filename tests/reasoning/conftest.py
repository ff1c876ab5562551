"""A tiny language model over single characters, for every test of this room."""

import pytest

from hrsa_jax.models.config import ModelConfig, RopeConfig
from hrsa_jax.models.decoder import Decoder

ALPHABET = ["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyzQSA0123456789 :\n+-*=#."]
CONFIG = ModelConfig(
    family="llama",
    vocab_size=len(ALPHABET),
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope=RopeConfig(),
    tie_word_embeddings=True,
    qkv_bias=False,
    output_bias=False,
    mlp_bias=False,
    qk_norm=False,
    windows=(None, None),
    max_position_embeddings=512,
)


def make_tokenizer():
    """One token per character, a BOS id in front, as many checkpoints add it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({c: i for i, c in enumerate(ALPHABET)}, unk_token="."))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def make_decoder() -> Decoder:
    model = Decoder(CONFIG, seed=0)
    model.embed[...] = model.embed[...] * 20
    return model


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def decoder() -> Decoder:
    return make_decoder()

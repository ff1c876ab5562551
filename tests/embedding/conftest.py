"""Tiny random backbones with a tokenizer trained on a few sentences: real code paths, no files, no network."""

from typing import Any

import jax
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from hrsa_jax.data.sources import Pair
from hrsa_jax.models.backbone import Backbone
from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.decoder import Decoder

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "a fox lives in the forest",
    "dogs sleep",
    "Retrieve the function that the text describes, and nothing else at all",
    "x",
    "cats and birds and fish are animals that people keep at home for company",
    "Überfluß naïve 日本語",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen",
]

FAMILY_FIELDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 7},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
}


def make_tokenizer(*, eos: bool) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    if eos:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 0)])
    template = "{% for m in messages %}<eos>chat {{ m.content }}{% endfor %}"  # what the export must drop
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", chat_template=template)


def make_backbone(family: str = "llama", *, seed: int = 0, eos: bool = False) -> Backbone:
    """Weights are large enough for attention to matter."""
    fields = {
        "model_type": family,
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        **FAMILY_FIELDS[family],
    }
    config = ModelConfig.from_hf(fields)
    decoder = Decoder(config, seed=seed)
    decoder = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 8 if "norm" not in jax.tree_util.keystr(path) else leaf, decoder
    )
    return Backbone(
        source=f"tiny-{family}", config=config, decoder=decoder, tokenizer=make_tokenizer(eos=eos), attention="causal"
    )


def make_pairs(count: int = 12, *, negatives: int = 2, dataset: str = "d") -> list[Pair]:
    words = " ".join(TEXTS).split()
    return [
        Pair(
            query=f"{words[i]} {words[i + 1]} {dataset}",
            instruction="Find it" if i % 2 else "",
            positives=(" ".join(words[i : i + 3 + i % 5]) + f" {dataset}{i}", f"other {words[i]} {dataset}"),
            negatives=tuple(" ".join(words[i + j + 4 : i + 2 * j + 6]) for j in range(negatives)),
            dataset=dataset,
        )
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return make_backbone()


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def build_backbone() -> Any:
    return make_backbone


@pytest.fixture(scope="session")
def build_pairs() -> Any:
    return make_pairs

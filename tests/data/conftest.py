"""Three kinds of tokenizer, built here from a few sentences: no file and no network needed."""

import json
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "Instruct: Given a question, find the passage that answers it. Query: where do foxes live",
    "a fox lives in the forest and sleeps during the day",
    "Retrieve the function that the text describes",
    "red green blue yellow cats dogs birds fish",
] * 4

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level_bpe() -> Tokenizer:
    """GPT-2 and SmolLM2 style: digits apart, no special token added."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(SENTENCES, _trainer(["<eos>"]))
    return tokenizer


def qwen_style() -> Tokenizer:
    """Split by a regular expression, then bytes; EOS appended, as Qwen3-Embedding does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(SENTENCES, _trainer(["<eos>"]))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 0)])
    return tokenizer


def sentencepiece_style() -> Tokenizer:
    """LLaMA 2 and Mistral style: words marked by U+2581, byte fall-back, BOS put in front."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<eos>", "<bos>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*special, *bytes_], show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    # Trained pieces only were wanted from that call: there the bytes became special tokens, here they are plain ones.
    trained = json.loads(tokenizer.to_str())
    trained["added_tokens"] = [token for token in trained["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(trained))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return tokenizer


def _trainer(special: list[str]) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


BUILDERS = {"byte_level": byte_level_bpe, "qwen": qwen_style, "sentencepiece": sentencepiece_style}


@pytest.fixture(scope="session", params=sorted(BUILDERS))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=BUILDERS[request.param](), eos_token="<eos>")


@pytest.fixture(scope="session")
def plain_tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe(), eos_token="<eos>")


@pytest.fixture(scope="session")
def builders() -> Any:
    """Name of a kind -> its tokenizer."""
    from transformers import PreTrainedTokenizerFast

    return lambda name: PreTrainedTokenizerFast(tokenizer_object=BUILDERS[name](), eos_token="<eos>")

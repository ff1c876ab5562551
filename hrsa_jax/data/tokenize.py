"""Texts to token ids, with the place where pooling starts: the one formatting path of the whole package."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hrsa_jax.runtime.errors import InputError


@dataclass(frozen=True)
class TokenizedTexts:
    """n tokenised texts, special tokens included as the tokenizer itself adds them.

    `pool_start[i]` is the first token that reaches past the prompt, 0 without a prompt; it equals
    `len(ids[i])` for a text that has no token of its own. `truncated[i]` says that tokens were cut at `max_length`.
    """

    ids: list[np.ndarray]  # int32, one array a text
    pool_start: np.ndarray  # (n,) int32
    truncated: np.ndarray  # (n,) bool

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int32 number of tokens."""
        return np.array([len(ids) for ids in self.ids], np.int32)

    @property
    def empty(self) -> np.ndarray:
        """(n,) bool: nothing to pool."""
        return self.pool_start >= self.lengths


def tokenize_texts(
    tokenizer: Any, texts: Sequence[str], *, prompt: str | Sequence[str] = "", max_length: int
) -> TokenizedTexts:
    """Tokenises `prompt + text` and finds the first token of the text from character offsets.

    A token that holds the prompt's last characters and the text's first ones counts as the text's, so that
    the first word of a query is always pooled (tokenising the prompt alone and counting would lose it).

    Args:
      tokenizer: a transformers fast tokenizer.
      texts: n texts.
      prompt: in front of every text, or one for each text (see data/prompts.py).
      max_length: tokens kept of prompt + text, special tokens included.

    Raises:
      InputError: a text that is no string or not encodable, or a prompt that leaves no room for its text; the
        text's number is named.
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}")
    prompts = [prompt] * len(texts) if isinstance(prompt, str) else list(prompt)
    if len(prompts) != len(texts):
        raise ValueError(f"prompt has {len(prompts)} entries for {len(texts)} texts")
    for index, text in enumerate(texts):
        _check_text(text, index)
    if not texts:
        return TokenizedTexts([], np.zeros(0, np.int32), np.zeros(0, bool))

    joined = [head + text for head, text in zip(prompts, texts, strict=True)]
    encodings = tokenizer(joined, truncation=True, max_length=max_length, padding=False).encodings
    ids, pool_start, truncated = [], np.zeros(len(texts), np.int32), np.zeros(len(texts), bool)
    for index, (encoding, head) in enumerate(zip(encodings, prompts, strict=True)):
        ids.append(np.array(encoding.ids, np.int32))
        truncated[index] = bool(encoding.overflowing)
        if head:
            past = (i for i, (_, end) in enumerate(encoding.offsets) if end > len(head))
            pool_start[index] = next(past, len(encoding.ids))
            if truncated[index] and pool_start[index] == len(encoding.ids):
                raise InputError(
                    f"The instruction in front of text {index} fills all {max_length} tokens and leaves nothing of "
                    f"the text; shorten the instruction or raise max_length."
                )
    return TokenizedTexts(ids, pool_start, truncated)


def _check_text(text: Any, index: int) -> None:
    if not isinstance(text, str):
        raise InputError(f"Text {index} is a {type(text).__name__}; every text must be a string.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"Text {index} holds a lone surrogate at character {error.start}, which is not valid text; repair it."
        ) from error

"""Two encoders that know nothing: what a score means is read against them.

Both have the encoder protocol of embedding/encoder.py (encode, fingerprint, attention, max_length, dimension) and
ignore instructions: a prompt is a request to a reader, and nobody reads here.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

_WORD = re.compile(r"[^\W_]+")


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class HashedBagOfWords:
    """Square roots of word counts, hashed to a fixed dimension with signs, unit length (zeros without a word)."""

    attention = "none"
    max_length: int | None = None

    def __init__(self, dimension: int = 4096):
        if dimension < 1:
            raise ValueError(f"dimension must be positive, got {dimension}")
        self.dimension = dimension
        self.fingerprint = f"hashed-bag-of-words-{dimension}"

    def encode(self, texts: Sequence[str], prompt: str | None = None) -> FloatArray:
        """Vectors (n, dimension) float32; words are runs of letters and digits, case folded."""
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word, count in Counter(_WORD.findall(text.casefold())).items():
                place, sign = divmod(_digest(word), 2)
                row[place % self.dimension] += (2 * sign - 1) * np.sqrt(count)
            length = float(np.linalg.norm(row))
            if length > 0:
                row /= length
        return vectors


class RandomVectors:
    """A random direction per distinct text, the same in every run."""

    attention = "none"
    max_length: int | None = None

    def __init__(self, dimension: int = 256):
        if dimension < 1:
            raise ValueError(f"dimension must be positive, got {dimension}")
        self.dimension = dimension
        self.fingerprint = f"random-vectors-{dimension}"

    def encode(self, texts: Sequence[str], prompt: str | None = None) -> FloatArray:
        """Unit vectors (n, dimension) float32, seeded by the text's hash."""
        vectors = np.empty((len(texts), self.dimension), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            row[:] = np.random.default_rng(_digest(text)).standard_normal(self.dimension)
            row /= np.linalg.norm(row)
        return vectors

"""Nothing that was trained on may be tested on: one normalised hash per text, and a check that refuses."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping

from hrsa_jax.data.sources import Pair
from hrsa_jax.runtime.errors import InputError

_NOT_WORD = re.compile(r"[\W_]+")
_MINUS = re.compile(r"(?<![\w)])-(?=\d)")


def normalised_hash(text: str) -> str:
    """SHA-256 (16 hex) of a text's words and signed numbers: case, punctuation, spacing, Unicode form do not count."""
    plain = _MINUS.sub(" minus ", unicodedata.normalize("NFKC", text).casefold())
    plain = _NOT_WORD.sub(" ", plain).strip()
    return hashlib.sha256((plain or text).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def check_no_leak(pairs: Iterable[Pair], texts_by_task: Mapping[str, Iterable[str]]) -> int:
    """Refuses training pairs that hold a text of any task.

    Args:
        pairs: training pairs; queries, positives and negatives all count.
        texts_by_task: every text of every task that will be evaluated.

    Returns:
        The number of distinct training texts that were compared.

    Raises:
        InputError: how many texts overlap, and the first with its data set and task.
    """
    trained = {
        normalised_hash(text): (pair.dataset, text)
        for pair in pairs
        for text in (pair.query, *pair.positives, *pair.negatives)
    }
    leaks = [
        (task, *trained[key])
        for task, texts in texts_by_task.items()
        for key in dict.fromkeys(normalised_hash(text) for text in texts)
        if key in trained
    ]
    if leaks:
        task, dataset, text = leaks[0]
        raise InputError(
            f"{len(leaks)} training texts are also test texts, the first in data set {dataset!r} and task {task!r} "
            f"({' '.join(text.split())[:60]!r}): leave them out of the training data or leave the task out"
        )
    return len(trained)

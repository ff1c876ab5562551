"""Nothing that was trained on may be tested on: one normalised hash per text, and a check that refuses."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hrsa_jax.data.sources import Pair
from hrsa_jax.runtime.errors import InputError

_NOT_WORD = re.compile(r"[\W_]+")
_MINUS = re.compile(r"(?<![\w)])-(?=\d)")


def normalised_hash(text: str) -> str:
    """SHA-256 (16 hex) of a text's words and signed numbers: case, punctuation, spacing, Unicode form do not count."""
    plain = _MINUS.sub(" minus ", unicodedata.normalize("NFKC", text).casefold())
    plain = _NOT_WORD.sub(" ", plain).strip()
    return hashlib.sha256((plain or text).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class Overlap:
    """What training texts and test texts have in common.

    compared: training texts looked at. found: (task, data set, training text) once per task and text, in training
    order.
    """

    compared: int
    found: tuple[tuple[str, str, str], ...]

    def refusal(self) -> InputError:
        """The sentence that says how many texts overlap, and the first with its data set and task."""
        task, dataset, text = self.found[0]
        return InputError(
            f"{len(self.found)} training texts are also test texts, the first in data set {dataset!r} and task "
            f"{task!r} ({' '.join(text.split())[:60]!r}): leave them out of the training data or leave the task out"
        )


def find_overlap(pairs: Iterable[Pair], texts_by_task: Mapping[str, Iterable[str]]) -> Overlap:
    """Compares training pairs with the texts of tasks; only the test texts' hashes are held in memory.

    Args:
        pairs: training pairs; queries, positives and negatives all count.
        texts_by_task: every text of every task that will be evaluated.
    """
    tasks_of: dict[str, list[str]] = {}
    for task, texts in texts_by_task.items():
        for key in dict.fromkeys(normalised_hash(text) for text in texts):
            tasks_of.setdefault(key, []).append(task)
    compared, found = 0, dict[tuple[str, str], tuple[str, str, str]]()
    for pair in pairs:
        for text in (pair.query, *pair.positives, *pair.negatives):
            compared += 1
            key = normalised_hash(text)
            for task in tasks_of.get(key, ()):
                found.setdefault((task, key), (task, pair.dataset, text))
    return Overlap(compared, tuple(found.values()))


def check_no_leak(pairs: Iterable[Pair], texts_by_task: Mapping[str, Iterable[str]]) -> int:
    """Refuses training pairs that hold a text of any task; arguments as in `find_overlap`.

    Returns:
        The number of training texts that were compared.

    Raises:
        InputError: how many texts overlap, and the first with its data set and task.
    """
    overlap = find_overlap(pairs, texts_by_task)
    if overlap.found:
        raise overlap.refusal()
    return overlap.compared

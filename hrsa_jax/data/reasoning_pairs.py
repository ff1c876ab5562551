"""Question -> answer pairs from reasoning-gym, split by the text itself, one pool per family.

Retrieval among answers of one family: every candidate has the right form, so that recognising the type of question
is not enough. Worked solutions where the family has them (gsm_symbolic), the written-out answer elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from hrsa_jax.data.leaks import normalised_hash
from hrsa_jax.data.reasoning_gym_loader import SEED_SPAN, is_held_out, reasoning_gym_dataset
from hrsa_jax.runtime.errors import InputError

Split = Literal["train", "test"]
_DRAWS_PER_PAIR = 60


@dataclass(frozen=True)
class ReasoningPair:
    """One question and its answer; both belong to one split for ever. `template` numbers the kind of question
    within a family that is built from templates (gsm_symbolic), 0 elsewhere."""

    family: str
    question: str
    answer: str
    template: int = 0


def _worked(entry: dict[str, Any]) -> tuple[str, str]:
    question = entry["question"].removesuffix(" Give the result as your final answer. Do not include units.")
    return question, entry["metadata"]["answer_cot"].partition("####")[0].strip()


def _fraction(entry: dict[str, Any]) -> tuple[str, str]:
    facts = entry["metadata"]
    question = f"Simplify the fraction {facts['numerator']}/{facts['denominator']} to its lowest terms."
    return question, f"{facts['simplified_numerator']}/{facts['simplified_denominator']}"


def _jumble(entry: dict[str, Any]) -> tuple[str, str]:
    return "Unscramble these words: " + " ".join(entry["metadata"]["scrambled_words"]), entry["answer"]


def _factors(entry: dict[str, Any]) -> tuple[str, str]:
    return f"Find the prime factorization of {entry['metadata']['number']}.", entry["answer"]


# family -> (reasoning-gym category, options, question and answer from an entry)
_FAMILIES: dict[str, tuple[str, dict[str, Any], Callable[[dict[str, Any]], tuple[str, str]]]] = {
    "gsm_symbolic": ("arithmetic", {}, _worked),
    "fraction_simplification": ("arithmetic", {}, _fraction),
    "letter_jumble": ("algorithmic", {"max_words": 8}, _jumble),
    "prime_factorization": ("arithmetic", {"max_value": 100_000}, _factors),
}
WORKED_FAMILY = "gsm_symbolic"
ANSWER_FAMILIES = tuple(name for name in _FAMILIES if name != WORKED_FAMILY)


def reasoning_pairs(family: str, n: int, *, split: Split, seed: int) -> list[ReasoningPair]:
    """n pairs of one family with distinct questions and answers, a pure function of the arguments.

    A pair is in "test" when both its question and its answer are held out (reasoning_gym_loader.is_held_out), in
    "train" when neither is: no text can be on both sides, whatever the seeds. Pairs with one of each are dropped.

    Raises:
        InputError: unknown family or split, or fewer than n such pairs in a long draw.
    """
    if family not in _FAMILIES or split not in ("train", "test"):
        raise InputError(f"no reasoning pairs of {family!r}, {split!r}: families are {', '.join(_FAMILIES)}")
    category, options, as_pair = _FAMILIES[family]
    size = min(_DRAWS_PER_PAIR * n + 1000, SEED_SPAN)
    dataset = reasoning_gym_dataset(category, family, seed=seed, size=size, **options)
    templates = getattr(dataset, "task_indices", None)
    pairs: list[ReasoningPair] = []
    seen: set[str] = set()
    for i in range(size):
        if len(pairs) == n:
            break
        entry = dataset[i]
        question, answer = as_pair(entry)
        # the rule is asked about the generator's own question too, because task sampling uses that text
        held_out = {is_held_out(entry["question"]), is_held_out(answer)}
        hashes = {normalised_hash(question), normalised_hash(answer)}
        if held_out == {split == "test"} and not hashes & seen:
            pairs.append(ReasoningPair(family, question, answer, templates[i] if templates else 0))
            seen |= hashes
    if len(pairs) < n:
        raise InputError(f"only {len(pairs)} different {split} pairs of {family} in {size} draws, {n} asked for")
    return pairs

"""The rows of the offline tasks that need Debian packages: word senses, theorems, quotations.

Like evaluation/offline_data.py: pure functions of (amounts, seed) that return {configuration: {split: rows}}. Only
held-out lemmas, theorems and quotations are asked about (`is_held_out`, by the text's own hash), so that the rest
may be trained on.
"""

import re
from collections import Counter
from collections.abc import Iterable

from hrsa_jax.data.debian_corpora import Sense, Theorem, fortunes, metamath_theorems, wordnet_senses
from hrsa_jax.data.reasoning_gym_loader import is_held_out
from hrsa_jax.evaluation.offline_data import Amounts, Configs, Rows, draw

FORTUNE_TOPICS = (
    "computers",
    "education",
    "food",
    "law",
    "literature",
    "love",
    "politics",
    "science",
    "sports",
    "work",
)
_FEWEST_SENSES, _MOST_SENSES = 3, 10
_RARE_PREMISE = 20  # a lemma that more proofs cite belongs to logic at large, not to the theorem
_PREMISES = (2, 8)


def sense_reranking(amounts: Amounts, seed: int) -> Configs:
    """A word in a sentence -> the definition of the sense it has there, among all senses of the word."""
    usable = [group for group in _held_out_lemmas() if _FEWEST_SENSES <= len(group[1]) <= _MOST_SENSES]
    queries: Rows = []
    relevant: Rows = []
    ranked: Rows = []
    corpus: dict[str, str] = {}
    for lemma, senses in draw(usable, len(usable), seed):
        shown = [(sense, text) for sense in senses for text in sense.examples if _shows(lemma, text)]
        if not shown or len({sense.definition for sense in senses}) < len(senses):
            continue
        [(sense, sentence)] = draw(shown, 1, seed)
        query = f"q{len(queries)}"
        queries.append({"_id": query, "text": f'"{lemma}" in: {sentence}'})
        relevant.append({"query-id": query, "corpus-id": sense.id, "score": 1})
        ranked.append({"query-id": query, "corpus-ids": [other.id for other in senses]})
        corpus |= {other.id: other.definition for other in senses}
        if len(queries) == amounts.senses:
            break
    return {
        "corpus": {"test": [{"_id": id_, "text": text, "title": ""} for id_, text in corpus.items()]},
        "queries": {"test": queries},
        "default": {"test": relevant},
        "top_ranked": {"test": ranked},
    }


def sense_pairs(amounts: Amounts, seed: int) -> Configs:
    """A definition and a sentence with the word: of one sense, or of two senses of the same word."""
    rows: Rows = []
    for lemma, senses in draw(_held_out_lemmas(), 1 << 30, seed + 1):
        shown = [(sense, text) for sense in senses for text in sense.examples if _shows(lemma, text)]
        if not shown or len(senses) < 2:
            continue
        [(sense, sentence)] = draw(shown, 1, seed)
        same = len(rows) % 2
        other = sense if same else draw([s for s in senses if s.id != sense.id], 1, seed)[0]
        rows.append({"sentence1": sentence, "sentence2": f"{lemma}: {other.definition}", "labels": same})
        if len(rows) == 2 * (amounts.sense_pairs // 2):
            break
    return {"default": {"test": draw(rows, len(rows), seed)}}


def _held_out_lemmas() -> list[tuple[str, list[Sense]]]:
    """(word, its senses as one part of speech), two senses and more, sorted by the word."""
    groups: dict[tuple[str, str], list[Sense]] = {}
    for sense in wordnet_senses():
        for word in dict.fromkeys(word.lower() for word in sense.words):
            groups.setdefault((word, sense.part), []).append(sense)
    return [
        (word, senses)
        for (word, _), senses in sorted(groups.items())
        if len(senses) > 1 and word.isalpha() and is_held_out(word)
    ]


def _shows(lemma: str, sentence: str) -> bool:
    """Whether the word stands in the sentence, at least four words long, as it is or with a regular ending."""
    found = re.search(rf"\b{re.escape(lemma)}(s|es|d|ed|ing)?\b", sentence, re.IGNORECASE)
    return found is not None and len(sentence.split()) >= 4


def premise_retrieval(amounts: Amounts, seed: int) -> Configs:
    """A theorem -> the lemmas its proof cites; those that many proofs cite do not count."""
    theorems = {theorem.label: theorem for theorem in metamath_theorems()}
    uses = Counter(label for theorem in theorems.values() for label in dict.fromkeys(theorem.premises))
    rare = {label for label in theorems if uses[label] <= _RARE_PREMISE}
    chosen: list[tuple[Theorem, list[str]]] = []
    for theorem in draw([t for t in theorems.values() if is_held_out(t.label)], 1 << 30, seed):
        premises = [label for label in dict.fromkeys(theorem.premises) if label in rare]
        if _PREMISES[0] <= len(premises) <= _PREMISES[1]:
            chosen.append((theorem, premises))
        if len(chosen) == amounts.theorems:
            break
    asked = {theorem.label for theorem, _ in chosen}
    # a premise that is itself asked about would be found by its own text
    wanted = dict.fromkeys(label for _, premises in chosen for label in premises if label not in asked)
    others = draw(sorted(rare - asked - set(wanted)), 1 << 30, seed)
    corpus = _distinct(theorems[label] for label in [*wanted, *others[: max(0, amounts.premises - len(wanted))]])
    kept = {theorem.label for theorem in corpus}
    pairs = [(theorem, label) for theorem, premises in chosen for label in premises if label in kept]
    answered = dict.fromkeys(theorem.label for theorem, _ in pairs)
    return {
        "corpus": {"test": [{"_id": t.label, "text": _statement(t), "title": ""} for t in corpus]},
        "queries": {"test": [{"_id": label, "text": _statement(theorems[label])} for label in answered]},
        "default": {"test": [{"query-id": t.label, "corpus-id": label, "score": 1} for t, label in pairs]},
    }


def _statement(theorem: Theorem) -> str:
    return f"{theorem.description} {theorem.formula}"


def _distinct(theorems: Iterable[Theorem]) -> list[Theorem]:
    """The first theorem of every text."""
    return list({_statement(theorem): theorem for theorem in reversed(list(theorems))}.values())[::-1]


def fortune_classification(amounts: Amounts, seed: int) -> Configs:
    """Quotation -> topic; the classifier learns from quotations that are not held out."""
    quotations = fortunes(FORTUNE_TOPICS)
    splits: dict[str, Rows] = {"train": [], "test": []}
    for label, topic in enumerate(FORTUNE_TOPICS):
        for split, most in (("train", amounts.label_train), ("test", amounts.label_test)):
            rows = [q.text for q in quotations if q.topic == topic and is_held_out(q.text) == (split == "test")]
            splits[split] += [{"text": text, "label": label} for text in draw(rows, most, seed)]
    return {"default": {split: draw(rows, len(rows), seed) for split, rows in splits.items()}}

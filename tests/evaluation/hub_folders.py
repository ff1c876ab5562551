"""Copies of hub data sets in miniature: the folders, configurations and columns of the real ones, rows of our own."""

import os
from pathlib import Path

from hrsa_jax.evaluation.offline_tasks import write_data_set

# one real task of mteb per type of task that takes text
TASKS = {
    "Banking77Classification.v2": "Classification",
    "CEDRClassification": "MultilabelClassification",
    "MedrxivClusteringP2P.v2": "Clustering",
    "TwitterSemEval2015": "PairClassification",
    "STSBenchmark": "STS",
    "SciFact": "Retrieval",
    "AskUbuntuDupQuestions": "Reranking",
    "Core17InstructionRetrieval": "InstructionReranking",
    "BornholmBitextMining": "BitextMining",
    "SummEvalSummarization.v2": "Summarization",
    "BrightBiologyRetrieval": "Retrieval",
}
BRIGHT_DOMAINS = (
    *("biology", "earth_science", "economics", "psychology", "robotics", "stackoverflow", "sustainable_living"),
    *("leetcode", "pony", "aops", "theoremqa_theorems", "theoremqa_questions"),
)
TOPICS = ["red apple fruit", "blue sea water", "green forest tree", "fast train rail", "old castle wall", "moon night"]
DOCUMENTS = [f"{t} story" for t in TOPICS] + [f"a {t} tale too" for t in TOPICS] + ["nothing to see here"]


def write(root: Path) -> Path:
    """Fills root/<org>/<name> for every task of TASKS and for BRIGHT's first release."""
    words = ["sun", "rain", "wind", "snow"]
    labelled = [{"text": f"{words[i % 4]} over {TOPICS[i % 6]} {i}", "label": i % 4} for i in range(64)]
    several = [{"text": row["text"], "label": sorted({i % 4, i % 3})} for i, row in enumerate(labelled)]
    pairs = [(DOCUMENTS[i], DOCUMENTS[(i + 6 * (i % 2)) % 12]) for i in range(12)]
    sets = {
        "mteb/banking77": {"default": {"train": labelled, "test": labelled[::3]}},
        "mteb/CEDRClassification": {"default": {"train": several, "test": several[::3]}},
        "mteb/medrxiv-clustering-p2p": {
            "default": {
                "test": [
                    {
                        "sentences": [f"{TOPICS[i % 6]} number {i}" for i in range(start, 600, 2)],
                        "labels": [TOPICS[i % 6] for i in range(start, 600, 2)],
                    }
                    for start in (0, 1)
                ]
            }
        },
        "mteb/twittersemeval2015-pairclassification": {
            "default": {"test": [{"sent1": a, "sent2": b, "labels": i % 2} for i, (a, b) in enumerate(pairs)]}
        },
        "mteb/stsbenchmark-sts": {
            "default": {
                "test": [{"sentence1": a, "sentence2": b, "score": float(i % 5)} for i, (a, b) in enumerate(pairs)]
            }
        },
        "mteb/scifact": retrieval(),
        "mteb/AskUbuntuDupQuestions": retrieval() | ranked([f"q{i}" for i in range(6)]),
        "mteb/Core17InstructionRetrieval": _instructions(),
        "mteb/BornholmBitextMining": {
            "default": {"test": [{"sentence1": t, "sentence2": f"a {t} tale too"} for t in TOPICS]}
        },
        "mteb/summeval": {"default": {"test": [_summary(topic, i) for i, topic in enumerate(TOPICS)]}},
        "mteb/BRIGHT": bright(("biology",)),
        "xlangai/BRIGHT": bright(BRIGHT_DOMAINS),
    }
    for name, configs in sets.items():
        written = write_data_set(root / "drafts", configs)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(written, root / name)
    return root


def retrieval() -> dict:
    """Six queries with one relevant document each."""
    return {
        "corpus": {"test": [{"_id": f"d{i}", "text": text, "title": ""} for i, text in enumerate(DOCUMENTS)]},
        "queries": {"test": [{"_id": f"q{i}", "text": text} for i, text in enumerate(TOPICS)]},
        "default": {"test": [{"query-id": f"q{i}", "corpus-id": f"d{6 + i}", "score": 1} for i in range(6)]},
    }


def ranked(queries: list[str]) -> dict:
    """Candidates of a reranking task."""
    return {"top_ranked": {"test": [{"query-id": q, "corpus-ids": [f"d{i}" for i in range(12)]} for q in queries]}}


def _instructions() -> dict:
    """Every query twice, with two instructions; the change makes a document irrelevant."""
    queries = [(f"q{i}-{kind}", text, kind) for i, text in enumerate(TOPICS) for kind in ("og", "changed")]
    found = [(id_, f"d{int(id_[1]) + place}") for id_, _, _ in queries for place in (0, 6)]
    return {
        "corpus": {"test": [{"_id": f"d{i}", "text": text, "title": ""} for i, text in enumerate(DOCUMENTS)]},
        "queries": {"test": [{"_id": id_, "text": text} for id_, text, _ in queries]},
        "default": {"test": [{"query-id": q, "corpus-id": d, "score": 1} for q, d in found]},
        "instruction": {"test": [{"query-id": id_, "instruction": f"want a {kind} tale"} for id_, _, kind in queries]},
        "qrel_diff": {"qrel_diff": [{"query-id": f"q{i}", "corpus-ids": [f"d{i}"]} for i in range(6)]},
    } | ranked([id_ for id_, _, _ in queries])


def _summary(topic: str, i: int) -> dict:
    return {
        "text": f"a long text about {topic} and more",
        "human_summaries": [f"about {topic}", f"{topic} text"],
        "machine_summaries": [f"about {topic}", f"something else {i}", f"{topic} and more"],
        "relevance": [5.0, 1.0, 3.0],
    }


def bright(domains: tuple[str, ...]) -> dict:
    """Documents and examples, a split per domain; query i must not find document i."""
    documents = [{"id": f"d{i}", "content": text} for i, text in enumerate(DOCUMENTS)]
    examples = [
        {
            "id": f"q{i}",
            "query": text,
            "gold_ids": [f"d{6 + i}"],
            "gold_ids_long": ["N/A"],
            "excluded_ids": [f"d{i}"] if i < 5 else ["N/A"],
        }
        for i, text in enumerate(TOPICS)
    ]
    return {"documents": dict.fromkeys(domains, documents), "examples": dict.fromkeys(domains, examples)}

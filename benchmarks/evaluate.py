"""Encoding inside mteb: against our bare encoder, and against sentence-transformers inside mteb on the same task."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.encode import export_smollm2
from benchmarks.measure import Measurement, in_turns

_ARTICLES = 50  # two texts of each


def measurements() -> Iterator[Measurement]:
    """Two tasks over short texts in fp32 on the exported SmolLM2: similarity of pairs, and retrieval."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_smollm2(folder / "model", max_length=512)
        for task in ("sts", "retrieval"):
            yield from _measure(folder, task)


def _measure(folder: Path, kind: str) -> Iterator[Measurement]:
    import mteb
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
    from sentence_transformers import SentenceTransformer

    import hrsa_jax
    from hrsa_jax.evaluation.mteb_encoder import MTEBEncoder
    from hrsa_jax.evaluation.offline_tasks import task_texts

    encoder = hrsa_jax.Encoder(str(folder / "model"), dtype="float32", allow_empty=True)
    stock = SentenceTransformer(str(folder / "model"), device="cpu")
    texts = next(iter(task_texts([_task(folder, kind)]).values()))

    def evaluate(model: Any) -> float:
        task = _task(folder, kind)  # a fresh one for every turn, as suites do
        result = mteb.evaluate(
            model, task, cache=None, encode_kwargs={"batch_size": 32}, show_progress_bar=False, co2_tracker=False
        )
        return result.task_results[0].get_score()

    def inside() -> float:
        return evaluate(MTEBEncoder("ours", encoder, prompts={}))

    def peer() -> float:
        return evaluate(SentenceTransformerEncoderWrapper(stock))

    def bare() -> Any:
        return encoder.encode(texts)

    ours, alone, spread = in_turns(inside, bare, repeats=2)
    note = f"{len(texts)} distinct texts; the peer is the same encoder without mteb, scoring included in ours"
    yield Measurement(f"{kind} inside mteb", ours, alone, "bare encoder", goal=0.9, spread=spread, note=note)
    ours, theirs, spread = in_turns(inside, peer, repeats=2)
    note = f"{len(texts)} distinct texts; scores {inside():.5f} and {peer():.5f}"
    against = "sentence-transformers in mteb"
    yield Measurement(f"{kind} inside mteb, fp32", ours, theirs, against, goal=1.2, spread=spread, note=note)


def _task(folder: Path, kind: str) -> Any:
    """A stock task over short texts of the news corpus: every text once, so that nobody wins by remembering."""
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata

    from hrsa_jax.data.corpora import bbc_news
    from hrsa_jax.evaluation.offline_tasks import write_data_set

    articles = bbc_news("test")[:_ARTICLES]
    base: Any
    if kind == "sts":
        base, name, score = AbsTaskSTS, "STS", "cosine_spearman"
        pairs = [{"sentence1": a.title, "sentence2": a.lead, "score": float(i % 5)} for i, a in enumerate(articles)]
        configs = {"default": {"test": pairs}}
    else:
        base, name, score = AbsTaskRetrieval, "Retrieval", "ndcg_at_10"
        found = [{"query-id": f"q{i}", "corpus-id": f"d{i}", "score": 1} for i in range(len(articles))]
        configs = {
            "corpus": {"test": [{"_id": f"d{i}", "text": a.lead, "title": ""} for i, a in enumerate(articles)]},
            "queries": {"test": [{"_id": f"q{i}", "text": a.title} for i, a in enumerate(articles)]},
            "default": {"test": found},
        }
    home = folder / kind
    written = next(iter(home.glob("*")), None) if home.is_dir() else None
    path = written or write_data_set(home, configs)
    metadata = TaskMetadata(
        name=f"Benchmark{name}",
        dataset={"path": str(path), "revision": path.name},
        description="",
        type=name,  # type: ignore[arg-type]
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=score,
    )
    return type(metadata.name, (base,), {"metadata": metadata, "min_score": 0, "max_score": 5})()

"""Suites: resume, failures, hub data sets in their own layout, offline refusals, means without gaps."""

import json
import socket
from dataclasses import replace
from unittest.mock import ANY

import numpy as np
import pytest

from hrsa_jax.evaluation import suites
from hrsa_jax.evaluation.baselines import HashedBagOfWords
from hrsa_jax.evaluation.breakdowns import query_ndcg
from hrsa_jax.evaluation.mteb_encoder import MTEBEncoder
from hrsa_jax.evaluation.offline_tasks import offline_tasks, task_texts, write_data_set
from hrsa_jax.evaluation.runner import prediction_folder
from hrsa_jax.evaluation.suites import means, read_scores, run_tasks, suite
from hrsa_jax.runtime.errors import InputError

FOUR = ["OfflineNewsRetrieval", "OfflineNewsClassification", "OfflineNewsClustering", "OfflineNewsPairClassification"]


class Bag(HashedBagOfWords):
    """A bag of words that can be told to fail on a text."""

    def __init__(self, poison=None):
        super().__init__(128)
        self.poison = poison
        self.count = 0

    def encode(self, texts, prompt=None):
        self.count += len(texts)
        vectors = super().encode(texts, prompt)
        if self.poison in texts:
            vectors[texts.index(self.poison)] = np.nan
        return vectors


class Lines:
    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)


def local_task(base, folder, name, kind, configs, *, metric, fields=None, prompt=None):
    """A stock task class over rows written in the hub's layout."""
    from mteb.abstasks.task_metadata import TaskMetadata

    path = write_data_set(folder, configs)
    metadata = TaskMetadata(
        name=name,
        dataset={"path": str(path), "revision": path.name},
        description="",
        type=kind,
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=metric,
        prompt=prompt,
    )
    return type(name, (base,), {"metadata": metadata, **(fields or {})})()


def retrieval_rows(*, excluded=None, instructions=False):
    """Six queries that share words with their document; query i may not find the documents excluded[i]."""
    topics = [
        "red apple fruit",
        "blue sea water",
        "green forest tree",
        "fast train rail",
        "old castle wall",
        "new moon night",
    ]
    documents = [f"{t} story" for t in topics] + [f"{t} story too" for t in topics] + ["nothing to see"]
    configs = {
        "corpus": {"test": [{"_id": f"d{i}", "text": text, "title": ""} for i, text in enumerate(documents)]},
        "queries": {"test": [{"_id": f"q{i}", "text": text} for i, text in enumerate(topics)]},
        "default": {"test": [{"query-id": f"q{i}", "corpus-id": f"d{6 + i}", "score": 1} for i in range(6)]},
    }
    if excluded is not None:
        everything = [f"d{i}" for i in range(len(documents))]
        configs["top_ranked"] = {
            "test": [
                {"query-id": f"q{i}", "corpus-ids": [d for d in everything if d not in excluded.get(i, ())]}
                for i in range(6)
            ]
        }
    if instructions:
        configs["instruction"] = {"test": [{"query-id": f"q{i}", "instruction": "too"} for i in range(6)]}
    return configs


def ndcg_at_10(model_vectors, queries, documents, relevant, allowed):
    """nDCG@10 in float64 from one relevant document a query."""
    gains = []
    for i, query in enumerate(queries):
        scores = (
            model_vectors[query].astype(np.float64) @ np.stack([model_vectors[d] for d in documents]).astype(float).T
        )
        order = [j for j in np.argsort(-scores, kind="stable") if j in allowed[i]]
        rank = order.index(relevant[i]) + 1
        gains.append(1 / np.log2(rank + 1) if rank <= 10 else 0.0)
    return float(np.mean(gains))


def test_exclusions_score_as_a_plain_float64_scorer_does(tmp_path):
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    excluded = {0: ("d0",), 2: ("d2", "d1"), 5: ("d12",)}
    configs = retrieval_rows(excluded=excluded)
    documents = [row["text"] for row in configs["corpus"]["test"]]
    queries = [row["text"] for row in configs["queries"]["test"]]
    bag = HashedBagOfWords(128)
    vectors = dict(zip(documents + queries, bag.encode(documents + queries), strict=True))

    def score(rows, name):
        task = local_task(AbsTaskRetrieval, tmp_path / name, name, "Retrieval", rows, metric="ndcg_at_10")
        [result] = run_tasks(MTEBEncoder("m", bag), lambda: [task], tmp_path / "results")
        assert result.error is None
        return result.score

    everything = set(range(len(documents)))
    allowed = [everything - {int(d[1:]) for d in excluded.get(i, ())} for i in range(6)]
    relevant = [6 + i for i in range(6)]
    masked = score(configs, "Masked")
    assert masked == pytest.approx(ndcg_at_10(vectors, queries, documents, relevant, allowed), abs=1e-5)
    plain = score(retrieval_rows(), "Plain")
    assert plain == pytest.approx(ndcg_at_10(vectors, queries, documents, relevant, [everything] * 6), abs=1e-5)
    assert masked > plain


def test_finished_tasks_are_read_and_cut_files_run_again(tiny, tmp_path):
    def run():
        bag = Bag()
        log = Lines()
        found = run_tasks(MTEBEncoder("m", bag), lambda: offline_tasks(tiny, names=FOUR), tmp_path, log=log)
        return {s.task: s.score for s in found}, bag.count, log.lines

    first, count, lines = run()
    assert count > 0
    assert len(lines) == 4
    assert lines[0].startswith("  1/4 OfflineNewsRetrievalSmall.v1: ndcg_at_10 ")
    again, count, _ = run()
    assert (again, count) == (first, 0)
    [path] = tmp_path.rglob("OfflineNewsClusteringSmall.v1.json")
    path.write_text(path.read_text()[:100])
    third, count, _ = run()
    assert third == first
    assert count == 20  # the clustering documents only
    assert json.loads(path.read_text())["task_name"] == "OfflineNewsClusteringSmall.v1"


def test_workers_share_a_suite_by_task_and_anyone_reads_the_whole(tiny, tmp_path):
    def tasks():
        return offline_tasks(tiny, names=FOUR)

    names = [task.metadata.name for task in tasks()]
    model = MTEBEncoder("m", Bag())
    first = run_tasks(model, tasks, tmp_path, worker=0, workers=2)
    assert [s.task for s in first] == names[::2]
    half = read_scores(model, tasks, tmp_path)
    assert [s.error for s in half] == [None, "not finished", None, "not finished"]
    with pytest.raises(InputError, match=f"no score for {names[1]}, {names[3]}"):
        means(half, names)
    second = run_tasks(MTEBEncoder("m", Bag()), tasks, tmp_path, worker=1, workers=2)
    assert [s.task for s in second] == names[1::2]
    whole = read_scores(model, tasks, tmp_path)
    alone = run_tasks(MTEBEncoder("alone", Bag()), tasks, tmp_path)
    assert [s.score for s in whole] == [s.score for s in alone]
    with pytest.raises(InputError, match="worker=2 of workers=2"):
        run_tasks(model, tasks, tmp_path, worker=2, workers=2)


def test_a_subset_that_is_missing_from_a_result_is_not_finished(tiny, tmp_path):
    def tasks():
        return offline_tasks(tiny, names=["OfflineDjangoBitextMining"])

    model = MTEBEncoder("m", Bag())
    [score] = run_tasks(model, tasks, tmp_path)
    assert len(score.languages) == 4
    [path] = tmp_path.rglob("OfflineDjangoBitextMiningSmall.v1.json")
    result = json.loads(path.read_text())
    result["scores"]["test"].pop()
    path.write_text(json.dumps(result))
    assert read_scores(model, tasks, tmp_path)[0].error == "not finished"
    assert run_tasks(model, tasks, tmp_path) == [replace(score, seconds=ANY)]


def test_predictions_give_scores_per_query(tiny, tmp_path):
    names = FOUR[:1]
    model = MTEBEncoder("m", Bag())
    [score] = run_tasks(model, lambda: offline_tasks(tiny, names=names), tmp_path, predictions=True)
    [path] = prediction_folder(model, tmp_path).glob("*.json")
    found = json.loads(path.read_text())["default"]["test"]
    [task] = offline_tasks(tiny, names=names)
    task.load_data()
    queries = query_ndcg(found, task.dataset["default"]["test"]["relevant_docs"])
    assert len(queries) == 6
    assert np.mean(list(queries.values())) == pytest.approx(score.score, abs=1e-5)


def test_names_keep_seeds_apart(tiny, tmp_path):
    for seed in (0, 1):
        run_tasks(MTEBEncoder(f"Emb-s{seed}", Bag()), lambda: offline_tasks(tiny, names=FOUR[:1]), tmp_path)
    assert len(list(tmp_path.rglob("OfflineNewsRetrievalSmall.v1.json"))) == 2


def test_a_failed_task_is_reported_and_the_rest_runs(tiny, tmp_path):
    names = FOUR[:2]
    poison = task_texts(offline_tasks(tiny, names=names))["OfflineNewsRetrievalSmall.v1"][0]
    failed, fine = run_tasks(MTEBEncoder("m", Bag(poison)), lambda: offline_tasks(tiny, names=names), tmp_path)
    assert failed.score is None
    assert failed.error.startswith("FloatingPointError: hrsa_jax/m gave 1 vectors with NaN")
    assert fine.error is None
    with pytest.raises(InputError, match=r"no score for OfflineNewsRetrievalSmall\.v1"):
        means([failed, fine], [failed.task, fine.task])


def test_hub_suites_say_one_sentence_at_once_when_the_hub_is_off(monkeypatch):
    def connect(*_):
        pytest.fail("the network was touched")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    for name in ("MTEB(Code, v1)", "qa", "SciFact", "bright_paper"):
        with pytest.raises(InputError, match=r"needs \d+ data sets that are not on this machine .*HF_HUB_OFFLINE=1"):
            suite(name)


def test_suites_by_name(monkeypatch, tiny):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    short = suite("BRIGHT(v1.1)")
    names = [t.metadata.name for t in short.tasks()]
    assert len(names) == 12
    assert not [n for n in names if "Long" in n]
    assert {t.metadata.main_score for t in short.tasks()} == {"ndcg_at_10"}
    assert short.tasks()[0] is not short.tasks()[0]
    [paper] = suite("bright_paper").tasks()
    assert len(paper.hf_subsets) == 12
    assert "one prompt" in suite("bright_paper").label
    assert len(suite("qa").tasks()) == 6
    assert len(suite("offline", folder=tiny, names=FOUR).tasks()) == 4


@pytest.mark.parametrize(("name", "near"), [("NanoBIER", "NanoBEIR"), ("MTEB(eng,v2)", "MTEB(eng, v2)")])
def test_unknown_suites_name_the_nearest(name, near):
    with pytest.raises(InputError) as caught:
        suite(name)
    assert f"did you mean {near!r}?" in str(caught.value)


def test_a_suite_can_be_cut_to_some_of_its_tasks(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    chosen = suite("NanoBEIR", names=["NanoSciFactRetrieval", "NanoFiQA2018Retrieval"]).tasks()
    assert sorted(t.metadata.name for t in chosen) == ["NanoFiQA2018Retrieval", "NanoSciFactRetrieval"]
    with pytest.raises(InputError, match="did you mean 'NanoSciFactRetrieval'"):
        suite("NanoBEIR", names=["NanoScifact"])


def test_the_offline_suite_needs_a_folder():
    with pytest.raises(InputError, match="needs a folder"):
        suite("offline")


def test_data_sets_in_the_hub_cache_are_enough(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "datasets--mteb--scifact").mkdir()
    assert suite("SciFact").tasks()[0].metadata.name == "SciFact"


def test_every_suite_name_is_one_mteb_or_we_know():
    import mteb

    known = {b.name for b in mteb.get_benchmarks()}
    assert set(suites.BENCHMARKS) <= known
    assert set(suites.LABELS) <= set(suites.SUITES)


def test_scores_equal_those_of_mteb_with_sentence_transformers_itself(tiny, tmp_path):
    """The whole bridge against mteb's own wrapper around the same vectors, on tasks of six types."""
    import mteb
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    names = [*FOUR, "OfflineLeeSTS", "OfflineWorkedReranking"]
    words = {w for texts in task_texts(offline_tasks(tiny, names=names)).values() for t in texts for w in t.split()}
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(["[UNK]", *sorted(words)])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    weights = np.random.default_rng(0).standard_normal((len(words) + 1, 32)).astype(np.float32)
    stock = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")

    class Wrapped:
        fingerprint, attention, max_length, dimension = "static", "none", None, 32

        def encode(self, texts, prompt=None):
            return stock.encode(list(texts), show_progress_bar=False)

    ours = run_tasks(MTEBEncoder("m", Wrapped()), lambda: offline_tasks(tiny, names=names), tmp_path)
    theirs = mteb.evaluate(
        stock, offline_tasks(tiny, names=names), cache=None, show_progress_bar=False, co2_tracker=False
    )
    assert [s.error for s in ours] == [None] * len(names)
    expected = {result.task_name: result.get_score() for result in theirs.task_results}
    assert {s.task: s.score for s in ours} == pytest.approx(expected, abs=1e-4)

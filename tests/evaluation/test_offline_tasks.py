"""Stock mteb tasks over local rows: deterministic, versioned, with nothing that was trained on."""

import json
from pathlib import Path

import numpy as np
import pytest

from hrsa_jax.data.corpora import check_no_leak, training_pairs
from hrsa_jax.evaluation import offline_data, offline_tasks
from hrsa_jax.evaluation.baselines import HashedBagOfWords, RandomVectors
from hrsa_jax.evaluation.mteb_encoder import MTEBEncoder
from hrsa_jax.evaluation.offline_data import AMOUNTS, BITEXT_CODES, NEWS_CLASSES
from hrsa_jax.evaluation.offline_registry import ALL_TASKS, OFFLINE_TASKS
from hrsa_jax.evaluation.offline_tasks import task_texts
from hrsa_jax.evaluation.suites import run_tasks
from hrsa_jax.runtime.errors import InputError


class Counting(HashedBagOfWords):
    """A bag of words that counts the texts it was given."""

    def __init__(self):
        super().__init__(256)
        self.texts = []

    def encode(self, texts, prompt=None):
        self.texts += texts
        return super().encode(texts, prompt)


def make(folder, **options):
    return offline_tasks.offline_tasks(folder, **options)


def test_the_suite_has_eight_tasks_of_six_types_for_the_verdict_and_says_where_they_come_from():
    verdict = [task for task in OFFLINE_TASKS.values() if not task.tuned_family]
    assert len(verdict) >= 8
    assert len({task.type for task in verdict}) >= 6
    assert all(task.source and task.licence and task.instruction for task in OFFLINE_TASKS.values())


def test_every_task_runs_and_tells_words_from_noise(tiny, tmp_path):
    scores = {}
    for encoder in (RandomVectors(256), Counting()):
        model = MTEBEncoder(encoder.fingerprint, encoder)
        found = run_tasks(model, lambda: make(tiny), tmp_path)
        assert [s.error for s in found] == [None] * len(OFFLINE_TASKS)
        assert [(s.type, s.metric) for s in found] == [(t.type, t.metric) for t in OFFLINE_TASKS.values()]
        scores[encoder.fingerprint] = {s.task: s.score for s in found}
    for task in ("OfflineNewsRetrievalSmall.v1", "OfflineLeeSTSSmall.v1", "OfflineWorkedRerankingSmall.v1"):
        assert scores["hashed-bag-of-words-256"][task] > scores["random-vectors-256"][task]


def test_sts_encodes_fifty_documents_not_two_thousand_four_hundred_and_fifty(tiny, tmp_path):
    encoder = Counting()
    [score] = run_tasks(MTEBEncoder("m", encoder), lambda: make(tiny, names=["OfflineLeeSTS"]), tmp_path)
    assert len(encoder.texts) == 50
    assert score.score > 0.1


def test_a_used_clustering_task_scores_otherwise_a_fresh_one_the_same(tiny, tmp_path):
    import mteb

    model = MTEBEncoder("m", HashedBagOfWords(64))

    def score(task):
        result = mteb.evaluate(model, task, cache=None, show_progress_bar=False, co2_tracker=False)
        return result.task_results[0].scores["test"][0]["v_measures"]["Level 0"]

    names = ["OfflineNewsClustering"]
    [used] = make(tiny, names=names)
    first = score(used)
    assert score(used) != first  # why tasks are made anew for every model
    assert score(make(tiny, names=names)[0]) == first


def test_clustering_embeds_every_document(tiny, tmp_path):
    encoder = Counting()
    run_tasks(MTEBEncoder("m", encoder), lambda: make(tiny, names=["OfflineNewsClustering"]), tmp_path)
    [rows] = offline_data.news_clustering(offline_tasks.AMOUNTS["small"], 0)["default"].values()
    assert len(set(encoder.texts)) == len(rows) == 20


def test_rows_are_written_once_and_again_when_the_recipe_changes(tiny, tmp_path, monkeypatch):
    [task] = make(tmp_path, names=["OfflineNewsRetrieval"])
    revision = task.metadata.dataset["revision"]
    monkeypatch.setattr(offline_data, "bbc_news", lambda split: pytest.fail("drawn again"))
    assert make(tmp_path, names=["OfflineNewsRetrieval"])[0].metadata.dataset["revision"] == revision
    monkeypatch.undo()
    [marker] = tmp_path.rglob("recipe.json")
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "python": "2.7"}))
    monkeypatch.setattr(offline_tasks, "AMOUNTS", AMOUNTS)
    [task] = make(tmp_path, names=["OfflineNewsRetrieval"])
    assert task.metadata.dataset["revision"] != revision  # the real amounts, not the tiny ones
    assert not list(tmp_path.rglob(".draft-*"))


def test_rows_that_changed_are_read_although_datasets_caches_by_folder_name(tmp_path):
    from datasets import load_dataset

    for text in ("first", "second"):
        path = offline_tasks.write_data_set(tmp_path / "set", {"default": {"test": [{"text": text}]}})
        assert load_dataset(str(path), split="test")["text"][:] == [text]


def test_names_carry_version_and_size_and_seeds_draw_other_rows(tiny):
    names = ["OfflineNewsRetrieval"]
    small, other, full = (
        make(tiny, names=names, **options)[0].metadata for options in ({}, {"seed": 1}, {"size": "full"})
    )
    assert small.name == "OfflineNewsRetrievalSmall.v1"
    assert full.name == "OfflineNewsRetrieval.v1"
    assert small.dataset["revision"] != other.dataset["revision"]


def test_training_pairs_hold_no_test_text(tiny):
    texts = task_texts(make(tiny))
    assert min(len(found) for found in texts.values()) >= 6
    pairs = training_pairs(60, seed=0)
    assert check_no_leak(pairs, texts) >= 100
    planted = texts["OfflineNewsRetrievalSmall.v1"][0].upper()
    with pytest.raises(InputError, match="task 'OfflineNewsRetrievalSmall"):
        check_no_leak([*pairs, type(pairs[0])(planted, "", ("x y z",), (), "planted")], texts)


def test_unknown_tasks_and_sizes_are_named(tiny):
    with pytest.raises(InputError, match="'OfflineChess'"):
        make(tiny, names=["OfflineChess"])
    with pytest.raises(InputError, match="'huge'"):
        make(tiny, size="huge")


# the rows


def test_the_small_suite_is_small():
    amounts = AMOUNTS["small"]
    counts = [
        amounts.code_queries + amounts.code_documents,
        6 * amounts.reasoning,
        amounts.news_queries + amounts.news_documents,
        5 * (amounts.label_train + amounts.label_test),
        amounts.clustering,
        2 * amounts.news_pairs,
        50,
        (1 + len(offline_data.BITEXT_SMALL)) * amounts.bitext,
        2 * amounts.templates * amounts.per_template,
    ]
    assert 1000 <= sum(counts) <= 1500


def test_reranking_candidates_are_of_one_template():
    configs = offline_data.worked_reranking(AMOUNTS["small"], 0)
    candidates = {row["query-id"]: row["corpus-ids"] for row in configs["top_ranked"]["test"]}
    for row in configs["default"]["test"]:
        assert row["corpus-id"] in candidates[row["query-id"]]
        assert len(candidates[row["query-id"]]) == AMOUNTS["small"].per_template
    texts = [row["text"] for row in configs["corpus"]["test"]]
    for i in range(0, len(texts), AMOUNTS["small"].per_template):
        assert len(set(texts[i : i + AMOUNTS["small"].per_template])) == AMOUNTS["small"].per_template


def test_pairs_are_balanced_and_classes_even():
    pairs = offline_data.news_pairs(AMOUNTS["small"], 0)["default"]["test"]
    assert sum(row["labels"] for row in pairs) == len(pairs) // 2 == AMOUNTS["small"].news_pairs // 2
    splits = offline_data.news_classification(AMOUNTS["small"], 0)["default"]
    for split, each in (("train", AMOUNTS["small"].label_train), ("test", AMOUNTS["small"].label_test)):
        labels = [row["label"] for row in splits[split]]
        assert np.bincount(labels).tolist() == [each] * len(NEWS_CLASSES)
    assert not {r["text"] for r in splits["train"]} & {r["text"] for r in splits["test"]}


def test_small_bitext_shares_its_english_sentences():
    configs = offline_data.bitext_mining(AMOUNTS["small"], 0)
    assert len({row["sentence1"] for splits in configs.values() for row in splits["test"]}) <= 40
    assert set(configs) <= set(BITEXT_CODES)


def test_language_codes_are_known_to_mteb():
    from mteb.languages import check_language_code

    for code in BITEXT_CODES.values():
        check_language_code(code)


# the committed figures

_FIGURES = json.loads((Path(__file__).parents[2] / "benchmarks" / "offline_sanity.json").read_text(encoding="utf-8"))


def test_full_size_figures_are_complete_stable_and_in_the_right_order():
    found = _FIGURES["full"]["tasks"]
    assert set(found) == set(ALL_TASKS)
    assert _FIGURES["full"]["seeds"] >= 2
    for name, row in found.items():
        assert (row["type"], row["metric"]) == (ALL_TASKS[name].type, ALL_TASKS[name].metric)
        for label in ("random", "bag-of-words", "all-MiniLM-L6-v2"):
            assert row[f"{label} spread"] <= 0.03, f"{name}: {label}"
        assert row["all-MiniLM-L6-v2"] > row["random"] + 0.02, name

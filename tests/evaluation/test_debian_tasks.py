"""Offline tasks over Debian packages: used where installed, refused by name where not."""

import debian_files
import pytest

from hrsa_jax.data.corpora import check_no_leak, training_pairs
from hrsa_jax.evaluation import debian_data, offline_tasks
from hrsa_jax.evaluation.baselines import HashedBagOfWords
from hrsa_jax.evaluation.mteb_encoder import MTEBEncoder
from hrsa_jax.evaluation.offline_data import AMOUNTS
from hrsa_jax.evaluation.offline_registry import DEBIAN_TASKS, OFFLINE_TASKS, available_tasks
from hrsa_jax.evaluation.suites import run_tasks
from hrsa_jax.runtime.errors import InputError


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("HRSA_DEBIAN", str(tmp_path / "root"))
    return debian_files.write(tmp_path / "root")


def test_debian_tasks_join_the_suite_where_they_are_installed(root, tiny, monkeypatch):
    assert available_tasks() == (*OFFLINE_TASKS, *DEBIAN_TASKS)
    assert len({task.package for task in DEBIAN_TASKS.values()}) == 3
    monkeypatch.setenv("HRSA_DEBIAN", str(root / "nothing"))
    assert available_tasks() == tuple(OFFLINE_TASKS)


def test_a_debian_task_that_is_not_installed_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HRSA_DEBIAN", str(tmp_path))
    with pytest.raises(InputError, match="'wordnet-base' is not installed"):
        offline_tasks.offline_tasks(tmp_path / "sets", names=["OfflineSenseReranking"])


def test_all_of_them_run_in_mteb(root, tiny, tmp_path):
    model = MTEBEncoder("m", HashedBagOfWords(256))
    scores = run_tasks(model, lambda: offline_tasks.offline_tasks(tmp_path / "sets", names=DEBIAN_TASKS), tmp_path)
    assert [s.error for s in scores] == [None] * len(DEBIAN_TASKS)
    assert [(s.type, s.metric) for s in scores] == [(t.type, t.metric) for t in DEBIAN_TASKS.values()]
    texts = offline_tasks.task_texts(offline_tasks.offline_tasks(tmp_path / "sets", names=DEBIAN_TASKS))
    assert check_no_leak(training_pairs(30, seed=0), texts) > 30


def test_reranking_asks_for_one_sense_among_all_of_its_word(root):
    configs = debian_data.sense_reranking(AMOUNTS["small"], 0)
    ranked = {row["query-id"]: row["corpus-ids"] for row in configs["top_ranked"]["test"]}
    definitions = {row["_id"]: row["text"] for row in configs["corpus"]["test"]}
    assert len(ranked) >= 4
    for row in configs["default"]["test"]:
        assert row["corpus-id"] in ranked[row["query-id"]]
        assert len(ranked[row["query-id"]]) == 4
    for row in configs["queries"]["test"]:
        word = row["text"].split('"')[1]
        assert all(definitions[id_].endswith(word) for id_ in ranked[row["_id"]])


def test_sense_pairs_are_balanced(root):
    rows = debian_data.sense_pairs(AMOUNTS["small"], 0)["default"]["test"]
    assert len(rows) >= 4
    assert abs(2 * sum(row["labels"] for row in rows) - len(rows)) <= 1


def test_no_theorem_is_its_own_answer_and_every_query_has_one(root):
    configs = debian_data.premise_retrieval(AMOUNTS["small"], 0)
    corpus = {row["_id"] for row in configs["corpus"]["test"]}
    queries = {row["_id"] for row in configs["queries"]["test"]}
    assert queries
    assert not corpus & queries
    assert {row["query-id"] for row in configs["default"]["test"]} == queries
    assert {row["corpus-id"] for row in configs["default"]["test"]} <= corpus


def test_quotations_are_learnt_from_and_asked_about_apart(root):
    splits = debian_data.fortune_classification(AMOUNTS["small"], 0)["default"]
    assert {row["label"] for row in splits["test"]} == set(range(len(debian_data.FORTUNE_TOPICS)))
    assert not {row["text"] for row in splits["train"]} & {row["text"] for row in splits["test"]}

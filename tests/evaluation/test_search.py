"""Exact search by blocks against the whole score matrix in float64."""

import tracemalloc

import numpy as np
import pytest

from hrsa_jax.evaluation import search
from hrsa_jax.evaluation.search import Restriction, exact_search


def vectors(n, d=16, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 7, 50, 500])
def test_blocked_search_equals_a_full_sort(monkeypatch, k):
    monkeypatch.setattr(search, "_QUERY_BLOCK", 3)
    monkeypatch.setattr(search, "_DOCUMENT_BLOCK", 17)
    queries, documents = vectors(8), vectors(100, seed=1)
    exact = queries.astype(np.float64) @ documents.astype(np.float64).T
    for row, (places, scores) in zip(exact, exact_search(queries, documents, k), strict=True):
        expected = np.argsort(-row)[:k]
        np.testing.assert_array_equal(places, expected)
        np.testing.assert_allclose(scores, row[expected], atol=1e-5)


def test_restriction_is_a_mask(monkeypatch):
    monkeypatch.setattr(search, "_QUERY_BLOCK", 2)
    monkeypatch.setattr(search, "_DOCUMENT_BLOCK", 7)
    queries, documents = vectors(5), vectors(30, seed=2)
    ids = [f"d{i}" for i in range(30)]
    random = np.random.default_rng(3)
    allowed = [sorted(random.choice(30, size=n, replace=False)) for n in (30, 12, 1, 0, 29)]
    found = exact_search(queries, documents, 10, restriction=Restriction(ids, [[ids[i] for i in a] for a in allowed]))
    for query, places, (got, _) in zip(queries, allowed, found, strict=True):
        best = sorted(places, key=lambda i: -float(query.astype(np.float64) @ documents[i].astype(np.float64)))[:10]
        assert got.tolist() == best


def test_equal_scores_come_in_corpus_order():
    documents = np.ones((6, 2), np.float32)
    [(places, _)] = exact_search(np.ones((1, 2), np.float32), documents, 6)
    assert places.tolist() == [0, 1, 2, 3, 4, 5]


def test_unknown_candidates_and_repeated_ids_are_refused():
    with pytest.raises(ValueError, match="candidate 'zz' of query number 0"):
        exact_search(vectors(1), vectors(2), 1, restriction=Restriction(["a", "b"], [["zz"]]))
    with pytest.raises(ValueError, match="1 document ids come twice"):
        Restriction(["a", "a"], [])


def test_memory_does_not_grow_with_queries_times_documents():
    documents = vectors(4000, 4)
    ids = [str(i) for i in range(4000)]
    peaks = []
    for count in (128, 1024):
        restriction = Restriction(ids, [ids] * count)
        queries = vectors(count, 4)
        tracemalloc.start()
        exact_search(queries, documents, 5, restriction=restriction)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]

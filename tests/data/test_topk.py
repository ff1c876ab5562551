"""Exact top-k by blocks: equal to a float64 search, on any number of devices, in memory that does not grow."""

import tracemalloc

import numpy as np
import pytest

from hrsa_jax.data.topk import exact_top_k
from hrsa_jax.runtime.mesh import make_mesh


def vectors(count, seed, width=16):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def blocks_of(corpus, size):
    return (corpus[start : start + size] for start in range(0, len(corpus), size))


@pytest.mark.parametrize("size", [64, 1000])
@pytest.mark.parametrize("devices", [1, 8])
def test_equal_to_a_search_in_float64(size, devices):
    queries, corpus = vectors(37, 0), vectors(500, 1)
    corpus[100] = corpus[3]  # equal scores come in corpus order
    mesh = make_mesh(data=4, fsdp=2) if devices == 8 else None
    scores, places = exact_top_k(queries, blocks_of(corpus, size), 11, mesh=mesh)
    exact = queries.astype(np.float64) @ corpus.astype(np.float64).T
    expected = np.lexsort((np.broadcast_to(np.arange(500), exact.shape), -exact), axis=1)[:, :11]
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(exact, expected, 1), rtol=1e-12)


def test_near_ties_that_float32_cannot_tell_apart_are_ordered_as_in_float64():
    queries = np.ones((1, 2), np.float32)
    gaps = np.arange(12)[::-1] * 2.0**-23
    corpus = np.stack([np.ones(12), 16 + np.zeros(12)], 1).astype(np.float32)
    corpus[:, 0] += gaps.astype(np.float32)  # lost in float32 sums next to 16
    _, places = exact_top_k(queries, [corpus], 5)
    np.testing.assert_array_equal(places[0], np.argsort(-(corpus.astype(np.float64) @ [1.0, 1.0]), kind="stable")[:5])


def test_memory_is_flat_in_the_size_of_the_corpus():
    """Host memory of the search: the corpus arrives block by block and is never held."""
    queries = vectors(64, 0, 32)
    exact_top_k(queries, [vectors(2_000, 9, 32)] * 2, 10)  # compiled

    def peak(blocks):
        tracemalloc.start()
        exact_top_k(queries, (vectors(2_000, seed, 32) for seed in range(blocks)), 10)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    block = 2_000 * 32 * 4  # bytes; the device may still hold the one or two before it
    assert peak(40) < peak(4) + 2.5 * block


def test_fewer_passages_than_asked_for():
    scores, places = exact_top_k(vectors(3, 0), [vectors(2, 1), vectors(2, 2)], 10)
    assert scores.shape == places.shape == (3, 4)
    with pytest.raises(ValueError, match="k must be"):
        exact_top_k(vectors(1, 0), [vectors(2, 1)], 0)

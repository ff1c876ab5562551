"""Nearest neighbours and their overlap against float64 numpy: exact, ties by index, groups excluded."""

import jax
import numpy as np
import pytest
import reference as ref
from hypothesis import given, settings
from hypothesis import strategies as st

from hrsa_jax.hrsa import geometry
from hrsa_jax.hrsa.controls import random_rotation

N, P, Q = 150, 9, 6


def data(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, P))
    y = x[:, :Q] + 0.5 * rng.standard_normal((N, Q))
    return x.astype(dtype), y.astype(dtype), rng.integers(0, 20, N)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_equal_a_full_sort(wide, metric):
    with jax.enable_x64(wide):
        x, _, groups = data(dtype=np.float64 if wide else np.float32)
        for labels in (None, groups):
            found = geometry.nearest_neighbors(x, 7, metric=metric, groups=labels)
            assert found.dtype == np.int32
            np.testing.assert_array_equal(found, ref.neighbors(x, 7, metric=metric, groups=labels))


def test_a_stack_of_layers_equals_layer_by_layer():
    x, _, groups = data()
    stack = np.stack([x, x**2, x[::-1]])
    found = geometry.nearest_neighbors(stack, 5, groups=groups)
    assert found.shape == (3, N, 5)
    for layer, indices in zip(stack, found, strict=True):
        np.testing.assert_array_equal(indices, geometry.nearest_neighbors(layer, 5, groups=groups))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("labels", [False, True])
def test_overlap_at_several_k_equals_sets(metric, labels):
    x, y, groups = data()
    options = {"metric": metric, "groups": groups if labels else None}
    found = geometry.knn_overlap(x, y, (1, 5, 20), **options)
    assert list(found) == [1, 5, 20]
    for k, values in found.items():
        a, b = ref.neighbors(x, k, **options), ref.neighbors(y, k, **options)
        np.testing.assert_allclose(values, ref.jaccard(a, b), rtol=1e-6)
        shared = [len(set(i) & set(j)) / k for i, j in zip(a, b, strict=True)]
        if k == 5:
            np.testing.assert_allclose(geometry.mutual_knn(x, y, k, **options), shared, rtol=1e-6)
    stacked = geometry.knn_overlap(np.stack([x, x[::-1]]), np.stack([y, y]), (5,), **options)[5]
    np.testing.assert_array_equal(stacked[0], found[5])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize(("n", "d"), [(150, 9), (333, 37)])
def test_equal_rows_tie_exactly_and_the_lowest_index_wins(metric, n, d):
    rng = np.random.default_rng(n)
    table = rng.standard_normal((n // 5, d)).astype(np.float32)
    ids = rng.integers(0, len(table), n)
    found = np.asarray(geometry.nearest_neighbors(table[ids], 12, metric=metric))
    for i, row in enumerate(found):
        same = ids[row[:-1]] == ids[row[1:]]
        assert (np.diff(row)[same] > 0).all()
        # an equal row with a lower index was not passed over for the last place
        equal = np.flatnonzero(ids == ids[row[-1]])
        assert set(equal[equal < row[-1]]) - {i} <= set(row)
    assert geometry.tie_fraction(table[ids], 12, metric=metric) > 0.3
    assert geometry.tie_fraction(rng.standard_normal((n, d)), 12, metric=metric) == 0


def test_zero_vectors_of_either_sign_tie_under_euclidean():
    x = np.zeros((9, 4), np.float32)
    x[::2] *= -1
    np.testing.assert_array_equal(geometry.nearest_neighbors(x, 3, metric="euclidean")[4], [0, 1, 2])


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([2.0**-60, 0.25, 2.0**40]))
def test_invariances(seed, scale):
    x, y, _ = data(seed)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(N)
    overlap = geometry.knn_overlap(x, y, (5, 10))
    np.testing.assert_array_equal(geometry.knn_overlap(x * np.float32(scale), y, (5, 10))[10], overlap[10])
    reordered = geometry.knn_overlap(x[rows], y[rows], (5, 10))
    np.testing.assert_allclose(reordered[5], overlap[5][rows], atol=1e-6)
    turned = (x @ random_rotation(P, seed=seed)).astype(np.float32)
    assert geometry.knn_overlap(turned, x, (10,))[10].mean() > 0.999  # near-ties may swap by rounding
    shifted = (x + 3).astype(np.float32)
    for_distance = geometry.nearest_neighbors(x, 5, metric="euclidean")
    same = np.asarray(geometry.nearest_neighbors(shifted, 5, metric="euclidean")) == np.asarray(for_distance)
    assert same.mean() > 0.999


def test_neighbours_and_maps_agree_with_the_peers():
    from scipy.linalg import orthogonal_procrustes
    from sklearn.neighbors import NearestNeighbors

    from hrsa_jax.hrsa import representation

    x, y, _ = data()
    for metric in ("cosine", "euclidean"):
        peer = (
            NearestNeighbors(n_neighbors=7, metric=metric, algorithm="brute").fit(x).kneighbors(return_distance=False)
        )
        np.testing.assert_array_equal(geometry.nearest_neighbors(x, 7, metric=metric), peer)
    square = x[:, :Q]
    peer_map, _ = orthogonal_procrustes(square - square.mean(0), y - y.mean(0))
    np.testing.assert_allclose(representation.orthogonal_procrustes(square, y).map, peer_map, atol=1e-5)


def test_massive_rows_do_not_disturb_the_others():
    x, _, _ = data()
    x[3] *= 3e4
    for metric in ("cosine", "euclidean"):
        expected = ref.neighbors(x, 6, metric=metric)
        rows = np.arange(N) != 3
        found = np.asarray(geometry.nearest_neighbors(x, 6, metric=metric))
        assert (found[rows] == expected[rows]).mean() > 0.99


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", ["columns", "rows"])
def test_massive_activations(kind, metric):
    """Values to 3e4 at n = 8192, from bfloat16: the neighbours found are as near as float64's to 1e-6 of the scale."""
    x = np.random.default_rng(3).standard_normal((8192, 16)).astype(np.float32)
    if kind == "columns":
        x[:, 3] *= 3e4
    else:
        x[::64] += 3e4
    half = jax.numpy.asarray(x, jax.numpy.bfloat16)
    found = np.asarray(geometry.nearest_neighbors(half, 10, metric=metric))
    rows, some = np.asarray(half, np.float64), np.arange(0, 8192, 61)
    if metric == "cosine":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    offset = 0 if metric == "cosine" else (rows**2).sum(1) / 2
    scores = rows[some] @ rows.T - offset
    scores[np.arange(len(some)), some] = -np.inf
    best = -np.sort(-scores, axis=1)[:, :10]
    gap = best - np.take_along_axis(scores, found[some], 1)
    assert np.abs(gap).max() < 1e-6 * (rows**2).sum(1).max()


@pytest.mark.parametrize(("n", "k"), [(20, 1), (20, 19), (150, 10), (4096, 50)])
def test_chance_is_hypergeometric(n, k):
    assert geometry.knn_chance(n, k) == pytest.approx(ref.knn_chance(n, k), rel=1e-12)


def test_independent_searches_score_at_chance():
    x, y, _ = data()
    y = np.random.default_rng(1).standard_normal((N, Q)).astype(np.float32)
    mutual, jaccard = geometry.knn_chance(N, 10)
    assert geometry.mutual_knn(x, y, 10).mean() == pytest.approx(mutual, abs=0.02)
    assert geometry.knn_overlap(x, y, (10,))[10].mean() == pytest.approx(jaccard, abs=0.012)


def test_hubness_is_the_skew_of_occurrences():
    from scipy.stats import skew

    x, _, _ = data()
    counts = np.bincount(ref.neighbors(x, 8).ravel(), minlength=N)
    assert float(geometry.k_occurrence_skew(x, 8)) == pytest.approx(skew(counts), rel=1e-5)
    assert geometry.k_occurrence_skew(np.stack([x, x]), 8).shape == (2,)
    circle = np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], 1)
    assert np.isnan(geometry.k_occurrence_skew(circle, 7))  # everyone is everyone's neighbour


def test_every_function_runs_under_jit():
    x, y, groups = data()
    for function, arguments in [
        (lambda x: geometry.nearest_neighbors(x, 7), (x,)),
        (lambda x, groups: geometry.nearest_neighbors(x, 7, groups=groups), (x, groups)),
        (lambda x, y: geometry.knn_overlap(x, y, (1, 5, 20)), (x, y)),
        (lambda x, y: geometry.mutual_knn(x, y, 5), (x, y)),
        (lambda x: geometry.tie_fraction(x, 12), (x,)),
        (lambda x: geometry.k_occurrence_skew(x, 8), (x,)),
    ]:
        eager, jitted = function(*arguments), jax.jit(function)(*arguments)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), eager, jitted)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: geometry.nearest_neighbors(x, N), "k is 150 and x has 150 rows"),
        (lambda x, y: geometry.nearest_neighbors(x, 0), "k is 0"),
        (lambda x, y: geometry.nearest_neighbors(x, 2.5), "k is 2.5"),
        (lambda x, y: geometry.nearest_neighbors(x * [0] * P, 3), "x has 150 zero rows, the first at"),
        (lambda x, y: geometry.nearest_neighbors(x, 3, metric="dot"), "metric is 'dot'"),
        (lambda x, y: geometry.nearest_neighbors(x, 5, groups=np.zeros(N)), "groups leaves only 0 rows"),
        (lambda x, y: geometry.nearest_neighbors(x, 5, groups=np.zeros(3)), r"groups has shape \(3,\)"),
        (lambda x, y: geometry.knn_overlap(x, y[:9], (5,)), "x has 150 rows and y has 9"),
        (lambda x, y: geometry.knn_overlap(x, y, ()), "ks is empty"),
        (lambda x, y: geometry.knn_overlap(x, y, (5, -1)), "k is -1"),
        (lambda x, y: geometry.knn_overlap(x, np.where(y > 1, np.nan, y), (5,)), "y holds"),
        (lambda x, y: geometry.knn_overlap(x, y * 0, (5,)), "y has 150 zero rows"),
        (lambda x, y: geometry.knn_overlap(x[None], y, (5,)), r"x has shape \(1, 150, 9\)"),
        (lambda x, y: geometry.neighbor_overlap(np.ones((4, 3)), np.ones((4, 2)), (2,)), "a has shape"),
        (lambda x, y: geometry.neighbor_overlap(np.ones((4, 3)), np.ones((4, 3)), (4,)), r"ks is \(4,\)"),
        (lambda x, y: geometry.knn_chance(5, 5), "k is 5"),
    ],
)
def test_bad_input_names_the_argument(call, message):
    x, y, _ = data()
    with pytest.raises(ValueError, match=message):
        call(x, y)

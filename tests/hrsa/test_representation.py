"""Representation level against float64 numpy, its invariances, and what bad input gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
from hypothesis import given, settings
from hypothesis import strategies as st

from hrsa_jax.hrsa import representation as rep
from hrsa_jax.hrsa.controls import random_rotation

N, P, Q = 90, 12, 9


def data(seed=0, n=N, p=P, q=Q, dtype=np.float32):
    """Correlated sides with a falling spectrum, an offset and another scale."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, p)) * np.arange(1, p + 1) ** -0.7 + 3
    y = 2 * x[:, :q] @ random_rotation(q, seed=seed + 1) + 0.3 * rng.standard_normal((n, q)) - 1
    return x.astype(dtype), y.astype(dtype)


@pytest.mark.parametrize("wide", [False, True])
def test_correlation_equals_the_definition(wide):
    with jax.enable_x64(wide):
        x, y = data(q=P, dtype=np.float64 if wide else np.float32)
        np.testing.assert_allclose(
            rep.dimension_correlation(x, y), ref.correlation(x, y), rtol=1e-5, atol=1e-10 if wide else 2e-7
        )
        xs, ys = np.stack([x, y, x + y]), np.stack([y, x])
        expected = [[ref.correlation(a, b) for b in ys] for a in xs]
        found = rep.dimension_correlation_matrix(xs, ys)
        np.testing.assert_allclose(found, expected, atol=1e-10 if wide else 1e-6)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("p", "q"), [(P, Q), (Q, P), (P, P)])
def test_procrustes_equals_the_definition(wide, p, q):
    with jax.enable_x64(wide):
        x, y = data(p=max(p, q), q=max(p, q), dtype=np.float64 if wide else np.float32)
        x, y = x[:, :p], y[:, :q]
        train, test = slice(0, 60), slice(60, N)
        fit, expected = rep.orthogonal_procrustes(x[train], y[train]), ref.procrustes(x[train], y[train])
        tight = 1e-10 if wide else 1e-5
        np.testing.assert_allclose(fit.map, expected[0], atol=tight)
        np.testing.assert_allclose(fit.mean_x, expected[1], rtol=tight)
        np.testing.assert_allclose(fit.singular_values, expected[3], rtol=tight)
        assert bool(fit.identified)
        assert int(fit.rank) == min(p, q)
        score = rep.procrustes_residual(fit, x[test], y[test])
        np.testing.assert_allclose(score, ref.residual(expected, x[test], y[test]), rtol=tight)
        cosines = rep.procrustes_cosine(fit, x[test], y[test])
        np.testing.assert_allclose(cosines, ref.cosine(expected, x[test], y[test]), rtol=tight, atol=tight)
        np.testing.assert_allclose(rep.procrustes_distance(x, y), ref.distance(x, y), rtol=max(tight, 1e-9))
        np.testing.assert_allclose(
            rep.inverse_row_entropy(fit.map), ref.inverse_row_entropy(expected[0]), rtol=2 * tight, atol=tight
        )


def test_procrustes_under_jit_is_newton_schulz_and_agrees_with_the_svd():
    x, y = data(p=P, q=P)
    fit, device = rep.orthogonal_procrustes(x, y), jax.jit(rep.orthogonal_procrustes)(x, y)
    np.testing.assert_allclose(device.map, fit.map, atol=1e-3)
    assert bool(device.identified)
    assert abs(rep.procrustes_residual(device, x, y) - rep.procrustes_residual(fit, x, y)) < 1e-5
    o = rep.newton_schulz(jnp.asarray(x.T @ y))
    np.testing.assert_allclose(o.T @ o, np.eye(P), atol=1e-5)


def test_newton_schulz_that_fails_its_check_falls_back_to_the_svd():
    rng = np.random.default_rng(0)
    m = np.outer(rng.standard_normal(8), rng.standard_normal(8)).astype(np.float32)  # rank one
    bare = rep.newton_schulz(jnp.asarray(m))
    assert np.abs(bare.T @ bare - np.eye(8)).max() > 0.1
    o = jax.jit(rep.polar_factor)(m)
    np.testing.assert_allclose(o.T @ o, np.eye(8), atol=1e-5)


def test_a_wide_fit_runs_on_the_device(monkeypatch):
    x, y = data(p=P, q=P)
    expected = rep.orthogonal_procrustes(x, y).map
    monkeypatch.setattr(rep, "HOST_SVD_LIMIT", 8)
    monkeypatch.setattr(rep, "_fit_on_host", None)
    np.testing.assert_allclose(rep.orthogonal_procrustes(x, y).map, expected, atol=1e-3)


def test_too_few_rows_or_a_missing_direction_is_not_identified():
    x, y = data(p=P, q=P)
    assert not bool(rep.orthogonal_procrustes(x[:P], y[:P]).identified)  # n <= d: rank n - 1
    assert int(rep.orthogonal_procrustes(x[:P], y[:P]).rank) == P - 1
    x[:, 3] = x[:, 4]
    fit = rep.orthogonal_procrustes(x, y)
    assert not bool(fit.identified)
    assert int(fit.rank) == P - 1
    assert not bool(jax.jit(rep.orthogonal_procrustes)(x, y).identified)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1e-7, 0.3, 1e6]), shift=st.floats(-5, 5))
def test_invariances(seed, scale, shift):
    x, y = data(seed, q=P)
    rng = np.random.default_rng(seed)
    rows, axes = rng.permutation(N), rng.permutation(P)
    # compare with the data as float32 holds them after the shift: that rounding is not the measure's
    moved = (x + np.float32(shift)) * np.float32(scale)
    r = rep.dimension_correlation(x, y)
    np.testing.assert_allclose(rep.dimension_correlation(moved, y), r, atol=1e-5)
    np.testing.assert_array_less(np.abs(rep.dimension_correlation(x[rows], y[rows]) - r), 1e-6)
    np.testing.assert_allclose(rep.dimension_correlation(x[:, axes], y[:, axes]), r[axes], atol=1e-6)
    # a rotation of y is found, and the residual does not see it
    turn = random_rotation(P, seed=seed)
    turned = (y @ turn).astype(np.float32)
    fit, other = rep.orthogonal_procrustes(x, y), rep.orthogonal_procrustes(x, turned)
    np.testing.assert_allclose(other.map, fit.map @ turn, atol=2e-4)
    assert abs(rep.procrustes_residual(fit, x, y) - rep.procrustes_residual(other, x, turned)) < 1e-5
    assert abs(rep.procrustes_distance(x, y)[1] - rep.procrustes_distance(moved, turned)[1]) < 1e-5


def test_distance_of_a_rotated_copy_is_zero_and_not_the_root_of_rounding():
    x, _ = data()
    turned = (x.astype(np.float64) @ random_rotation(P, seed=3)).astype(np.float32)
    distance, angle = rep.procrustes_distance(x, turned)
    assert distance < 1e-5 * np.linalg.norm(x)
    assert angle < 1e-5


def test_massive_activations():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((8192, 10)).astype(np.float32)
    x[:, 2] *= 3e4
    x[::100, 5] = -3e4
    y = (x + rng.standard_normal(x.shape)).astype(np.float32)
    np.testing.assert_allclose(rep.dimension_correlation(x, y), ref.correlation(x, y), rtol=1e-5)
    fit, expected = rep.orthogonal_procrustes(x, y), ref.procrustes(x, y)
    np.testing.assert_allclose(fit.map, expected[0], atol=1e-3)
    np.testing.assert_allclose(rep.procrustes_residual(fit, x, y), ref.residual(expected, x, y), rtol=1e-4, atol=1e-12)


def test_inverse_row_entropy_of_known_maps():
    signed_permutation = np.eye(6)[[3, 1, 0, 5, 2, 4]] * [1, -1, 1, 1, -1, 1]
    np.testing.assert_array_equal(rep.inverse_row_entropy(signed_permutation), np.ones(6))
    even = np.full((4, 16), 0.25)
    np.testing.assert_allclose(rep.inverse_row_entropy(even), np.zeros(4), atol=1e-6)
    assert np.isnan(rep.inverse_row_entropy(np.zeros((2, 3)))).all()
    rows = np.concatenate([random_rotation(64, seed=s) for s in range(20)])
    assert abs(rep.inverse_row_entropy(rows).mean() - rep.inverse_row_entropy_haar(64)) < 2e-3
    assert rep.inverse_row_entropy_haar(64) == pytest.approx(ref.inverse_row_entropy_haar(64))


def test_every_function_runs_under_jit():
    x, y = data(q=P)
    fit = rep.orthogonal_procrustes(x, y)
    for function, arguments in [
        (rep.dimension_correlation, (x, y)),
        (rep.dimension_correlation_matrix, (x[None], y[None])),
        (rep.procrustes_residual, (fit, x, y)),
        (rep.procrustes_cosine, (fit, x, y)),
        (rep.procrustes_distance, (x, y)),
        (rep.inverse_row_entropy, (fit.map,)),
    ]:
        eager, jitted = function(*arguments), jax.jit(function)(*arguments)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4), eager, jitted)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (rep.dimension_correlation, (np.ones((4, 3)), np.ones((5, 3))), "x has 4 rows and y has 5"),
        (rep.dimension_correlation, (np.ones((4, 3)), np.ones((4, 2))), "x has 3 dimensions and y has 2"),
        (rep.dimension_correlation, (np.ones((4, 3)), np.full((4, 3), np.nan)), "y holds 12 NaN"),
        (rep.dimension_correlation, (np.ones((1, 3)), np.ones((1, 3))), "x has 1 rows"),
        (rep.dimension_correlation, (np.ones(3), np.ones(3)), "x has 1 axes"),
        (rep.orthogonal_procrustes, (np.full((4, 3), np.inf), np.ones((4, 3))), "x holds 12 NaN or infinite"),
        (rep.orthogonal_procrustes, (np.ones((0, 3)), np.ones((0, 3))), "x is empty"),
        (rep.orthogonal_procrustes, (np.full((4, 3), "a"), np.ones((4, 3))), "x holds <U1 values"),
        (rep.inverse_row_entropy, (np.ones((3, 1)),), "map has one column"),
        (rep.inverse_row_entropy_haar, (1,), "d is 1"),
    ],
)
def test_bad_input_names_the_argument(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


def test_a_fit_refuses_rows_of_another_width():
    x, y = data(q=P)
    fit = rep.orthogonal_procrustes(x, y)
    with pytest.raises(ValueError, match="y has 5 dimensions; the fit was made with 12"):
        rep.procrustes_residual(fit, x, y[:, :5])

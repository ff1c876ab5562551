"""CKA in all its forms against float64 numpy, its invariances, hazards, and what bad input gets."""

import jax
import numpy as np
import pytest
import reference as ref
from hypothesis import given, settings
from hypothesis import strategies as st

from hrsa_jax.hrsa import cka_core, cka_stack, geometry
from hrsa_jax.hrsa.cka import median
from hrsa_jax.hrsa.controls import random_rotation

N, P, Q = 60, 7, 5
GROUPS = np.repeat(np.arange(8), [3, 1, 12, 9, 7, 10, 4, 14])  # unequal texts, one of a single row


def data(seed=0, n=N, dtype=np.float32):
    """Rows that depend on each other inside a text, an offset, different scales, related sides; texts interleaved."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(GROUPS) if n == N else rng.integers(0, n // 16, n)
    texts = groups.max() + 1
    x = rng.standard_normal((n, P)) + rng.standard_normal((texts, P))[groups] + 4
    y = 1e-3 * (x[:, :Q] + rng.standard_normal((n, Q)) + rng.standard_normal((texts, Q))[groups])
    return x.astype(dtype), y.astype(dtype), groups


@pytest.fixture(params=[False, True], ids=["float32", "float64"])
def precision(request):
    """(dtype, relative tolerance), with x64 on for float64."""
    with jax.enable_x64(request.param):
        yield (np.float64, 1e-10) if request.param else (np.float32, 1e-5)


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("n", [N, 6])  # 6 rows: fewer than dimensions, the Gram form
def test_linear_cka_equals_the_definition(precision, debiased, n):
    dtype, tight = precision
    x, y, _ = data(dtype=dtype)
    found = geometry.linear_cka(x[:n], y[:n], debiased=debiased)
    np.testing.assert_allclose(found, ref.linear_cka(x[:n], y[:n], debiased=debiased), rtol=tight, atol=tight)


def test_text_level_cka_is_the_mean_over_rows_of_four_different_texts(precision):
    dtype, tight = precision
    x, y, groups = data(dtype=dtype)
    found = geometry.linear_cka(x, y, groups=groups)
    np.testing.assert_allclose(found, ref.linear_cka_texts(x, y, groups), rtol=tight)
    assert abs(found - geometry.linear_cka(x, y)) > 0.01  # same-text pairs mattered
    names = np.array([f"text {g}" for g in groups])
    assert geometry.linear_cka(x, y, groups=names) == found
    assert geometry.linear_cka(x, y, groups=groups, debiased=False) == geometry.linear_cka(x, y, debiased=False)


def test_text_level_cka_with_one_row_per_text_is_hsic_1(precision):
    dtype, tight = precision
    x, y, _ = data(dtype=dtype)
    found = geometry.linear_cka(x, y, groups=np.arange(N)[::-1])
    np.testing.assert_allclose(found, ref.linear_cka(x, y), rtol=tight)


def test_jackknife_values_equal_cka_without_each_text(precision):
    dtype, tight = precision
    x, y, groups = data(dtype=dtype)
    values, without = geometry.cka_jackknife(np.stack([x, x[::-1]]), np.stack([y, y]), groups)
    assert without.shape == (8, 2)
    np.testing.assert_allclose(values[0], ref.linear_cka_texts(x, y, groups), rtol=tight)
    for text in range(8):
        kept = groups != text
        expected = ref.linear_cka_texts(x[kept], y[kept], groups[kept])
        np.testing.assert_allclose(without[text, 0], expected, rtol=tight)


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("by_gram", [True, False])
def test_both_forms_of_the_matrix_equal_the_definition(precision, monkeypatch, debiased, by_gram):
    dtype, tight = precision
    monkeypatch.setattr(cka_stack, "gram_is_cheaper", lambda *_: by_gram)
    monkeypatch.setattr(cka_stack, "TILE", 17)  # ragged tiles
    x, y, _ = data(dtype=dtype)
    xs, ys = np.stack([x, x**2, x[::-1]]), np.stack([y, np.abs(y)])
    expected = [[ref.linear_cka(a, b, debiased=debiased) for b in ys] for a in xs]
    found = geometry.cka_matrix(xs, ys, debiased=debiased)
    np.testing.assert_allclose(found, expected, rtol=tight, atol=tight)


def test_the_text_level_matrix_equals_the_text_level_value(precision):
    dtype, tight = precision
    x, y, groups = data(dtype=dtype)
    xs, ys = np.stack([x, x**2]), np.stack([y, np.abs(y), y[::-1]])
    expected = [[ref.linear_cka_texts(a, b, groups) for b in ys] for a in xs]
    np.testing.assert_allclose(geometry.cka_matrix(xs, ys, groups=groups), expected, rtol=tight, atol=tight)


def test_the_cheaper_form_is_chosen():
    assert cka_stack.gram_is_cheaper(31, 31, 2048, 576, 576)
    assert not cka_stack.gram_is_cheaper(31, 31, 65536, 576, 576)


jitted_result = jax.jit(geometry.cka_result)


@pytest.mark.parametrize("batches", [(1, 1, 18, 20, 20), (20, 20, 20)])
def test_one_pass_cka_is_exact_for_any_batching(precision, batches):
    dtype, tight = precision
    x, y, _ = data(dtype=dtype)
    state = geometry.cka_init(P, Q)
    for rows in np.split(np.arange(N), np.cumsum(batches)[:-1]):
        state = geometry.cka_update(state, x[rows], y[rows])
    for debiased in (True, False):
        expected = ref.linear_cka(x, y, debiased=debiased)
        np.testing.assert_allclose(geometry.cka_result(state, debiased=debiased), expected, rtol=tight)
    np.testing.assert_allclose(jitted_result(state), ref.linear_cka(x, y), rtol=tight)


def test_one_pass_cka_leaves_padded_rows_out():
    x, y, _ = data()
    state = geometry.cka_init(P, Q)
    for rows in np.split(np.arange(N), 3):
        filler = np.full((4, P), 1e6, np.float32)
        state = geometry.cka_update(
            state,
            np.concatenate([filler, x[rows]]),
            np.concatenate([filler[:, :Q], y[rows]]),
            weights=np.arange(24) >= 4,
        )
    np.testing.assert_allclose(geometry.cka_result(state), ref.linear_cka(x, y), rtol=1e-5)


def test_one_pass_cka_keeps_its_digits_over_many_batches():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((4000, P)) + np.linspace(0, 20, 4000)[:, None]).astype(np.float32)  # drifting mean
    y = (x[:, :Q] ** 2 + rng.standard_normal((4000, Q))).astype(np.float32)
    state = geometry.cka_init(P, Q)
    for start in range(0, 4000, 20):
        state = geometry.cka_update(state, x[start : start + 20], y[start : start + 20])
    assert float(state.high.n) == 4000
    np.testing.assert_allclose(geometry.cka_result(state), ref.linear_cka_wide(x, y), rtol=5e-7)


def test_rbf_cka_participation_ratio_and_permutation_mean(precision):
    dtype, tight = precision
    x, y, _ = data(dtype=dtype)
    for bandwidth in (0.5, 1.0):
        k, m = ref.rbf_kernel(x, bandwidth), ref.rbf_kernel(y, bandwidth)
        found = geometry.rbf_cka(x, y, bandwidth=bandwidth)
        np.testing.assert_allclose(found, ref.cka(k, m, ref.hsic_0), rtol=tight)
        found = geometry.rbf_cka(x, y, bandwidth=bandwidth, debiased=True)
        np.testing.assert_allclose(found, ref.cka(k, m, ref.hsic_1), rtol=10 * tight, atol=tight)
    np.testing.assert_allclose(geometry.participation_ratio(x), ref.participation_ratio(x), rtol=tight)
    np.testing.assert_allclose(geometry.participation_ratio(x[:5]), ref.participation_ratio(x[:5]), rtol=tight)
    chance = np.sqrt(ref.participation_ratio(x) * ref.participation_ratio(y)) / (N - 1)
    np.testing.assert_allclose(geometry.cka_permutation_mean(x, y), chance, rtol=tight)
    rng = np.random.default_rng(0)
    draws = [ref.linear_cka(x, y[rng.permutation(N)], debiased=False) for _ in range(2000)]
    assert abs(np.mean(draws) - chance) < 4 * np.std(draws) / np.sqrt(2000)


jitted_median = jax.jit(median)


@settings(max_examples=20, deadline=None)
@given(values=st.lists(st.floats(0, 2.0**90, width=32, allow_subnormal=False), min_size=8, max_size=8))
def test_median_without_a_sort(values):
    values = np.array(values, np.float32)
    assert float(jitted_median(values)) == pytest.approx(float(np.median(values.astype(float))), rel=1e-6)
    assert float(jitted_median(values[:7])) == np.median(values[:7])


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([1e-20, 1e-7, 1e5]), shift=st.floats(-20, 20))
def test_invariances(seed, scale, shift):
    x, y, groups = data(seed)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(N)
    moved = ((x @ random_rotation(P, seed=seed) + shift) * scale).astype(np.float32)
    for options in ({}, {"debiased": False}, {"groups": groups}):
        value = geometry.linear_cka(x, y, **options)
        reordered = {**options, **({"groups": groups[rows]} if "groups" in options else {})}
        assert abs(geometry.linear_cka(moved, y, **options) - value) < 2e-5
        assert abs(geometry.linear_cka(x[rows], y[rows], **reordered) - value) < 2e-6
        assert abs(geometry.linear_cka(y, x, **options) - value) < 2e-6
        assert abs(geometry.linear_cka(x, 5 * x - 1, **options) - 1) < 2e-6
    assert abs(geometry.rbf_cka(moved, y) - geometry.rbf_cka(x, y)) < 2e-5


def test_debiased_cka_is_never_clipped():
    values = [geometry.linear_cka(*data_independent(seed)) for seed in range(12)]
    assert min(values) < 0 < max(values)


def data_independent(seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((N, P)), rng.standard_normal((N, Q))


@pytest.mark.parametrize("kind", ["massive columns", "massive rows", "everything massive", "one massive row"])
def test_massive_activations(kind):
    rng = np.random.default_rng(0)
    n, d = 8192, 16
    x = rng.standard_normal((n, d))
    y = x + rng.standard_normal((n, d))
    if kind == "massive columns":
        x[:, 3] *= 3e4
        y[:, 5] *= -2e4
    elif kind == "massive rows":
        x[::64] += 3e4
        y[::64, 2] = -3e4
    elif kind == "everything massive":
        x, y = 3e4 * x, 3e4 * y
    else:
        x[0], y[0] = 3e4, 3e4
    x, y = x.astype(np.float32), y.astype(np.float32)
    state = geometry.cka_init(d, d)
    for start in range(0, n, 1024):
        state = geometry.cka_update(state, x[start : start + 1024], y[start : start + 1024])
    for debiased in (True, False):
        expected = ref.linear_cka_wide(x, y, debiased=debiased)
        tight = {"rtol": 1e-5, "atol": 1e-6}
        np.testing.assert_allclose(geometry.linear_cka(x, y, debiased=debiased), expected, **tight)
        np.testing.assert_allclose(geometry.cka_matrix(x[None], y[None], debiased=debiased), expected, **tight)
        streamed = geometry.cka_result(state, debiased=debiased)
        if kind == "one massive row" and debiased:
            assert np.isnan(streamed)  # fp32 products cannot tell: no number rather than noise
            jitted = jax.jit(lambda x, y: geometry.linear_cka(x, y))(x, y)
            assert np.isnan(jitted) or abs(jitted - expected) < 1e-5
        else:
            np.testing.assert_allclose(streamed, expected, **tight)


def test_zero_variance_and_too_few_rows_are_nan():
    x, y, groups = data()
    still = np.full((N, P), 1000.1, np.float32)
    for options in ({}, {"debiased": False}, {"groups": groups}):
        assert np.isnan(geometry.linear_cka(still, y, **options))
        assert np.isnan(geometry.linear_cka(y, still, **options))
    assert np.isnan(geometry.linear_cka(x[:3], y[:3]))
    assert np.isnan(geometry.linear_cka(x, y, groups=np.arange(N) % 3))
    assert np.isnan(geometry.linear_cka(x[:1], y[:1], debiased=False))
    assert np.isnan(geometry.cka_matrix(x[None, :3], y[None, :3])).all()
    found = geometry.cka_matrix(np.stack([x, still]), y[None])
    assert np.isnan(found[1, 0])
    assert np.isfinite(found[0, 0])
    assert np.isnan(geometry.cka_result(geometry.cka_init(P, Q)))
    state = geometry.cka_update(geometry.cka_init(P, Q), still, y)
    assert np.isnan(geometry.cka_result(state))
    assert np.isnan(geometry.rbf_cka(still, y))
    assert np.isnan(geometry.participation_ratio(still))
    _, without = geometry.cka_jackknife(x[None], y[None], np.arange(N) % 4)
    assert np.isnan(without).all()  # three texts are left


def test_float64_comes_to_the_rescue_only_when_digits_are_missing(monkeypatch):
    x, y, _ = data()
    monkeypatch.setattr(jax, "enable_x64", None)
    geometry.linear_cka(x, y)  # enough digits: never touches x64
    x[0], y[0] = 3e6, 3e3
    with pytest.raises(TypeError):
        geometry.linear_cka(x, y)
    assert cka_core.ENOUGH < 1


def test_every_function_runs_under_jit():
    x, y, groups = data()
    state = geometry.cka_update(geometry.cka_init(P, Q), x, y)
    for function, arguments in [
        (geometry.linear_cka, (x, y)),
        (lambda x, y, groups: geometry.linear_cka(x, y, groups=groups), (x, y, groups)),
        (lambda x, y: geometry.linear_cka(x, y, debiased=False), (x, y)),
        (lambda x, y: geometry.cka_matrix(x, y), (x[None], y[None])),
        (lambda x, y, groups: geometry.cka_matrix(x, y, groups=groups), (x[None], y[None], groups)),
        (geometry.cka_update, (state, x, y)),
        (geometry.cka_result, (state,)),
        (geometry.rbf_cka, (x, y)),
        (geometry.participation_ratio, (x,)),
        (geometry.cka_permutation_mean, (x, y)),
    ]:
        eager, jitted = function(*arguments), jax.jit(function)(*arguments)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), eager, jitted)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: geometry.linear_cka(x[:9], y), "x has 9 rows and y has 60"),
        (lambda x, y: geometry.linear_cka(x, y * np.nan), "y holds 300 NaN"),
        (lambda x, y: geometry.linear_cka(x, y, groups=np.arange(5)), r"groups has shape \(5,\)"),
        (lambda x, y: geometry.cka_matrix(x, y), "x has 2 axes"),
        (lambda x, y: geometry.cka_jackknife(np.stack([x, x]), y[None], GROUPS), "xs_LND has 2 layers"),
        (lambda x, y: geometry.cka_update(geometry.cka_init(3, Q), x, y), "x has 7 dimensions"),
        (lambda x, y: geometry.cka_update(geometry.cka_init(P, Q), x, y, weights=np.ones(3)), "weights has 3"),
        (lambda x, y: geometry.cka_init(0, 2), "p is 0"),
        (lambda x, y: geometry.rbf_cka(x, y, bandwidth=0.0), "bandwidth is 0.0"),
        (lambda x, y: geometry.participation_ratio(x * np.inf), "x holds"),
        (lambda x, y: geometry.cka_permutation_mean(x[:1], y[:1]), "x has 1 rows"),
    ],
)
def test_bad_input_names_the_argument(call, message):
    x, y, _ = data()
    with pytest.raises(ValueError, match=message):
        call(x, y)

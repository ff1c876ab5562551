"""CKA of whole stacks of layers: the one pass of a comparison, and the stream of batches with its two engines."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import reference as ref

from hrsa_jax.hrsa import cka_batches, cka_pass, cka_stack, geometry
from hrsa_jax.hrsa.cka_batches import cka_of_batches, layers_init, layers_result, layers_update

N, P, Q = 60, 7, 5
SIZES = [3, 1, 12, 9, 7, 10, 4, 14]


def data(layers=3, dtype=np.float32):
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(8), SIZES))
    xs = rng.standard_normal((layers, N, P)) + rng.standard_normal((layers, 8, P))[:, groups] + 4
    ys = 1e-3 * (xs[:, :, :Q] + rng.standard_normal((layers, N, Q)))
    return xs.astype(dtype), ys.astype(dtype), groups


@pytest.fixture(params=[False, True], ids=["float32", "float64"])
def precision(request):
    with jax.enable_x64(request.param):
        yield (np.float64, 1e-10) if request.param else (np.float32, 1e-5)


def test_one_pass_equals_the_separate_definitions(precision, monkeypatch):
    dtype, tight = precision
    monkeypatch.setattr(cka_pass, "TILE", 17)  # ragged tiles
    xs, ys, groups = data(dtype=dtype)
    found = geometry.cka_pass(xs, ys, groups)
    options = {"rtol": tight, "atol": tight}
    for i in range(3):
        for j in range(3):
            expected = ref.linear_cka(xs[i], ys[j], debiased=False)
            np.testing.assert_allclose(found.biased[i, j], expected, **options)
    np.testing.assert_allclose(found.texts[0, 1], ref.linear_cka_texts(xs[0], ys[1], groups), **options)
    np.testing.assert_allclose(np.diag(found.texts), found.curve, rtol=10 * tight)
    for text in range(8):
        kept = groups != text
        expected = ref.linear_cka_texts(xs[1][kept], ys[1][kept], groups[kept])
        np.testing.assert_allclose(found.without[text, 1], expected, **options)
    chance = [
        np.sqrt(ref.participation_ratio(x) * ref.participation_ratio(y)) / (N - 1) for x, y in zip(xs, ys, strict=True)
    ]
    np.testing.assert_allclose(found.permutation_mean, chance, **options)


def test_one_pass_over_unequal_depths_gives_the_matrices_only():
    xs, ys, groups = data()
    found = geometry.cka_pass(xs, ys[:2], groups)
    np.testing.assert_allclose(found.texts[2, 1], ref.linear_cka_texts(xs[2], ys[1], groups), rtol=1e-5)
    np.testing.assert_allclose(found.biased[2, 1], ref.linear_cka(xs[2], ys[1], debiased=False), rtol=1e-5)
    assert found.curve is None
    assert found.permutation_mean is None


def test_one_pass_has_nan_where_nothing_can_be_said_and_refuses_bad_input():
    xs, ys, groups = data()
    xs[1] = 3.3
    found = geometry.cka_pass(xs, ys, groups)
    assert np.isnan(found.biased[1]).all()
    assert np.isnan(found.without[:, 1]).all()
    assert np.isfinite(np.asarray(found.curve)[[0, 2]]).all()
    assert np.isnan(geometry.cka_pass(xs, ys, groups % 3).texts).all()  # three texts are too few
    with pytest.raises(ValueError, match="groups has shape"):
        geometry.cka_pass(xs, ys, groups[:9])


@pytest.mark.parametrize("pairs", ["all", "matching"])
def test_streamed_layers_equal_the_definition(precision, pairs):
    dtype, tight = precision
    xs, ys, _ = data(dtype=dtype)
    ys = ys if pairs == "matching" else ys[:2]
    state = layers_init(3, P, len(ys), Q, pairs=pairs)
    for rows in np.split(np.arange(N), (1, 21, 41)):  # a single row, 20, 20, 19
        state = layers_update(state, xs[:, rows], ys[:, rows])
    for debiased in (True, False):
        expected = np.array([[ref.linear_cka(x, y, debiased=debiased) for y in ys] for x in xs])
        expected = np.diag(expected) if pairs == "matching" else expected
        np.testing.assert_allclose(layers_result(state, debiased=debiased), expected, rtol=tight, atol=tight)


def test_padded_rows_of_a_batch_count_for_nothing():
    xs, ys, _ = data()
    state = layers_init(3, P, 3, Q)
    for rows in np.split(np.arange(N), 3):
        sides = [np.concatenate([np.full((3, 4, s.shape[2]), 1e6, np.float32), s[:, rows]], 1) for s in (xs, ys)]
        state = layers_update(state, *sides, weights=np.arange(24) >= 4)
    np.testing.assert_allclose(layers_result(state), geometry.cka_matrix(xs, ys), rtol=1e-5)


@pytest.mark.parametrize("switch_at", [0, 31, 10**6])  # covariances from the start, on the way, never
def test_both_engines_of_one_call_give_the_same_numbers(monkeypatch, switch_at):
    monkeypatch.setattr(cka_batches, "gram_is_cheaper", lambda layers_x, layers_y, rows, p, q: rows < switch_at)
    xs, ys, _ = data()
    batches = [(xs[:, rows], ys[:, rows]) for rows in np.split(np.arange(N), 6)]
    for debiased in (True, False):
        expected = [[ref.linear_cka(x, y, debiased=debiased) for y in ys] for x in xs]
        found = cka_of_batches(iter(batches), debiased=debiased)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        curve = cka_of_batches(batches, debiased=debiased, pairs="matching")
        np.testing.assert_allclose(curve, np.diag(expected), rtol=1e-5, atol=1e-6)


def test_the_rule_switches_where_covariances_cost_less(monkeypatch):
    assert cka_stack.gram_is_cheaper(31, 31, 8192, 576, 576)
    assert not cka_stack.gram_is_cheaper(31, 31, 40_000, 576, 576)
    xs, ys, _ = data()
    made = []
    monkeypatch.setattr(cka_batches, "layers_update", lambda state, *rows: made.append(rows) or state)
    cka_of_batches([(xs, ys)] * 3)  # 180 rows of 7 and 5 dimensions: past the point
    assert len(made) == 3  # what was held is not lost


def test_bad_batches_are_named():
    xs, ys, _ = data()
    for call, words in (
        (lambda: cka_of_batches([]), "batches is empty"),
        (lambda: cka_of_batches([(xs, ys[:, :9])]), "x has 60 rows and y has 9"),
        (lambda: layers_init(2, P, 3, Q, pairs="matching"), "layers_x is 2 and layers_y is 3"),
        (lambda: layers_init(2, P, 3, 0), "q 0"),
        (lambda: layers_init(2, P, 3, Q, pairs="some"), "pairs is 'some'"),
        (lambda: layers_update(layers_init(2, P, 3, Q), xs, ys), "xs has shape"),
        (lambda: layers_update(layers_init(3, P, 3, Q), xs, ys, weights=np.ones(3)), "weights has 3"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert np.isnan(layers_result(layers_init(2, P, 3, Q))).all()


@pytest.mark.parametrize("kind", ["columns", "rows"])
def test_massive_activations_in_one_pass_and_in_a_stream(kind):
    """Values to 3e4 at n = 8192: within 1e-5 of float64, no overflow."""
    rng = np.random.default_rng(0)
    n, d = 8192, 8
    groups = np.arange(n) // 128
    x = rng.standard_normal((1, n, d)) + rng.standard_normal((1, 64, d))[:, groups]
    y = x + rng.standard_normal(x.shape)
    if kind == "columns":
        x[:, :, 3] *= 1e4
        y[:, :, 5] *= -1e4
    else:
        x[:, ::64] += 3e4
        y[:, ::64, 2] = -3e4
    x, y = x.astype(np.float32), y.astype(np.float32)
    found = geometry.cka_pass(x, y, groups)
    with jax.enable_x64(True):
        exact = jax.tree.map(np.asarray, geometry.cka_pass(x.astype(np.float64), y.astype(np.float64), groups))
    for ours, expected in zip(found, exact, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.biased[0, 0], ref.linear_cka_wide(x[0], y[0], debiased=False), rtol=1e-5)
    state = layers_init(1, d, 1, d)
    for rows in np.split(np.arange(n), 8):
        state = layers_update(state, x[:, rows], y[:, rows])
    for debiased in (True, False):
        expected = ref.linear_cka_wide(x[0], y[0], debiased=debiased)
        np.testing.assert_allclose(layers_result(state, debiased=debiased)[0, 0], expected, rtol=1e-5, atol=1e-6)


def peak_memory(rows: int, batch: int, pairs: str) -> float:
    script = Path(__file__).parent / "memory_of_stream.py"
    run = [sys.executable, str(script), str(rows), str(batch), pairs]
    return float(subprocess.run(run, check=True, capture_output=True, text=True, timeout=1200).stdout)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows():
    short, long = (peak_memory(rows, 1024, "matching") for rows in (16_384, 131_072))
    print(f"peak {short:.0f} MB at 16,384 rows, {long:.0f} MB at 131,072")  # seen with -s
    assert long < 1.1 * short

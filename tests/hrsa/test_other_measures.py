"""CKNNA, SVCCA, RSA, linear R2, uniformity, alignment, anisotropy: definitions in float64, peers, planted truths."""

import jax
import numpy as np
import pytest
import reference as ref
from scipy.stats import spearmanr

from hrsa_jax.hrsa import other_measures as other
from hrsa_jax.hrsa.controls import planted, random_rotation

N, P, Q = 90, 9, 6


def data(dtype=np.float32):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, P)) * np.arange(1, P + 1) ** -0.6 + 0.5
    y = x[:, :Q] @ rng.standard_normal((Q, Q)) + 0.7 * rng.standard_normal((N, Q))
    return x.astype(dtype), y.astype(dtype)


@pytest.fixture(params=[False, True], ids=["float32", "float64"])
def precision(request):
    with jax.enable_x64(request.param):
        yield (np.float64, 1e-10) if request.param else (np.float32, 1e-5)


def unit(x):
    x = ref.f64(x)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def cknna(x, y, k):
    near = [ref.neighbors(z, k) for z in (x, y)]
    kernels = [unit(z) @ unit(z).T for z in (x, y)]
    kernels = [kernel - kernel.mean(1, keepdims=True) for kernel in kernels]
    masks = [np.zeros((len(x), len(x)), bool) for _ in near]
    for mask, lists in zip(masks, near, strict=True):
        np.put_along_axis(mask, lists, True, 1)

    def align(a, b):
        return (kernels[a] * kernels[b] * masks[a] * masks[b]).sum()

    return align(0, 1) / np.sqrt(align(0, 0) * align(1, 1))


def svcca(x, y, variance):
    from scipy.linalg import subspace_angles

    bases = []
    for side in (x, y):
        u, s, _ = np.linalg.svd(ref.centred(side), full_matrices=False)
        kept = int(np.searchsorted(np.cumsum(s**2) / (s**2).sum(), variance) + 1)
        bases.append(u[:, :kept])
    return np.cos(subspace_angles(*bases)).mean()


def test_every_measure_equals_its_definition(precision):
    dtype, tight = precision
    x, y = data(dtype)
    for k in (3, 15):
        np.testing.assert_allclose(other.cknna(x, y, k), cknna(x, y, k), rtol=tight)
    for variance in (0.5, 0.9):
        np.testing.assert_allclose(other.svcca(x, y, variance=variance), svcca(x, y, variance), rtol=tight)
    unit_x, pairs = unit(x), np.triu_indices(N, 1)
    np.testing.assert_allclose(other.anisotropy(x), (unit_x @ unit_x.T)[pairs].mean(), rtol=tight, atol=tight)
    squared = ((unit_x[:, None] - unit_x[None]) ** 2).sum(-1)[pairs]
    np.testing.assert_allclose(other.uniformity(x), np.log(np.exp(-2 * squared).mean()), rtol=tight)
    gaps = np.linalg.norm(unit(x[:, :Q]) - unit(y), axis=1)
    np.testing.assert_allclose(other.alignment(x[:, :Q], y), (gaps**2).mean(), rtol=tight)
    np.testing.assert_allclose(other.alignment(x[:, :Q], y, power=1.0), gaps.mean(), rtol=tight)


def test_rsa_and_linear_r2_agree_with_scipy_and_scikit_learn(precision):
    from scipy.spatial.distance import pdist
    from sklearn.linear_model import LinearRegression

    dtype, tight = precision
    x, y = data(dtype)
    for kernel, metric in (("correlation", "correlation"), ("euclidean", "euclidean")):
        expected = spearmanr(pdist(ref.f64(x), metric), pdist(ref.f64(y), metric)).statistic
        np.testing.assert_allclose(other.rsa(x, y, kernel=kernel), expected, rtol=max(tight, 1e-6))
    peer = LinearRegression().fit(ref.f64(x), ref.f64(y))
    error = ((peer.predict(ref.f64(x)) - y) ** 2).sum() / (ref.centred(y) ** 2).sum()
    np.testing.assert_allclose(other.linear_r2(x, y), 1 - error, rtol=tight)


def test_ties_share_their_rank():
    x = np.repeat(np.eye(4, dtype=np.float32), 5, 0)  # only two distances
    y = x + 0.1 * np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    distances = [1 - np.corrcoef(ref.f64(z))[np.triu_indices(20, 1)] for z in (x, y)]
    expected = spearmanr(np.round(distances[0], 9), distances[1]).statistic
    np.testing.assert_allclose(other.rsa(x, y), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "truth"),
    [
        ("identical", {"cknna": 1, "svcca": 1, "rsa": 1, "linear_r2": 1}),
        ("permuted", {"cknna": 1, "svcca": 1, "linear_r2": 1}),
        ("independent", {"cknna": (0, 0.05), "rsa": (0, 0.05), "linear_r2": (16 / 512, 0.02)}),
    ],
)
def test_planted_truths(kind, truth):
    pair = planted(kind, 512, 16, seed=3)
    x, y = pair.x - pair.x.mean(0), pair.y - pair.y.mean(0)
    found = {
        "cknna": other.cknna(x, y, 10),
        "svcca": other.svcca(x, y),
        "rsa": other.rsa(x, y, kernel="euclidean"),
        "linear_r2": other.linear_r2(x, y),
    }
    for name, wanted in truth.items():
        expected, tolerance = wanted if isinstance(wanted, tuple) else (wanted, 1e-3)
        assert float(found[name]) == pytest.approx(expected, abs=tolerance), name


def test_invariances():
    x, y = data()
    turned = ((x - x.mean(0)) @ random_rotation(P, seed=1) * 3).astype(np.float32)
    for measure in (lambda a, b: other.svcca(a, b), lambda a, b: other.linear_r2(a, b)):
        assert abs(measure(turned + 1, y) - measure(x, y)) < 1e-5
    skewed = (x @ np.random.default_rng(2).standard_normal((P, P))).astype(np.float32)
    assert abs(other.linear_r2(skewed, y) - other.linear_r2(x, y)) < 1e-4  # any invertible map
    assert abs(other.rsa(turned, y, kernel="euclidean") - other.rsa(x, y, kernel="euclidean")) < 1e-4
    rotated = (x @ random_rotation(P, seed=2)).astype(np.float32)
    assert abs(other.anisotropy(rotated) - other.anisotropy(x)) < 1e-5
    assert abs(other.uniformity(5 * rotated) - other.uniformity(x)) < 1e-5
    assert abs(other.cknna(rotated, y, 7) - other.cknna(x, y, 7)) < 1e-4


def test_hazards():
    x, y = data()
    still = np.full_like(x, 2.5)
    assert np.isnan(other.svcca(still, y))
    assert np.isnan(other.linear_r2(x, np.full_like(y, 1.3)))
    assert other.linear_r2(x[:5], y[:5]) == pytest.approx(1)  # n <= p
    massive = x * np.float32(3e4)
    for name in ("svcca", "linear_r2", "rsa"):
        assert abs(getattr(other, name)(massive, y) - getattr(other, name)(x, y)) < 1e-5
    assert np.isfinite(other.uniformity(massive))


def test_every_function_runs_under_jit():
    x, y = data()
    for function, arguments in [
        (lambda x, y: other.cknna(x, y, 5), (x, y)),
        (lambda x, y: other.svcca(x, y, variance=0.9), (x, y)),
        (lambda x, y: other.rsa(x, y), (x, y)),
        (lambda x, y: other.linear_r2(x, y), (x, y)),
        (lambda x, y: other.alignment(x[:, :Q], y), (x, y)),
        (lambda x: other.uniformity(x), (x,)),
        (lambda x: other.anisotropy(x), (x,)),
    ]:
        np.testing.assert_allclose(jax.jit(function)(*arguments), function(*arguments), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: other.cknna(x, y, N), "k is 90 and x has 90 rows"),
        (lambda x, y: other.svcca(x, y, variance=0), "variance is 0"),
        (lambda x, y: other.rsa(x, y, kernel="dot"), "kernel is 'dot'"),
        (lambda x, y: other.rsa(x[:2], y[:2]), "x has 2 rows"),
        (lambda x, y: other.linear_r2(x, y * np.nan), "y holds"),
        (lambda x, y: other.alignment(x, y), "x has 9 dimensions and y has 6"),
        (lambda x, y: other.alignment(x * 0, x), "x has 180 zero rows"),
        (lambda x, y: other.uniformity(x[:1]), "x has 1 rows"),
        (lambda x, y: other.anisotropy(x * 0), "x has 90 zero rows"),
    ],
)
def test_bad_input_names_the_argument(call, message):
    x, y = data()
    with pytest.raises(ValueError, match=message):
        call(x, y)

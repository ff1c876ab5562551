"""Intervals over texts: exact against recomputation, and their coverage when tokens of a text depend on each other."""

import numpy as np
import pytest

from hrsa_jax.hrsa.curves_geometry import KNN_HALF_SAMPLES, LIST_FACTOR
from hrsa_jax.hrsa.function import cross_model_probe
from hrsa_jax.hrsa.geometry import cka_jackknife, linear_cka, nearest_neighbors, neighbor_overlap
from hrsa_jax.hrsa.knn_texts import halves_of_texts, knn_half_samples
from hrsa_jax.hrsa.representation import (
    dimension_correlation,
    orthogonal_procrustes,
    procrustes_cosine,
    procrustes_residual,
)
from hrsa_jax.hrsa.uncertainty import (
    accuracy_interval,
    calibrate,
    cluster_bootstrap,
    correlation_jackknife,
    half_sample_interval,
    jackknife,
    jackknife_interval,
    knn_permutation_null,
    permutation_null,
    ratio_replicates,
    text_bootstrap_interval,
    text_codes,
    text_sums,
)

# ---- simulated texts: a shared effect per text plus one per token, so that rows of a text depend on each other -----

TEXTS, DIM = 40, 6
SIZES = np.tile([4, 5, 6, 7], TEXTS // 4)
GROUPS = np.repeat(np.arange(TEXTS), SIZES)
TEXT_MIX = np.random.default_rng(1).standard_normal((DIM, 2 * DIM)) * np.arange(1, DIM + 1)[:, None] ** -0.5
TOKEN_MIX = np.random.default_rng(2).standard_normal((DIM, 2 * DIM)) * 0.8
NOISE = 0.7


def draw(repeats: int, groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """x, y (repeats, rows, DIM): linear images of text and token effects, plus noise of their own."""
    random = np.random.default_rng(seed)
    texts = random.standard_normal((repeats, groups.max() + 1, DIM)) @ TEXT_MIX
    tokens = random.standard_normal((repeats, len(groups), DIM)) @ TOKEN_MIX
    both = texts[:, groups] + tokens + NOISE * random.standard_normal((repeats, len(groups), 2 * DIM))
    both = both.astype(np.float32)
    return both[..., :DIM], both[..., DIM:]


COVARIANCE = TEXT_MIX.T @ TEXT_MIX + TOKEN_MIX.T @ TOKEN_MIX + NOISE**2 * np.eye(2 * DIM)
XX, YY, XY = COVARIANCE[:DIM, :DIM], COVARIANCE[DIM:, DIM:], COVARIANCE[:DIM, DIM:]


def share_covered(interval: np.ndarray, truth) -> float:
    return float(np.mean((interval[..., 0] <= truth) & (truth <= interval[..., 1])))


def cka_coverage(repeats: int) -> float:
    truth = (XY**2).sum() / np.sqrt((XX**2).sum() * (YY**2).sum())
    value, replicates = cka_jackknife(*draw(repeats, GROUPS, 3), GROUPS)
    return share_covered(jackknife_interval(value, replicates), truth)


def correlation_coverage(repeats: int) -> float:
    truth = np.mean(np.diag(XY) / np.sqrt(np.diag(XX) * np.diag(YY)))
    value, replicates = correlation_jackknife(*draw(repeats, GROUPS, 4), GROUPS)
    return share_covered(jackknife_interval(value, replicates), truth)


def residual_coverage(repeats: int) -> tuple[float, float]:
    """Residual and cosine of one fixed map on new texts."""
    fit_x, fit_y = draw(1, GROUPS, 5)
    fit = orthogonal_procrustes(fit_x[0], fit_y[0])
    x, y = draw(repeats, GROUPS, 6)
    new_x, new_y = draw(1, np.repeat(np.arange(20_000), 5), 7)
    target = y - np.asarray(fit.mean_y)
    error = (x - np.asarray(fit.mean_x)) @ np.asarray(fit.map) - target
    sums = [text_sums(v, GROUPS, TEXTS) for v in ((error**2).sum(-1), (target**2).sum(-1))]
    residual = jackknife_interval(*ratio_replicates(*sums))
    cosines = np.stack([np.asarray(procrustes_cosine(fit, a, b)) for a, b in zip(x, y, strict=True)])
    counts = np.broadcast_to(SIZES[:, None], (TEXTS, repeats))
    cosine = jackknife_interval(*ratio_replicates(text_sums(cosines, GROUPS, TEXTS), counts))
    return (
        share_covered(residual, float(procrustes_residual(fit, new_x[0], new_y[0]))),
        share_covered(cosine, float(np.mean(np.asarray(procrustes_cosine(fit, new_x[0], new_y[0]))))),
    )


def knn_samples(repeats: int, ks: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Overlaps of a pair that shares part of its neighbourhoods: row values and half-sample means per repeat."""
    x = draw(repeats, GROUPS, 8)[0]
    turn = np.linalg.qr(np.random.default_rng(21).standard_normal((DIM, DIM)))[0]
    y = x @ turn + np.random.default_rng(22).standard_normal(x.shape)
    depth = int(np.ceil(LIST_FACTOR * max(ks)))
    lists = [np.asarray(nearest_neighbors(side - side.mean(1, keepdims=True), depth)) for side in (x, y)]
    overlap = neighbor_overlap(*(found[..., : max(ks)] for found in lists), ks)
    keep = halves_of_texts(TEXTS, draws=KNN_HALF_SAMPLES, seed=0)
    halves = [np.asarray(knn_half_samples(a, b, ks, GROUPS, keep)) for a, b in zip(*lists, strict=True)]
    return np.stack([np.asarray(overlap[k]) for k in ks], -1), np.array(halves), SIZES


def knn_coverage(repeats: int) -> tuple[float, float]:
    """The expected overlap of a fresh sample of as many texts, at k = 5 and 20."""
    rows, halves, _ = knn_samples(repeats, (5, 20))
    value = rows.mean(1)
    interval = half_sample_interval(value, np.moveaxis(halves, 1, 0), degrees=TEXTS - 1)
    return tuple(share_covered(interval[:, i], value[:, i].mean()) for i in range(2))


def knn_bootstrap_coverage(repeats: int) -> float:
    rows, _, sizes = knn_samples(repeats, (20,))
    interval = text_bootstrap_interval(text_sums(rows[..., 0], GROUPS, TEXTS), sizes, draws=500)
    return share_covered(interval, rows[..., 0].mean())


def probe_coverage(repeats: int) -> tuple[float, float]:
    """Accuracies of one pair of fixed probes on new pooled texts: the transfer and the source's ceiling."""
    fresh = 1500
    labels = np.arange(60 + 80 + fresh) % 3
    groups = np.repeat(np.arange(len(labels)), 4)
    x, y = (
        rows.reshape(repeats, len(labels), 4, DIM).mean(2) + np.eye(3, DIM)[labels] * 1.5
        for rows in draw(repeats, groups, 9)
    )
    y = 0.5 * x + y
    train, test = slice(0, 60), slice(60, None)
    result = cross_model_probe(x[:, train], y[:, train], labels[train], x[:, test], y[:, test], labels[test], l2=10.0)
    return tuple(
        share_covered(accuracy_interval(result.correct[name][:, :80]), result.correct[name][:, 80:].mean(1))
        for name in ("transfer", "source")
    )


@pytest.mark.parametrize("measure", [cka_coverage, correlation_coverage, residual_coverage, knn_coverage])
def test_interval_coverage_quick(measure):
    # 120 repeats: four standard errors around 95% are 87-100%, so a percentile bootstrap of CKA (8-25%) still fails
    assert np.all(np.array(measure(120)) >= 0.87)


def test_probe_interval_coverage_quick():
    assert np.all(np.array(probe_coverage(60)) >= 0.83)


@pytest.mark.slow
@pytest.mark.parametrize(
    "measure", [cka_coverage, correlation_coverage, residual_coverage, knn_coverage, probe_coverage]
)
def test_interval_coverage_1000_repeats(measure):
    covered = np.array(measure(1000))
    print(measure.__name__, covered)  # seen with -s
    assert np.all((covered >= 0.92) & (covered <= 0.98)), covered


def test_token_level_interval_fails_where_ours_holds():
    """The control of the simulation itself: treating tokens as independent must be seen to fail."""
    truth = np.mean(np.diag(XY) / np.sqrt(np.diag(XX) * np.diag(YY)))
    heavy = np.repeat(np.arange(8), 80)  # few texts, many tokens each
    rows = draw(100, heavy, 10)
    by_text, by_token = (correlation_jackknife(*rows, g) for g in (heavy, np.arange(len(heavy))))
    assert share_covered(jackknife_interval(*by_text), truth) >= 0.87
    assert share_covered(jackknife_interval(*by_token), truth) < 0.8


def test_per_text_bootstrap_of_overlap_is_too_narrow():
    """Why k-NN has half-samples: texts find each other, so per-text means are not independent."""
    assert knn_bootstrap_coverage(100) < 0.87


# ---- exactness ---------------------------------------------------------------------------------------------------


def test_correlation_jackknife_equals_recomputation():
    x, y = draw(2, GROUPS, 11)
    x[1, :, 2] = 7.0  # a constant dimension in one layer
    values, replicates = correlation_jackknife(x, y, GROUPS)
    for layer in range(2):
        slow = jackknife(lambda a, b: np.nanmean(np.asarray(dimension_correlation(a, b))), x[layer], y[layer], GROUPS)
        np.testing.assert_allclose(values[layer], slow.value, rtol=1e-5)
        np.testing.assert_allclose(replicates[:, layer], slow.replicates, rtol=1e-5)


def test_correlation_jackknife_survives_any_scale():
    x, y = draw(1, GROUPS, 12)
    plain, _ = correlation_jackknife(x, y, GROUPS)
    for scale in (1e-12, 1e12):
        np.testing.assert_allclose(correlation_jackknife(x * np.float32(scale), y, GROUPS)[0], plain, rtol=1e-5)
    nothing, _ = correlation_jackknife(np.ones_like(x), y, GROUPS)
    assert np.isnan(nothing).all()  # not 0: nothing could be measured


def test_cka_jackknife_equals_recomputation():
    x, y = draw(1, GROUPS, 13)
    value, replicates = cka_jackknife(x, y, GROUPS)
    for text in (0, 16, 36):  # of one length: one compilation
        rows = text != GROUPS
        expected = linear_cka(x[0][rows], y[0][rows], groups=GROUPS[rows])
        np.testing.assert_allclose(np.asarray(replicates)[text, 0], expected, rtol=1e-4)
    np.testing.assert_allclose(value[0], linear_cka(x[0], y[0], groups=GROUPS), rtol=1e-5)


def test_ratio_replicates_equals_recomputation():
    random = np.random.default_rng(14)
    above, below = random.random(len(GROUPS)), 1 + random.random(len(GROUPS))
    value, replicates = ratio_replicates(text_sums(above, GROUPS, TEXTS), text_sums(below, GROUPS, TEXTS))
    slow = jackknife(lambda a, b: a.sum() / b.sum(), above, below, GROUPS)
    np.testing.assert_allclose(value, slow.value)
    np.testing.assert_allclose(replicates, slow.replicates)


def test_jackknife_of_a_mean_is_the_t_interval():
    from scipy.stats import t as student

    values = np.random.default_rng(15).standard_normal(12)
    found = jackknife(lambda a, b: a.mean(), values, values, np.arange(12))
    half = student.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    np.testing.assert_allclose(found.interval, [values.mean() - half, values.mean() + half])


def test_bootstrap_draws_whole_texts():
    rows = np.stack([GROUPS, np.arange(len(GROUPS))], 1).astype(float)

    def whole(a, b):
        texts, counts = np.unique(a[:, 0], return_counts=True)
        assert np.all(counts % SIZES[texts.astype(int)] == 0)
        return a[:, 1].mean()

    draws = cluster_bootstrap(whole, rows, rows, GROUPS, draws=50, seed=0)
    assert draws.shape == (50,)
    assert draws.std() > 0
    np.testing.assert_array_equal(draws, cluster_bootstrap(whole, rows, rows, GROUPS, draws=50, seed=0))


def test_text_bootstrap_is_the_cluster_bootstrap_of_a_mean():
    values = np.random.default_rng(16).random(len(GROUPS)) + GROUPS / 40
    interval = text_bootstrap_interval(text_sums(values, GROUPS, TEXTS), SIZES, draws=4000)
    draws = cluster_bootstrap(lambda a, b: a.mean(), values, values, GROUPS, draws=4000, seed=5)
    np.testing.assert_allclose(interval, np.quantile(draws, [0.025, 0.975]), atol=0.01)


def test_permutation_moves_whole_texts_and_uses_every_row():
    groups = np.repeat(np.arange(6), 4)[np.random.default_rng(17).permutation(24)]
    rows = np.arange(24.0)

    def check(x, y):
        assert sorted(y) == list(rows)
        for text in range(6):  # opposite one text stands one other text
            assert len(set(groups[y[groups == text].astype(int)])) == 1
        return x @ y

    null = permutation_null(check, rows, rows, groups, draws=40, seed=0)
    assert len(set(null)) > 10


def test_permutation_null_shares_one_order_over_layers():
    x = np.random.default_rng(18).standard_normal((30, 2))
    null = permutation_null(
        lambda a, b: [(a[:, 0] * b[:, 0]).sum(), (a[:, 0] * b[:, 0]).sum() * 2], x, x, draws=9, seed=1
    )
    assert null.shape == (9, 2)
    np.testing.assert_allclose(null[:, 1], 2 * null[:, 0])


def test_knn_null_by_relabelling_equals_a_new_search():
    x, y = (rows[0, :60] for rows in draw(1, GROUPS, 19))
    groups = GROUPS[:60]

    def overlap(a, b):
        return float(neighbor_overlap(nearest_neighbors(a, 4), nearest_neighbors(b, 4), (4,))[4].mean())

    slow = permutation_null(overlap, x, y, groups, draws=6, seed=3)
    fast = knn_permutation_null(nearest_neighbors(x, 4), nearest_neighbors(y, 4), 4, groups, draws=6, seed=3)
    np.testing.assert_allclose(fast, slow, atol=1e-6)


def test_halves_keep_every_text_equally_often():
    keep = halves_of_texts(TEXTS, draws=6, seed=1)
    np.testing.assert_array_equal(keep[::2], ~keep[1::2])
    assert np.all(keep.sum(1) == TEXTS // 2)


def test_half_samples_equal_a_search_among_the_kept_texts():
    x, y = (rows[0] for rows in draw(1, GROUPS, 23))
    keep = np.stack([np.arange(TEXTS) % 2 == 0, np.arange(TEXTS) % 2 == 1])
    lists = [nearest_neighbors(side, 60) for side in (x, y)]
    found = np.asarray(knn_half_samples(*lists, (3, 10), GROUPS, keep))
    for half in range(2):
        rows = keep[half][GROUPS]
        searched = neighbor_overlap(nearest_neighbors(x[rows], 10), nearest_neighbors(y[rows], 10), (3, 10))
        np.testing.assert_allclose(found[half], [searched[3].mean(), searched[10].mean()], rtol=1e-5)


def test_lists_too_short_for_k_are_compared_as_far_as_both_go():
    x, y = (rows[0] for rows in draw(1, GROUPS, 29))
    keep = halves_of_texts(TEXTS, draws=2, seed=5)
    a, b = (np.asarray(nearest_neighbors(side, 12)) for side in (x, y))
    np.testing.assert_array_equal(knn_half_samples(a, a, (3, 10), GROUPS, keep), 1.0)  # half of 12 is less than 10
    found = np.asarray(knn_half_samples(a, b, (3, 10), GROUPS, keep))
    for half in range(2):
        for place, k in enumerate((3, 10)):
            overlaps = []
            for row in np.flatnonzero(keep[half][GROUPS]):
                kept = [[n for n in side[row] if keep[half][GROUPS[n]]] for side in (a, b)]
                as_far = min(k, *map(len, kept))
                one, other = (set(side[:as_far]) for side in kept)
                overlaps += [len(one & other) / len(one | other)] if as_far else []
            assert found[half, place] == pytest.approx(np.mean(overlaps), rel=1e-5)


@pytest.mark.parametrize(
    ("observed", "null", "alpha", "expected"),
    [
        (0.9, np.arange(19) / 100, 0.05, ((0.9 - 0.18) / (1 - 0.18), 1 / 20, 0.18)),  # 19th smallest of 20
        (0.05, np.arange(19) / 100, 0.05, (0.0, 15 / 20, 0.17)),  # ties count as at least as large
        (0.9, np.arange(9) / 10, 0.05, (0.0, 1 / 10, 0.9)),  # too few draws to say anything: tau is the largest
    ],
)
def test_calibrate(observed, null, alpha, expected):
    np.testing.assert_allclose(calibrate(observed, null, alpha=alpha), expected, atol=1e-12)


def test_accuracy_interval_is_wilson_and_keeps_its_width():
    hits = np.array([True] * 60 + [False] * 20)
    low, high = accuracy_interval(hits)
    assert low < 0.75 < high
    assert 0.16 < high - low < 0.22  # Wald: 0.19
    low, high = accuracy_interval(np.ones(50, bool))
    assert 0.9 < low < 0.95
    assert high == pytest.approx(1.0)
    grouped = accuracy_interval(np.repeat(hits, 5), np.repeat(np.arange(80), 5))
    np.testing.assert_allclose(grouped, accuracy_interval(hits), atol=0.003)  # copies add no information


def test_half_sample_interval_ignores_a_bias_with_size():
    halves = 0.3 + 0.01 * np.random.default_rng(20).standard_normal((400, 1))
    interval = half_sample_interval(np.array([0.5]), halves)
    assert interval[0, 0] < 0.5 < interval[0, 1]
    assert interval[0, 1] - interval[0, 0] == pytest.approx(4 * 0.01, rel=0.15)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: text_codes(np.zeros(5), 5), "one text"),
        (lambda: text_codes(np.zeros(4), 5), "groups has shape"),
        (lambda: cluster_bootstrap(np.dot, np.ones(3), np.ones(4), np.arange(3), draws=2, seed=0), "x has 3 rows"),
        (lambda: cluster_bootstrap(np.dot, np.ones(3), np.ones(3), np.arange(3), draws=0, seed=0), "draws is 0"),
        (lambda: calibrate(0.5, [0.1, np.nan]), "null must be"),
        (lambda: calibrate(np.nan, [0.1]), "observed is nan"),
        (lambda: jackknife_interval(1.0, np.ones((1, 2))), "at least two"),
        (lambda: halves_of_texts(3, draws=2, seed=0), "at least four"),
        (lambda: knn_half_samples(np.ones((9, 2)), np.ones((9, 3)), (1,), np.arange(9), np.ones((2, 9))), "one .N, K"),
        (lambda: knn_half_samples(*[np.ones((9, 2), int)] * 2, (3,), np.arange(9), np.ones((2, 9))), "hold 2 neigh"),
        (lambda: correlation_jackknife(np.ones((1, 9, 2)), np.ones((1, 9, 3)), np.arange(9)), "equal layers"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()

"""Planted truths get their diagnosis; floors, ceilings, rotations and noise are what they say."""

import numpy as np
import pytest

from hrsa_jax.hrsa import controls, geometry
from hrsa_jax.hrsa import representation as rep

N, D = 512, 16
HALF = N // 2


def transfer(x, y, labels):
    """Accuracy on the second half of y of a least-squares probe fitted on the first half of x, own scalers."""

    def features(z):
        scaled = (z - z[:HALF].mean(0)) / z[:HALF].std(0)
        return np.concatenate([scaled, np.ones((N, 1))], axis=1)

    weights = np.linalg.lstsq(features(x)[:HALF], 2.0 * labels[:HALF] - 1, rcond=None)[0]
    return ((features(y)[HALF:] @ weights > 0) == labels[HALF:]).mean()


def diagnose(kind):
    pair = controls.planted(kind, N, D, seed=3)
    x, y = pair.x, pair.y
    fit = rep.orthogonal_procrustes(x[:HALF], y[:HALF])
    back = rep.orthogonal_procrustes(y[:HALF], x[:HALF])
    aligned = (y - np.asarray(back.mean_x)) @ np.asarray(back.map) + np.asarray(back.mean_y)
    found = {
        "correlation": np.nanmean(rep.dimension_correlation(x, y)),
        "residual": rep.procrustes_residual(fit, x[HALF:], y[HALF:]),
        "cosine": np.mean(rep.procrustes_cosine(fit, x[HALF:], y[HALF:])),
        "entropy": rep.inverse_row_entropy(fit.map).mean(),
        "angle": rep.procrustes_distance(x, y)[1],
        "cka": geometry.linear_cka(x, y),
        "cka_texts": geometry.linear_cka(x, y, groups=pair.groups),
        "cka_biased": geometry.linear_cka(x, y, debiased=False),
        "rbf_cka": geometry.rbf_cka(x, y),
        "knn": geometry.knn_overlap(x - x.mean(0), y - y.mean(0), (10,))[10].mean(),
        "knn_euclidean": geometry.knn_overlap(x, y, (10,), metric="euclidean")[10].mean(),
        "own_probe": transfer(x, x, pair.labels),
        "other_probe": transfer(y, y, pair.labels),
        "transfer": transfer(x, y, pair.labels),
        "aligned": transfer(x, aligned, pair.labels),
    }
    return {name: float(value) for name, value in found.items()}


HAAR = rep.inverse_row_entropy_haar(D)
CHANCE = geometry.knn_chance(N, 10)[1]
SAME = {"cka": 1, "cka_texts": 1, "cka_biased": 1, "rbf_cka": 1, "residual": 0, "cosine": 1, "angle": 0}
READABLE = {"own_probe": 1, "other_probe": 1}

# {kind: {measure: (expected, tolerance) or expected}}
TRUTHS = {
    "identical": {**SAME, **READABLE, "knn": 1, "correlation": 1, "entropy": 1, "transfer": 1, "aligned": 1},
    "rotated": {
        **SAME,
        **READABLE,
        "knn": 1,
        "knn_euclidean": 1,
        "correlation": (0, 0.25),
        "entropy": (HAAR, 0.06),
        "transfer": (0.5, 0.2),
        "aligned": 1,
    },
    "permuted": {**SAME, **READABLE, "knn": 1, "correlation": (0, 0.25), "entropy": 1, "aligned": 1},
    "local_reshuffle": {
        **READABLE,
        "cka": (1, 1e-3),
        "cka_texts": (1, 1e-3),
        "knn": (0.09, 0.03),
        "transfer": 1,
    },
    "global_move": {**READABLE, "cka": (0, 0.02), "cka_texts": (0, 0.02), "knn": 1, "knn_euclidean": 1},
    "label_direction": {
        **SAME,
        **READABLE,
        "knn": 1,
        "correlation": (1 - 2 / D, 0.01),
        "transfer": (0.5, 0.1),
        "aligned": 1,
    },
    "independent": {
        "correlation": (0, 0.03),
        "entropy": (HAAR, 0.06),
        "cka": (0, 0.02),
        "cka_texts": (0, 0.02),
        "knn": (CHANCE, 0.01),
        "transfer": (0.5, 0.1),
        "aligned": (0.5, 0.1),
    },
}


@pytest.mark.parametrize("kind", TRUTHS)
def test_planted_truths_get_their_diagnosis(kind):
    found = diagnose(kind)
    for name, truth in TRUTHS[kind].items():
        expected, tolerance = truth if isinstance(truth, tuple) else (truth, 2e-3)
        assert found[name] == pytest.approx(expected, abs=tolerance), (kind, name, found)


def test_planted_pairs_are_reproducible_and_refuse_bad_sizes():
    a, b = controls.planted("rotated", N, D, seed=1), controls.planted("rotated", N, D, seed=1)
    np.testing.assert_array_equal(a.y, b.y)
    assert a.x.dtype == np.float32
    np.testing.assert_array_equal(np.bincount(a.groups), np.full(N // 8, 8))
    with pytest.raises(ValueError, match="kind is 'spun'; it must be one of identical"):
        controls.planted("spun", N, D)
    with pytest.raises(ValueError, match="n is 100 and d is 16"):
        controls.planted("rotated", 100, D)


def test_random_rotations_are_orthogonal_and_haar():
    o = controls.random_rotation(30, seed=0)
    np.testing.assert_allclose(o.T @ o, np.eye(30), atol=1e-12)
    firsts = np.array([controls.random_rotation(3, seed=s)[0, 0] for s in range(3000)])
    # an entry of a Haar rotation of 3 axes is uniform on [-1, 1]; LAPACK's sign choice alone would skew it
    assert abs(firsts.mean()) < 0.04
    assert firsts.var() == pytest.approx(1 / 3, abs=0.03)
    with pytest.raises(ValueError, match="d is 0"):
        controls.random_rotation(0, seed=0)


def test_isotropic_noise_has_its_ratio_and_lowers_the_entropy_without_a_rotation():
    rng = np.random.default_rng(0)
    entropies = []
    for n in (512, 4096):
        x = (rng.standard_normal((n, 64)) * np.arange(1, 65) ** -0.75 + 2).astype(np.float32)
        y = controls.isotropic_noise(x, 0.2, seed=1)
        wide = x.astype(float)
        ratio = ((y - wide) ** 2).sum() / ((wide - wide.mean(0)) ** 2).sum()
        assert ratio == pytest.approx(0.2, rel=1e-4)
        entropies.append(float(rep.inverse_row_entropy(rep.orthogonal_procrustes(x, y).map).mean()))
    assert entropies[0] < entropies[1] - 0.05  # grows with n for the same pair
    assert entropies[0] < 0.9
    with pytest.raises(ValueError, match="ratio is -1"):
        controls.isotropic_noise(x, -1, seed=0)


def test_noise_floor_and_seed_ceiling():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 8)).astype(np.float32)
    rounded = np.asarray(x, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)  # bfloat16 by truncation
    floor = controls.noise_floor(geometry.linear_cka, x, {"again": x, "bfloat16": rounded.view(np.float32)})
    assert floor["again"] == pytest.approx(1)
    assert 0.999 < floor["bfloat16"] < 1
    runs = [x + 0.5 * rng.standard_normal(x.shape) for _ in range(3)]
    ceiling = controls.seed_ceiling(geometry.linear_cka, runs)
    assert ceiling.pairs.shape == (3,)
    assert ceiling.mean == pytest.approx(np.mean(ceiling.pairs))
    assert 0.4 < ceiling.mean < 0.9
    with pytest.raises(ValueError, match="runs holds 1 run"):
        controls.seed_ceiling(geometry.linear_cka, runs[:1])
    with pytest.raises(ValueError, match="variants is empty"):
        controls.noise_floor(geometry.linear_cka, x, {})
    with pytest.raises(ValueError, match=r"variants\['half'\] has shape"):
        controls.noise_floor(geometry.linear_cka, x, {"half": x[:100]})

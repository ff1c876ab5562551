"""One pair many times: by label, along training; floors and ceilings; the realignment index."""

import numpy as np
import pytest

from hrsa_jax.hrsa.realignment import realignment_index
from hrsa_jax.hrsa.results import Comparison, Curve
from hrsa_jax.hrsa.series import compare_by_label, compare_quickly, trajectory
from hrsa_jax.hrsa.states import TokenStates

LAYERS, TEXTS, TOKENS, WIDTH = 2, 20, 12, 10
GROUPS = np.repeat(np.arange(TEXTS), TOKENS)
BASE = np.random.default_rng(0).standard_normal((LAYERS, TEXTS * TOKENS, WIDTH))
BASE += np.random.default_rng(1).standard_normal((LAYERS, TEXTS, WIDTH))[:, GROUPS]


def states(noise=0.0, seed=2, rows=slice(None)) -> TokenStates:
    moved = BASE.copy()
    extra = np.random.default_rng(seed).standard_normal(BASE.shape)
    moved[:, rows] += noise * extra[:, rows]
    return TokenStates(moved.astype(np.float32), GROUPS.astype(np.int32))


def test_a_trajectory_moves_away_step_by_step():
    path = trajectory({"step 0": states(), "step 10": states(0.4), "step 20": states(0.8)})
    assert path.values("cka").shape == (3, LAYERS)
    for name in ("correlation", "cka", "knn_10"):
        values = path.values(name)
        np.testing.assert_allclose(values[0], 1, atol=1e-4)
        assert np.all(np.diff(values, axis=0) < 0)
    assert list(path.to_json()) == ["step 0", "step 10", "step 20"]
    assert path.to_json()["step 20"]["cka"]["interval95"][0][0] < 1
    lines = path.table().splitlines()
    assert lines[0].split()[:3] == ["snapshot", "correlation", "cka"]
    assert "step 20" in lines[3]
    assert len(path.plot().axes) == 5  # four measures and the colour bar


def test_a_sink_of_one_snapshot_is_left_out_of_all():
    moved = states(0.2)
    moved.states_LND[1, 30] += 500
    path = trajectory({"before": states(), "after": moved})
    assert {c.facts["rows"] for c in path.comparisons} == {TEXTS * TOKENS - 1}


def test_a_label_that_changed_is_told_from_one_that_did_not():
    labels = ["easy"] * 9 + ["hard"] * 9 + ["rare"] * 2
    hard = np.isin(GROUPS, np.arange(9, 18))
    found, notes = compare_by_label(states(), states(1.0, rows=hard), labels)
    assert sorted(found) == ["easy", "hard"]
    assert "'rare' has 2 texts" in notes[0]
    np.testing.assert_allclose(found["easy"].measures["cka"].value, 1, atol=1e-4)
    assert np.all(found["hard"].measures["cka"].interval95[:, 1] < 0.98)
    assert found["easy"].facts == {"rows": 9 * TOKENS, "texts": 9, "seed": 0}


def test_quick_comparison_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="2 states and b has 1"):
        compare_quickly(states(), TokenStates(states().states_LND[:1], GROUPS.astype(np.int32)))
    with pytest.raises(ValueError, match="rows of 3 texts"):
        compare_quickly(states(), states(), row_mask=GROUPS < 3)
    with pytest.raises(ValueError, match="snapshots is empty"):
        trajectory({})


def test_realignment_index_is_the_share_of_the_way_to_the_ceiling():
    before, ceiling = compare_quickly(states(), states(1.0)), compare_quickly(states(), states(0.2))
    half_way = compare_quickly(states(), states(0.5))
    index = realignment_index(before, half_way, ceiling)
    assert set(index) == {"correlation", "cka", "knn_5", "knn_10"}
    for curve in index.values():
        assert np.all((curve.value > 0.2) & (curve.value < 0.95))
        low, high = curve.interval95.T
        assert np.all((low < curve.value) & (curve.value < high))
    np.testing.assert_allclose(realignment_index(before, ceiling, ceiling)["cka"].value, 1)
    np.testing.assert_allclose(realignment_index(before, before, ceiling)["cka"].value, 0, atol=1e-12)


def test_realignment_index_is_omitted_without_a_way_to_go():
    same, far = compare_quickly(states(), states(0.5)), compare_quickly(states(), states(1.0))
    assert realignment_index(same, far, same) == {}  # the ceiling is no higher than the backbones
    bare = Comparison({"cka": Curve((0, 1), np.array([0.1, 0.2]), None, "m")}, {})
    assert realignment_index(bare, bare, bare) == {}  # nothing is known of the spread


def test_residuals_are_turned_round():
    def curve(value):
        draws = value + 0.001 * np.random.default_rng(0).standard_normal((12, 1))
        return Comparison({"procrustes_residual": Curve((0,), np.array([value]), None, "m", draws, None, "d")}, {})

    index = realignment_index(curve(0.8), curve(0.5), curve(0.2))
    assert index["procrustes_residual"].value[0] == pytest.approx(0.5)

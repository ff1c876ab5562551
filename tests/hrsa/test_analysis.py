"""compare on planted pairs: what it measures, what it leaves out, what it refuses, and what it returns."""

import json

import numpy as np
import pytest

from hrsa_jax.hrsa.analysis import compare
from hrsa_jax.hrsa.controls import random_rotation
from hrsa_jax.hrsa.curves_representation import PairRows, procrustes_curves
from hrsa_jax.hrsa.realignment import realignment_gap
from hrsa_jax.hrsa.results import Comparison, Curve
from hrsa_jax.hrsa.series import compare_quickly
from hrsa_jax.hrsa.states import TokenStates, shared_row_mask, sink_rows
from hrsa_jax.runtime.errors import InputError

LAYERS, TEXTS, TOKENS, WIDTH = 3, 12, 15, 12
ROWS = TEXTS * TOKENS


def make(seed: int = 0, *, noise: float = 0.0, layers: int = LAYERS, width: int = WIDTH, sink: float = 40.0):
    """Texts of dependent tokens; position 0 is a massive activation in every layer but the first."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(TEXTS), TOKENS)
    states = random.standard_normal((layers, TEXTS, width))[:, groups] + random.standard_normal((layers, ROWS, width))
    states += noise * np.random.default_rng(seed).standard_normal(states.shape)
    positions = np.tile(np.arange(TOKENS), TEXTS)
    states[1:, positions == 0, 0] += sink * np.sqrt(width)
    ids = np.random.default_rng(5).integers(0, 40, ROWS)
    return TokenStates(
        states.astype(np.float32), groups.astype(np.int32), ids.astype(np.int32), positions.astype(np.int32)
    )


def changed(states: TokenStates, new: np.ndarray) -> TokenStates:
    return TokenStates(new.astype(np.float32), states.groups_N, states.token_ids_N, states.positions_N)


def pooled(n: int = 60, layers: int = LAYERS, width: int = WIDTH):
    labels = np.arange(n) % 3
    centres = np.random.default_rng(1).standard_normal((3, width)) * 2
    states = centres[labels] + np.random.default_rng(2).standard_normal((layers, n, width))
    return states.astype(np.float32), [("red", "green", "blue")[i] for i in labels]


@pytest.fixture(scope="module")
def noisy() -> Comparison:
    texts, labels = pooled()
    moved = texts + 0.3 * np.random.default_rng(3).standard_normal(texts.shape).astype(np.float32)
    return compare(make(1), make(2, noise=0.5), texts_a=texts, texts_b=moved, labels=labels)


@pytest.fixture(scope="module")
def paper() -> Comparison:
    texts, labels = pooled()
    return compare(make(1), make(2, noise=0.5), texts_a=texts, texts_b=texts, labels=labels, preset="paper")


def test_careful_has_every_measure_with_its_interval(noisy):
    with_interval = {
        *("correlation", "procrustes_residual", "procrustes_cosine", "inverse_row_entropy", "cka", "cka_with_sinks"),
        *("knn_5", "knn_10", "knn_50", "knn_5_other_texts", "knn_5_with_sinks", "knn_5_other_tokens"),
        *("cka_zscored", "cka_top_pc_removed", "probe_source", "probe_target", "probe_transfer"),
        *("probe_transfer_aligned", "probe_transfer_reverse", "probe_agreement"),
    }
    assert with_interval <= set(noisy.measures)
    for name in with_interval:
        curve = noisy.measures[name]
        assert curve.value.shape == (len(curve.layers),)
        assert np.isfinite(curve.value).all(), name
        low, high = curve.interval95.T
        defined = np.isfinite(low)
        assert defined.any(), name
        assert np.all((low <= curve.value + 1e-9)[defined] & (curve.value <= high + 1e-9)[defined]), name
    assert set(noisy.matrices) == {"cka_matrix", "cka_matrix_biased", "correlation_matrix"}
    assert noisy.measures["knn_5_other_tokens"].layers == (0,)
    assert noisy.refused == {}


def test_curves_agree_with_their_matrices(noisy):
    np.testing.assert_allclose(np.diag(noisy.matrices["cka_matrix"]), noisy.measures["cka"].value, rtol=1e-4)
    np.testing.assert_allclose(
        np.diag(noisy.matrices["correlation_matrix"]), noisy.measures["correlation"].value, rtol=1e-4
    )
    np.testing.assert_allclose(np.diag(noisy.matrices["cka_matrix_biased"]), noisy.measures["cka_biased"].value)


def test_sinks_are_out_by_default_and_shown_beside(noisy):
    assert noisy.facts["rows_left_out"] == TEXTS
    assert noisy.facts["rows"] == ROWS - TEXTS
    with_sinks = noisy.measures["cka_with_sinks"]
    last = noisy.measures["cka"].value[-1]
    assert with_sinks.value[-1] > 0.99  # the sink's direction alone, whatever the rest does
    assert last < 0.97


def test_sink_rows_are_the_union_of_position_zero_and_large_norms():
    states = make()
    states.states_LND[2, 37] *= 100
    other = make(1)
    other.states_LND[1, 44] *= 100
    assert set(np.flatnonzero(sink_rows(states))) == {37, *range(0, ROWS, TOKENS)}
    assert set(np.flatnonzero(~shared_row_mask(states, other))) == {37, 44, *range(0, ROWS, TOKENS)}


def far_rows(seed: int, rows: np.ndarray) -> TokenStates:
    """All rows share a long mean; `rows` keep an ordinary norm but lie far from the others."""
    random = np.random.default_rng(0)
    spread = random.standard_normal((1, ROWS, WIDTH)) + 0.2 * np.random.default_rng(seed).standard_normal((ROWS, WIDTH))
    spread[..., 0] += 30
    spread[:, rows, seed] += 30  # at right angles to the mean: 1.4 x the norm, 9 x the distance
    return TokenStates(spread.astype(np.float32), make().groups_N)


def test_sinks_in_the_middle_of_the_norms_are_left_out():
    rows = {1: np.array([20, 101]), 2: np.array([55, 130])}
    a, b = far_rows(1, rows[1]), far_rows(2, rows[2])
    norms = np.linalg.norm(a.states_LND[0], axis=1)
    assert norms.max() < 2 * np.median(norms)  # no norm gives them away
    assert set(np.flatnonzero(~shared_row_mask(a, b))) == {20, 101, 55, 130}
    kept = compare_quickly(a, b).measures["cka"].value[0]
    everything = compare_quickly(a, b, row_mask=np.ones(ROWS, bool)).measures["cka"].value[0]
    assert kept > 0.85
    assert everything < 0.4  # four rows of 180, other ones in each model, hide that the rest agrees


def test_many_sinks_of_every_size_do_not_hide_behind_their_own_mean():
    rows = np.arange(3, ROWS, 6)  # a sixth of all rows, in one direction, from 3 to 9 times the ordinary distance
    spread = np.random.default_rng(0).standard_normal((1, ROWS, WIDTH))
    spread[:, rows, 5] += np.linspace(3, 9, len(rows)) * np.sqrt(WIDTH)
    states = TokenStates(spread.astype(np.float32), make().groups_N)
    assert set(np.flatnonzero(sink_rows(states))) == set(rows)


def test_a_given_mask_replaces_the_own_one():
    mask = np.ones(ROWS, bool)
    mask[7::TOKENS] = False  # as many rows as the own mask leaves out, but others
    result = compare(make(1), make(2, noise=0.5), row_mask=mask)
    assert result.facts["rows"] == mask.sum()
    assert result.measures["cka"].value[-1] > 0.99  # the sinks are back


def test_identical_models_are_identical():
    result = compare(make(), make())
    for name in ("correlation", "cka", "cka_biased", "knn_5", "knn_50", "procrustes_cosine", "inverse_row_entropy"):
        np.testing.assert_allclose(result.measures[name].value, 1, atol=1e-4)
    np.testing.assert_allclose(result.measures["procrustes_residual"].value, 0, atol=1e-6)


def test_a_rotated_basis_is_diagnosed():
    states = make()
    turned = changed(states, states.states_LND @ random_rotation(WIDTH, seed=1))
    result = compare(states, turned)
    assert np.all(np.abs(result.measures["correlation"].value) < 0.5)
    np.testing.assert_allclose(result.measures["procrustes_residual"].value, 0, atol=1e-5)
    np.testing.assert_allclose(result.measures["cka"].value, 1, atol=1e-4)
    np.testing.assert_allclose(result.measures["knn_10"].value, 1, atol=0.02)
    entropy = result.measures["inverse_row_entropy"]
    np.testing.assert_allclose(entropy.value, entropy.chance, atol=0.15)
    assert np.all(result.measures["inverse_row_entropy_noise_control"].value > 0.9)  # so little noise cannot do it


def test_procrustes_is_scored_on_texts_the_map_has_not_seen():
    states = make()
    random = np.random.default_rng(9).standard_normal(states.states_LND.shape)  # unrelated rows
    careful = compare(states, changed(states, random)).measures["procrustes_residual"].value
    published = compare(states, changed(states, random), preset="paper").measures["procrustes_residual"].value
    assert np.all(careful > published)
    assert np.all(careful > 1.2)  # nothing to find: worse than predicting the mean, never better


def test_entropy_is_refused_when_the_rows_do_not_identify_the_map():
    rows = np.arange(ROWS)[:, None] * np.random.default_rng(3).standard_normal((1, WIDTH))
    low_rank = make().states_LND.copy()
    low_rank[1] = rows
    states = changed(make(), low_rank)
    result = compare(states, states)
    entropy = result.measures["inverse_row_entropy"]
    assert np.isnan(entropy.value[1])
    assert np.isfinite(entropy.value[0])
    assert any(note.startswith("inverse_row_entropy is not given at layer 1: ") for note in result.notes)
    assert result.to_json()["inverse_row_entropy"]["value"][1] is None


def test_entropy_is_refused_with_fewer_rows_than_dimensions():
    wide = make(width=200).states_LND
    pair = PairRows(wide, wide, make().groups_N, TEXTS, None)
    curves, facts, notes = procrustes_curves(pair, careful=True, seed=0, control_layers=(0,))
    assert np.isnan(curves["inverse_row_entropy"].value).all()
    assert np.isnan(curves["inverse_row_entropy"].interval95).all()
    assert np.isfinite(curves["procrustes_residual"].value).all()
    assert facts["procrustes_identified"] == [False] * LAYERS
    assert "90 rows do not identify a map of 200 dimensions" in notes[0]


def test_paper_preset_is_the_published_protocol(paper):
    assert paper.facts["rows"] == ROWS  # position 0 included
    assert "cka" not in paper.measures
    assert "cka_matrix" not in paper.matrices
    assert paper.measures["cka_biased"].value[-1] > 0.99  # the sink, as published
    assert all(curve.interval95 is None for curve in paper.measures.values())
    assert "as they are" in paper.measures["knn_5"].method


def test_other_widths_are_refused_by_name_and_the_rest_runs():
    wide = make(width=WIDTH + 4)
    texts, labels = pooled()
    result = compare(make(), wide, texts_a=texts, texts_b=pooled(width=WIDTH + 4)[0], labels=labels)
    assert {"correlation", "correlation_matrix", "probe_transfer", "probe_agreement"} <= set(result.refused)
    assert f"{WIDTH} and {WIDTH + 4}" in result.refused["correlation"]
    assert "correlation" not in result.measures
    assert {"cka", "knn_5", "procrustes_residual", "probe_transfer_aligned"} <= set(result.measures)


def test_other_depths_are_refused_by_name_and_the_matrices_run():
    result = compare(make(), make(layers=LAYERS + 1))
    assert {"correlation", "cka", "procrustes_residual", "knn_5"} <= set(result.refused)
    assert result.measures == {}
    assert result.matrices["cka_matrix"].shape == (LAYERS, LAYERS + 1)
    assert result.table()  # refusals are printed


def test_pooled_texts_stand_in_when_tokens_cannot_be_matched():
    texts, _ = pooled(ROWS - TEXTS)
    documents = np.arange(ROWS - TEXTS) // (TOKENS - 1)
    result = compare(None, None, texts_a=texts, texts_b=texts[:, :, ::-1], text_groups=documents)
    assert result.facts["level"] == "texts"
    assert result.facts["rows"] == ROWS - TEXTS
    assert result.facts["texts"] == TEXTS
    np.testing.assert_allclose(result.measures["cka"].value, 1, atol=1e-4)
    assert "pooled texts" in result.notes[0]


def test_token_ids_are_compared_not_their_number():
    a, b = make(), make()
    b.token_ids_N[50] += 1
    with pytest.raises(InputError, match=r"token ids .* in text 3 "):
        compare(a, b)
    shorter = TokenStates(*(getattr(a, f)[..., :-1, :] if f == "states_LND" else getattr(a, f)[:-1] for f in FIELDS))
    with pytest.raises(InputError, match="180 and 179 tokens, first differing in text 11"):
        compare(a, shorter)


FIELDS = ("states_LND", "groups_N", "token_ids_N", "positions_N")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "sloppy"}, "choose 'careful' or 'paper'"),
        ({"row_mask": np.ones(3, bool)}, "row_mask has shape"),
        ({"labels": [0, 1]}, "labels were given without texts_a"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        compare(make(), make(), **options)


def test_states_refuse_nan_and_wrong_shapes():
    bad = make().states_LND.copy()
    bad[1, 3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        changed(make(), bad)
    with pytest.raises(ValueError, match="groups_N has shape"):
        TokenStates(make().states_LND, np.zeros(3, np.int32))


def test_json_table_and_plot(noisy):
    fragment = json.loads(json.dumps(noisy.to_json(), allow_nan=False))
    assert fragment["cka"]["layers"] == [0, 1, 2]
    assert len(fragment["cka"]["interval95"]) == 3
    assert fragment["cka_matrix"]["layers_b"] == [0, 1, 2]
    assert fragment["facts"]["rows"] == ROWS - TEXTS
    assert fragment["knn_5"]["chance"] == pytest.approx(0.015, abs=0.005)
    table = noisy.table()
    assert f"{noisy.measures['cka'].value[0]:.3f}" in table
    figure = noisy.plot()
    assert [axis.get_title() for axis in figure.axes[:4]] == [
        *("Representation", "Geometry", "Function", "CKA of all layer pairs"),
    ]


def test_gap_is_paired_by_text():
    backbones = compare(make(1), make(2, noise=1.0))
    embs = compare(make(1), make(2, noise=0.4))
    gap = realignment_gap(backbones, embs)
    assert {"correlation", "cka", "procrustes_residual", "knn_5", "inverse_row_entropy"} <= set(gap)
    for name in ("correlation", "cka", "knn_10"):
        difference = embs.measures[name].value - backbones.measures[name].value
        np.testing.assert_allclose(gap[name].value, difference)
        assert np.all(gap[name].interval95[:, 0] > 0), name  # the embs are closer, and the pairing sees it
    assert np.all(gap["procrustes_residual"].interval95[:, 1] < 0)
    width = np.diff(realignment_gap(backbones, backbones)["cka"].interval95)
    np.testing.assert_allclose(width, 0, atol=1e-12)  # the same texts cancel exactly


def test_gap_without_matching_replicates_has_no_interval():
    curve = Curve((0, 1), np.array([0.1, 0.2]), None, "m", np.zeros((5, 2)), None, "delete-one-text")
    other = Curve((1, 2), np.array([0.5, 0.6]), None, "m", np.zeros((6, 2)), None, "delete-one-text")
    gap = realignment_gap(Comparison({"m": curve}, {}), Comparison({"m": other, "more": other}, {}))
    assert list(gap) == ["m"]
    assert gap["m"].layers == (1,)
    assert gap["m"].value[0] == pytest.approx(0.3)
    assert gap["m"].interval95 is None

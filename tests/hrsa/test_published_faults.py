"""The faults of the published code (HRSA.md), one named test each: ours does not have them.

Two of them concern how models are run and are tested where tiny models are built (test_activations.py): one attention
flag for two models (test_each_model_runs_in_its_own_attention_mode), and bf16 whatever dtype was asked
(test_states_are_computed_in_the_precision_that_was_asked; the kernels here).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hrsa_jax.hrsa import geometry
from hrsa_jax.hrsa import representation as rep
from hrsa_jax.hrsa.activations import token_texts
from hrsa_jax.hrsa.controls import planted, random_rotation
from hrsa_jax.hrsa.curves_representation import correlation_matrix
from hrsa_jax.hrsa.function import cross_model_probe, group_split
from hrsa_jax.hrsa.results import Comparison, Curve
from hrsa_jax.hrsa.states import TokenStates, check_same_rows
from hrsa_jax.hrsa.uncertainty import correlation_jackknife
from hrsa_jax.runtime.errors import InputError


def cloud(n=120, d=8, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, d)) * np.arange(1, d + 1) ** -0.5).astype(np.float32)


# ---- representation ------------------------------------------------------------------------------------------------


def test_procrustes_scores_with_the_centring_it_was_fitted_with():
    x = cloud() + 50
    y = (x - 50) @ random_rotation(8, seed=1).astype(np.float32) - 20
    fit = rep.orthogonal_procrustes(x[:60], y[:60])
    assert rep.procrustes_residual(fit, x[60:], y[60:]) < 1e-9
    assert np.min(rep.procrustes_cosine(fit, x[60:], y[60:])) > 0.9999
    # the score's own rows are not centred again: a shift of the held-out half is an error and counts as one
    assert rep.procrustes_residual(fit, x[60:], y[60:] + 1) > 0.1


def test_procrustes_is_fitted_and_scored_on_different_rows():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 80, 30)).astype(np.float32)  # nothing shared
    fit = rep.orthogonal_procrustes(x[:40], y[:40])
    assert rep.procrustes_residual(fit, x[:40], y[:40]) < 0.75  # what fitting to noise alone earns
    assert rep.procrustes_residual(fit, x[40:], y[40:]) > 1.5


def test_every_layer_keeps_and_uses_its_own_map():
    x = np.stack([cloud(seed=s) for s in range(3)])
    turns = np.stack([random_rotation(8, seed=s) for s in range(3)])
    y = np.einsum("lnp,lpq->lnq", x, turns).astype(np.float32)
    fits = [rep.orthogonal_procrustes(a[:60], b[:60]) for a, b in zip(x, y, strict=True)]
    for layer, fit in enumerate(fits):
        np.testing.assert_allclose(fit.map, turns[layer], atol=1e-5)
        assert rep.procrustes_residual(fit, x[layer, 60:], y[layer, 60:]) < 1e-9
        assert rep.procrustes_residual(fit, x[layer - 1, 60:], y[layer - 1, 60:]) > 0.5


def test_correlation_does_not_depend_on_units():
    x = cloud()
    y = x + cloud(seed=1)
    r = rep.dimension_correlation(x, y)
    assert np.isfinite(r).all()
    for scale in (1e-7, 1e-20, 1e7):
        np.testing.assert_allclose(rep.dimension_correlation(x * np.float32(scale), y), r, atol=1e-6)


def test_constant_columns_are_nan_and_not_a_correlation_of_rounding():
    x, y = cloud(), cloud(seed=1)
    for value in (0.1, 1000.1, -3e-9, 0.0):
        x[:, 2] = value
        y[:, 5] = np.float32(value) * (1 + np.arange(len(y)) % 2 * np.finfo(np.float32).eps)
        r = np.asarray(rep.dimension_correlation(x, y))
        assert list(np.flatnonzero(np.isnan(r))) == [2, 5]
        all_layers = rep.dimension_correlation_matrix(x[None], y[None])[0, 0]
        assert list(np.flatnonzero(np.isnan(all_layers))) == [2, 5]


def test_degenerate_input_is_nan_and_never_zero():
    still = np.full((20, 4), 7.3, np.float32)
    assert np.isnan(rep.dimension_correlation(still, cloud(20, 4))).all()
    assert np.isnan(geometry.linear_cka(still, cloud(20, 4)))
    assert np.isnan(rep.procrustes_residual(rep.orthogonal_procrustes(cloud(20, 4), still), cloud(20, 4), still))


# ---- layers --------------------------------------------------------------------------------------------------------


def test_layers_come_back_in_the_order_they_went_in_and_all_of_them():
    rng = np.random.default_rng(0)
    xs = rng.standard_normal((5, 100, 6)).astype(np.float32)
    ys = np.concatenate([xs[:4] + 0.1 * rng.standard_normal((4, 100, 6)), xs[:1]]).astype(np.float32)
    matrix = np.asarray(geometry.cka_matrix(xs, ys))
    assert matrix.shape == (5, 5)
    np.testing.assert_array_equal(matrix.argmax(1)[:4], [4, 1, 2, 3])  # rows are layers of x, columns of y
    assert matrix[4].max() < 0.2  # the last layer of x is in nobody
    correlation = np.asarray(rep.dimension_correlation_matrix(xs, ys)).mean(2)
    np.testing.assert_array_equal(correlation.argmax(1)[:4], [4, 1, 2, 3])
    curve, _ = geometry.cka_jackknife(xs, ys, np.arange(100) // 10)
    overlap = geometry.knn_overlap(xs, ys, (5,))[5].mean(1)
    for layer in range(5):
        np.testing.assert_allclose(
            curve[layer], geometry.linear_cka(xs[layer], ys[layer], groups=np.arange(100) // 10), atol=1e-5
        )
        np.testing.assert_allclose(
            overlap[layer], geometry.knn_overlap(xs[layer], ys[layer], (5,))[5].mean(), atol=1e-6
        )


# ---- neighbours ----------------------------------------------------------------------------------------------------


def test_nan_rows_are_refused_and_never_nearest():
    x = cloud()
    x[7] = np.nan
    for call in (
        lambda: geometry.nearest_neighbors(x, 5),
        lambda: geometry.knn_overlap(cloud(), x, (5,)),
        lambda: geometry.linear_cka(x, cloud()),
        lambda: rep.dimension_correlation(cloud(), x),
    ):
        try:
            call()
        except ValueError as error:
            assert "8 NaN or infinite values, the first at index (7, 0)" in str(error)  # noqa: PT017
        else:
            raise AssertionError("NaN rows were accepted")


def test_ties_of_equal_tokens_do_not_look_like_a_difference():
    """h_0 of two models with one embedding table: tokens repeat, so most neighbours tie exactly."""
    rng = np.random.default_rng(0)
    table = cloud(40, 12)
    tokens = rng.integers(0, 40, 300)
    x = table[tokens]
    assert geometry.tie_fraction(x, 5) > 0.5
    assert geometry.knn_overlap(x, x.copy(), (5, 10))[5].min() == 1
    # ties go to the lowest index for everybody, so a table that is only rotated by a swap of axes agrees as well
    swapped = x[:, rng.permutation(12)]
    assert geometry.knn_overlap(x, swapped, (5,))[5].mean() > 0.97
    # with rows of the same token left out, nothing ties and no order of rows matters
    order = rng.permutation(300)
    same_token = geometry.knn_overlap(x, swapped, (5,), groups=tokens)[5]
    reordered = geometry.knn_overlap(x[order], swapped[order], (5,), groups=tokens[order])[5]
    assert abs(same_token.mean() - reordered.mean()) < 0.03


# ---- memory and precision ------------------------------------------------------------------------------------------


def test_streaming_cka_keeps_no_activation():
    x, y = cloud(600), cloud(600, seed=1) + cloud(600)
    state = geometry.cka_init(8, 8)
    sizes = []
    for start in range(0, 600, 100):
        state = geometry.cka_update(state, x[start : start + 100], y[start : start + 100])
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(state)))
    assert set(sizes) == {sizes[0]}
    assert sizes[0] < 600  # fewer numbers than rows have
    np.testing.assert_allclose(geometry.cka_result(state), geometry.linear_cka(x, y), rtol=1e-5)


def test_kernels_compute_in_float32_or_better_whatever_arrives():
    x = cloud()
    y = x @ random_rotation(8, seed=0).astype(np.float32)
    assert abs(geometry.linear_cka(x, y) - 1) < 1e-6  # bf16 products would leave 1e-3
    half = jnp.asarray(x, jnp.bfloat16)
    assert geometry.linear_cka(half, half).dtype == jnp.float32
    assert abs(geometry.linear_cka(half, half) - 1) < 1e-6
    assert rep.orthogonal_procrustes(half, half).map.dtype == jnp.float32
    with jax.enable_x64(True):
        assert geometry.linear_cka(x.astype(np.float64), y).dtype == jnp.float64
    for function in (geometry.linear_cka, geometry.cka_matrix, lambda x, _: geometry.nearest_neighbors(x[0], 5)):
        stack = (x[None], y[None]) if function is not geometry.linear_cka else (x, y)
        program = str(jax.make_jaxpr(function)(*stack))
        assert program.count("dot_general") == program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") > 0


def test_planted_pairs_tell_local_from_global_change():
    """What the published summary numbers could not: which level moved."""
    local, moved = planted("local_reshuffle", 256, 16), planted("global_move", 256, 16)
    assert geometry.linear_cka(local.x, local.y) > 0.999
    assert geometry.knn_overlap(local.x, local.y, (5,))[5].mean() < 0.15
    assert abs(geometry.linear_cka(moved.x, moved.y)) < 0.05
    assert geometry.knn_overlap(moved.x, moved.y, (5,))[5].mean() > 0.99


# ---- probes and the whole comparison -------------------------------------------------------------------------------


def probed(kinds: tuple[str, ...], n: int = 256):
    """One layer per planted kind, all with the same labels; half of the rows for training."""
    pairs = [planted(kind, n, 16, seed=1) for kind in kinds]
    x, y = np.stack([p.x for p in pairs]), np.stack([p.y for p in pairs])
    labels, half = pairs[0].labels, n // 2
    assert all((p.labels == labels).all() for p in pairs)
    return cross_model_probe(x[:, :half], y[:, :half], labels[:half], x[:, half:], y[:, half:], labels[half:], l2=10.0)


def test_probes_have_ceilings_and_both_directions_at_every_layer():
    """A transfer number alone cannot tell a lost feature from a moved axis; one layer cannot stand for another."""
    found = probed(("identical", "label_direction", "independent"))
    np.testing.assert_array_less(0.97, found.source)
    np.testing.assert_array_less(0.97, found.target[:2])
    assert found.target[2] < 0.7  # here the feature itself is gone, and only the ceiling says so
    for direction in (found.transfer, found.transfer_reverse):
        assert direction[0] > 0.97
        assert (direction[1:] < 0.75).all()


def test_a_second_dataset_never_reuses_the_split_of_the_first():
    first = group_split([0, 1] * 20, None, share=0.4, seed=0)
    second = group_split([0, 1] * 30, None, share=0.4, seed=0)
    assert len(first) == 40
    assert len(second) == 60
    np.testing.assert_array_equal(first, group_split([0, 1] * 20, None, share=0.4, seed=0))
    relabelled = group_split([0, 0, 1, 1] * 10, None, share=0.4, seed=0)
    assert relabelled[:4].sum() != 4
    assert (first != relabelled).any()  # the same size with other labels is another dataset


def test_summaries_of_nothing_are_nan_and_null_never_zero():
    still = np.full((1, 40, 4), 3.0, np.float32)
    moving = cloud(40, 4)[None]
    mean, facts = correlation_matrix(still, moving)
    assert np.isnan(mean).all()
    assert facts["degenerate_dimensions"] == [4]
    value, replicates = correlation_jackknife(still, moving, np.arange(40) // 4)
    assert np.isnan(value).all()
    assert np.isnan(replicates).all()
    fragment = Comparison({"correlation": Curve((0,), value, None, "r")}, {"correlation_matrix": mean}).to_json()
    assert fragment["correlation"]["value"] == [None]
    assert fragment["correlation_matrix"]["value"] == [[None]]


def test_texts_are_drawn_at_random_and_not_the_first_ones():
    drawn = token_texts(200, 64, seed=0)
    assert drawn == token_texts(200, 64, seed=0)
    assert drawn != token_texts(200, 64, seed=1)
    assert len(set(drawn)) == 64
    assert max(drawn) > 150  # a sorted file would have given its first label only


def test_tokens_are_matched_by_id_and_not_by_count():
    rows = np.arange(12) // 4
    a, b = (TokenStates(np.ones((1, 12, 2), np.float32), rows, ids) for ids in (np.arange(12), np.arange(12)[::-1]))
    with pytest.raises(InputError, match="token ids of the two models differ in 12 of 12 rows, first in text 0"):
        check_same_rows(a, b)

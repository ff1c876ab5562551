"""Pooling against plain numpy, for both paddings and for packed rows."""

import jax
import numpy as np
import pytest

from hrsa_jax.embedding.pooling import POOLINGS, l2_normalize, pool, pool_segments

RANDOM = np.random.default_rng(0)


def plain(states_TD, start, how):
    """One text without padding: float64."""
    states_TD = states_TD.astype(np.float64)
    if how == "last":
        return states_TD[-1]
    if how == "cls":
        return states_TD[start]
    weights_T = np.ones(len(states_TD)) if how == "mean" else np.arange(1.0, len(states_TD) + 1)
    weights_T[:start] = 0
    return weights_T @ states_TD / weights_T.sum()


@pytest.mark.parametrize("how", POOLINGS)
@pytest.mark.parametrize("left", [False, True])
def test_pool_ignores_padding_and_prompt(how, left):
    lengths, starts, T, D = [5, 1, 8, 3], [2, 0, 7, 0], 8, 6
    h_BTD = RANDOM.normal(size=(4, T, D)).astype(np.float32)
    mask_BT, pooled_BT = np.zeros((4, T), bool), np.zeros((4, T), bool)
    expected = []
    for row, (length, start) in enumerate(zip(lengths, starts, strict=True)):
        first = T - length if left else 0
        mask_BT[row, first : first + length] = True
        pooled_BT[row, first + start : first + length] = True
        expected.append(plain(h_BTD[row, first : first + length], start, how))
    got = pool(h_BTD, mask_BT, how, pool_mask_BT=pooled_BT)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert got.dtype == np.float32


@pytest.mark.parametrize("how", POOLINGS)
def test_packed_rows_pool_as_single_texts(how):
    R, T, D, S = 2, 12, 5, 4
    h_RTD = RANDOM.normal(size=(R, T, D)).astype(np.float32)
    segments = np.array([[1, 1, 1, 2, 2, 3, 3, 3, 3, 0, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]])
    mask = segments > 0
    mask[0, [0, 5, 6]] = False  # prompts
    got = pool_segments(h_RTD, segments, mask, S, how)
    assert got.shape == (R, S, D)
    for row in range(R):
        for segment in range(1, S + 1):
            here = segments[row] == segment
            if not here.any():
                np.testing.assert_array_equal(got[row, segment - 1], 0)
                continue
            start = int((~mask[row][here]).sum())
            np.testing.assert_allclose(got[row, segment - 1], plain(h_RTD[row][here], start, how), rtol=1e-5, atol=1e-6)


def test_bfloat16_states_are_summed_in_float32():
    h_BTD = np.full((1, 512, 1), 1.0078125, np.float32)  # exact in bfloat16; a bfloat16 sum of 512 is not
    got = pool(jax.numpy.asarray(h_BTD, jax.numpy.bfloat16), np.ones((1, 512), bool))
    np.testing.assert_allclose(got, 1.0078125, rtol=1e-6)


def test_nothing_to_pool_gives_zeros_with_finite_gradients():
    mask = np.zeros((1, 3), bool)
    gradient = jax.grad(lambda h: l2_normalize(pool(h, mask)).sum())(jax.numpy.ones((1, 3, 2)))
    assert np.isfinite(gradient).all()
    assert not pool(np.ones((1, 3, 2), np.float32), mask).any()


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="how must be one of mean"):
        pool(np.ones((1, 2, 2), np.float32), np.ones((1, 2), bool), "max")

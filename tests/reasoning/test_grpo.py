"""GRPO's loss and advantages against float64 numpy, finite differences and the recipe's special cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hrsa_jax.reasoning.grpo import group_advantages, grpo_loss


def numpy_loss(logp, old, ref, advantage, mask, clip_low, clip_high, kl_coef):
    total, tokens = 0.0, 0
    for b in range(logp.shape[0]):
        if advantage[b] == 0.0:
            continue
        for t in range(logp.shape[1]):
            if not mask[b, t]:
                continue
            ratio = np.exp(logp[b, t] - old[b, t])
            clipped = min(max(ratio, 1 - clip_low), 1 + clip_high)
            total += min(ratio * advantage[b], clipped * advantage[b])
            if ref is not None:
                d = ref[b, t] - logp[b, t]
                total -= kl_coef * (np.exp(d) - d - 1)
            tokens += 1
    return -total / max(tokens, 1)


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    logp = -rng.exponential(size=(6, 5))
    return {
        "logp_BT": logp,
        "old_logp_BT": logp + 0.4 * rng.normal(size=logp.shape),
        "ref_logp_BT": logp + 0.4 * rng.normal(size=logp.shape),
        "advantage_B": np.array([1.2, -0.7, 0.0, 0.0, 0.4, -2.0]),
        "mask_BT": rng.random((6, 5)) < 0.7,
    }


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize(("clip_low", "clip_high"), [(0.2, 0.2), (0.1, 0.35)])
def test_loss_and_gradient_in_float64(sample, reference, clip_low, clip_high):
    kl_coef = 0.3 if reference else 0.0
    if not reference:
        sample["ref_logp_BT"] = None
    with jax.enable_x64(True):
        expected = numpy_loss(*sample.values(), clip_low, clip_high, kl_coef)
        arrays = {k: None if v is None else jnp.asarray(v) for k, v in sample.items()}

        def loss(logp_BT):
            options = {"clip_low": clip_low, "clip_high": clip_high, "kl_coef": kl_coef}
            return grpo_loss(**(arrays | {"logp_BT": logp_BT}), **options)

        value, gradient_BT = jax.jit(jax.value_and_grad(loss))(arrays["logp_BT"])
        gradient_BT = np.asarray(gradient_BT)
    assert float(value) == pytest.approx(expected, abs=1e-12)
    step = 1e-6
    for b, t in np.ndindex(6, 5):
        shifted = []
        for sign in (1, -1):
            moved = sample["logp_BT"].copy()
            moved[b, t] += sign * step
            shifted.append(numpy_loss(moved, *list(sample.values())[1:], clip_low, clip_high, kl_coef))
        assert gradient_BT[b, t] == pytest.approx((shifted[0] - shifted[1]) / (2 * step), abs=1e-7)


def test_ratio_is_exactly_one_at_the_first_inner_step(sample):
    logp_BT = jnp.asarray(sample["logp_BT"], jnp.float32)
    mask_BT = jnp.ones((6, 5), bool)
    advantage_B = jnp.asarray([1.0, -1.0, 1.0, -1.0, 2.0, 0.5])
    loss = jax.jit(grpo_loss)(logp_BT, logp_BT, None, advantage_B, mask_BT)
    assert float(loss) == pytest.approx(-2.5 / 6, rel=1e-6)
    gradient_BT = jax.jit(jax.grad(grpo_loss))(logp_BT, logp_BT, None, advantage_B, mask_BT)
    np.testing.assert_allclose(gradient_BT, np.tile(-advantage_B[:, None] / 30, (1, 5)), rtol=1e-6)


def test_zero_variance_groups_have_zero_advantage_zero_gradient_and_no_weight(sample):
    rewards_QG = np.array([[0.1, 0.1, 0.1], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]], np.float32)
    advantage_QG = group_advantages(rewards_QG)
    assert np.all(np.asarray(advantage_QG)[:2] == 0.0)
    logp_BT = jnp.asarray(np.tile(sample["logp_BT"], (2, 1))[:9], jnp.float32)
    ref_BT = logp_BT - 0.5
    mask_BT = jnp.ones(logp_BT.shape, bool)

    def loss(logp_BT, first, last):
        rows = slice(first, last)
        return grpo_loss(
            logp_BT[rows], logp_BT[rows], ref_BT[rows], advantage_QG.reshape(-1)[rows], mask_BT[rows], kl_coef=0.1
        )

    value_and_gradient = jax.jit(jax.value_and_grad(loss), static_argnums=(1, 2))
    value, gradient_BT = value_and_gradient(logp_BT, 0, 9)
    alone, gradient_alone_BT = value_and_gradient(logp_BT, 6, 9)
    assert float(value) == pytest.approx(float(alone), rel=1e-6)
    assert np.all(np.asarray(gradient_BT)[:6] == 0.0)
    np.testing.assert_allclose(gradient_BT, gradient_alone_BT, rtol=1e-6)
    only_equal, gradient_BT = value_and_gradient(logp_BT, 0, 6)
    assert float(only_equal) == 0.0
    assert not np.any(np.asarray(gradient_BT))


def test_advantages_use_the_population_deviation_without_epsilon():
    rewards_QG = np.array([[0.0, 1.0, 0.0, 0.0], [0.2, 0.9, 0.5, 1e-3]])
    expected = (rewards_QG - rewards_QG.mean(1, keepdims=True)) / rewards_QG.std(1, keepdims=True)
    np.testing.assert_allclose(group_advantages(rewards_QG), expected, rtol=2e-6)
    centred = rewards_QG - rewards_QG.mean(1, keepdims=True)
    np.testing.assert_allclose(group_advantages(rewards_QG, scale_by_std=False), centred, atol=1e-7)
    # tiny differences are scaled all the way: there is no epsilon
    np.testing.assert_allclose(group_advantages(np.array([[0.0, 1e-6]])), [[-1.0, 1.0]], rtol=1e-6)
    np.testing.assert_array_equal(group_advantages(np.array([[0, 1], [1, 1]])), [[-1.0, 1.0], [0.0, 0.0]])


def test_masked_infinities_change_nothing(sample):
    arrays = {k: jnp.asarray(v) for k, v in sample.items()}
    mask_BT = arrays["mask_BT"]
    poisoned = {
        name: jnp.where(mask_BT, arrays[name], value)
        for name, value in (("logp_BT", -jnp.inf), ("old_logp_BT", jnp.inf), ("ref_logp_BT", jnp.nan))
    }
    clean, poison = (
        jax.jit(jax.value_and_grad(lambda x, a=a: grpo_loss(**(a | {"logp_BT": x}), kl_coef=0.2)))(a["logp_BT"])
        for a in (arrays, arrays | poisoned)
    )
    assert float(clean[0]) == float(poison[0])
    np.testing.assert_array_equal(clean[1], poison[1])


def test_clipping_stops_the_gradient_on_the_right_side():
    old_BT = jnp.zeros((4, 1))
    logp_BT = jnp.log(jnp.asarray([[1.5], [0.5], [1.5], [0.5]]))
    advantage_B = jnp.asarray([1.0, 1.0, -1.0, -1.0])
    mask_BT = jnp.ones((4, 1), bool)
    gradient_BT = jax.jit(jax.grad(grpo_loss))(logp_BT, old_BT, None, advantage_B, mask_BT)
    np.testing.assert_allclose(gradient_BT[:, 0], [0.0, -0.5 / 4, 1.5 / 4, 0.0])
    wide_BT = jax.grad(lambda x: grpo_loss(x, old_BT, None, advantage_B, mask_BT, clip_high=0.6))(logp_BT)
    np.testing.assert_allclose(wide_BT[:, 0], [-1.5 / 4, -0.5 / 4, 1.5 / 4, 0.0])


def test_bad_arguments_are_named(sample):
    arrays = {k: jnp.asarray(v) for k, v in sample.items()}
    with pytest.raises(ValueError, match=r"kl_coef is 0\.1 but ref_logp_BT is None"):
        grpo_loss(**(arrays | {"ref_logp_BT": None}), kl_coef=0.1)
    with pytest.raises(ValueError, match="advantage_B has shape"):
        grpo_loss(**(arrays | {"advantage_B": jnp.ones(5)}))
    with pytest.raises(ValueError, match="must be one and the same"):
        grpo_loss(**(arrays | {"mask_BT": jnp.ones((6, 4))}))
    with pytest.raises(ValueError, match="two axes"):
        group_advantages(np.ones(3))

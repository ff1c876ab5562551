"""GRPO's loss and advantages against float64 numpy, finite differences and the recipe's special cases."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hrsa_jax.models.lora import LoRAConfig, add_lora, split_trainable
from hrsa_jax.reasoning.grpo import GRPOConfig, group_advantages, grpo_loss, grpo_step
from hrsa_jax.reasoning.tasks import Problem
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.loop import OptimConfig, init_state, make_optimizer


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


LETTERS = "abcdefghij"
SETTINGS = GRPOConfig(questions=8, group=16, max_new_tokens=1, style="raw", dtype="float32", remat=False, seed=3)


def _planted(tokenizer):
    """One letter asks for any one character of its own class; classes are fifths of the vocabulary."""

    def reward(problem: Problem, text: str) -> float:
        ids = tokenizer.convert_tokens_to_ids([problem.question, *text[:1]])
        return float(len(ids) == 2 and ids[0] % 5 == ids[1] % 5)

    return [Problem(letter, "", "", "planted", {}) for letter in LETTERS], reward


def _start(decoder, optimizer, *, lora: bool):
    graphdef, trainable, frozen = split_trainable(decoder, lora=lora)
    return graphdef, init_state(trainable, frozen, optimizer)


def test_learns_a_planted_verifiable_task(decoder, tokenizer):
    problems, reward = _planted(tokenizer)
    optimizer = make_optimizer(OptimConfig(learning_rate=2e-2, schedule="constant", weight_decay=0.0), 60)
    graphdef, state = _start(decoder, optimizer, lora=False)
    step, batch_at = grpo_step(graphdef, SETTINGS, optimizer, problems, tokenizer, reward=reward)
    rewards = []
    for number in range(60):
        state, metrics = step(state, batch_at(number))
        rewards.append(float(metrics["reward"]))
        assert float(metrics["sampler_mismatch"]) < 1e-4
    assert np.mean(rewards[:2]) < 0.4
    assert np.mean(rewards[-5:]) > 0.9


def test_adapters_are_their_own_reference_and_a_resumed_step_samples_the_same(decoder, tokenizer):
    problems, reward = _planted(tokenizer)
    optimizer = make_optimizer(OptimConfig(learning_rate=5e-2, schedule="constant"), 10)
    adapted = add_lora(decoder, LoRAConfig(rank=2, alpha=4.0), seed=0)
    graphdef, state = _start(adapted, optimizer, lora=True)
    config = dataclasses.replace(SETTINGS, kl_coef=0.05)
    step, batch_at = grpo_step(graphdef, config, optimizer, problems, tokenizer, reward=reward)
    kl = []
    for number in range(3):
        kept = jax.tree.map(jnp.copy, state)
        state, metrics = step(state, batch_at(number))
        kl.append(float(metrics["kl"]))
    assert kl[0] < 1e-9
    assert kl[2] > 1e-5
    again, repeated = step(kept, batch_at(2))
    assert float(repeated["reward"]) == float(metrics["reward"])
    for left, right in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(left, right)


def test_batches_of_questions_are_pure_and_visit_each_once_an_epoch(decoder, tokenizer):
    problems, reward = _planted(tokenizer)
    optimizer = make_optimizer(OptimConfig(learning_rate=1e-2), 10)
    graphdef, state = _start(decoder, optimizer, lora=False)
    config = dataclasses.replace(SETTINGS, questions=5)
    _, batch_at = grpo_step(graphdef, config, optimizer, problems, tokenizer, reward=reward)
    assert sorted([*batch_at(0), *batch_at(1)]) == list(range(10))
    assert sorted([*batch_at(2), *batch_at(3)]) == list(range(10))
    np.testing.assert_array_equal(batch_at(3), batch_at(3))
    with pytest.raises(InputError, match="10 problems for 11 questions"):
        grpo_step(graphdef, dataclasses.replace(SETTINGS, questions=11), optimizer, problems, tokenizer)
    step, _ = grpo_step(graphdef, dataclasses.replace(SETTINGS, kl_coef=0.1), optimizer, problems, tokenizer)
    with pytest.raises(InputError, match="needs a reference"):
        step(state, batch_at(0))


@pytest.mark.parametrize("change", [{"group": 1}, {"questions": 0}, {"temperature": 0.0}])
def test_settings_that_cannot_learn_are_refused(change):
    with pytest.raises(InputError, match="GRPO: "):
        dataclasses.replace(SETTINGS, **change)

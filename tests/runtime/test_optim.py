"""The optimiser: decay, groups, Lion, accumulation and warm-up against written-out updates."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.optim import OptimConfig, ParameterGroup, make_optimizer

PARAMS = {"embed": jnp.ones((3, 2)), "norm_scale": jnp.ones((2, 2)), "kernel": jnp.full((2, 2), 2.0)}


def updates(config, grads, steps=10):
    optimizer = make_optimizer(config, steps)
    state = optimizer.init(PARAMS)
    for grad in grads:
        change, state = optimizer.update(grad, state, PARAMS)
    return change


def like(value):
    return {name: jnp.full_like(leaf, value) for name, leaf in PARAMS.items()}


def test_adamw_decays_matrices_only_and_lion_moves_by_signs():
    plain = OptimConfig(learning_rate=0.1, weight_decay=0.5, schedule="constant", clip_norm=1e9)
    change = updates(plain, [like(3.0)])
    np.testing.assert_allclose(change["kernel"], -0.1 * (1.0 + 0.5 * 2.0), rtol=1e-5)
    np.testing.assert_allclose(change["norm_scale"], -0.1, rtol=1e-5)
    lion = updates(OptimConfig(0.1, weight_decay=0.0, schedule="constant", optimizer="lion"), [like(-7.0)])
    np.testing.assert_allclose(lion["kernel"], 0.1, rtol=1e-6)


def test_groups_scale_freeze_and_spare_from_decay():
    groups = (
        ParameterGroup("embed", rate=0.1),
        ParameterGroup("norm", rate=0.0),
        ParameterGroup("kernel", decay=False),
    )
    change = updates(OptimConfig(0.1, weight_decay=0.5, schedule="constant", clip_norm=1e9, groups=groups), [like(3.0)])
    np.testing.assert_allclose(change["embed"], -0.01 * 1.5, rtol=1e-5)
    np.testing.assert_array_equal(change["norm_scale"], 0.0)
    np.testing.assert_allclose(change["kernel"], -0.1, rtol=1e-5)
    with pytest.raises(InputError, match="no parameter matches the group pattern 'embedding_table'"):
        updates(OptimConfig(0.1, groups=(ParameterGroup("embedding_table", rate=0.5),)), [like(1.0)])
    with pytest.raises(InputError, match="no regular expression"):
        ParameterGroup("(")


def test_accumulated_gradients_are_averaged_into_one_update():
    config = OptimConfig(0.1, weight_decay=0.0, schedule="constant", clip_norm=0.5)
    many = updates(OptimConfig(**{**vars(config), "accumulate": 3}), [like(1.0), like(2.0), like(6.0)], steps=9)
    once = updates(config, [like(3.0)])
    for name in PARAMS:
        np.testing.assert_allclose(many[name], once[name], rtol=1e-6)
    waiting = updates(OptimConfig(**{**vars(config), "accumulate": 3}), [like(1.0), like(2.0)], steps=9)
    assert optax.global_norm(waiting) == 0.0


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_schedules_and_a_warmup_given_as_a_share(schedule, middle):
    rate = OptimConfig(1.0, warmup_share=0.2, schedule=schedule).learning_rate_at(100)
    np.testing.assert_allclose([rate(0), rate(10), rate(20)], [1 / 21, 11 / 21, 1.0], rtol=1e-5)
    assert float(rate(60)) == pytest.approx(middle, abs=1e-5)
    halved = OptimConfig(1.0, warmup_share=0.2, schedule=schedule, accumulate=2).learning_rate_at(100)
    assert float(halved(30)) == pytest.approx(middle, abs=1e-5)


def test_lengths_that_do_not_fit_are_refused():
    for config, steps in (
        (OptimConfig(0.1, warmup_steps=5), 5),
        (OptimConfig(0.1, accumulate=4), 3),
        (OptimConfig(0.1, accumulate=0), 3),
    ):
        with pytest.raises(InputError, match="optimiser:"):
            make_optimizer(config, steps)

"""Means that are kept as sums: right under any batching, in and out of jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hrsa_jax.runtime.metrics import Mean, merge, read


def test_parts_of_unequal_size_merge_to_the_mean_of_all():
    values = np.random.default_rng(0).normal(size=23).astype(np.float32)
    parts = [Mean.of(part) for part in (values[:2], values[2:9], values[9:])]
    merged = merge({"a": part, "scalar": 1.0} for part in parts)
    assert set(merged) == {"a"}
    assert float(merged["a"].value) == pytest.approx(values.mean(), rel=1e-6)
    assert float(merged["a"].value) != pytest.approx(np.mean([float(part.value) for part in parts]), rel=1e-3)


def test_weights_of_zero_leave_out_whatever_stands_there():
    mean = Mean.of(jnp.array([1.0, jnp.nan, 5.0]), jnp.array([1.0, 0.0, 3.0]))
    assert float(mean.value) == 4.0
    assert float(Mean.of(jnp.array([jnp.nan]), jnp.zeros(1)).value) == 0.0


def test_a_logarithm_is_taken_of_the_merged_mean():
    one, other = Mean.of(jnp.array([1.0]), logarithm=True), Mean.of(jnp.array([3.0, 5.0]), logarithm=True)
    assert float(one.merge(other).value) == pytest.approx(np.log(3.0))


def test_means_travel_through_jit_and_are_read_as_numbers():
    got = jax.jit(lambda x: {"mean": Mean.of(x), "sum": x.sum(), "flag": x[0] > 0})(jnp.arange(1.0, 5.0))
    assert read(got) == {"mean": 2.5, "sum": 10.0, "flag": True}

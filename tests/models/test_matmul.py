"""The written-out backward passes against the derived ones."""

import jax
import jax.numpy as jnp
import pytest

from hrsa_jax.models.matmul import adapted_matmul, matmul

SCALE = 1.5


def operands(stored):
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = ((2, 5, 8), (8, 6), (8, 3), (3, 6), (2, 5, 6))
    arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    return [array.astype(stored) for array in arrays[:4]], arrays[4]


@pytest.mark.parametrize(
    ("stored", "dtype", "tolerance"),
    [
        (jnp.float32, jnp.float32, 1e-5),
        (jnp.bfloat16, jnp.bfloat16, 3e-2),
        (jnp.float32, jnp.bfloat16, 3e-2),  # master weights: gradients come back in float32
    ],
)
@pytest.mark.parametrize("kind", ["plain", "transposed", "adapted"])
def test_the_written_out_backward_pass_equals_the_derived_one(kind, stored, dtype, tolerance):
    (x, kernel, a, b), weights = operands(stored)
    arguments = {"plain": (x, kernel), "transposed": (x, kernel.T), "adapted": (x, kernel, a, b)}[kind]

    def derived(x, kernel, *factors):
        x, kernel, *factors = (array.astype(jnp.float32) for array in (x, kernel, *factors))
        y = x @ (kernel.T if kind == "transposed" else kernel)
        return jnp.sum(weights * (y + SCALE * (x @ factors[0]) @ factors[1] if factors else y))

    def written(*arguments):
        if kind == "adapted":
            y = adapted_matmul(*arguments, SCALE, dtype)
        else:
            y = matmul(*arguments, dtype, kind == "transposed")
        assert y.dtype == jnp.float32
        return jnp.sum(weights * y)

    numbers = tuple(range(len(arguments)))
    expected = jax.jit(jax.grad(derived, numbers))(*arguments)
    found = jax.jit(jax.grad(written, numbers))(*arguments)
    for got, want in zip(found, expected, strict=True):
        assert (got.shape, got.dtype) == (want.shape, stored)
        error = jnp.max(jnp.abs(got.astype(jnp.float32) - want.astype(jnp.float32)))
        assert float(error) <= tolerance * float(jnp.max(jnp.abs(want.astype(jnp.float32))))


def test_master_weights_get_gradients_that_were_never_rounded():
    (x, kernel, _, _), weights = operands(jnp.float32)
    gradient = jax.grad(lambda k: jnp.sum(weights * matmul(x, k, jnp.bfloat16)))(kernel)
    assert bool(jnp.any(gradient != gradient.astype(jnp.bfloat16).astype(jnp.float32)))

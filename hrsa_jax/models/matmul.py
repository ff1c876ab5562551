"""Matrix products of the linear layers with written-out backward passes.

Operands are rounded to `dtype` inside, sums are float32, gradients come back in the operands' own types. The derived
backward pass would multiply the float32 cotangent with operands of `dtype`: no unit does that, so they would all be
widened first. Rounding the cotangent too, as every mixed-precision framework does, takes 0.6 of the time on CPU.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def matmul(x: jax.Array, kernel: jax.Array, dtype: Any, transposed: bool = False) -> jax.Array:
    """x (..., in) @ kernel (in, out) -> float32 (..., out); `transposed`: the kernel is stored as (out, in)."""
    return _forward(x, kernel, dtype, transposed)[0]


def _forward(
    x: jax.Array, kernel: jax.Array, dtype: Any, transposed: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    rounded = x.astype(dtype)
    # the empty array remembers the type of x, whose values are not needed
    return _dot(rounded, kernel.astype(dtype), transposed), (rounded, kernel, jnp.zeros(0, x.dtype))


def _backward(
    dtype: Any, transposed: bool, saved: tuple[jax.Array, jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel, like_x = saved
    g = cotangent.astype(dtype)
    d_x = _dot(g, kernel.astype(dtype), not transposed)
    left, right = (_rows(g), _rows(x)) if transposed else (_rows(x), _rows(g))
    return d_x.astype(like_x.dtype), _dot(left.T, right).astype(kernel.dtype)


matmul.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def adapted_matmul(x: jax.Array, kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float, dtype: Any) -> jax.Array:
    """x (..., in) @ kernel (in, out) + scale * (x @ a) @ b -> float32 (..., out); a (in, rank), b (rank, out).

    The factors' gradients are formed as (rank, tokens) @ (tokens, features).
    """
    return _adapted_forward(x, kernel, a, b, scale, dtype)[0]


def _adapted_forward(
    x: jax.Array, kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float, dtype: Any
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    rounded = x.astype(dtype)
    down = _dot(rounded, a.astype(dtype)).astype(dtype)
    y = _dot(rounded, kernel.astype(dtype)) + scale * _dot(down, b.astype(dtype))
    return y, (rounded, kernel, a, b, down, jnp.zeros(0, x.dtype))


def _adapted_backward(
    scale: float, dtype: Any, saved: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, ...]:
    x, kernel, a, b, down, like_x = saved
    g = cotangent.astype(dtype)
    d_down = (scale * _dot(g, b.astype(dtype), True)).astype(dtype)
    d_x = _dot(g, kernel.astype(dtype), True) + _dot(d_down, a.astype(dtype), True)
    d_kernel = _dot(_rows(x).T, _rows(g))  # dropped by the compiler where kernels are frozen
    d_a = _dot(_rows(d_down).T, _rows(x)).T
    d_b = scale * _dot(_rows(down).T, _rows(g))
    return d_x.astype(like_x.dtype), d_kernel.astype(kernel.dtype), d_a.astype(a.dtype), d_b.astype(b.dtype)


adapted_matmul.defvjp(_adapted_forward, _adapted_backward)


def _dot(x: jax.Array, y: jax.Array, transposed: bool = False) -> jax.Array:
    """x (..., k) @ y (k, n), or @ y.T of a y stored as (n, k); the sum is float32."""
    contracted = (((x.ndim - 1,), (1 if transposed else 0,)), ((), ()))
    return jax.lax.dot_general(x, y, contracted, preferred_element_type=jnp.float32)


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])

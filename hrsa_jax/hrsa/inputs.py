"""Checks and scalings that every similarity measure shares.

Shapes are known under jit, so shape checks always run; value checks (NaN, zero rows) run only on concrete arrays.
Legend: L, M layers of the two models; N or n samples (rows); D, p, q feature dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Array = jax.Array
HIGHEST = jax.lax.Precision.HIGHEST  # fp32 products stay fp32 on GPU (no TF32) and TPU (no bf16)
einsum = partial(jnp.einsum, precision=HIGHEST)
matmul = partial(jnp.matmul, precision=HIGHEST)


def is_traced(*arrays: object) -> bool:
    """Whether any argument is being traced by jit, vmap or grad, so that its values are unknown."""
    return any(isinstance(array, jax.core.Tracer) for array in arrays)


def to_float(name: str, x: ArrayLike, *, ndims: Sequence[int] = (2,)) -> Array:
    """`x` as float32 (float64 stays float64 under x64), checked.

    Raises ValueError naming the argument for a wrong number of axes, an empty axis, values that are not real
    numbers, NaN or infinity.
    """
    given = x if isinstance(x, jax.Array | np.ndarray) else np.asarray(x)
    if given.ndim not in ndims:
        wanted = " or ".join(str(ndim) for ndim in ndims)
        raise ValueError(f"{name} has {given.ndim} axes (shape {given.shape}); it must have {wanted}")
    if 0 in given.shape:
        raise ValueError(f"{name} is empty (shape {given.shape})")
    if not (jnp.issubdtype(given.dtype, jnp.number) or given.dtype == bool) or jnp.issubdtype(
        given.dtype, jnp.complexfloating
    ):
        raise ValueError(f"{name} holds {given.dtype} values; it must hold real numbers")
    wide = jax.dtypes.canonicalize_dtype(given.dtype) == jnp.float64
    array = jnp.asarray(given, jnp.float64 if wide else jnp.float32)
    if not is_traced(array) and not bool(_all_finite(array)):
        bad = np.argwhere(~np.isfinite(np.asarray(array)))
        raise ValueError(
            f"{name} holds {len(bad)} NaN or infinite values, the first at index {tuple(map(int, bad[0]))}"
        )
    return array


@jax.jit
def _all_finite(x: Array) -> Array:
    return jnp.isfinite(jnp.abs(x).max())  # NaN wins a maximum too; a fourth of the time of isfinite(x).all()


def check_same_rows(x: Array, y: Array, names: tuple[str, str] = ("x", "y")) -> None:
    """ValueError unless both hold the same number of samples on the last axis but one."""
    if x.shape[-2] != y.shape[-2]:
        raise ValueError(
            f"{names[0]} has {x.shape[-2]} rows and {names[1]} has {y.shape[-2]}; row i of both must be the same sample"
        )


def to_pair(x: ArrayLike, y: ArrayLike, *, ndims: Sequence[int] = (2,), minimum: int = 1) -> tuple[Array, Array]:
    """Both sides checked, with equal row counts, of one dtype; ValueError below `minimum` rows."""
    a, b = to_float("x", x, ndims=ndims), to_float("y", y, ndims=ndims)
    check_same_rows(a, b)
    if a.shape[-2] < minimum:
        raise ValueError(f"x has {a.shape[-2]} rows; at least {minimum} are needed")
    dtype = jnp.promote_types(a.dtype, b.dtype)
    return a.astype(dtype), b.astype(dtype)


def to_labels(groups: ArrayLike, n: int, name: str = "groups") -> tuple[Array, int]:
    """Group labels renumbered 0..G-1 as (n,) int32, and G (n, an upper bound, when traced)."""
    shape = np.shape(groups)
    if shape != (n,):
        raise ValueError(f"{name} has shape {shape}; it must hold one label for each of the {n} rows")
    if is_traced(groups):
        inverse = jnp.unique(jnp.asarray(groups), return_inverse=True, size=n)[1]
        return inverse.reshape(n).astype(jnp.int32), n
    values, labels = np.unique(np.asarray(groups), return_inverse=True)
    return jnp.asarray(labels.reshape(n), jnp.int32), len(values)


def power_of_two(size: Array) -> Array:
    """1 / 2^floor(log2(size)), 1 where size is 0: multiplying by it rounds nothing and cannot overflow later."""
    exponent = jnp.frexp(jnp.where(size > 0, size, 1.0))[1]
    return jnp.ldexp(jnp.ones_like(size), jnp.clip(1 - exponent, -120, 120))


def centre(x: Array) -> Array:
    """Rows minus their mean, twice: the second pass removes the rounding error of the first mean."""
    x = x - x.mean(-2, keepdims=True)
    return x - x.mean(-2, keepdims=True)


def unit_rms(x: Array, kept: Array | None = None) -> Array:
    """Centred rows scaled so that the mean squared entry of each (n, d) matrix is 1; all zeros stay zeros.

    Similarities of unit-RMS data stay far from fp32's range however massive the activations are. Constant
    columns become exact zeros, so that their rounding is never scaled up into a signal.
    kept (n,) bool: rows outside it are padding; they count for nothing and become zeros.
    """
    rows = None if kept is None else kept[:, None]
    count: Array | int = x.shape[-2] if kept is None else kept.sum()

    def filled(x: Array, value: float) -> Array:
        return x if rows is None else jnp.where(rows, x, value)

    high, low = filled(x, -jnp.inf).max(-2, keepdims=True), filled(x, jnp.inf).min(-2, keepdims=True)
    moving = ~_still(high, low)
    first = power_of_two(jnp.maximum(jnp.abs(high), jnp.abs(low)).max(-1, keepdims=True))
    mean = filled(x * first, 0.0).sum(-2, keepdims=True) / count
    rest = filled(x * first - mean, 0.0).sum(-2, keepdims=True) / count  # the rounding error of the mean

    def centred(x: Array) -> Array:
        return jnp.where(moving, x * first - mean - rest, 0.0)

    # every step of centring keeps the order of a column, so its ends stay its largest and smallest
    second = power_of_two(jnp.maximum(jnp.abs(centred(high)), jnp.abs(centred(low))).max(-1, keepdims=True))
    x = filled(centred(x) * second, 0.0)
    mean_square = (x * x).mean(-1, keepdims=True).sum(-2, keepdims=True) / count
    return x * jnp.where(mean_square > 0, jax.lax.rsqrt(jnp.where(mean_square > 0, mean_square, 1.0)), 0.0)


def constant(x: Array, axis: int = -2) -> Array:
    """Where a column varies no more than the rounding of its own values; an absolute epsilon would depend on units."""
    return _still(x.max(axis), x.min(axis))


def _still(high: Array, low: Array) -> Array:
    return high - low <= 4 * jnp.finfo(high.dtype).eps * jnp.maximum(jnp.abs(high), jnp.abs(low))

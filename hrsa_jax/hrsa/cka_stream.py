"""Linear CKA in one pass: batches of rows arrive in any sizes, nothing but sums is kept, and the result is exact.

With rows pivoted by the first batch's mean, the sums C = sum x y', s = sum x, u = sum |y|^2 x, v = sum |x|^2 y,
g = sum |x|^2 |y|^2, P = sum |x|^2 and Q = sum |y|^2 determine both the biased and the debiased HSIC (HRSA.md), so
memory does not depend on the number of rows. Products of a batch are float32 (float64 under x64); they are added in
two-float arithmetic, which keeps what one float loses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hrsa_jax.hrsa.cka_core import Term, biased, cka_ratio, hsic
from hrsa_jax.hrsa.inputs import Array, constant, einsum, is_traced, matmul, power_of_two, to_float, to_pair


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CKASums:
    """Sums over rows of pivoted, scaled x (p,) and y (q,), with a = |x|^2, b = |y|^2."""

    n: Any
    x: Any  # (p,)
    y: Any  # (q,)
    xx: Any  # (p, p)
    xy: Any  # (p, q)
    yy: Any  # (q, q)
    a: Any
    b: Any
    ax: Any  # (p,)
    bx: Any  # (p,)
    ay: Any  # (q,)
    by: Any  # (q,)
    aa: Any
    ab: Any
    bb: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CKAState:
    """A stream's running sums as high and low parts; pivots and power-of-two scales come from the first batch."""

    pivot_x: Array
    pivot_y: Array
    scale_x: Array
    scale_y: Array
    high: CKASums
    low: CKASums


def cka_init(p: int, q: int) -> CKAState:
    """An empty stream for x with p and y with q dimensions (float64 sums under x64, else two floats)."""
    if p < 1 or q < 1:
        raise ValueError(f"p is {p} and q is {q}; both must be at least 1")
    dtype = jnp.result_type(float)

    def zeros(*shape: int) -> Array:
        return jnp.zeros(shape, dtype)

    def empty() -> CKASums:
        vectors = {"x": p, "y": q, "ax": p, "bx": p, "ay": q, "by": q}
        matrices = {"xx": (p, p), "xy": (p, q), "yy": (q, q)}
        scalars = {name: zeros() for name in ("n", "a", "b", "aa", "ab", "bb")}
        return CKASums(
            **scalars,
            **{name: zeros(size) for name, size in vectors.items()},
            **{name: zeros(*shape) for name, shape in matrices.items()},
        )

    return CKAState(zeros(p), zeros(q), zeros(), zeros(), empty(), empty())


def cka_update(state: CKAState, x: ArrayLike, y: ArrayLike, *, weights: ArrayLike | None = None) -> CKAState:
    """The stream with the rows of x (n, p) and y (n, q) added; weights (n,) of 0 or 1 leave padded rows out.

    The sums over rows are all-reduces when x and y are sharded along rows. ValueError naming the argument for
    wrong dimensions, row counts that differ, NaN or infinity.
    """
    a, b = to_pair(x, y)
    for name, array, pivot in (("x", a, state.pivot_x), ("y", b, state.pivot_y)):
        if array.shape[1] != len(pivot):
            raise ValueError(f"{name} has {array.shape[1]} dimensions; the stream was started with {len(pivot)}")
    if weights is None:
        kept = jnp.ones(len(a), bool)
    else:
        kept = to_float("weights", weights, ndims=(1,)) > 0
        if len(kept) != len(a):
            raise ValueError(f"weights has {len(kept)} entries; x has {len(a)} rows")
    dtype = state.pivot_x.dtype  # float64 under x64, so that the products are too
    return _update(state, a.astype(dtype), b.astype(dtype), kept)


def cka_result(state: CKAState, *, debiased: bool = True) -> Array:
    """CKA of every row so far, 0-d; equals `linear_cka` of all rows at once.

    NaN for zero variance, too few rows, or (debiased) when one row carries so much of the variance that the
    products' precision cannot tell the rest. Outside jit the last step is float64 on the host.
    """
    eps = float(jnp.finfo(state.pivot_x.dtype).eps)
    if is_traced(*jax.tree.leaves(state)):
        return _result(jax.tree.map(jnp.add, state.high, state.low), debiased, eps, jnp)
    wide = jax.tree.map(
        lambda high, low: np.asarray(high, np.float64) + np.asarray(low, np.float64), state.high, state.low
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return jnp.asarray(_result(wide, debiased, eps, np), state.pivot_x.dtype)


@jax.jit
def _update(state: CKAState, x: Array, y: Array, kept: Array) -> CKAState:
    first = (state.high.n == 0) & kept.any()
    pivots, scales, rows = [], [], []
    for array, pivot, scale in ((x, state.pivot_x, state.scale_x), (y, state.pivot_y, state.scale_y)):
        batch_pivot, batch_scale = pivot_and_scale(array, kept)
        pivots.append(jnp.where(first, batch_pivot, pivot))
        scales.append(jnp.where(first, batch_scale, scale))
        moved = (array - pivots[-1]) * scales[-1]
        rows.append(jnp.where(kept[:, None], moved, 0.0))
    found = _batch_sums(rows[0], rows[1], kept)
    sums = jax.tree.map(two_sum, state.high, found)
    is_pair = lambda node: isinstance(node, tuple)  # noqa: E731
    high = jax.tree.map(lambda pair: pair[0], sums, is_leaf=is_pair)
    error = jax.tree.map(lambda pair: pair[1], sums, is_leaf=is_pair)
    low = jax.tree.map(jnp.add, state.low, error)
    return CKAState(pivots[0], pivots[1], scales[0], scales[1], high, low)


def pivot_and_scale(x: Array, kept: Array) -> tuple[Array, Array]:
    """The kept rows' mean (a constant column's own value, so that it becomes exact zeros), and 1 / RMS about it."""
    mask = kept[:, None]
    top = jnp.where(mask, x, -jnp.inf).max(0)
    filled = jnp.where(mask, x, top)
    pivot = jnp.where(constant(filled), top, jnp.where(mask, x, 0.0).sum(0) / kept.sum())
    largest = jnp.abs(jnp.where(mask, x - pivot, 0.0)).max()
    safe = power_of_two(largest)
    square = ((jnp.where(mask, x - pivot, 0.0) * safe) ** 2).sum(1).sum() / kept.sum() / x.shape[1]
    alone = power_of_two(jnp.abs(jnp.where(mask, x, 0.0)).max())  # one row, or equal rows: their own size
    return pivot, jnp.where(largest > 0, safe * power_of_two(jnp.sqrt(square)), alone)


def _batch_sums(x: Array, y: Array, kept: Array) -> CKASums:
    a, b = (x * x).sum(1), (y * y).sum(1)
    return CKASums(
        n=kept.sum().astype(x.dtype),
        x=x.sum(0),
        y=y.sum(0),
        xx=matmul(x.T, x),
        xy=matmul(x.T, y),
        yy=matmul(y.T, y),
        a=a.sum(),
        b=b.sum(),
        ax=matmul(a, x),
        bx=matmul(b, x),
        ay=matmul(a, y),
        by=matmul(b, y),
        aa=einsum("n,n->", a, a),
        ab=einsum("n,n->", a, b),
        bb=einsum("n,n->", b, b),
    )


def two_sum(total: Array, new: Array) -> tuple[Array, Array]:
    """total + new as a rounded sum and its exact rounding error (Knuth)."""
    rounded = total + new
    part = rounded - total
    return rounded, (total - (rounded - part)) + (new - part)


def pivoted_term(c: Any, left: tuple, right: tuple, u: Any, v: Any, g: Any, n: Any, debiased: bool) -> Term:
    """HSIC of one pair from C, (sum, mean, sum of squares) of each side, u, v and g, all about the pivot.

    Everything is moved from the pivot to the mean, where nothing large cancels.
    """
    (s, m, p_sum), (_, w, q_sum) = left, right
    cross = ((c - s[:, None] * w[None, :]) ** 2).sum()
    if not debiased:
        return biased(cross)
    mm, ww = m @ m, w @ w
    g = g - 2 * (w @ v) - 2 * (m @ u) + ww * p_sum + mm * q_sum + 4 * (m @ (c @ w)) - 3 * n * mm * ww
    return hsic(cross, g, (p_sum - n * mm) * (q_sum - n * ww), n)


def _result(sums: CKASums, debiased: bool, eps: float, xp: Any) -> Any:
    n = sums.n
    x, y = (sums.x, sums.x / n, sums.a), (sums.y, sums.y / n, sums.b)
    xy = pivoted_term(sums.xy, x, y, sums.bx, sums.ay, sums.ab, n, debiased)
    xx = pivoted_term(sums.xx, x, x, sums.ax, sums.ax, sums.aa, n, debiased)
    yy = pivoted_term(sums.yy, y, y, sums.by, sums.by, sums.bb, n, debiased)
    return xp.where(n >= (4 if debiased else 2), cka_ratio(xy.value, xx, yy, eps=eps, xp=xp).cka, xp.nan)

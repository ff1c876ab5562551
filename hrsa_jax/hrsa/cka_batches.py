"""Linear CKA of all layers of two models in one pass over batches of rows: activations need not be stored.

`cka_of_batches` is one call with two exact engines. While few rows have arrived they are held, because the Gram form of
`cka_matrix` is cheaper there; past the point where covariances cost less, the held rows are turned into the sums of
cka_stream.py, for every layer at once, and memory stops growing. L, M layers, B rows of a batch, p, q dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hrsa_jax.hrsa.cka_core import cka_ratio
from hrsa_jax.hrsa.cka_stack import cka_matrix, gram_is_cheaper
from hrsa_jax.hrsa.cka_stream import pivot_and_scale, pivoted_term, two_sum
from hrsa_jax.hrsa.inputs import Array, einsum, to_float, to_pair

Pairs = Literal["all", "matching"]
Batch = tuple[ArrayLike, ArrayLike]


def cka_of_batches(batches: Iterable[Batch], *, debiased: bool = True, pairs: Pairs = "all") -> Array:
    """CKA of every layer pair (L, M), or of matching layers (L,), from batches (xs (L, B, p), ys (M, B, q)) of rows.

    Any sizes of batches give the same numbers, those of `cka_matrix` of all rows at once (to 1e-5). Rows of a batch
    must be the same samples in both models. NaN and ValueError as in `cka_matrix`; ValueError without batches.
    """
    held: list[tuple[Array, Array]] = []
    state: LayerState | None = None
    rows = 0
    for xs, ys in batches:
        a, b = to_pair(xs, ys, ndims=(3,))
        rows += a.shape[1]
        if state is None and gram_is_cheaper(len(a), len(b), rows, a.shape[2], b.shape[2]):
            held.append((a, b))
            continue
        if state is None:
            state = layers_init(len(a), a.shape[2], len(b), b.shape[2], pairs=pairs)
            for earlier in held:
                state = layers_update(state, *earlier)
            held = []
        state = layers_update(state, a, b)
    if state is not None:
        return layers_result(state, debiased=debiased)
    if not held:
        raise ValueError("batches is empty; give at least one batch of rows")
    stacks = (jnp.concatenate([pair[side] for pair in held], 1) for side in range(2))
    matrix = cka_matrix(*stacks, debiased=debiased)
    return jnp.diag(matrix) if pairs == "matching" else matrix


# ---- sums of all layers ------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerSums:
    """Sums over rows of pivoted, scaled x (L, p) and y (M, q), with a = |x|^2 and b = |y|^2 of each layer.

    The last five are of pairs of layers: (L, M, ...), or (L, ...) when only matching layers are paired.
    """

    n: Any
    x: Any  # (L, p)
    y: Any  # (M, q)
    xx: Any  # (L, p, p)
    yy: Any  # (M, q, q)
    a: Any  # (L,)
    b: Any  # (M,)
    ax: Any  # (L, p)
    by: Any  # (M, q)
    aa: Any  # (L,)
    bb: Any  # (M,)
    ab: Any
    bx: Any  # (..., p)
    ay: Any  # (..., q)
    xy: Any  # (..., p, q)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["pivot_x", "pivot_y", "scale_x", "scale_y", "high", "low"],
    meta_fields=["pairs"],
)
@dataclass(frozen=True)
class LayerState:
    """Running sums as high and low parts; pivots and power-of-two scales come from the first batch."""

    pivot_x: Array
    pivot_y: Array
    scale_x: Array
    scale_y: Array
    high: LayerSums
    low: LayerSums
    pairs: Pairs


def layers_init(layers_x: int, p: int, layers_y: int, q: int, *, pairs: Pairs = "all") -> LayerState:
    """An empty stream: its size is all the memory it will take, 2 L M p q floats and a little for pairs="all"."""
    if pairs not in ("all", "matching"):
        raise ValueError(f"pairs is {pairs!r}; it must be 'all' or 'matching'")
    if min(layers_x, p, layers_y, q) < 1:
        raise ValueError(f"layers_x is {layers_x}, p {p}, layers_y {layers_y}, q {q}; all must be at least 1")
    if pairs == "matching" and layers_x != layers_y:
        raise ValueError(f"layers_x is {layers_x} and layers_y is {layers_y}; matching layers need equal counts")
    dtype = jnp.result_type(float)
    both = (layers_x,) if pairs == "matching" else (layers_x, layers_y)

    def empty() -> LayerSums:
        left = {"x": (p,), "xx": (p, p), "a": (), "ax": (p,), "aa": ()}
        right = {"y": (q,), "yy": (q, q), "b": (), "by": (q,), "bb": ()}
        mixed = {"ab": (), "bx": (p,), "ay": (q,), "xy": (p, q)}
        shapes = {name: (layers_x, *shape) for name, shape in left.items()}
        shapes |= {name: (layers_y, *shape) for name, shape in right.items()}
        shapes |= {name: (*both, *shape) for name, shape in mixed.items()}
        return LayerSums(n=jnp.zeros((), dtype), **{name: jnp.zeros(shape, dtype) for name, shape in shapes.items()})

    pivot_x, pivot_y, scale_x, scale_y = (
        jnp.zeros(shape, dtype) for shape in ((layers_x, p), (layers_y, q), (layers_x,), (layers_y,))
    )
    return LayerState(pivot_x, pivot_y, scale_x, scale_y, empty(), empty(), pairs)


def layers_update(state: LayerState, xs: ArrayLike, ys: ArrayLike, *, weights: ArrayLike | None = None) -> LayerState:
    """The stream with rows xs (L, B, p), ys (M, B, q) added. `state` itself is used up: its memory is written over.

    weights (B,) of 0 or 1 leave padded rows out. The sums over rows are all-reduces when the rows are sharded.
    """
    a, b = to_pair(xs, ys, ndims=(3,))
    for name, array, pivot in (("xs", a, state.pivot_x), ("ys", b, state.pivot_y)):
        if (len(array), array.shape[2]) != pivot.shape:
            raise ValueError(
                f"{name} has shape {array.shape}; the stream was started with (layers, width) {pivot.shape}"
            )
    kept = jnp.ones(a.shape[1], bool) if weights is None else to_float("weights", weights, ndims=(1,)) > 0
    if len(kept) != a.shape[1]:
        raise ValueError(f"weights has {len(kept)} entries; xs has {a.shape[1]} rows")
    dtype = state.pivot_x.dtype
    return _update(state, a.astype(dtype), b.astype(dtype), kept)


@partial(jax.jit, donate_argnames="state")
def _update(state: LayerState, xs: Array, ys: Array, kept: Array) -> LayerState:
    first = (state.high.n == 0) & kept.any()
    pivots, scales, rows = [], [], []
    for stack, pivot, scale in ((xs, state.pivot_x, state.scale_x), (ys, state.pivot_y, state.scale_y)):
        new_pivot, new_scale = jax.lax.map(lambda layer: pivot_and_scale(layer, kept), stack)
        pivots.append(jnp.where(first, new_pivot, pivot))
        scales.append(jnp.where(first, new_scale, scale))
        moved = (stack - pivots[-1][:, None]) * scales[-1][:, None, None]
        rows.append(jnp.where(kept[:, None], moved, 0.0))
    x, y = rows
    a, b = (x * x).sum(2), (y * y).sum(2)
    matching = state.pairs == "matching"
    small = {
        "n": kept.sum().astype(x.dtype), "x": x.sum(1), "y": y.sum(1), "a": a.sum(1), "b": b.sum(1),
        "ax": einsum("ln,lnp->lp", a, x), "by": einsum("mn,mnq->mq", b, y),
        "aa": einsum("ln,ln->l", a, a), "bb": einsum("mn,mn->m", b, b),
        "ab": einsum("ln,ln->l" if matching else "ln,mn->lm", a, b),
        "bx": einsum("ln,lnp->lp" if matching else "mn,lnp->lmp", b, x),
        "ay": einsum("ln,lnq->lq" if matching else "ln,mnq->lmq", a, y),
    }  # fmt: skip
    high, low = dict(vars(state.high)), dict(vars(state.low))
    for name, found in small.items():
        high[name], error = two_sum(high[name], found)
        low[name] = low[name] + error
    others = {"xx": (x, lambda i: x[i]), "yy": (y, lambda i: y[i]), "xy": (x, lambda i: y[i] if matching else y)}
    for name, (left, right) in others.items():
        high[name], low[name] = _add_products(high[name], low[name], left, right)
    sums = LayerSums(**high), LayerSums(**low)
    return LayerState(pivots[0], pivots[1], scales[0], scales[1], *sums, state.pairs)


def _add_products(high: Array, low: Array, left: Array, right: Any) -> tuple[Array, Array]:
    """Adds left[i]' right(i) to entry i, one layer at a time and in place: one layer's products are alive at once."""

    def one_layer(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        other = right(i)
        product = einsum("np,nq->pq" if other.ndim == 2 else "np,mnq->mpq", left[i], other)
        rounded, error = two_sum(sums[0][i], product)
        return sums[0].at[i].set(rounded), sums[1].at[i].add(error)

    return jax.lax.fori_loop(0, len(left), one_layer, (high, low))


def layers_result(state: LayerState, *, debiased: bool = True) -> Array:
    """CKA of all rows so far: (L, M), or (L,) for matching layers; float64 on the host, pair by pair of layers."""
    eps = float(jnp.finfo(state.pivot_x.dtype).eps)

    def wide(name: str, place: Any = ...) -> np.ndarray:
        high, low = (np.asarray(getattr(sums, name)[place], np.float64) for sums in (state.high, state.low))
        return high + low

    n = wide("n")
    if n < (4 if debiased else 2):
        return jnp.full(state.high.ab.shape, jnp.nan, state.pivot_x.dtype)
    xs = [(wide("x", i), wide("x", i) / n, wide("a", i)) for i in range(len(state.pivot_x))]
    ys = [(wide("y", j), wide("y", j) / n, wide("b", j)) for j in range(len(state.pivot_y))]
    with np.errstate(invalid="ignore", divide="ignore"):
        xx, yy = (
            [
                pivoted_term(wide(c, i), side, side, wide(u, i), wide(u, i), wide(g, i), n, debiased)
                for i, side in enumerate(sides)
            ]
            for sides, c, u, g in ((xs, "xx", "ax", "aa"), (ys, "yy", "by", "bb"))
        )
        values = np.empty(state.high.ab.shape)
        for place in np.ndindex(values.shape):
            i, j = place[0], place[-1]
            u, v, g = wide("bx", place), wide("ay", place), wide("ab", place)
            xy = pivoted_term(wide("xy", place), xs[i], ys[j], u, v, g, n, debiased)
            values[place] = cka_ratio(xy.value, xx[i], yy[j], eps=eps, xp=np).cka
    return jnp.asarray(values, state.pivot_x.dtype)

"""Measures that other papers and packages report, for comparison: CKNNA, SVCCA, RSA, linear R2, and the spread
of one cloud (uniformity, anisotropy) or of pairs (alignment).

x (n, p) and y (n, q) hold the same samples row by row. Outside jit everything here is computed in float64 and
returned in the input's precision; under jit the input's precision is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hrsa_jax.hrsa.inputs import Array, is_traced, matmul, to_float, to_pair, unit_rms
from hrsa_jax.hrsa.neighbors import checked, nearest_neighbors

Kernel = Literal["correlation", "euclidean"]
BLOCK = 256  # rows of a block of pairs


def _in_double(program: Callable[..., Array], *arrays: Array) -> Array:
    """program(*arrays) in float64, rounded to the arrays' precision; as it is under tracing."""
    if is_traced(*arrays) or arrays[0].dtype == jnp.float64:
        return program(*arrays)
    wide = [np.asarray(a, np.float64 if jnp.issubdtype(a.dtype, jnp.floating) else None) for a in arrays]
    with jax.enable_x64(True):
        found = np.asarray(program(*(jnp.asarray(a) for a in wide)))
    return jnp.asarray(found.astype(arrays[0].dtype))


# ---- CKNNA -------------------------------------------------------------------------------------------------------


def cknna(x: ArrayLike, y: ArrayLike, k: int) -> Array:
    """CKA over mutual k nearest neighbours only (Huh et al. 2024): 0-d.

    Rows at unit length, inner-product kernels minus their row means; the sum of products runs over pairs (i, j) with
    j among the k nearest of i in BOTH models, each self term over its own neighbours. NaN for no shared neighbour
    weight; ValueError as `nearest_neighbors`.
    """
    a, b = to_pair(x, y)
    (a, _), (b, _) = checked("x", a, k, "cosine", None, (2,)), checked("y", b, k, "cosine", None, (2,))
    return _in_double(_cknna, a, b, nearest_neighbors(a, k), nearest_neighbors(b, k))


@jax.jit
def _cknna(x: Array, y: Array, near_x: Array, near_y: Array) -> Array:
    u, v = _unit_rows(x), _unit_rows(y)
    shared = (near_x[:, :, None] == near_y[:, None, :]).any(2)  # (n, k): which of x's neighbours are also y's

    def kernel(rows: Array, near: Array) -> Array:
        """Centred kernel at (i, near[i, r])."""
        means = matmul(rows, rows.mean(0))
        return jax.vmap(lambda row, others: matmul(rows[others], row))(rows, near) - means[:, None]

    k_at_x, l_at_x, l_at_y = kernel(u, near_x), kernel(v, near_x), kernel(v, near_y)
    cross = jnp.where(shared, k_at_x * l_at_x, 0.0).sum()
    own = (k_at_x**2).sum() * (l_at_y**2).sum()
    return jnp.where(own > 0, cross / jnp.sqrt(jnp.where(own > 0, own, 1.0)), jnp.nan)


def _unit_rows(x: Array) -> Array:
    return x / jnp.sqrt((x * x).sum(1, keepdims=True))


# ---- linear maps -------------------------------------------------------------------------------------------------


def svcca(x: ArrayLike, y: ArrayLike, *, variance: float = 0.99) -> Array:
    """Mean canonical correlation after keeping each side's leading components (Raghu et al. 2017): 0-d in [0, 1].

    variance: share of the variance kept, in (0, 1]; directions at rounding level are dropped in any case. The mean
    runs over min(components kept of x, of y). With n <= p it is 1 whatever the data: use n >> p. NaN for a constant
    side.
    """
    if not is_traced(variance) and not 0 < variance <= 1:
        raise ValueError(f"variance is {variance}; it must lie above 0 and not above 1")
    a, b = to_pair(x, y, minimum=2)
    return _in_double(partial(_svcca, variance=variance), a, b)


@jax.jit
def _svcca(x: Array, y: Array, variance: ArrayLike) -> Array:
    (u, kept_u), (v, kept_v) = (_leading_basis(unit_rms(side), variance) for side in (x, y))
    correlations = jnp.linalg.svd(matmul(u.T, v), compute_uv=False)
    count = jnp.minimum(kept_u, kept_v)
    return jnp.where(count > 0, jnp.minimum(correlations, 1.0).sum() / jnp.maximum(count, 1), jnp.nan)


def _leading_basis(x: Array, variance: ArrayLike) -> tuple[Array, Array]:
    """Orthonormal basis (n, p) of the leading components, dropped columns zero, and how many are kept."""
    values, axes = jnp.linalg.eigh(matmul(x.T, x))
    values, axes = values[::-1], axes[:, ::-1]
    rounding = values[0] * max(x.shape) * jnp.finfo(x.dtype).eps
    before = jnp.cumsum(values) - values
    kept = (before < variance * values.sum() * (1 - 1e-12)) & (values > rounding)
    scale = jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, values, 1.0)), 0.0)
    return matmul(x, axes) * scale, kept.sum()


def linear_r2(x: ArrayLike, y: ArrayLike) -> Array:
    """Share of the variance of y that a least-squares linear map of x (with intercept) fits, on the same rows: 0-d.

    |Qx' Yc|^2 / |Yc|^2 with Qx an orthonormal basis of centred x (Kornblith et al. 2019). Not symmetric, and 1 by
    construction when n <= p + 1: read it at n >> p. NaN for a constant y.
    """
    a, b = to_pair(x, y, minimum=2)
    return _in_double(_linear_r2, a, b)


@jax.jit
def _linear_r2(x: Array, y: Array) -> Array:
    x, y = unit_rms(x), unit_rms(y)
    basis, _ = _leading_basis(x, 2.0)  # every direction above rounding
    total = (y * y).sum()
    fitted = (matmul(basis.T, y) ** 2).sum()
    return jnp.where(total > 0, fitted / jnp.where(total > 0, total, 1.0), jnp.nan)


# ---- representational similarity analysis ------------------------------------------------------------------------


def rsa(x: ArrayLike, y: ArrayLike, *, kernel: Kernel = "correlation") -> Array:
    """Spearman correlation of the two similarity matrices over all pairs of rows (Kriegeskorte et al. 2008): 0-d.

    kernel: "correlation" of rows, or "euclidean" distance. Ties share their mean rank. n (n - 1) / 2 pairs are ranked:
    memory grows with n^2. NaN where all pairs are alike.
    """
    if kernel not in ("correlation", "euclidean"):
        raise ValueError(f"kernel is {kernel!r}; it must be 'correlation' or 'euclidean'")
    a, b = to_pair(x, y, minimum=3)
    return _in_double(partial(_rsa, kernel=kernel), a, b)


@partial(jax.jit, static_argnames="kernel")
def _rsa(x: Array, y: Array, kernel: Kernel) -> Array:
    pairs = jnp.triu_indices(len(x), 1)

    def ranks(rows: Array) -> Array:
        if kernel == "correlation":
            rows = rows - rows.mean(1, keepdims=True)
            similarity = matmul(_unit_rows(rows), _unit_rows(rows).T)
        else:
            rows = unit_rms(rows)
            norms = (rows * rows).sum(1)
            similarity = 2 * matmul(rows, rows.T) - norms[:, None] - norms
        values = similarity[pairs]
        step = 64 * jnp.finfo(x.dtype).eps * jnp.abs(values).max()  # equal rows tie, whatever products rounded
        order = jax.scipy.stats.rankdata(jnp.round(values / jnp.where(step > 0, step, 1.0))).astype(x.dtype)
        order = order - order.mean()
        size = jnp.sqrt((order * order).sum())
        return order / jnp.where(size > 0, size, jnp.nan)

    return jnp.clip((ranks(x) * ranks(y)).sum(), -1.0, 1.0)


# ---- spread ------------------------------------------------------------------------------------------------------


def alignment(x: ArrayLike, y: ArrayLike, *, power: float = 2.0) -> Array:
    """Mean |u_i - v_i|^power of unit rows of two aligned sides, e.g. queries and positives (Wang & Isola 2020): 0-d."""
    a, b = to_pair(x, y)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"x has {a.shape[1]} dimensions and y has {b.shape[1]}; alignment needs one space")
    for name, rows in (("x", a), ("y", b)):
        checked(name, jnp.concatenate([rows, rows]), 1, "cosine", None, (2,))  # refuses zero rows
    return _in_double(jax.jit(lambda a, b: _gaps(a, b, power)), a, b)


def _gaps(x: Array, y: Array, power: float) -> Array:
    return (((_unit_rows(x) - _unit_rows(y)) ** 2).sum(1) ** (power / 2)).mean()


def uniformity(x: ArrayLike, *, t: float = 2.0) -> Array:
    """log of the mean exp(-t |u_i - u_j|^2) over pairs of unit rows (Wang & Isola 2020): 0-d, lower = more even."""
    a = _rows("x", x)
    return _in_double(lambda rows: _uniformity(rows, t), a)


@jax.jit
def _uniformity(x: Array, t: ArrayLike) -> Array:
    rows = _unit_rows(x)
    n = len(rows)
    padding = -n % min(BLOCK, n)
    blocks = jnp.pad(rows, ((0, padding), (0, 0))).reshape(-1, min(BLOCK, n), rows.shape[1])
    kept = jnp.pad(jnp.ones(n, rows.dtype), (0, padding)).reshape(blocks.shape[:2])

    def one_block(block: tuple[Array, Array]) -> Array:
        squared = jnp.maximum(2 - 2 * matmul(block[0], rows.T), 0.0)
        return (jnp.exp(-jnp.asarray(t, rows.dtype) * squared) * block[1][:, None]).sum()

    total = jax.lax.map(one_block, (blocks, kept)).sum()
    return jnp.log((total - n) / (n * (n - 1)))


def anisotropy(x: ArrayLike) -> Array:
    """Mean cosine over all pairs of different rows (Ethayarajh 2019): 0-d; 0 = no common direction, 1 = one line."""
    return _in_double(_anisotropy, _rows("x", x))


@jax.jit
def _anisotropy(x: Array) -> Array:
    n = len(x)
    total = _unit_rows(x).sum(0)
    return ((total * total).sum() - n) / (n * (n - 1))


def _rows(name: str, x: ArrayLike) -> Array:
    array = to_float(name, x)
    return checked(name, array, 1, "cosine", None, (2,))[0]  # two rows at least, none of them zero

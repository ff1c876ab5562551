"""Linear and RBF centred kernel alignment of one pair, participation ratio, the permutation mean of CKA.

Formulas: HRSA.md, "Geometry level". Every side is centred and scaled to unit RMS first and the two self terms take
separate square roots, because the HSIC of a massive-activation layer reaches 1e19 and its products overflow fp32.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hrsa_jax.hrsa.cka_core import Resolved, Term, biased, cka_ratio, hsic, resolve
from hrsa_jax.hrsa.cka_texts import text_cka
from hrsa_jax.hrsa.inputs import Array, einsum, is_traced, matmul, to_float, to_labels, to_pair, unit_rms


def linear_cka(x: ArrayLike, y: ArrayLike, *, debiased: bool = True, groups: ArrayLike | None = None) -> Array:
    """Linear CKA of x (n, p) and y (n, q) over the same samples: 0-d, never clipped (debiased CKA can be < 0).

    debiased: HSIC_1 in all three terms, else the biased CKA of Kornblith et al. 2019.
    groups (n,): the text of each row. The debiased sums then run over rows of different texts only (see
    `cka_texts.text_cka`); at least four texts. The biased CKA has no such sums and does not use them.
    NaN for zero variance, fewer than 4 rows or texts when debiased, fewer than 2 rows when not. ValueError
    naming the argument for bad input.

    Examples:
        >>> x = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
        >>> round(float(linear_cka(x, 2 * x[:, ::-1])), 3)  # neither the order of axes nor the scale counts
        1.0
    """
    a, b = to_pair(x, y)
    if groups is None or not debiased:
        if groups is not None:
            to_labels(groups, len(a))
        return resolve(partial(_linear_cka, debiased=debiased), a, b)
    labels, texts = to_labels(groups, len(a))
    return resolve(lambda x, y, labels: text_cka(x, y, labels, texts)[0], a, b, labels)


@partial(jax.jit, static_argnames="debiased")
def _linear_cka(x: Array, y: Array, debiased: bool) -> Resolved:
    n = len(x)
    if n < (4 if debiased else 2):
        return Resolved(jnp.full((), jnp.nan, x.dtype), jnp.ones((), x.dtype))
    x, y = unit_rms(x), unit_rms(y)
    p, q = (x * x).sum(1), (y * y).sum(1)
    by_gram = n < max(x.shape[1], y.shape[1])
    k, m = (matmul(x, x.T), matmul(y, y.T)) if by_gram else (x, y)

    def term(a: Array, b: Array, p: Array, q: Array) -> Term:
        cross = (a * b if by_gram else matmul(a.T, b) ** 2).sum(1).sum()
        return hsic(cross, einsum("n,n->", p, q), p.sum() * q.sum(), n) if debiased else biased(cross)

    return cka_ratio(term(k, m, p, q).value, term(k, k, p, p), term(m, m, q, q))


# ---- RBF CKA -----------------------------------------------------------------------------------------------------


def rbf_cka(x: ArrayLike, y: ArrayLike, *, bandwidth: float = 0.5, debiased: bool = False) -> Array:
    """CKA of Gaussian kernels K = exp(-|x_a - x_b|^2 / (2 sigma^2)); 0-d.

    Args: x (n, p), y (n, q); sigma^2 = bandwidth^2 x median of all n^2 squared distances (the zeros of the
    diagonal included), per side, as Kornblith et al. 2019. NaN when that median is 0 or rows are too few.
    """
    if not is_traced(bandwidth) and not bandwidth > 0:
        raise ValueError(f"bandwidth is {bandwidth}; it must be positive")
    a, b = to_pair(x, y)
    return resolve(lambda x, y: _rbf_cka(x, y, bandwidth, debiased), a, b)


@partial(jax.jit, static_argnames="debiased")
def _rbf_cka(x: Array, y: Array, bandwidth: ArrayLike, debiased: bool) -> Resolved:
    n = len(x)
    if n < (4 if debiased else 2):
        return Resolved(jnp.full((), jnp.nan, x.dtype), jnp.ones((), x.dtype))
    k, m = _rbf_kernel(x, bandwidth), _rbf_kernel(y, bandwidth)
    if not debiased:
        k, m = _double_centre(k), _double_centre(m)

        def term(k: Array, m: Array) -> Term:
            return biased((k * m).sum(1).sum())

    else:
        k, m = k - jnp.diag(jnp.diag(k)), m - jnp.diag(jnp.diag(m))

        def term(k: Array, m: Array) -> Term:
            rows_k, rows_m = k.sum(1), m.sum(1)
            parts = (
                (k * m).sum(1).sum(),
                rows_k.sum() / (n - 1) * (rows_m.sum() / (n - 2)),
                2 / (n - 2) * (rows_k * rows_m).sum(),
            )
            return Term(parts[0] + parts[1] - parts[2], sum(parts))

    return cka_ratio(term(k, m).value, term(k, k), term(m, m))


def _rbf_kernel(x: Array, bandwidth: ArrayLike) -> Array:
    x = unit_rms(x)
    p = (x * x).sum(1)
    squared = jnp.maximum(p[:, None] + p[None, :] - 2 * matmul(x, x.T), 0.0)
    squared = jnp.where(jnp.eye(len(x), dtype=bool), 0.0, squared)
    middle = median(squared.ravel())
    return jnp.exp(squared / jnp.where(middle > 0, -2 * jnp.asarray(bandwidth, x.dtype) ** 2 * middle, jnp.nan))


def _double_centre(k: Array) -> Array:
    k = k - k.mean(0, keepdims=True)
    return k - k.mean(1, keepdims=True)


def median(values: Array) -> Array:
    """Exact median of non-negative floats (m,) by bisecting their bit patterns: passes over the data, no sort."""
    bits_dtype = jnp.int64 if values.dtype == jnp.float64 else jnp.int32
    bits = jax.lax.bitcast_convert_type(values, bits_dtype)  # order-preserving for non-negative floats

    def smallest_with(count: int) -> Array:
        def halve(_: int, low_high: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = low_high
            middle = low + (high - low) // 2
            enough = (bits <= middle).sum() >= count
            return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

        start = jnp.zeros((), bits_dtype), bits.max()
        found = jax.lax.fori_loop(0, jnp.iinfo(bits_dtype).bits, halve, start)[1]
        return jax.lax.bitcast_convert_type(found, values.dtype)

    m = values.size
    return (smallest_with((m + 1) // 2) + smallest_with(m // 2 + 1)) / 2


# ---- dimension of a cloud, and what chance gives -----------------------------------------------------------------


def participation_ratio(x: ArrayLike) -> Array:
    """(sum of covariance eigenvalues)^2 / sum of their squares, for x (n, d): 0-d, between 1 and d; NaN if constant."""
    return _participation_ratio(to_float("x", x))


@jax.jit
def _participation_ratio(x: Array) -> Array:
    x = unit_rms(x)
    x = x * jax.lax.rsqrt(jnp.asarray(x.size, x.dtype))  # trace of the Gram matrix = 1
    product = matmul(x.T, x) if len(x) >= x.shape[1] else matmul(x, x.T)
    squares = (product**2).sum(1).sum()
    trace = jnp.trace(product)
    return jnp.where(squares > 0, trace**2 / jnp.where(squares > 0, squares, 1.0), jnp.nan)


def cka_permutation_mean(x: ArrayLike, y: ArrayLike) -> Array:
    """Mean biased CKA over all permutations of y's rows, sqrt(PR_x PR_y) / (n - 1): exact, 0-d.

    The row-permutation mean of the BIASED CKA only; the debiased one has mean 0. NaN if a side is constant.
    """
    a, b = to_pair(x, y, minimum=2)
    return jnp.sqrt(_participation_ratio(a) * _participation_ratio(b)) / (len(a) - 1)

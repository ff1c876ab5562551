"""Representation level: do two models use the same axes, or the same space up to a rotation?

Formulas: HRSA.md, "Representation level". X is (n, p), Y is (n, q), row i of both is the same sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from threadpoolctl import ThreadpoolController

from hrsa_jax.hrsa.inputs import (
    Array,
    centre,
    constant,
    einsum,
    is_traced,
    matmul,
    power_of_two,
    to_float,
    to_pair,
)

HOST_SVD_LIMIT = 2048  # up to this width a float64 SVD on the host is both cheap and exact
QUINTIC = (3.4445, -4.7750, 2.0315)  # lifts every singular value into [0.7, 1.2], small ones by 3.4 a step
POLISH = (1.875, -1.25, 0.375)  # converges to 1 with order three


# ---- dimension-wise correlation ----------------------------------------------------------------------------------


def dimension_correlation(x: ArrayLike, y: ArrayLike) -> Array:
    """Pearson correlation between x[:, k] and y[:, k] for every dimension k.

    Args: x, y (n, d) over the same samples, n >= 2.
    Returns (d,) in [-1, 1]; NaN where a side is constant relative to its own scale. ValueError on bad input.

    Examples:
        >>> x = np.random.default_rng(0).standard_normal((100, 2)).astype(np.float32)
        >>> [round(float(r), 3) for r in dimension_correlation(x, -3 * x + 1)]
        [-1.0, -1.0]
    """
    a, b = to_pair(x, y, minimum=2)
    _check_equal_widths(a, b)
    return _correlation(a, b)


def dimension_correlation_matrix(xs_LND: ArrayLike, ys_MND: ArrayLike) -> Array:
    """`dimension_correlation` of every layer of one model with every layer of the other, in one program.

    Returns (L, M, d); NaN as in `dimension_correlation`.
    """
    a, b = to_pair(xs_LND, ys_MND, ndims=(3,), minimum=2)
    _check_equal_widths(a, b)
    return _correlation_matrix(a, b)


def _check_equal_widths(x: Array, y: Array) -> None:
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"x has {x.shape[-1]} dimensions and y has {y.shape[-1]}; correlation needs the same dimensions in both"
        )


def _unit_columns(x: Array) -> Array:
    """Columns centred and divided by their norm; constant columns become NaN."""
    still = constant(x)
    x = centre(x * power_of_two(jnp.abs(x).max(-2, keepdims=True)))
    norm = jnp.sqrt((x * x).sum(-2))
    return x / jnp.where(still, jnp.nan, norm)[..., None, :]


@jax.jit
def _correlation(x: Array, y: Array) -> Array:
    return jnp.clip((_unit_columns(x) * _unit_columns(y)).sum(0), -1.0, 1.0)


@jax.jit
def _correlation_matrix(xs_LND: Array, ys_MND: Array) -> Array:
    xs_DLN = jax.lax.map(_unit_columns, xs_LND).transpose(2, 0, 1)
    ys_DNM = jax.lax.map(_unit_columns, ys_MND).transpose(2, 1, 0)
    return jnp.clip(matmul(xs_DLN, ys_DNM).transpose(1, 2, 0), -1.0, 1.0)


# ---- orthogonal Procrustes ---------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ProcrustesFit:
    """The orthogonal map that best carries centred x onto centred y, y - mean_y ~ (x - mean_x) @ map.

    map (p, q); mean_x (p,), mean_y (q,); singular_values (min(p, q),) of M = Xc'Yc, falling; rank of M, int32;
    identified: rank = min(p, q). When it is False the map is arbitrary on the missing directions, and its
    entries (inverse row entropy) mean nothing.
    """

    map: Array
    mean_x: Array
    mean_y: Array
    singular_values: Array
    rank: Array
    identified: Array


def orthogonal_procrustes(x: ArrayLike, y: ArrayLike) -> ProcrustesFit:
    """Fit O = U V' from M = Xc'Yc = U S V' (Schoenemann 1966); O is a partial isometry when p != q.

    Args: x (n, p), y (n, q), n >= 2; fit on one half of the texts, score on the other.
    Outside jit and up to 2,048 dimensions the SVD of M is float64 on the host. Wider, or under jit: fp32
    Newton-Schulz on the device, checked by |O'O - I|, with the device's SVD where the check fails.
    The rank counts singular values above the rounding of M (4 eps of its dtype times the largest one).

    Examples:
        >>> x = np.random.default_rng(0).standard_normal((100, 3)).astype(np.float32)
        >>> quarter_turn = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]], np.float32)
        >>> fit = orthogonal_procrustes(x, x @ quarter_turn)
        >>> bool(np.allclose(fit.map, quarter_turn, atol=1e-5))
        True
    """
    a, b = to_pair(x, y, minimum=2)
    if is_traced(a, b) or max(a.shape[1], b.shape[1]) > HOST_SVD_LIMIT:
        return _fit_on_device(a, b)
    return _fit_on_host(a, b)


@jax.jit
def _centred_product(x: Array, y: Array) -> tuple[Array, Array, tuple[Array, Array]]:
    """Xc'Yc of power-of-two scaled sides, in their precision; both scales; both means."""
    scale_x, scale_y = power_of_two(jnp.abs(x).max()), power_of_two(jnp.abs(y).max())
    mean_x, mean_y = _mean(x * scale_x), _mean(y * scale_y)
    product = einsum("np,nq->pq", x * scale_x - mean_x, y * scale_y - mean_y)
    return product, jnp.stack([scale_x, scale_y]), (mean_x / scale_x, mean_y / scale_y)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _fit_on_host(x: Array, y: Array) -> ProcrustesFit:
    product, scales, (mean_x, mean_y) = _centred_product(x, y)
    # One BLAS thread: a second one mostly spins in an SVD of this size, and ten times as long on a busy machine.
    with _blas().limit(limits=1, user_api="blas"):
        u, values, vt = np.linalg.svd(np.asarray(product, np.float64), full_matrices=False)
        o = u @ vt
    rank = int((values > _rounding(x) * values[0]).sum())
    values = values / np.prod(np.asarray(scales, np.float64))
    return ProcrustesFit(
        map=jnp.asarray(o, x.dtype),
        mean_x=mean_x,
        mean_y=mean_y,
        singular_values=jnp.asarray(values, x.dtype),
        rank=jnp.asarray(rank, jnp.int32),
        identified=jnp.asarray(rank == min(product.shape)),
    )


def _rounding(x: Array) -> float:
    """Below this share of the largest singular value, one is rounding of the data or of the product."""
    return 4 * float(jnp.finfo(x.dtype).eps)


@jax.jit
def _fit_on_device(x: Array, y: Array) -> ProcrustesFit:
    product, scales, (mean_x, mean_y) = _centred_product(x, y)
    values = jnp.linalg.svd(product, compute_uv=False)
    rank = (values > _rounding(x) * values[0]).sum()
    return ProcrustesFit(
        map=polar_factor(product),
        mean_x=mean_x,
        mean_y=mean_y,
        singular_values=values / scales[0] / scales[1],
        rank=rank.astype(jnp.int32),
        identified=rank == min(product.shape),
    )


def _mean(x: Array) -> Array:
    mean = x.mean(0)
    return mean + (x - mean).mean(0)


def newton_schulz(m: Array) -> Array:
    """The polar factor U V' of m (p, q) by 12 quintic and 6 polishing steps; right for condition numbers to ~1e6."""
    tall = m if m.shape[0] >= m.shape[1] else m.T
    bound = jnp.sqrt(jnp.abs(tall).sum(0).max() * jnp.abs(tall).sum(1).max())  # >= the largest singular value
    o = tall / jnp.where(bound > 0, bound, 1.0)
    coefficients = jnp.asarray([QUINTIC] * 12 + [POLISH] * 6, m.dtype)

    def step(o: Array, abc: Array) -> tuple[Array, None]:
        gram = matmul(o.T, o)
        return abc[0] * o + matmul(o, abc[1] * gram + abc[2] * matmul(gram, gram)), None

    o = jax.lax.scan(step, o, coefficients)[0]
    return o if m.shape[0] >= m.shape[1] else o.T


def polar_factor(m: Array) -> Array:
    """U V' of m (p, q) on the device: Newton-Schulz where the result is orthogonal, else the SVD."""
    o = newton_schulz(m)
    gram = matmul(o.T, o) if m.shape[0] >= m.shape[1] else matmul(o, o.T)
    error = jnp.abs(gram - jnp.eye(len(gram), dtype=m.dtype)).max()

    def by_svd(m: Array) -> Array:
        u, _, vt = jnp.linalg.svd(m, full_matrices=False)
        return matmul(u, vt)

    return jax.lax.cond(error <= 1e3 * jnp.finfo(m.dtype).eps, lambda _: o, by_svd, m)


def _to_fitted(fit: ProcrustesFit, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    a, b = to_pair(x, y)
    for name, array, mean in (("x", a, fit.mean_x), ("y", b, fit.mean_y)):
        if array.shape[1] != len(mean):
            raise ValueError(f"{name} has {array.shape[1]} dimensions; the fit was made with {len(mean)}")
    return a, b


def procrustes_residual(fit: ProcrustesFit, x: ArrayLike, y: ArrayLike) -> Array:
    """|(x - mean_x) map - (y - mean_y)|^2 / |y - mean_y|^2 with the FIT's means: 0-d, 0 = a perfect rotation.

    Args: x (n, p), y (n, q), rows the fit has not seen. Not invariant to scale; NaN where y equals its mean.
    """
    return _residual(fit, *_to_fitted(fit, x, y))


def procrustes_cosine(fit: ProcrustesFit, x: ArrayLike, y: ArrayLike) -> Array:
    """Cosine (n,) between each mapped row of x and its row of y, centred by the FIT's means; NaN for a zero row."""
    return _cosine(fit, *_to_fitted(fit, x, y))


def _mapped(fit: ProcrustesFit, x: Array, y: Array) -> tuple[Array, Array]:
    mapped, target = matmul(x - fit.mean_x, fit.map), y - fit.mean_y
    scale = power_of_two(jnp.abs(target).max())
    return mapped * scale, target * scale


@jax.jit
def _residual(fit: ProcrustesFit, x: Array, y: Array) -> Array:
    mapped, target = _mapped(fit, x, y)
    moved = jnp.abs(y - fit.mean_y) > 4 * jnp.finfo(y.dtype).eps * jnp.abs(fit.mean_y)
    return jnp.where(moved.any(), ((mapped - target) ** 2).sum() / (target**2).sum(), jnp.nan)


@jax.jit
def _cosine(fit: ProcrustesFit, x: Array, y: Array) -> Array:
    mapped, target = _mapped(fit, x, y)
    mapped = mapped * power_of_two(jnp.abs(mapped).max(1, keepdims=True))
    target = target * power_of_two(jnp.abs(target).max(1, keepdims=True))
    return (mapped * target).sum(1) / jnp.sqrt((mapped**2).sum(1)) / jnp.sqrt((target**2).sum(1))


def procrustes_distance(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """Shape metrics of the centred clouds x (n, p), y (n, q) over the best rotation (Williams et al. 2021).

    Returns the size-and-shape distance min_O |Xc O - Yc| (Frobenius norm, data units) and the angle in radians
    between the unit-norm clouds (0 = one rotates onto the other). The narrower side is padded with zero
    dimensions. Both come from differences of mapped rows, so identical clouds give 0 and not sqrt(eps).
    """
    a, b = to_pair(x, y, minimum=2)
    if a.shape[1] > b.shape[1]:
        a, b = b, a  # symmetric; with p <= q the map keeps every norm
    fit = orthogonal_procrustes(a, b)
    return _distances(fit.map, a, b)


@jax.jit
def _distances(o: Array, x: Array, y: Array) -> tuple[Array, Array]:
    unscale = power_of_two(jnp.maximum(jnp.abs(x).max(), jnp.abs(y).max()))
    mapped, target = matmul(centre(x * unscale), o), centre(y * unscale)
    distance = jnp.linalg.norm(mapped - target) / unscale
    chord = jnp.linalg.norm(mapped / jnp.linalg.norm(mapped) - target / jnp.linalg.norm(target))
    return distance, 2 * jnp.arcsin(jnp.clip(chord / 2, 0.0, 1.0))


# ---- how close a map is to a permutation of axes -----------------------------------------------------------------


def inverse_row_entropy(map: ArrayLike) -> Array:
    """1 - H(o_i^2) / ln q for each row i of a map (p, q), squares normalised to sum 1.

    Returns (p,) in [0, 1]: 1 = a signed permutation of axes, 0 = spread evenly; NaN for a zero row. Compare
    only at equal n and beside `inverse_row_entropy_haar`; meaningless for a map that is not identified.
    """
    o = to_float("map", map)
    if o.shape[1] < 2:
        raise ValueError("map has one column; the entropy of a row needs at least two")
    return _inverse_row_entropy(o)


@jax.jit
def _inverse_row_entropy(o: Array) -> Array:
    squares = (o * power_of_two(jnp.abs(o).max(1, keepdims=True))) ** 2
    share = squares / squares.sum(1, keepdims=True)
    return 1 + jax.scipy.special.xlogy(share, share).sum(1) / math.log(o.shape[1])


def inverse_row_entropy_haar(d: int) -> float:
    """1 - [psi(d/2 + 1) - psi(3/2)] / ln d: the expected inverse row entropy of a random rotation of d axes."""
    from scipy.special import digamma

    if d < 2:
        raise ValueError(f"d is {d}; a rotation needs at least 2 dimensions")
    return float(1 - (digamma(d / 2 + 1) - digamma(1.5)) / math.log(d))

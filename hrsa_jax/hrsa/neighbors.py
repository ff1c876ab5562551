"""Exact nearest neighbours and their overlap between two models: does each sample keep its neighbourhood?

Formulas: HRSA.md, "Geometry level". Rows are searched in blocks (block @ x.T, then top-k), so memory is one block of
scores (for few rows all of them: a symmetric matrix costs half); several k come from one search, and (L, n, d) stacks
run all layers in one program. Rows are used as they are given: centre them first when the measure asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hrsa_jax.hrsa.inputs import Array, is_traced, matmul, power_of_two, to_float, to_labels, to_pair

Metric = Literal["cosine", "euclidean"]
BLOCK = 256  # rows per search block; also the multiple that rows are padded to
WHOLE_ROWS = 12_288  # up to here all scores of a layer are held at once (600 MB), each pair computed once
LANES = 16  # the multiple that dimensions are padded to


def nearest_neighbors(x: ArrayLike, k: int, *, metric: Metric = "cosine", groups: ArrayLike | None = None) -> Array:
    """The k nearest rows of every row, nearest first, itself excluded; ties go to the lowest index.

    Args: x (n, d), or (L, n, d) for every layer at once; groups (n,): rows of the same group are excluded too.
    Returns (n, k) or (L, n, k) int32. Equal rows get bitwise equal scores, so exact ties are seen as ties.
    ValueError for k >= n (or fewer than k rows outside a row's group), NaN or infinity, a zero row under cosine.
    """
    array, labels = checked("x", x, k, metric, groups)
    return _search(array, labels, k, metric)[1]


def knn_overlap(
    x: ArrayLike,
    y: ArrayLike,
    ks: Sequence[int],
    *,
    metric: Metric = "cosine",
    groups: ArrayLike | None = None,
) -> dict[int, Array]:
    """Jaccard overlap |A & B| / |A | B| of every sample's k nearest neighbours in x and in y, for several k.

    Args: x (n, p), y (n, q), or (L, n, p) and (L, n, q); groups (n,) rows whose own group is not a neighbour.
    Returns {k: (n,) or (L, n)} in [0, 1], all from one search of max(ks). ValueError as `nearest_neighbors`.

    Examples:
        >>> x = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
        >>> {k: float(overlap.mean()) for k, overlap in knn_overlap(x, x, [5, 10]).items()}
        {5: 1.0, 10: 1.0}
    """
    if len(ks) == 0:
        raise ValueError("ks is empty; give at least one number of neighbours")
    for k in ks:
        _check_count(k)
    a, b = _neighbors_of_both(x, y, max(ks), metric, groups)
    return neighbor_overlap(a, b, ks)


def mutual_knn(
    x: ArrayLike, y: ArrayLike, k: int, *, metric: Metric = "cosine", groups: ArrayLike | None = None
) -> Array:
    """|A & B| / k of every sample's k nearest neighbours in x and in y: (n,) in [0, 1] (Huh et al. 2024)."""
    a, b = _neighbors_of_both(x, y, k, metric, groups)
    return shared_neighbors(a, b, (k,))[0] / k


def neighbor_overlap(a: ArrayLike, b: ArrayLike, ks: Sequence[int]) -> dict[int, Array]:
    """Jaccard overlap from neighbour lists a, b (..., n, K), K >= max(ks), nearest first: {k: (..., n)}."""
    shared = shared_neighbors(a, b, ks)
    return {k: shared[i] / (2 * k - shared[i]) for i, k in enumerate(ks)}


def shared_neighbors(a: ArrayLike, b: ArrayLike, ks: Sequence[int]) -> Array:
    """How many of the first k neighbours two lists share: a, b (..., n, K) -> (len(ks), ..., n) float32."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    if a.shape != b.shape:
        raise ValueError(f"a has shape {a.shape} and b has shape {b.shape}; neighbour lists must match")
    if len(ks) == 0 or not 1 <= min(ks) <= max(ks) <= a.shape[-1]:
        raise ValueError(f"ks is {tuple(ks)}; the lists hold {a.shape[-1]} neighbours")
    depth = max(ks)
    return _shared(a[..., :depth], b[..., :depth], jnp.asarray(ks, jnp.int32))


@jax.jit
def _shared(a: Array, b: Array, ks: Array) -> Array:
    """Scan over the ranks of `a`: a pair of ranks (r, s) with a_r = b_s is shared by every k > max(r, s)."""
    depth = a.shape[-1]
    ranks = jnp.arange(depth)

    def one_rank(counts: Array, rank: Array) -> tuple[Array, None]:
        mine = jax.lax.dynamic_index_in_dim(a, rank, a.ndim - 1, keepdims=True)
        other = jnp.where(b == mine, ranks, depth).min(-1)
        needed = jnp.maximum(other, rank)
        return counts + (needed < ks.reshape((-1,) + (1,) * needed.ndim)), None

    start = jnp.zeros((len(ks), *a.shape[:-1]), jnp.float32)
    return jax.lax.scan(one_rank, start, ranks)[0]


def knn_chance(n: int, k: int) -> tuple[float, float]:
    """Expected overlap of two independent searches among n rows: (mutual k/(n-1), Jaccard), exact.

    The shared count is hypergeometric: k draws from the n - 1 other rows, k of which are marked.

    Examples:
        >>> [round(chance, 4) for chance in knn_chance(101, 10)]
        [0.1, 0.0551]
    """
    from scipy.stats import hypergeom

    if not 1 <= k < n:
        raise ValueError(f"k is {k}; it must be at least 1 and below n = {n}")
    shared = np.arange(k + 1)
    weight = hypergeom(n - 1, k, k).pmf(shared)
    return k / (n - 1), float((weight * shared / (2 * k - shared)).sum())


def tie_fraction(x: ArrayLike, k: int, *, metric: Metric = "cosine", groups: ArrayLike | None = None) -> Array:
    """Share of rows whose k-th and (k+1)-th neighbours score exactly equal, so that the index decides: 0-d or (L,)."""
    array, labels = checked("x", x, k, metric, groups)
    scores = _search(array, labels, k + 1, metric)[0]
    return (scores[..., k - 1] == scores[..., k]).mean(-1)


def k_occurrence_skew(x: ArrayLike, k: int, *, metric: Metric = "cosine", groups: ArrayLike | None = None) -> Array:
    """Skewness of how often each row is among the others' k nearest: 0-d or (L,). Hubs give large values.

    NaN when every row occurs equally often.
    """
    array, labels = checked("x", x, k, metric, groups)
    return _occurrence_skew(_search(array, labels, k, metric)[1])


@jax.jit
def _occurrence_skew(indices: Array) -> Array:
    n, k = indices.shape[-2:]
    flat = indices.reshape(-1, n * k)
    counts = jax.vmap(lambda found: jnp.zeros(n, jnp.float32).at[found].add(1.0))(flat) - k
    variance = (counts**2).mean(-1)
    skew = jnp.where(variance > 0, (counts**3).mean(-1) / jnp.where(variance > 0, variance, 1.0) ** 1.5, jnp.nan)
    return skew.reshape(indices.shape[:-2])


# ---- the search --------------------------------------------------------------------------------------------------


def _check_count(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k is {k!r}; it must be a whole number of at least 1")


def checked(
    name: str,
    x: ArrayLike,
    k: int,
    metric: Metric,
    groups: ArrayLike | None,
    ndims: Sequence[int] = (2, 3),
) -> tuple[Array, Array]:
    """`x` and the labels of its rows (their own numbers without groups), after every check of this module."""
    array = to_float(name, x, ndims=ndims)
    n = array.shape[-2]
    _check_count(k)
    if k >= n:
        raise ValueError(f"k is {k} and {name} has {n} rows; k must be smaller than the number of rows")
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric is {metric!r}; it must be 'cosine' or 'euclidean'")
    if metric == "cosine" and not is_traced(array):
        zero = np.argwhere(~np.asarray(jnp.any(array != 0, axis=-1)))
        if len(zero):
            where = tuple(map(int, zero[0]))
            raise ValueError(f"{name} has {len(zero)} zero rows, the first at {where}; cosine is undefined there")
    if groups is None:
        return array, jnp.arange(n, dtype=jnp.int32)
    labels, _ = to_labels(groups, n)
    if not is_traced(labels):
        largest = int(np.bincount(np.asarray(labels)).max())
        if n - largest < k:
            raise ValueError(
                f"k is {k}, but groups leaves only {n - largest} rows outside the largest group of {largest}"
            )
    return array, labels


def _neighbors_of_both(
    x: ArrayLike, y: ArrayLike, k: int, metric: Metric, groups: ArrayLike | None
) -> tuple[Array, Array]:
    a, b = to_pair(x, y, ndims=(2, 3))
    if a.ndim != b.ndim or a.shape[:-2] != b.shape[:-2]:
        raise ValueError(f"x has shape {a.shape} and y has shape {b.shape}; both need the same layers")
    (a, labels), (b, _) = checked("x", a, k, metric, groups), checked("y", b, k, metric, groups)
    return _search(a, labels, k, metric)[1], _search(b, labels, k, metric)[1]


def comparable(x: Array, metric: Metric) -> tuple[Array, Array]:
    """Rows and column offsets so that row_i . row_j + offset_j ranks j for i: highest = nearest."""
    if metric == "cosine":
        x = x * power_of_two(jnp.abs(x).max(1, keepdims=True))
        return x / jnp.sqrt((x * x).sum(1, keepdims=True)), jnp.zeros(len(x), x.dtype)
    x = x * power_of_two(jnp.abs(x).max())
    x = x - _middle(x)  # distances stay, the rounding of |x|^2 + |y|^2 - 2 x.y shrinks
    return x, -(x * x).sum(1) / 2


def _middle(x: Array) -> Array:
    """Near the geometric median (d,), by four Weiszfeld steps from the mean: a massive row moves a mean far off."""

    def step(_: int, middle: Array) -> Array:
        distance = jnp.sqrt(((x - middle) ** 2).sum(1))
        nearest = jnp.maximum(distance, 1e-3 * distance.mean())
        weight = jnp.where(nearest > 0, distance.mean() / jnp.where(nearest > 0, nearest, 1.0), 1.0)
        return middle + matmul(weight, x - middle) / weight.sum()

    return jax.lax.fori_loop(0, 4, step, x.mean(0))


@partial(jax.jit, static_argnames=("k", "metric"))
def _search(x: Array, labels: Array, k: int, metric: Metric) -> tuple[Array, Array]:
    """Scores and indices (n, k) of the k best rows of another label; with (L, n, d), layer after layer."""
    if x.ndim == 3:
        return jax.lax.map(lambda layer: _search(layer, labels, k, metric), x)
    n = len(x)
    rows, offsets = comparable(x, metric)
    # Matrix products round the ragged edge of a matrix differently from its body. Whole blocks of rows and lanes
    # of dimensions give equal rows bitwise equal scores, so that their tie goes to the lowest index.
    block = min(BLOCK, -(-n // 64) * 64)
    padding = -n % block
    rows = jnp.pad(rows, ((0, padding), (0, -x.shape[1] % LANES)))
    offsets = jnp.pad(offsets, (0, padding), constant_values=-jnp.inf)
    everyone = jnp.pad(labels, (0, padding), constant_values=-1)

    whole = len(rows) <= WHOLE_ROWS
    products = _symmetric_products(rows, block) if whole else rows

    def one_block(block_rows: tuple[Array, Array]) -> tuple[Array, Array]:
        mine, own = block_rows
        scores = (mine if whole else matmul(mine, rows.T)) + offsets
        scores = jnp.where(own[:, None] == everyone, -jnp.inf, scores)
        scores = jnp.where(scores == 0, 0.0, scores)  # top_k ranks -0 below 0
        return jax.lax.top_k(scores, k)

    blocks = products.reshape(-1, block, products.shape[1]), everyone.reshape(-1, block)
    scores, indices = jax.lax.map(one_block, blocks)
    return scores.reshape(-1, k)[:n], indices.reshape(-1, k)[:n].astype(jnp.int32)


def _symmetric_products(rows: Array, block: int) -> Array:
    """rows @ rows.T (n, n), each pair of blocks once: half the work of whole rows of blocks.

    All products have one shape, so a pair of rows adds its terms in one order wherever it stands, and equal rows keep
    bitwise equal scores.
    """
    first, second = np.triu_indices(len(rows) // block)

    def one_pair(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        i, j = pair[0] * block, pair[1] * block
        left, right = (jax.lax.dynamic_slice_in_dim(rows, start, block) for start in (i, j))
        product = matmul(left, right.T)
        total = jax.lax.dynamic_update_slice(total, product.T, (j, i))
        return jax.lax.dynamic_update_slice(total, product, (i, j)), None

    start = jnp.zeros((len(rows), len(rows)), rows.dtype)
    pairs = jnp.asarray(first, jnp.int32), jnp.asarray(second, jnp.int32)
    return jax.lax.scan(one_pair, start, pairs)[0]

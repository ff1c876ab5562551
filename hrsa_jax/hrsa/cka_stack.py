"""Linear CKA between every layer of one model and every layer of another, by whichever of two exact forms costs less.

Gram form: tiles of all L + M Gram matrices at once, upper triangle only, so n is bounded by time and not by memory.
Covariance form: |X_l'Y_m|^2 one pair of layers at a time, linear in n. Both give the same numbers (HRSA.md).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hrsa_jax.hrsa.cka_core import Resolved, Term, biased, cka_ratio, hsic, resolve
from hrsa_jax.hrsa.cka_texts import enough_texts, text_term, triple_sums
from hrsa_jax.hrsa.inputs import Array, einsum, matmul, to_labels, to_pair, unit_rms

TILE = 256  # rows of a Gram tile: (L + M) x 256 x 256 floats stay near the cache
Weight = Callable[[Array, Array], Array]


class Hsics(NamedTuple):
    """Something of all layer pairs and of the layers themselves: xy (L, M), xx (L,), yy (M,)."""

    xy: Any
    xx: Any
    yy: Any


def cka_matrix(
    xs_LND: ArrayLike, ys_MND: ArrayLike, *, debiased: bool = True, groups: ArrayLike | None = None
) -> Array:
    """`linear_cka` of all layer pairs: xs (L, n, p), ys (M, n, q) over the same samples -> (L, M).

    groups (n,): the text of each row, as in `linear_cka` (debiased only; always the Gram form).
    NaN and ValueError as in `linear_cka`.
    """
    a, b = to_pair(xs_LND, ys_MND, ndims=(3,))
    n = a.shape[1]
    if groups is not None:
        labels, texts = to_labels(groups, n)
        if debiased:
            return resolve(partial(_text_matrix, texts=texts), a, b, labels)
    if n < (4 if debiased else 2):
        return jnp.full((len(a), len(b)), jnp.nan, a.dtype)
    by_gram = gram_is_cheaper(len(a), len(b), n, a.shape[2], b.shape[2])
    return resolve(partial(_matrix, debiased=debiased, by_gram=by_gram), a, b)


def gram_is_cheaper(layers_x: int, layers_y: int, n: int, p: int, q: int) -> bool:
    """Multiply-adds of the two forms, the Gram form over its upper triangle."""
    gram = n * n / 2 * (layers_x * p + layers_y * q + layers_x * layers_y)
    covariance = n * (layers_x * layers_y * p * q + layers_x * p * p + layers_y * q * q)
    return gram <= covariance


@partial(jax.jit, static_argnames=("debiased", "by_gram"))
def _matrix(xs_LND: Array, ys_MND: Array, debiased: bool, by_gram: bool) -> Resolved:
    xs, ys = jax.lax.map(unit_rms, xs_LND), jax.lax.map(unit_rms, ys_MND)
    if not by_gram:
        return all_pairs(covariance_hsics(xs, ys, debiased, xs.shape[1]))
    crosses = symmetric_products(xs, ys, (lambda i, j: i != j) if debiased else None, None)
    return all_pairs(gram_hsics(crosses, xs, ys, debiased, xs.shape[1]))


def all_pairs(hsics: Hsics) -> Resolved:
    """CKA of all layer pairs: (L, M)."""
    return cka_ratio(hsics.xy.value, Term(hsics.xx.value[:, None], hsics.xx.size[:, None]), hsics.yy)


def covariance_hsics(xs: Array, ys: Array, debiased: bool, n: int) -> Hsics:
    """All HSICs from cross-covariances of unit-RMS stacks of n rows, one (p, q) product alive at a time."""

    def cross(x: Array, y: Array) -> Array:
        return (matmul(x.T, y) ** 2).sum(1).sum()

    crosses = Hsics(
        xy=jax.lax.map(lambda x: jax.lax.map(lambda y: cross(x, y), ys), xs),
        xx=jax.lax.map(lambda x: cross(x, x), xs),
        yy=jax.lax.map(lambda y: cross(y, y), ys),
    )
    return _with_norms(crosses, xs, ys, hsic, n) if debiased else Hsics(*map(biased, crosses))


def gram_hsics(crosses: Hsics, xs: Array, ys: Array, debiased: bool, n: int) -> Hsics:
    """All HSICs from sums of k l over all rows i, j (debiased: i != j) of unit-RMS stacks of n rows."""
    if not debiased:
        return Hsics(*map(biased, crosses))

    def term(cross: Array, g: Array, norms: Array, n: int) -> Term:
        # rows of a centred Gram matrix sum to 0, so with the diagonal out row a sums to -|x_a|^2
        own, both = 2 * g / (n - 2), norms / (n - 1) / (n - 2)
        return Term(cross - own + both, cross + own + both)

    return _with_norms(crosses, xs, ys, term, n)


def _with_norms(crosses: Hsics, xs: Array, ys: Array, term: Callable[..., Term], n: int) -> Hsics:
    """`term(cross, g, P Q, n)` for every pair of layers; g = sum_a p_a q_a with p_a = |x_a|^2, P = sum p."""
    p, q = (xs**2).sum(2), (ys**2).sum(2)
    p_sum, q_sum = p.sum(1), q.sum(1)
    g = Hsics(matmul(p, q.T), (p**2).sum(1), (q**2).sum(1))
    norms = Hsics(p_sum[:, None] * q_sum, p_sum**2, q_sum**2)
    return Hsics(*(term(c, own, both, n) for c, own, both in zip(crosses, g, norms, strict=True)))


def tiling(n: int) -> tuple[int, int]:
    """How many tiles of how many rows cover n rows."""
    tile = min(TILE, n)
    return -(-n // tile), tile


def symmetric_products(xs: Array, ys: Array, near: Weight | None, far: Weight | None) -> Hsics:
    """`tile_products` over all pairs of rows of symmetric Gram matrices, hardly any pair twice.

    Tiles off the diagonal count twice, with weight `far`; those on it are three quarters of half the size, with weight
    `near`.
    """
    n = xs.shape[1]
    half = min(TILE, n + 1) // 2
    count = -(-n // (2 * half))
    xs, ys = (jnp.pad(s, ((0, 0), (0, -n % (2 * half)), (0, 0))) for s in (xs, ys))
    even = 2 * np.arange(count)
    quarters = np.concatenate([even, even, even + 1]), np.concatenate([even, even + 1, even + 1])
    total = tile_products((xs, ys), (xs, ys), (*quarters, np.repeat([1, 2, 1], count)), half, near)
    if count == 1:
        return total
    first, second = np.triu_indices(count, 1)
    pairs = first, second, np.full(len(first), 2)
    return jax.tree.map(jnp.add, total, tile_products((xs, ys), (xs, ys), pairs, 2 * half, far))


def gram_tile(left_LND: Array, right_LND: Array, i: Array, j: Array, tile: int) -> Array:
    """Tile (i, j) of every layer's left @ right.T: (L, t, t).

    Layer after layer: the CPU runs one batched product of sliced stacks at half the speed of these.
    """

    def one_layer(layer: Array) -> Array:
        a, b = (
            jax.lax.dynamic_slice(stack, (layer, place * tile, jnp.zeros_like(layer)), (1, tile, stack.shape[2]))[0]
            for stack, place in ((left_LND, i), (right_LND, j))
        )
        return matmul(a, b.T)

    return jax.lax.map(one_layer, jnp.arange(len(left_LND), dtype=i.dtype))


def tile_products(
    rows: tuple[Array, Array],
    columns: tuple[Array, Array],
    pairs: tuple[ArrayLike, ArrayLike, ArrayLike],
    tile: int,
    weight: Weight | None,
) -> Hsics:
    """sum_ij w(i, j) k_ij l_ij of every pair of Gram matrices, tile pair after tile pair.

    rows, columns: (xs, ys) stacks, the row and column sides of the Gram matrices; pairs: tile numbers of the
    rows, of the columns, and how often each pair of tiles counts; weight(i (t, 1), j (1, t)) gives w from row
    and column numbers. A ragged last tile is filled with zero rows, which add nothing.
    """

    def padded(stacks: tuple[Array, Array]) -> list[Array]:
        return [jnp.pad(s, ((0, 0), (0, -s.shape[1] % tile), (0, 0))) for s in stacks]

    own = jnp.arange(tile)
    left, right = padded(rows), padded(columns)

    def one_pair(total: Hsics, pair: tuple[Array, Array, Array]) -> tuple[Hsics, None]:
        i, j, times = pair
        k, m = (gram_tile(a, b, i, j, tile) for a, b in zip(left, right, strict=True))
        wk, wm = k, m
        if weight is not None:
            w = weight((i * tile + own)[:, None], (j * tile + own)[None, :]).astype(k.dtype)
            wk, wm = w * k, w * m
        found = Hsics(times * einsum("lab,mab->lm", wk, m), times * (wk * k).sum((1, 2)), times * (wm * m).sum((1, 2)))
        return jax.tree.map(jnp.add, total, found), None

    (xs, ys), dtype = rows, rows[0].dtype
    numbered = jnp.asarray(pairs[0], jnp.int32), jnp.asarray(pairs[1], jnp.int32), jnp.asarray(pairs[2], dtype)
    start = Hsics((xs[:, 0, :1] * ys[:, 0, 0]) * 0, xs[:, 0, 0] * 0, ys[:, 0, 0] * 0)
    return jax.lax.scan(one_pair, start, numbered)[0]


# ---- pairs of different texts only (the statistic of cka_texts, for all layer pairs) -------------------------------


@partial(jax.jit, static_argnames="texts")
def _text_matrix(xs_LND: Array, ys_MND: Array, labels: Array, texts: int) -> Resolved:
    n = xs_LND.shape[1]
    xs, ys = jax.lax.map(unit_rms, xs_LND), jax.lax.map(unit_rms, ys_MND)
    sizes = jax.ops.segment_sum(jnp.ones(n, xs.dtype), labels, texts)
    f = sizes / n
    spread = (f**2).sum()

    def weight(i: Array, j: Array) -> Array:
        row, column = f[labels[i]], f[labels[j]]  # padded row numbers clamp; their kernels are zero
        others = (1 - row - column) ** 2 - (spread - row**2 - column**2)
        return jnp.where(labels[i] == labels[j], 0.0, others)

    pairs = symmetric_products(xs, ys, weight, weight)
    sums = [jax.lax.map(lambda x: jax.ops.segment_sum(x, labels, texts), s) for s in (xs, ys)]
    fours = quads(*(einsum("lsd,ltd->lst", s, s) * (1 - jnp.eye(texts, dtype=xs.dtype)) for s in sums))
    threes = triples(xs, ys, sums, labels, f, tile=TILE, matching=False)[0]
    terms = Hsics(*(text_term(a, b / n**2, c / n) for a, b, c in zip(pairs, fours, threes, strict=True)))
    return enough_texts(all_pairs(terms), (sizes > 0).sum() >= 4)


def quads(k_LTT: Array, l_MTT: Array) -> Hsics:
    """Sum of K_st L_uv over four different texts, from text kernels with zero diagonals."""

    def term(total: Array, rows: Array, both: Array) -> Array:
        return total - 4 * rows + 2 * both

    rk, rl = k_LTT.sum(2), l_MTT.sum(2)
    k, m = k_LTT.reshape(len(rk), -1), l_MTT.reshape(len(rl), -1)
    return Hsics(
        term(rk.sum(1)[:, None] * rl.sum(1), matmul(rk, rl.T), matmul(k, m.T)),
        term(rk.sum(1) ** 2, (rk**2).sum(1), (k**2).sum(1)),
        term(rl.sum(1) ** 2, (rl**2).sum(1), (m**2).sum(1)),
    )


def triples(
    xs: Array, ys: Array, sums: list[Array], labels: Array, f: Array, *, tile: int, matching: bool
) -> tuple[Hsics, list[Array], list[Array]]:
    """Sum of P_it Q_iu (1 - f_i - f_t - f_u) over different texts s(i), t, u of all layer pairs, `tile` rows at a time.

    For matching layers also its row sums (L, n, 2) and column sums (L, G, 6) of xy, xx, yy as `cka_texts.triple_sums`
    gives them.
    """
    n = xs.shape[1]
    tile = min(tile, n)
    padding = -n % tile
    own_text = jnp.pad(labels, (0, padding), constant_values=len(f)).reshape(-1, tile)
    own_f = jnp.pad(f[labels], (0, padding)).reshape(-1, tile)

    def tiles(stack: Array) -> Array:
        padded = jnp.pad(stack, ((0, 0), (0, padding), (0, 0)))
        return padded.reshape(len(stack), -1, tile, stack.shape[2]).swapaxes(0, 1)

    def one_tile(total: tuple, rows: tuple[Array, ...]) -> tuple[tuple, Any]:
        x, y, text, f_i = rows
        other = text[:, None] != jnp.arange(len(f))
        p, q = (jnp.where(other, einsum("lad,ltd->lat", r, s), 0.0) for r, s in zip((x, y), sums, strict=True))
        left = (1 - f_i)[:, None] - 2 * f

        def term(p: Array, q: Array, product: str) -> Array:
            r, c, rn, cn = p.sum(2), q.sum(2), matmul(p, f), matmul(q, f)
            rows_part = einsum(product, r * (1 - f_i) - rn, c) - einsum(product, r, cn)
            flat = (len(p), -1), (len(q), -1)
            return rows_part - einsum(product, (p * left).reshape(flat[0]), q.reshape(flat[1]))

        found = Hsics(term(p, q, "la,ma->lm"), term(p, p, "la,la->l"), term(q, q, "la,la->l"))
        if not matching:
            return (jax.tree.map(jnp.add, total[0], found), ()), ()
        each = [jax.vmap(lambda a, b: triple_sums(a, b, f_i, f))(a, b) for a, b in ((p, q), (p, p), (q, q))]
        columns = tuple(a + b[1] for a, b in zip(total[1], each, strict=True))
        return (jax.tree.map(jnp.add, total[0], found), columns), tuple(rows_of for rows_of, _ in each)

    start = Hsics(*(jnp.zeros(shape, xs.dtype) for shape in ((len(xs), len(ys)), len(xs), len(ys))))
    empty = tuple(jnp.zeros((len(xs), len(f), 6), xs.dtype) for _ in range(3 if matching else 0))
    (total, columns), rows = jax.lax.scan(one_tile, (start, empty), (tiles(xs), tiles(ys), own_text, own_f))
    by_row = [part.swapaxes(0, 1).reshape(len(xs), -1, 2)[:, :n] for part in rows]
    return total, by_row, list(columns)

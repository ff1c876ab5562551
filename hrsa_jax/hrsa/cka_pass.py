"""Every CKA that a comparison reports, from one pass over the Gram tiles of all layers.

A comparison needs the biased and the text-level matrix of all layer pairs, and for matching layers the text-level curve
with its delete-one-text values and the permutation mean. Each reads the same Gram tiles, which cost most of the time:
here a tile is made once (upper triangle only) and every number takes its share. The statistics are those of cka_texts.
L, M layers; n rows; G texts; t rows of a tile.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hrsa_jax.hrsa.cka_core import Resolved, biased, cka_ratio, resolve
from hrsa_jax.hrsa.cka_stack import Hsics, all_pairs, gram_tile, quads, triples
from hrsa_jax.hrsa.cka_texts import TextSums, combine, enough_texts, row_terms, text_term
from hrsa_jax.hrsa.inputs import Array, einsum, to_labels, to_pair, unit_rms

TILE = 256  # rows of a tile: (L + M) x 256 x 256 floats stay near the cache


class CKAPass(NamedTuple):
    """biased, texts (L, M): all layer pairs. curve (L,), without (G, L): text-level CKA of matching layers and its
    delete-one-text values. permutation_mean (L,): of the biased CKA. The last three are None for unequal depths."""

    biased: Any
    texts: Any
    curve: Any
    without: Any
    permutation_mean: Any


def cka_pass(xs_LND: ArrayLike, ys_MND: ArrayLike, groups: ArrayLike) -> CKAPass:
    """`cka_matrix` biased and with groups, `cka_jackknife` and `cka_permutation_mean` of matching layers, in one pass.

    Args: xs (L, n, p), ys (M, n, q), groups (n,) the text of each row. NaN and ValueError as in those functions.
    """
    a, b = to_pair(xs_LND, ys_MND, ndims=(3,), minimum=2)
    labels, texts = to_labels(groups, a.shape[1])
    matching = len(a) == len(b)
    flat = resolve(partial(_pass, texts=texts, matching=matching), a, b, labels)
    shape = (len(a), len(b))
    cells = len(a) * len(b)
    matrices = flat[: 2 * cells].reshape(2, *shape)
    if not matching:
        return CKAPass(matrices[0], matrices[1], None, None, None)
    curves = flat[2 * cells : -len(a)].reshape(len(a), 1 + texts)
    return CKAPass(matrices[0], matrices[1], curves[:, 0], curves[:, 1:].T, flat[-len(a) :])


@partial(jax.jit, static_argnames=("texts", "matching"))
def _pass(xs_LND: Array, ys_MND: Array, labels: Array, texts: int, matching: bool) -> Resolved:
    """All values in one vector: both matrices, the curves (L, 1 + G), the permutation means."""
    n = xs_LND.shape[1]
    xs, ys = jax.lax.map(unit_rms, xs_LND), jax.lax.map(unit_rms, ys_MND)
    sizes = jax.ops.segment_sum(jnp.ones(n, xs.dtype), labels, texts)
    f = sizes / n
    tiles = _gram_sums(xs, ys, labels, f, matching)
    sums = [jax.lax.map(lambda x: jax.ops.segment_sum(x, labels, texts), side) for side in (xs, ys)]
    kernels = [einsum("lsd,ltd->lst", s, s) * (1 - jnp.eye(texts, dtype=xs.dtype)) for s in sums]
    threes, triple_rows, triple_columns = triples(xs, ys, sums, labels, f, tile=TILE, matching=matching)
    parts = zip(tiles.texts, quads(*kernels), threes, strict=True)
    terms = Hsics(*(text_term(a, b / n**2, c / n) for a, b, c in parts))
    present = (sizes > 0).sum()
    found = [all_pairs(Hsics(*map(biased, tiles.biased))), enough_texts(all_pairs(terms), present >= 4)]
    if matching:
        weights = f[labels], (f**2).sum()
        rows = [row_terms(powers, *weights) for powers in tiles.rows]
        columns = [jnp.concatenate(pair, -1) for pair in zip(rows, triple_rows, strict=True)]
        found += [
            _curves(columns, triple_columns, kernels, labels, f, n, present),
            _permutation_means(xs, ys, tiles.biased),
        ]
    return Resolved(*(jnp.concatenate([jnp.ravel(part[i]) for part in found]) for i in range(2)))


# ---- tiles -------------------------------------------------------------------------------------------------------


class _Tiles(NamedTuple):
    """Sums over all pairs of rows: k l, and k l e over rows of different texts; `rows` are the row sums of k l times
    1, f_j, f_j^2 over the rows j of other texts, (L, n, 3) for xy, xx, yy of matching layers."""

    biased: Hsics
    texts: Hsics
    rows: tuple[Array, ...]


def _gram_sums(xs: Array, ys: Array, labels: Array, f: Array, matching: bool) -> _Tiles:
    n = xs.shape[1]
    tile = min(TILE, n)
    count = -(-n // tile)
    padding = count * tile - n
    sides = [jnp.pad(s, ((0, 0), (0, padding), (0, 0))) for s in (xs, ys)]
    row_text = jnp.pad(labels, (0, padding), constant_values=-1)
    row_f = jnp.pad(f[labels], (0, padding))
    spread = (f**2).sum()

    def one_pair(total: _Tiles, pair: tuple[Array, ...]) -> tuple[_Tiles, None]:
        i, j, times = pair

        def rows(side: Array, place: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(side, place * tile, tile, side.ndim - 2 if side.ndim > 1 else 0)

        k, m = (gram_tile(s, s, i, j, tile) for s in sides)
        own, other = rows(row_text, i)[:, None], rows(row_text, j)[None, :]
        f_i, f_j = rows(row_f, i), rows(row_f, j)
        apart = (own != other).astype(k.dtype)
        pairs = (1 - f_i[:, None] - f_j) ** 2 - (spread - f_i[:, None] ** 2 - f_j**2)
        weight = times * pairs * apart
        squares = [k * k, m * m]

        def self_terms(w: Array) -> tuple[Array, ...]:
            return tuple((w * square).sum((1, 2)) for square in squares)

        plain = Hsics(times * einsum("lab,mab->lm", k, m), *self_terms(times))
        apart_sums = Hsics(einsum("lab,mab->lm", weight * k, m), *self_terms(weight))
        sums = [jax.tree.map(jnp.add, a, b) for a, b in ((total.biased, plain), (total.texts, apart_sums))]
        if not matching:
            return _Tiles(sums[0], sums[1], ()), None
        powers = [jnp.stack([jnp.ones_like(g), g, g**2], 1) for g in (f_i, f_j)]
        grown = []
        for sums_of, product in zip(total.rows, (k * m, *squares), strict=True):
            masked = product * apart
            to_rows = einsum("lab,bk->lak", masked, powers[1])
            to_columns = einsum("lab,ak->lbk", masked, powers[0]) * (times - 1)  # a diagonal tile holds both
            grown.append(_add_rows(_add_rows(sums_of, to_rows, i * tile), to_columns, j * tile))
        return _Tiles(sums[0], sums[1], tuple(grown)), None

    first, second = np.triu_indices(count)
    numbered = jnp.asarray(first, jnp.int32), jnp.asarray(second, jnp.int32)
    start = Hsics(*(jnp.zeros(shape, xs.dtype) for shape in ((len(xs), len(ys)), len(xs), len(ys))))
    empty = tuple(jnp.zeros((len(xs), count * tile, 3), xs.dtype) for _ in range(3 if matching else 0))
    times = jnp.asarray(np.where(first == second, 1, 2), xs.dtype)
    found = jax.lax.scan(one_pair, _Tiles(start, start, empty), (*numbered, times))[0]
    return found._replace(rows=tuple(rows[:, :n] for rows in found.rows))


def _add_rows(total: Array, part: Array, start: Array) -> Array:
    here = jax.lax.dynamic_slice_in_dim(total, start, part.shape[1], 1)
    return jax.lax.dynamic_update_slice_in_dim(total, here + part, start, 1)


# ---- curves ------------------------------------------------------------------------------------------------------


def _curves(
    rows: list[Array], columns: list[Array], kernels: list[Array], labels: Array, f: Array, n: int, present: Array
) -> Resolved:
    """Estimate and delete-one-text values of every layer: (L, 1 + G)."""

    def one_layer(rows: list[Array], columns: list[Array], k: Array, m: Array) -> Resolved:
        sides = ((k, m), (k, k), (m, m))
        found = [
            combine(TextSums(row, column), a, b, labels, f, n)
            for row, column, (a, b) in zip(rows, columns, sides, strict=True)
        ]
        (xy, xy_w), (xx, xx_w), (yy, yy_w) = found
        value = enough_texts(cka_ratio(xy.value, xx, yy), present >= 4)
        without = enough_texts(cka_ratio(xy_w.value, xx_w, yy_w), present >= 5)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), value, without)

    return jax.vmap(one_layer)(rows, columns, *kernels)


def _permutation_means(xs: Array, ys: Array, products: Hsics) -> Resolved:
    """sqrt(PR_x PR_y) / (n - 1) with PR = (sum |x_a|^2)^2 / |K|^2."""
    n = xs.shape[1]
    roots = [
        (side**2).sum((1, 2)) / jnp.sqrt(jnp.where(squares > 0, squares, jnp.nan))
        for side, squares in ((xs, products.xx), (ys, products.yy))
    ]
    mean = roots[0] * roots[1] / (n - 1)
    return Resolved(mean, jnp.ones_like(mean))

"""Debiased CKA whose independent unit is the text: same-text pairs left out, delete-one-text values in closed form.

Tokens of one text depend on each other, so the usual debiasing, which leaves out i = j only, stays biased. Write
n_s for the rows of text s, n = sum n_s, k and l for the two linear kernels. The population quantity is

    HSIC = E k(1,2) l(1,2) + E k(1,2) E l(3,4) - 2 E k(1,2) l(1,3),   1, 2, 3, 4 rows of four independent texts,

and the estimate is the weighted mean of k_ij l_ij + k_ij l_uv - 2 k_ij l_iu over ALL 4-tuples of rows (i, j, u, v) from
four different texts: a U-statistic of the texts, unbiased (as a ratio of two means when sizes vary), unchanged
by a shift of either side for ANY text sizes because one set of tuples serves all three terms, and equal to
Song et al.'s HSIC_1 when every row is its own text. Summing out the rows that a term does not use:

    N HSIC = sum_{i,j: s(i) != s(j)} k_ij l_ij e(s(i), s(j))
           + SK SL - 4 sum_t RK_t RL_t + 2 sum_{s,t} K_st L_st
           - 2 sum_i sum_{t != u, not s(i)} P_it Q_iu (n - n_s(i) - n_t - n_u)

    e(s,t) = sum of n_u n_v over u != v, both not s, t;  P_it = sum of k_ij over the rows j of text t (Q from l)
    K_st = sum of k over the rows of texts s != t, row sums RK, total SK (L, RL, SL from l)

N, the number of tuples, is the same in all three HSICs of a CKA and cancels. e(s,t) is a polynomial in n_s and n_t, so
every sum is a product of (rows x n) or (rows x texts) tiles with a few weight vectors. Deleting text w
subtracts the tuples that hold it, which are row and column sums of the same tiles: G delete-one values cost
no more than the estimate. Sizes below are fractions f_s = n_s / n.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hrsa_jax.hrsa.cka_core import Resolved, Term, cka_ratio, resolve
from hrsa_jax.hrsa.inputs import Array, matmul, to_labels, to_pair, unit_rms

TILE = 512  # rows per Gram tile


class TextSums(NamedTuple):
    """What one pair of kernels contributes; rows (n, 5), columns (texts, 6)."""

    rows: Array  # per row: k l e, k l (1 - f_i - f_j), k l, triple weighted, triple unweighted
    columns: Array  # per text t: P'[(1-f)c - cn, c], Q'[(1-f)r - rn, r], (PQ)'[1 - f, 1]


def _pair_rows(k: Array, m: Array, f_i: Array, f_j: Array, spread: Array) -> Array:
    """Row sums over j in other texts of k l times e(i,j), 1 - f_i - f_j and 1; k and m are masked tiles (t, n)."""
    powers = jnp.stack([jnp.ones_like(f_j), f_j, f_j**2], 1)
    return row_terms(matmul(k * m, powers), f_i, spread)


def row_terms(powers: Array, f_i: Array, spread: Array) -> Array:
    """(..., 3) row sums of k l times e(i,j), 1 - f_i - f_j and 1 from those of k l times 1, f_j and f_j^2."""
    a0, a1, a2 = (powers[..., place] for place in range(3))
    e = (1 - spread - 2 * f_i + 2 * f_i**2) * a0 + (2 * f_i - 2) * a1 + 2 * a2
    return jnp.stack([e, (1 - f_i) * a0 - a1, a0], -1)


def triple_sums(p: Array, q: Array, f_i: Array, f_t: Array) -> tuple[Array, Array]:
    """Row sums (t, 2) and column sums (texts, 6) of P_it Q_iu over t != u; p and q are masked tiles (t, texts)."""
    ones_and_sizes = jnp.stack([jnp.ones_like(f_t), f_t], 1)
    r, rn = matmul(p, ones_and_sizes).T
    c, cn = matmul(q, ones_and_sizes).T
    both = p * q
    d, dn = matmul(both, ones_and_sizes).T
    plain = r * c - d
    weighted = (1 - f_i) * plain - (rn * c - dn) - (r * cn - dn)
    left = matmul(p.T, jnp.stack([(1 - f_i) * c - cn, c], 1))
    right = matmul(q.T, jnp.stack([(1 - f_i) * r - rn, r], 1))
    middle = matmul(both.T, jnp.stack([1 - f_i, jnp.ones_like(f_i)], 1))
    return jnp.stack([weighted, plain], 1), jnp.concatenate([left, right, middle], 1)


def combine(sums: TextSums, k: Array, m: Array, labels: Array, f: Array, n: int) -> tuple[Term, Term]:
    """N HSIC / n^2 and its delete-one-text values (texts,) from tile sums and text kernels K, L (texts, texts)."""
    by_text = jax.ops.segment_sum(sums.rows, labels, len(f))
    total = by_text.sum(0)
    pair_e, pair_1, pair_0 = (total[i] - 2 * by_text[:, i] for i in range(3))  # k l is symmetric: row + column
    pairs = total[0], pair_e - 2 * f * pair_1 + 2 * f**2 * pair_0

    rk, rl, both = k.sum(1), m.sum(1), (k * m).sum(1)
    quads = (
        rk.sum() * rl.sum() - 4 * (rk * rl).sum() + 2 * both.sum(),
        (rk.sum() - 2 * rk) * (rl.sum() - 2 * rl)
        - 4 * ((rk * rl).sum() - rk * rl - matmul(m, rk) - matmul(k, rl) + both)
        + 2 * (both.sum() - 2 * both),
    )

    left_w, left, right_w, right, middle_w, middle = sums.columns.T
    holding_w = by_text[:, 3] + (left_w + right_w) - f * (left + right) - 2 * middle_w + 4 * f * middle
    holding = by_text[:, 4] + left + right - 2 * middle
    triples = total[3], (total[3] - holding_w) - f * (total[4] - holding)
    return text_term(pairs[0], quads[0] / n**2, triples[0] / n), text_term(pairs[1], quads[1] / n**2, triples[1] / n)


def text_term(pairs: Array, quads: Array, triples: Array) -> Term:
    return Term(pairs + quads - 2 * triples, jnp.abs(pairs) + jnp.abs(quads) + 2 * jnp.abs(triples))


@partial(jax.jit, static_argnames="texts")
def text_cka(x: Array, y: Array, labels: Array, texts: int) -> tuple[Resolved, Resolved]:
    """Debiased CKA over different texts (0-d) and its delete-one-text values (texts,); labels (n,) in 0..texts-1."""
    n = len(x)
    sizes = jax.ops.segment_sum(jnp.ones(n, x.dtype), labels, texts)
    f = sizes / n
    sides = [unit_rms(x), unit_rms(y)]
    text_sums = [jax.ops.segment_sum(side, labels, texts) for side in sides]
    text_kernels = [matmul(s, s.T) * (1 - jnp.eye(texts, dtype=x.dtype)) for s in text_sums]
    tile = min(TILE, n)
    padded = -(-n // tile) * tile
    row_labels = jnp.pad(labels, (0, padded - n), constant_values=texts)
    row_f = jnp.pad(f[labels], (0, padded - n))
    tiles = [jnp.pad(side, ((0, padded - n), (0, 0))).reshape(-1, tile, side.shape[1]) for side in sides]
    pairs = ((0, 1), (0, 0), (1, 1))

    def one_tile(columns: Array, rows: tuple[Array, ...]) -> tuple[Array, Array]:
        *block, own, f_i = rows
        other = own[:, None] != labels[None, :]
        other_text = own[:, None] != jnp.arange(texts)[None, :]
        kernels = [jnp.where(other, matmul(b, s.T), 0.0) for b, s in zip(block, sides, strict=True)]
        to_texts = [jnp.where(other_text, matmul(b, s.T), 0.0) for b, s in zip(block, text_sums, strict=True)]
        found = []
        for number, (i, j) in enumerate(pairs):
            pair = _pair_rows(kernels[i], kernels[j], f_i, f[labels], (f**2).sum())
            triple, column = triple_sums(to_texts[i], to_texts[j], f_i, f)
            columns = columns.at[number].add(column)
            found.append(jnp.concatenate([pair, triple], 1))
        return columns, jnp.stack(found)

    start = jnp.zeros((len(pairs), texts, 6), x.dtype)
    columns, rows = jax.lax.scan(one_tile, start, (*tiles, row_labels.reshape(-1, tile), row_f.reshape(-1, tile)))
    rows = rows.transpose(1, 0, 2, 3).reshape(len(pairs), padded, 5)[:, :n]
    found = [
        combine(TextSums(rows[a], columns[a]), text_kernels[i], text_kernels[j], labels, f, n)
        for a, (i, j) in enumerate(pairs)
    ]
    present = (sizes > 0).sum()
    (xy, xy_w), (xx, xx_w), (yy, yy_w) = found
    return enough_texts(cka_ratio(xy.value, xx, yy), present >= 4), enough_texts(
        cka_ratio(xy_w.value, xx_w, yy_w), present >= 5
    )


def enough_texts(found: Resolved, enough: Array) -> Resolved:
    return Resolved(jnp.where(enough, found.cka, jnp.nan), jnp.where(enough, found.share, 1.0))


@partial(jax.jit, static_argnames="texts")
def _layers(xs_LND: Array, ys_LND: Array, labels: Array, texts: int) -> Resolved:
    """Estimate and delete-one-text values stacked: (L, 1 + texts)."""

    def one_layer(xy: tuple[Array, Array]) -> Resolved:
        value, without = text_cka(xy[0], xy[1], labels, texts)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), value, without)

    return jax.lax.map(one_layer, (xs_LND, ys_LND))


def cka_jackknife(xs_LND: ArrayLike, ys_LND: ArrayLike, groups: ArrayLike) -> tuple[Array, Array]:
    """`linear_cka(..., groups=groups)` of matching layers and its delete-one-text values, one program for all layers.

    Args: xs (L, n, p), ys (L, n, q), groups (n,) the text of each row.
    Returns (L,) estimates and (G, L) values with one text left out, texts in sorted order of their labels; NaN as in
    `linear_cka`, and where deleting a text leaves fewer than four.
    """
    a, b = to_pair(xs_LND, ys_LND, ndims=(3,))
    if len(a) != len(b):
        raise ValueError(f"xs_LND has {len(a)} layers and ys_LND has {len(b)}; matching layers need equal counts")
    labels, texts = to_labels(groups, a.shape[1])
    found = resolve(partial(_layers, texts=texts), a, b, labels)
    return found[:, 0], found[:, 1:].T

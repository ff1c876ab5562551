"""k-NN overlap of random halves of the texts, from the neighbour lists of one search.

A text takes part twice: its rows search, and rows of other texts find it (if a is near b in both models, b is near
a). Overlaps of two texts are therefore dependent, and intervals from per-text means are too narrow: they cover
75-92% of simulated truths, while a delete-one-text jackknife of the lists is 1.5 times too wide. The spread over
random halves of the texts covers 95-98%. N rows, K listed neighbours, G texts, H halves.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hrsa_jax.hrsa.inputs import Array, matmul, to_labels


def halves_of_texts(num_texts: int, *, draws: int, seed: int) -> np.ndarray:
    """Random halves as (draws, G) bool, in complementary pairs so that every text is kept equally often."""
    if num_texts < 4:
        raise ValueError(f"groups holds {num_texts} texts; halves of them need at least four")
    random = np.random.default_rng(seed)
    keep = np.zeros((draws + draws % 2, num_texts), bool)
    for first in range(0, draws, 2):
        order = random.permutation(num_texts)
        keep[first, order[: num_texts // 2]] = True
        keep[first + 1, order[num_texts // 2 :]] = True
    return keep[:draws]


def knn_half_samples(
    neighbors_x: ArrayLike, neighbors_y: ArrayLike, ks: Sequence[int], groups: ArrayLike, keep_HG: ArrayLike
) -> Array:
    """Mean Jaccard overlap when only some texts exist, both as searchers and as neighbours: (H, len(ks)).

    Args: neighbors_x, neighbors_y (N, K) from `nearest_neighbors`, nearest first, with K about 2.3 max(ks) so that
    half of a list mostly still holds max(ks) (where it does not, as many as both lists of that row hold are compared);
    groups (N,) the text of each row; keep_HG (H, G) which texts exist.
    """
    a, b = jnp.asarray(neighbors_x), jnp.asarray(neighbors_y)
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"neighbors_x has shape {a.shape} and neighbors_y {b.shape}; both must be one (N, K)")
    if len(ks) == 0 or not 1 <= min(ks) <= max(ks) <= a.shape[1]:
        raise ValueError(f"ks is {tuple(ks)}; the lists hold {a.shape[1]} neighbours")
    labels, texts = to_labels(groups, len(a))
    keep = jnp.asarray(keep_HG, bool)
    if keep.ndim != 2 or keep.shape[1] != texts:
        raise ValueError(f"keep_HG has shape {keep.shape}; it must hold one column for each of the {texts} texts")
    return _half_samples(a, b, labels, keep, tuple(ks))


@partial(jax.jit, static_argnames="ks")
def _half_samples(a: Array, b: Array, labels: Array, keep_HG: Array, ks: tuple[int, ...]) -> Array:
    depth = a.shape[1]
    ranks = jnp.arange(depth, dtype=jnp.int32)
    upper = jnp.triu(jnp.ones((depth, depth), jnp.float32))  # a product with it is a running sum

    def find(place: Array, column: tuple[Array, Array]) -> tuple[Array, None]:
        rank, neighbor = column
        return jnp.where(a == neighbor[:, None], rank, place), None

    place_in_b, _ = jax.lax.scan(find, jnp.full(a.shape, depth, jnp.int32), (ranks, b.T))
    text_a, text_b = labels[a], labels[b]

    def one_half(keep_G: Array) -> Array:
        kept_a, kept_b = keep_G[text_a], keep_G[text_b]
        count_a = matmul(kept_a.astype(jnp.float32), upper)
        count_b = matmul(kept_b.astype(jnp.float32), upper)
        searches = keep_G[labels]
        held_N1 = jnp.minimum(count_a[:, -1:], count_b[:, -1:])  # a list that is too short for k is compared as it is

        def overlap(k: int) -> Array:
            k_N1 = jnp.minimum(k, held_N1)
            # positions up to the k-th kept one: the counts before it are below k
            last_a, last_b = ((count < k_N1).sum(1, keepdims=True) for count in (count_a, count_b))
            shared = (kept_a & (ranks <= last_a) & (place_in_b <= last_b) & (place_in_b < depth)).sum(1)
            counted = searches & (k_N1[:, 0] > 0)
            return jnp.where(counted, shared / jnp.maximum(2 * k_N1[:, 0] - shared, 1), 0).sum() / counted.sum()

        return jnp.stack([overlap(k) for k in ks])

    return jax.lax.map(one_half, keep_HG)

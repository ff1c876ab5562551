"""Exact nearest neighbours by blocks: no matrix of all scores, memory that does not grow with the corpus.

Q queries, C passages of one block, d width, k neighbours.
"""

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hrsa_jax.runtime.mesh import batch_parts, shard_batch, to_host

_SPARE = 16  # more candidates than asked for are taken in float32 and ranked again in float64
_GATHERED = 1 << 22  # numbers of passages gathered for that at a time


def exact_top_k(
    queries_Qd: np.ndarray,
    blocks: Iterable[np.ndarray],
    k: int,
    *,
    mesh: Mesh | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k passages with the largest dot products, as a float64 search would rank them.

    Candidates come from float32 products on the devices (queries split over `mesh`); the best of each block are
    scored again in float64, so that the order does not hang on float32 rounding.

    Args:
      queries_Qd: float32.
      blocks: the corpus in order, float32 (C, d) each; read once, one block in memory at a time.
      k: at least 1; fewer are returned when the corpus is smaller.

    Returns:
      scores float64 (Q, k), best first, and their places in the corpus int64 (Q, k); equal scores in corpus order.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    count = len(queries_Qd)
    scores_Qk, places_Qk = np.zeros((count, 0)), np.zeros((count, 0), np.int64)
    on_devices = _split(queries_Qd, mesh)
    exact_Qd = queries_Qd.astype(np.float64)
    start = 0
    for block_Cd in blocks:
        wanted = min(k + _SPARE, len(block_Cd))
        found_Qw = to_host(_candidates(on_devices, block_Cd, wanted))[:count]
        exact_Qw = _exact_scores(exact_Qd, np.asarray(block_Cd), found_Qw)
        scores = np.concatenate([scores_Qk, exact_Qw], axis=1)
        places = np.concatenate([places_Qk, found_Qw.astype(np.int64) + start], axis=1)
        order = np.lexsort((places, -scores), axis=1)[:, :k]
        scores_Qk, places_Qk = np.take_along_axis(scores, order, 1), np.take_along_axis(places, order, 1)
        start += len(block_Cd)
    return scores_Qk, places_Qk


@partial(jax.jit, static_argnames="k")
def _candidates(queries_Qd: jax.Array, block_Cd: jax.Array, k: int) -> jax.Array:
    scores_QC = jnp.matmul(queries_Qd, block_Cd.T, precision="highest", preferred_element_type=jnp.float32)
    return jax.lax.top_k(scores_QC, k)[1]


def _split(queries_Qd: np.ndarray, mesh: Mesh | None) -> jax.Array:
    """The queries on the devices, padded so that every device has as many."""
    if mesh is None:
        return jnp.asarray(queries_Qd, jnp.float32)
    padded = np.pad(np.asarray(queries_Qd, np.float32), ((0, -len(queries_Qd) % batch_parts(mesh.shape)), (0, 0)))
    return shard_batch(mesh, padded)


def _exact_scores(queries_Qd: np.ndarray, block_Cd: np.ndarray, columns_Qk: np.ndarray) -> np.ndarray:
    """float64 dot products of each query with its own columns, few queries at a time: they are gathered for it."""
    rows = max(1, _GATHERED // max(1, columns_Qk.shape[1] * block_Cd.shape[1]))
    parts = [
        np.einsum("qd,qkd->qk", queries_Qd[i : i + rows], block_Cd[columns_Qk[i : i + rows]].astype(np.float64))
        for i in range(0, len(queries_Qd), rows)
    ]
    return np.concatenate(parts) if parts else np.zeros((0, columns_Qk.shape[1]))

"""Exact top-k search by blocks of queries and documents, with per-query restrictions as masks.

Shapes: Q queries, N documents, d dimensions. Memory is one block of scores and the k best so far: it does not grow
with Q x N.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

_QUERY_BLOCK = 64
_DOCUMENT_BLOCK = 65_536


class Restriction:
    """Which documents each query may find; the list of candidates is turned into a mask block by block.

    Args:
        ids: the N document ids in corpus order, all different.
        candidates: for every query the ids it may find (unknown ids are an error).
    """

    def __init__(self, ids: Sequence[str], candidates: Sequence[Sequence[str]]):
        self._place = {id_: i for i, id_ in enumerate(ids)}
        if len(self._place) != len(ids):
            raise ValueError(f"{len(ids) - len(self._place)} document ids come twice in the corpus")
        self._candidates = candidates

    def allowed(self, queries: range) -> NDArray[np.bool_]:
        """Mask (len(queries), N): True where the query may find the document."""
        mask = np.zeros((len(queries), len(self._place)), bool)
        for row, query in zip(mask, queries, strict=True):
            candidates = self._candidates[query]
            try:
                row[np.fromiter((self._place[c] for c in candidates), np.int64, len(candidates))] = True
            except KeyError as error:
                raise ValueError(f"candidate {error} of query number {query} is not in the corpus") from None
        return mask


def exact_search(
    queries_Qd: FloatArray,
    documents_Nd: FloatArray,
    k: int,
    *,
    restriction: Restriction | None = None,
) -> list[tuple[NDArray[np.int64], FloatArray]]:
    """The k best documents of each query by inner product.

    Args:
        queries_Qd: (Q, d) float32.
        documents_Nd: (N, d) float32, may be a memory map.
        k: at most this many each; fewer where there are fewer or the restriction allows fewer.

    Returns:
        For each query (places, scores), best first; equal scores in corpus order.
    """
    found: list[tuple[NDArray[np.int64], FloatArray]] = []
    for first in range(0, len(queries_Qd), _QUERY_BLOCK):
        block = range(first, min(first + _QUERY_BLOCK, len(queries_Qd)))
        mask = restriction.allowed(block) if restriction is not None else None
        found += _search_block(queries_Qd[first : first + _QUERY_BLOCK], documents_Nd, k, mask)
    return found


def _search_block(
    queries_qd: FloatArray, documents_Nd: FloatArray, k: int, mask_qN: NDArray[np.bool_] | None
) -> list[tuple[NDArray[np.int64], FloatArray]]:
    places_qk = np.zeros((len(queries_qd), 0), np.int64)
    scores_qk = np.zeros((len(queries_qd), 0), np.float32)
    for start in range(0, len(documents_Nd), _DOCUMENT_BLOCK):
        scores_qn = queries_qd @ np.asarray(documents_Nd[start : start + _DOCUMENT_BLOCK]).T
        if mask_qN is not None:
            scores_qn[~mask_qN[:, start : start + _DOCUMENT_BLOCK]] = -np.inf
        scores = np.concatenate([scores_qk, scores_qn], axis=1)
        new = np.broadcast_to(np.arange(start, start + scores_qn.shape[1]), scores_qn.shape)
        places = np.concatenate([places_qk, new], axis=1)
        best = _best(scores, k)
        scores_qk, places_qk = np.take_along_axis(scores, best, 1), np.take_along_axis(places, best, 1)
    rows = []
    for scores_k, places_k in zip(scores_qk, places_qk, strict=True):
        kept = np.isfinite(scores_k)
        order = np.lexsort((places_k[kept], -scores_k[kept]))
        rows.append((places_k[kept][order], scores_k[kept][order]))
    return rows


def _best(scores_qn: FloatArray, k: int) -> NDArray[np.int64]:
    """Columns (q, min(k, n)) of the largest scores, in no order."""
    if scores_qn.shape[1] <= k:
        return np.broadcast_to(np.arange(scores_qn.shape[1]), scores_qn.shape)
    return np.argpartition(-scores_qn, k - 1, axis=1)[:, :k]

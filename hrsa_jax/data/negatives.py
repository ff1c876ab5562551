"""Hard negatives for training pairs: passages that score close to a query without being its answer.

Q queries, P distinct passages of one data set, d width.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from hrsa_jax.data.sources import Pair

Encode = Callable[[Sequence[str]], np.ndarray]


def add_negatives(
    pairs: Sequence[Pair],
    encode: Encode,
    *,
    count: int = 3,
    relative_margin: float = 0.05,
    block: int = 1024,
) -> list[Pair]:
    """Gives each pair up to `count` negatives from the positives of its own data set.

    The best-scoring passages are taken that are no positive of the query (nor of an equal query) and score at most
    (1 - relative_margin) x the query's best positive, among the first min(100, 10%) ranks, as published. A pair with
    none of these keeps none; negatives that a pair already has are replaced.

    Args:
        pairs: rows; order and all other fields are kept.
        encode: texts -> unit vectors (n, d) float32; dot products are the scores.
        count: negatives wanted, best first.
        relative_margin: 0.05 leaves out what scores above 95% of the positive: likely an unlabelled positive.
        block: queries scored at a time; memory is block x P.
    """
    if count < 1 or not 0 <= relative_margin < 1:
        raise ValueError(f"count is {count} and relative_margin {relative_margin}: need count >= 1, 0 <= margin < 1")
    found: list[Pair] = list(pairs)
    for name in dict.fromkeys(pair.dataset for pair in pairs):
        rows = [i for i, pair in enumerate(pairs) if pair.dataset == name]
        passages = list(dict.fromkeys(text for i in rows for text in pairs[i].positives))
        column = {text: i for i, text in enumerate(passages)}
        answers: dict[str, set[int]] = {}
        for i in rows:
            answers.setdefault(pairs[i].query, set()).update(column[text] for text in pairs[i].positives)
        passages_Pd = encode(passages)
        ranks = max(count, min(100, len(passages) // 10))
        for start in range(0, len(rows), block):
            here = rows[start : start + block]
            scores_QP = encode([pairs[i].query for i in here]) @ passages_Pd.T
            for i, scores_P in zip(here, scores_QP, strict=True):
                chosen = _choose(scores_P, sorted(answers[pairs[i].query]), count, ranks, 1 - relative_margin)
                found[i] = replace(pairs[i], negatives=tuple(passages[c] for c in chosen))
    return found


def _choose(scores_P: np.ndarray, positives: list[int], count: int, ranks: int, share: float) -> list[int]:
    limit = share * scores_P[positives].max()
    others_P = scores_P.copy()
    others_P[positives] = -np.inf
    best = np.argsort(-others_P, kind="stable")[:ranks]
    return [int(c) for c in best if np.isfinite(others_P[c]) and others_P[c] <= limit][:count]

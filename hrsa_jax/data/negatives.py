"""Hard negatives for training pairs: passages that score close to a query without being its answer.

Q queries, P distinct passages of one data set, d width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jax.sharding import Mesh

from hrsa_jax.data.sources import Pair
from hrsa_jax.data.topk import exact_top_k

Encode = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class MiningRule:
    """Which passages become negatives of a query.

    Passages are ranked by score, known answers left out (rank 0 is the best other passage). Ranks from `first_rank`
    to `last_rank` - 1 are looked at; `last_rank` None is min(100, 10% of the passages), as published, but at least
    `count`. One becomes a negative if it scores at most (1 - relative_margin) x best positive and at most best positive
    - absolute_margin (for a negative best positive, the relative margin is taken off its absolute value). The first
    `count` that pass are kept, best first.
    """

    count: int = 3
    relative_margin: float = 0.05
    absolute_margin: float = 0.0
    first_rank: int = 0
    last_rank: int | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.relative_margin < 1 or self.absolute_margin < 0:
            raise ValueError(
                f"count is {self.count}, relative_margin {self.relative_margin}, absolute_margin "
                f"{self.absolute_margin}: need count >= 1, 0 <= relative_margin < 1, absolute_margin >= 0"
            )
        if self.first_rank < 0 or (self.last_rank is not None and self.last_rank <= self.first_rank):
            raise ValueError(f"ranks {self.first_rank} to {self.last_rank}: need 0 <= first_rank < last_rank")

    def ranks(self, passages: int) -> int:
        """How many ranks are looked at, from 0."""
        if self.last_rank is not None:
            return self.last_rank
        return max(self.first_rank + self.count, min(100, passages // 10))

    def limit(self, positive: float) -> float:
        """The highest score a negative may have, given the best positive's."""
        return min(positive - self.relative_margin * abs(positive), positive - self.absolute_margin)


@dataclass(frozen=True)
class Mined:
    """places: of the negatives in the corpus, best first. scores: theirs. positive: the best positive's score."""

    places: tuple[int, ...]
    scores: tuple[float, ...]
    positive: float


def mine_block(
    queries_Qd: np.ndarray,
    positives: Sequence[np.ndarray],
    answers: Sequence[set[int]],
    blocks: Iterable[np.ndarray],
    passages: int,
    rule: MiningRule,
    *,
    mesh: Mesh | None = None,
) -> list[Mined]:
    """Negatives of Q queries from a corpus that is read block by block.

    Args:
      queries_Qd: vectors of the queries; dot products are the scores.
      positives: for each query the vectors (n, d) of its positives.
      answers: for each query the corpus places that answer it (its positives and those of equal queries).
      blocks: the corpus's vectors in order.
      passages: size of the corpus.
    """
    deepest = max((len(known) for known in answers), default=0)
    wanted = min(passages, rule.ranks(passages) + deepest)
    scores_Qk, places_Qk = exact_top_k(queries_Qd, blocks, wanted, mesh=mesh)
    found = []
    for query_d, mine, known, scores_k, places_k in zip(
        queries_Qd, positives, answers, scores_Qk, places_Qk, strict=True
    ):
        best = float((mine.astype(np.float64) @ query_d.astype(np.float64)).max())
        others = [(int(p), float(s)) for p, s in zip(places_k, scores_k, strict=True) if int(p) not in known]
        ranked = others[rule.first_rank : rule.ranks(passages)]
        kept = [(place, score) for place, score in ranked if score <= rule.limit(best)][: rule.count]
        found.append(Mined(tuple(place for place, _ in kept), tuple(score for _, score in kept), best))
    return found


def add_negatives(
    pairs: Sequence[Pair],
    encode: Encode,
    *,
    count: int = 3,
    relative_margin: float = 0.05,
    block: int = 1024,
) -> list[Pair]:
    """Gives each pair up to `count` negatives from the positives of its own data set (see `MiningRule`).

    A pair for which nothing passes keeps none; negatives, ids and scores that a pair already has are replaced.

    Args:
        pairs: rows; order and all other fields are kept.
        encode: texts -> unit vectors (n, d) float32; dot products are the scores.
        block: queries and passages scored at a time.
    """
    rule = MiningRule(count, relative_margin)
    found: list[Pair] = list(pairs)
    for name in dict.fromkeys(pair.dataset for pair in pairs):
        rows = [i for i, pair in enumerate(pairs) if pair.dataset == name]
        passages = list(dict.fromkeys(text for i in rows for text in pairs[i].positives))
        column = {text: i for i, text in enumerate(passages)}
        answers = known_answers([pairs[i] for i in rows], column)
        vectors_Pd = encode(passages)
        for start in range(0, len(rows), block):
            here = rows[start : start + block]
            mined = mine_block(
                encode([pairs[i].query for i in here]),
                [vectors_Pd[[column[text] for text in pairs[i].positives]] for i in here],
                [answers[pairs[i].query] for i in here],
                (vectors_Pd[first : first + block] for first in range(0, len(passages), block)),
                len(passages),
                rule,
            )
            for i, one in zip(here, mined, strict=True):
                found[i] = replace(
                    pairs[i],
                    negatives=tuple(passages[place] for place in one.places),
                    negative_ids=(),
                    negative_scores=(),
                )
    return found


def known_answers(pairs: Iterable[Pair], place_of: dict[str, int]) -> dict[str, set[int]]:
    """Query -> corpus places of its positives, those of equal queries included; texts not in the corpus are passed."""
    answers: dict[str, set[int]] = {}
    for pair in pairs:
        answers.setdefault(pair.query, set()).update(place_of[text] for text in pair.positives if text in place_of)
    return answers


def margin(pair: Pair) -> float | None:
    """Best positive's score minus best negative's; None where scores of either are missing."""
    if not pair.positive_scores or not pair.negative_scores:
        return None
    return max(pair.positive_scores) - max(pair.negative_scores)


def filter_by_margin(
    pairs: Iterable[Pair], *, at_least: float | None = None, at_most: float | None = None
) -> Iterator[Pair]:
    """Keeps the pairs whose margin (best positive minus best negative) lies in [at_least, at_most].

    None is no bound on that side. Pairs without scores have no margin and are not kept.
    """
    for pair in pairs:
        gap = margin(pair)
        if gap is not None and (at_least is None or gap >= at_least) and (at_most is None or gap <= at_most):
            yield pair

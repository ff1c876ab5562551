"""The order of training data: a pure function of (seed, step), so that a resumed run sees the same batches.

Every batch holds rows of one data set. Which one is decided by a low-discrepancy schedule (at any step each data set
has had its share of batches to within about one, then shuffled within short windows); within a data set, rows come in a
new random order every epoch. What fills no batch of its own is dropped, or mixed into batches of left-overs.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from hrsa_jax.data.sources import Pair, by_dataset
from hrsa_jax.runtime.config import to_json
from hrsa_jax.runtime.errors import InputError

MIXED = "left-overs"  # the name of batches that are mixed from several data sets
_WINDOW = 32  # batches shuffled together


@dataclasses.dataclass(frozen=True)
class Group:
    """One query with the passages drawn for it in one step."""

    query: str
    instruction: str
    positive: str
    negatives: tuple[str, ...]  # exactly the number asked for, or none when the pair has none
    all_positives: tuple[str, ...]
    dataset: str
    ids: tuple[str, ...] = ()  # of the positive and the negatives; "" where unknown; empty where all are
    all_positive_ids: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()  # a teacher's, of the positive and the negatives; empty where one is missing


class PairSampler:
    """Draws batches of `batch_size` groups.

    Args:
      pairs: the training rows by data set, or in one sequence (grouped here by `Pair.dataset`).
      batch_size: queries a batch.
      hard_negatives: negatives drawn for a pair that has any (all of them again when it has fewer).
      mixing_exponent: data set d, which fills b_d batches, gets a share of batches proportional to
        b_d ** mixing_exponent; 1 visits every row equally often, 0 every data set (exponent = 1 / temperature).
      seed: with the step, decides everything.
      leftovers: rows of an epoch that fill no batch of their data set: "drop" them, or "mix" those of all data sets
        into batches of their own (named MIXED; what fills none of these either is dropped).

    Raises:
      InputError: no pairs, or a data set smaller than a batch where left-overs are dropped.
    """

    def __init__(
        self,
        pairs: Sequence[Pair] | Mapping[str, Sequence[Pair]],
        *,
        batch_size: int,
        hard_negatives: int = 3,
        mixing_exponent: float = 1.0,
        seed: int = 0,
        leftovers: Literal["drop", "mix"] = "drop",
    ):
        if batch_size < 1 or hard_negatives < 0:
            raise ValueError(f"batch_size {batch_size} and hard_negatives {hard_negatives} must be at least 1 and 0")
        self.rows = by_dataset(pairs)
        if not self.rows:
            raise InputError("There are no training pairs; give at least one data set with at least one batch of rows.")
        self.batch_size, self.hard_negatives, self.seed = batch_size, hard_negatives, seed
        self.datasets = list(self.rows)
        batches = {name: len(rows) // batch_size for name, rows in self.rows.items()}
        left = sum(len(rows) % batch_size for rows in self.rows.values()) if leftovers == "mix" else 0
        for name, rows in self.rows.items():
            if not batches[name] and (leftovers == "drop" or left < batch_size):
                raise InputError(
                    f"Data set {name!r} has {len(rows)} pairs, fewer than the batch of {batch_size}; "
                    f"lower the batch size or leave the data set out."
                )
        if left >= batch_size:
            batches[MIXED] = left // batch_size
        self.names = [name for name, count in batches.items() if count]
        self._batches = np.array([batches[name] for name in self.names])
        shares = self._batches.astype(np.float64) ** mixing_exponent
        self.shares = shares / shares.sum()
        self._schedule: list[int] = []  # data set of each step, shuffled window by window
        self._visits: list[int] = []  # how many batches of that data set came before
        self._counts = np.zeros(len(self.names), np.int64)
        self._orders: dict[str, tuple[int, np.ndarray]] = {}  # data set -> (epoch, order of its rows)

    @property
    def steps_per_epoch(self) -> int:
        """Batches that hold every row once (but for remainders that are dropped)."""
        return int(self._batches.sum())

    def rows_at(self, step: int) -> tuple[str, list[tuple[str, int]]]:
        """The name of a step's batch and its rows: (data set, row number), `batch_size` of them."""
        while step >= len(self._schedule):
            self._extend_schedule()
        name = self.names[self._schedule[step]]
        epoch, place = divmod(self._visits[step], int(self._batches[self._schedule[step]]))
        part = slice(place * self.batch_size, (place + 1) * self.batch_size)
        if name == MIXED:
            return name, self._leftovers(epoch)[part]
        return name, [(name, int(row)) for row in self._order(name, epoch)[part]]

    def groups_at(self, step: int) -> list[Group]:
        """The groups of a step: one random positive and the hard negatives of each row."""
        _, rows = self.rows_at(step)
        random = np.random.default_rng([self.seed, 2, step])
        return [self._draw(self.rows[name][row], random) for name, row in rows]

    def _order(self, name: str, epoch: int) -> np.ndarray:
        cached_epoch, order = self._orders.get(name, (-1, np.zeros(0, np.int64)))
        if cached_epoch != epoch:
            place = self.datasets.index(name)
            order = np.random.default_rng([self.seed, 1, place, epoch]).permutation(len(self.rows[name]))
            self._orders[name] = (epoch, order)
        return order

    def _leftovers(self, epoch: int) -> list[tuple[str, int]]:
        """The rows at the end of every data set's order in this epoch, shuffled."""
        left = []
        for place, (name, rows) in enumerate(self.rows.items()):
            order = np.random.default_rng([self.seed, 1, place, epoch]).permutation(len(rows))
            left += [(name, int(row)) for row in order[len(rows) // self.batch_size * self.batch_size :]]
        shuffled = np.random.default_rng([self.seed, 3, epoch]).permutation(len(left))
        return [left[i] for i in shuffled]

    def _draw(self, pair: Pair, random: np.random.Generator) -> Group:
        chosen = int(random.integers(len(pair.positives)))
        places: list[int] = []
        if pair.negatives and self.hard_negatives:
            order = random.permutation(len(pair.negatives))
            places = [int(order[i % len(order)]) for i in range(self.hard_negatives)]
        ids: tuple[str, ...] = ()
        if pair.positive_ids or pair.negative_ids:
            positive_id = pair.positive_ids[chosen] if pair.positive_ids else ""
            ids = (positive_id, *(pair.negative_ids[i] if pair.negative_ids else "" for i in places))
        scores: tuple[float, ...] = ()
        if pair.positive_scores and (pair.negative_scores or not places):
            scores = (pair.positive_scores[chosen], *(pair.negative_scores[i] for i in places))
        return Group(
            pair.query,
            pair.instruction,
            pair.positives[chosen],
            tuple(pair.negatives[i] for i in places),
            pair.positives,
            pair.dataset,
            ids,
            pair.positive_ids,
            scores,
        )

    def _extend_schedule(self) -> None:
        """Adds one window: each batch goes to the data set furthest behind its share, then the window is shuffled."""
        start, window = len(self._schedule), []
        left_in_epoch = self.steps_per_epoch - start % self.steps_per_epoch
        counts = self._counts.copy()
        for step in range(start, start + min(_WINDOW, left_in_epoch)):
            behind = int(np.argmax(self.shares * (step + 1) - counts))
            counts[behind] += 1
            window.append(behind)
        shuffled = np.random.default_rng([self.seed, 0, start]).permutation(window)
        for dataset in shuffled:
            self._schedule.append(int(dataset))
            self._visits.append(int(self._counts[dataset]))
            self._counts[dataset] += 1


def purity(groups: Sequence[Group]) -> float:
    """Share of a batch's groups that come from its most frequent data set; 1 when the batch is unmixed."""
    names = [group.dataset for group in groups]
    return max(names.count(name) for name in set(names)) / len(names)


def data_order_hash(batches: Iterable[Sequence[Group]]) -> str:
    """sha256 (hex) over the sequence of rows: every text of every group in order, batch by batch."""
    digest = hashlib.sha256()
    for groups in batches:
        for group in groups:
            row = [group.dataset, group.instruction, group.query, group.positive, *group.negatives]
            digest.update(json.dumps(row, ensure_ascii=True).encode())
        digest.update(b"|")
    return digest.hexdigest()


def recipe_hash(*configs: Any) -> str:
    """sha256 (hex) of the canonical JSON (sorted keys) of the configs, dataclasses or mappings."""
    text = json.dumps([to_json(config) for config in configs], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()

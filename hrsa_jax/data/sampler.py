"""The order of training data: a pure function of (seed, step), so that a resumed run sees the same batches.

Every batch holds rows of one data set. Which one is decided by a low-discrepancy schedule (at any step each data set
has had its share of batches to within about one, then shuffled within short windows); within a data set, rows come in a
new random order every epoch and the remainder that fills no batch is dropped.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hrsa_jax.data.sources import Pair
from hrsa_jax.runtime.config import to_json
from hrsa_jax.runtime.errors import InputError

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


class PairSampler:
    """Draws batches of `batch_size` groups.

    Args:
      pairs: the training rows, grouped here by `Pair.dataset` (in order of first appearance).
      batch_size: queries a batch.
      hard_negatives: negatives drawn for a pair that has any (all of them again when it has fewer).
      mixing_exponent: data set d, which fills b_d batches, gets a share of batches proportional to
        b_d ** mixing_exponent; 1 visits every row equally often, 0 every data set (exponent = 1 / temperature).
      seed: with the step, decides everything.

    Raises:
      InputError: no pairs, or a data set smaller than a batch.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        batch_size: int,
        hard_negatives: int = 3,
        mixing_exponent: float = 1.0,
        seed: int = 0,
    ):
        if batch_size < 1 or hard_negatives < 0:
            raise ValueError(f"batch_size {batch_size} and hard_negatives {hard_negatives} must be at least 1 and 0")
        self._rows: dict[str, list[Pair]] = {}
        for pair in pairs:
            self._rows.setdefault(pair.dataset, []).append(pair)
        if not self._rows:
            raise InputError("There are no training pairs; give at least one data set with at least one batch of rows.")
        for name, rows in self._rows.items():
            if len(rows) < batch_size:
                raise InputError(
                    f"Data set {name!r} has {len(rows)} pairs, fewer than the batch of {batch_size}; "
                    f"lower the batch size or leave the data set out."
                )
        self.names = list(self._rows)
        self.batch_size, self.hard_negatives, self.seed = batch_size, hard_negatives, seed
        self._batches = np.array([len(rows) // batch_size for rows in self._rows.values()])
        shares = self._batches.astype(np.float64) ** mixing_exponent
        self.shares = shares / shares.sum()
        self._schedule: list[int] = []  # data set of each step, shuffled window by window
        self._visits: list[int] = []  # how many batches of that data set came before
        self._counts = np.zeros(len(self.names), np.int64)
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # data set -> (epoch, order of its rows)

    @property
    def steps_per_epoch(self) -> int:
        """Batches that hold every row once (remainders dropped)."""
        return int(self._batches.sum())

    def rows_at(self, step: int) -> tuple[str, np.ndarray]:
        """The data set and (batch_size,) row indices of a step."""
        while step >= len(self._schedule):
            self._extend_schedule()
        dataset, visit = self._schedule[step], self._visits[step]
        epoch, place = divmod(visit, int(self._batches[dataset]))
        name = self.names[dataset]
        cached_epoch, order = self._orders.get(dataset, (-1, np.zeros(0, np.int64)))
        if cached_epoch != epoch:
            order = np.random.default_rng([self.seed, 1, dataset, epoch]).permutation(len(self._rows[name]))
            self._orders[dataset] = (epoch, order)
        return name, order[place * self.batch_size : (place + 1) * self.batch_size]

    def groups_at(self, step: int) -> list[Group]:
        """The groups of a step: one random positive and the hard negatives of each row."""
        name, rows = self.rows_at(step)
        random = np.random.default_rng([self.seed, 2, step])
        return [self._draw(self._rows[name][row], random) for row in rows]

    def _draw(self, pair: Pair, random: np.random.Generator) -> Group:
        positive = pair.positives[random.integers(len(pair.positives))]
        negatives: tuple[str, ...] = ()
        if pair.negatives and self.hard_negatives:
            order = random.permutation(len(pair.negatives))
            negatives = tuple(pair.negatives[order[i % len(order)]] for i in range(self.hard_negatives))
        return Group(pair.query, pair.instruction, positive, negatives, pair.positives, pair.dataset)

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

"""Beside the one claim over all tasks: several pairs and benchmarks at once, groups of tasks, single queries.

Shapes: T tasks, S seeds, Q_t queries of task t. Differences are reasoning minus base in points.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hrsa_jax.evaluation.statistics import LEVEL, crossed_interval, holm, one_seed_interval, sign_flip_p, verdict

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """One pair of models on one benchmark: interval, word, and the sign-flip p before and after Holm's adjustment."""

    pair: str
    benchmark: str
    estimate: float
    low: float
    high: float
    word: str
    p: float
    p_holm: float


def compare_all(
    tables: Mapping[tuple[str, str], ArrayLike], margin: float, *, controls: Mapping[str, ArrayLike] | None = None
) -> list[Comparison]:
    """All pairs on all benchmarks, p values adjusted over the whole family.

    Args:
        tables: (pair, benchmark) -> differences (T, S).
        margin: preregistered, in points.
        controls: benchmark -> table of its positive control.
    """
    names, arrays = list(tables), [np.asarray(d_TS, np.float64) for d_TS in tables.values()]
    p = [sign_flip_p(d_TS) for d_TS in arrays]
    adjusted = holm(p)
    found = []
    for (pair, benchmark), d_TS, raw, after in zip(names, arrays, p, adjusted, strict=True):
        estimate, low, high, _ = _interval(d_TS)
        word = verdict(d_TS, margin, positive_control=(controls or {}).get(benchmark))
        found.append(Comparison(pair, benchmark, estimate, low, high, word, raw, float(after)))
    return found


@dataclass(frozen=True)
class Group:
    """Tasks of one type or language: a description, never a verdict. No interval for a single task."""

    name: str
    tasks: int
    estimate: float
    low: float | None
    high: float | None


def by_group(d_TS: ArrayLike, groups: Sequence[str]) -> list[Group]:
    """Estimates by group (task type, language), largest group first.

    Args:
        d_TS: (T, S). groups: the group of each of the T tasks.
    """
    d_TS = np.asarray(d_TS, np.float64)
    if len(groups) != len(d_TS):
        raise ValueError(f"groups has {len(groups)} entries for {len(d_TS)} tasks")
    found = []
    for name in dict.fromkeys(groups):
        rows = d_TS[[group == name for group in groups]]
        low, high = _interval(rows)[1:3] if len(rows) > 1 else (None, None)
        found.append(Group(name, len(rows), float(rows.mean()), low, high))
    return sorted(found, key=lambda group: -group.tasks)


def query_bootstrap(
    differences: Sequence[ArrayLike], level: float = LEVEL, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Percentile interval (estimate, low, high) from resampling tasks, seeds, and queries within each task.

    Args:
        differences: for every task an array (Q_t, S) of per-query differences in points, the same S seeds. Every task
            counts once, whatever its number of queries.
    """
    tables = [np.asarray(d_QS, np.float64) for d_QS in differences]
    seeds = {table.shape[1:] for table in tables}
    if len(tables) < 2 or len(seeds) != 1 or any(t.ndim != 2 or not t.size or not np.isfinite(t).all() for t in tables):
        raise ValueError("differences must be at least two finite arrays (queries, seeds) with the same seeds")
    rng = np.random.default_rng(seed)
    count = tables[0].shape[1]
    means_GTS = np.empty((draws, len(tables), count))
    for place, table in enumerate(tables):
        weights_GQ = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), size=draws) / len(table)
        means_GTS[:, place] = weights_GQ @ table
    tasks_GT = rng.multinomial(len(tables), np.full(len(tables), 1 / len(tables)), size=draws) / len(tables)
    seeds_GS = rng.multinomial(count, np.full(count, 1 / count), size=draws) / count
    means_G = np.einsum("gts,gt,gs->g", means_GTS, tasks_GT, seeds_GS, optimize=True)
    low, high = np.quantile(means_G, [(1 - level) / 2, (1 + level) / 2])
    return float(np.mean([table.mean() for table in tables])), float(low), float(high)


def query_ndcg(
    found: Mapping[str, Mapping[str, float]], relevant: Mapping[str, Mapping[str, int]], k: int = 10
) -> dict[Hashable, float]:
    """nDCG@k (0-1, float64) of every query from what it found (mteb's prediction files) and what is relevant.

    Args:
        found: query -> {document: score}. relevant: query -> {document: grade}; queries without are left out.
    """
    scores: dict[Hashable, float] = {}
    for query, grades in relevant.items():
        ideal = _gain(sorted(grades.values(), reverse=True)[:k])
        if ideal > 0:
            # equal scores: the later id first, as trec_eval (and so mteb) has it
            ranked = sorted(found.get(query, {}).items(), key=lambda item: (item[1], item[0]), reverse=True)[:k]
            scores[query] = _gain([grades.get(document, 0) for document, _ in ranked]) / ideal
    return scores


def _gain(grades: Sequence[int]) -> float:
    return float(sum(grade / np.log2(place + 2) for place, grade in enumerate(grades)))


def _interval(d_TS: FloatArray) -> tuple[float, float, float, float]:
    return crossed_interval(d_TS) if d_TS.shape[1] > 1 else one_seed_interval(d_TS[:, 0])

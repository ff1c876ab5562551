"""Typed access to results.json: curves, matrices, the benchmark as a table, differences by task and seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hrsa_jax.report.measures import BACKBONES

MODEL_ORDER = (
    *("base-Emb", "reasoning-Emb", "control-Emb", "random-weights-Emb", "base", "reasoning"),
    *("bag-of-words", "random"),
)
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Curve:
    """One measure over matching layers: layers (L,), value (L,), low and high (L,); missing entries are NaN."""

    layers: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    method: str | None = None
    chance: np.ndarray | None = None

    @property
    def empty(self) -> bool:
        return not bool(np.isfinite(self.value).any())

    def at(self, layer: int) -> tuple[float, float, float]:
        """(value, low, high) at a layer; NaN where absent."""
        where = np.flatnonzero(self.layers == layer)
        if not len(where):
            return math.nan, math.nan, math.nan
        index = int(where[0])
        return float(self.value[index]), float(self.low[index]), float(self.high[index])

    @property
    def last(self) -> int:
        """The last layer that has a value."""
        return int(self.layers[np.flatnonzero(np.isfinite(self.value))[-1]])

    def missing_layers(self) -> list[int]:
        return [int(layer) for layer in self.layers[~np.isfinite(self.value)]]


@dataclass(frozen=True)
class Matrix:
    """A layer x layer matrix: rows are layers of model a (base), columns layers of model b (reasoning)."""

    layers_a: np.ndarray
    layers_b: np.ndarray
    value: np.ndarray


def number(value: Any) -> float:
    """A float; null and anything that is not a number become NaN."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def numbers(values: Any) -> np.ndarray:
    """A float64 vector with NaN for null and for infinities."""
    out = np.array([number(value) for value in values], dtype=np.float64)
    out[~np.isfinite(out)] = np.nan
    return out


def curve(entry: Mapping[str, Any] | None) -> Curve | None:
    """The curve in a measure's entry, or None when it is absent or holds no number."""
    if not isinstance(entry, Mapping) or "layers" not in entry or "value" not in entry:
        return None
    value = numbers(entry["value"])
    intervals = [item or (None, None) for item in entry.get("interval95") or [None] * len(value)]
    chance = entry.get("chance")
    chance_L = numbers(chance) if isinstance(chance, Sequence) else np.full(len(value), number(chance))
    found = Curve(
        layers=np.array(entry["layers"], dtype=np.int64),
        value=value,
        low=numbers([low for low, _ in intervals]),
        high=numbers([high for _, high in intervals]),
        method=entry.get("method"),
        chance=chance_L if len(chance_L) == len(value) and np.isfinite(chance_L).any() else None,
    )
    return None if found.empty else found


def pair_curve(results: Mapping[str, Any], pair: str, measure: str) -> Curve | None:
    return curve(((results.get("hrsa") or {}).get(pair) or {}).get(measure))


def gap_curve(results: Mapping[str, Any], measure: str) -> Curve | None:
    """Emb minus backbones, paired by text."""
    return curve((results.get("realignment") or {}).get(measure))


def pair_matrix(results: Mapping[str, Any], pair: str, name: str) -> Matrix | None:
    entry = ((results.get("hrsa") or {}).get(pair) or {}).get(name)
    if not isinstance(entry, Mapping) or "layers_a" not in entry:
        return None
    value = np.stack([numbers(row) for row in entry["value"]]) if entry["value"] else np.zeros((0, 0))
    if not np.isfinite(value).any():
        return None
    return Matrix(np.array(entry["layers_a"]), np.array(entry["layers_b"]), value)


def refused(results: Mapping[str, Any], pair: str, measure: str) -> str | None:
    """Why a measure was refused, if it was."""
    why = (((results.get("hrsa") or {}).get(pair) or {}).get("refused") or {}).get(measure)
    return str(why) if why else None


def notes(results: Mapping[str, Any], pair: str) -> list[str]:
    """What a comparison noted of itself."""
    return [str(note) for note in ((results.get("hrsa") or {}).get(pair) or {}).get("notes") or []]


@dataclass(frozen=True)
class Task:
    name: str
    type: str
    metric: str


@dataclass(frozen=True)
class Row:
    """One model in one attention mode: scores by task (0-1, mean over seeds, NaN when missing), errors by task."""

    model: str
    attention: str
    seeds: tuple[Any, ...]
    scores: Mapping[str, float]
    errors: Mapping[str, str]

    def mean(self, tasks: Sequence[Task]) -> float:
        """The mean over all tasks; NaN when any task is missing, never a silent mean."""
        return float(np.mean([self.scores.get(task.name, math.nan) for task in tasks])) if tasks else math.nan


def tasks(results: Mapping[str, Any]) -> list[Task]:
    """The tasks in order of type, then of first appearance."""
    found: dict[str, Task] = {}
    for row in results.get("benchmark") or []:
        entry = Task(row["task"], str(row.get("type") or "other"), str(row.get("metric") or "score"))
        found.setdefault(row["task"], entry)
    order = list(dict.fromkeys(task.type for task in found.values()))
    return sorted(found.values(), key=lambda task: order.index(task.type))


def rows(results: Mapping[str, Any]) -> list[Row]:
    """The benchmark's rows: embedding models first, then backbones, then the reference rows."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in results.get("benchmark") or []:
        groups.setdefault((row["model"], str(row.get("attention") or "")), []).append(row)
    out = []
    for (model, attention), members in groups.items():
        by_task: dict[str, list[float]] = {}
        for row in members:
            by_task.setdefault(row["task"], []).append(number(row.get("score")))
        errors = {row["task"]: str(row["error"]) for row in members if row.get("error")}
        seeds = tuple(dict.fromkeys(row.get("seed") for row in members if row.get("seed") is not None))
        scores = {task: float(np.mean(values)) for task, values in by_task.items()}
        out.append(Row(model, attention, seeds, scores, errors))
    rank = {name: index for index, name in enumerate(MODEL_ORDER)}
    return sorted(out, key=lambda row: (rank.get(row.model, len(rank)), row.model, row.attention))


def better_mode(modes: Sequence[Row], tasks: Sequence[Task]) -> Row | None:
    """Of one model's rows, one an attention mode, the one with the better mean; a mean of all tasks beats none."""
    means = [row.mean(tasks) for row in modes]
    order = sorted(range(len(modes)), key=lambda i: -math.inf if math.isnan(means[i]) else means[i])
    return modes[order[-1]] if order else None


@dataclass(frozen=True)
class Differences:
    """reasoning-Emb minus base-Emb in points: d_TS (tasks x seeds, NaN where missing)."""

    tasks: tuple[Task, ...]
    seeds: tuple[Any, ...]
    d_TS: np.ndarray
    in_verdict: tuple[bool, ...]


def differences(results: Mapping[str, Any]) -> Differences | None:
    """Differences paired by task and seed, or None when the two embedding models share no task."""
    scores: dict[tuple[str, str, Any], float] = {}
    for row in results.get("benchmark") or []:
        if row["model"] in ("base-Emb", "reasoning-Emb"):
            scores[row["model"], row["task"], row.get("seed")] = number(row.get("score"))
    seeds = {seed for _, _, seed in scores}
    paired = [
        seed
        for seed in sorted(seeds, key=lambda seed: (str(type(seed)), seed if seed is not None else 0))
        if all(any(key[0] == model and key[2] == seed for key in scores) for model in ("base-Emb", "reasoning-Emb"))
    ]
    listed = [task for task in tasks(results) if any(key[1] == task.name for key in scores)]
    if not paired or not listed:
        return None
    d_TS = np.full((len(listed), len(paired)), np.nan)
    for t, task in enumerate(listed):
        for s, seed in enumerate(paired):
            reasoning = scores.get(("reasoning-Emb", task.name, seed), math.nan)
            d_TS[t, s] = 100.0 * (reasoning - scores.get(("base-Emb", task.name, seed), math.nan))
    if not np.isfinite(d_TS).any():
        return None
    used = (results.get("null_effect") or {}).get("tasks")
    in_verdict = tuple(used is None or task.name in used for task in listed)
    return Differences(tuple(listed), tuple(paired), d_TS, in_verdict)


def wilson(rate: float, n: float) -> tuple[float, float]:
    """The 95% Wilson interval of a share."""
    if not n or math.isnan(rate) or math.isnan(n):
        return math.nan, math.nan
    centre = (rate + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * math.sqrt(rate * (1 - rate) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on held-out questions, its 95% Wilson interval; loss on held-out solutions (nats a token), likewise."""

    rate: float
    n: float
    low: float
    high: float
    loss: float
    loss_low: float
    loss_high: float


def accuracy(results: Mapping[str, Any], when: str) -> Accuracy | None:
    """The reasoning variant before or after tuning, or None when nothing was measured."""
    entry = (results.get("reasoning") or {}).get(when) or {}
    rate, n, loss = number(entry.get("accuracy")), number(entry.get("n")), number(entry.get("solution_loss"))
    if math.isnan(rate) and math.isnan(loss):
        return None
    low, high = (number(bound) for bound in (entry.get("interval95") or (None, None)))
    if math.isnan(low) or math.isnan(high):
        low, high = wilson(rate, n)
    loss_low, loss_high = (number(bound) for bound in (entry.get("solution_loss_interval95") or (None, None)))
    return Accuracy(rate, n, low, high, loss, loss_low, loss_high)


def loss_change(entry: Any) -> tuple[float, float, float]:
    """(change, low, high) of a solution loss relative to before, paired by problem; NaN where missing."""
    entry = entry if isinstance(entry, Mapping) else {}
    low, high = (number(bound) for bound in (entry.get("interval95") or (None, None)))
    return number(entry.get("relative")), low, high


def few_rows(results: Mapping[str, Any]) -> str:
    """Said where the backbones' rotation was fitted on so few rows that their number decides what is left of it."""
    facts = ((results.get("hrsa") or {}).get(BACKBONES) or {}).get("facts") or {}
    rows, widths = number(facts.get("procrustes_rows")), facts.get("width")
    width = max(map(number, widths.values()), default=math.nan) if isinstance(widths, Mapping) else math.nan
    return f" (raised by few rows: {rows:.0f} fitted a map of {width:.0f} dimensions)" if rows < 2 * width else ""

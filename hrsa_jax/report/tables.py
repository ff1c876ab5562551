"""The report's tables as plain data: the template only lays them out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hrsa_jax.evaluation.breakdowns import by_group
from hrsa_jax.report import reading
from hrsa_jax.report.inside import gap_counts
from hrsa_jax.report.measures import MEASURES, PAIR_LABELS, PAIRS, REALIGNED, label
from hrsa_jax.report.phrases import bracketed, estimate_text, points
from hrsa_jax.report.verdict import effect, variant_failed


@dataclass(frozen=True)
class Cell:
    """text as shown; sort: the number behind it (None sorts last); best: highest of its row; note: hover text."""

    text: str
    sort: float | None = None
    best: bool = False
    note: str = ""


@dataclass(frozen=True)
class Column:
    title: str
    subtitle: str = ""
    colour: str = ""


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    footer: tuple[Cell, ...] = ()


DAGGER = "†"


def _score(value: float, *, best: bool = False, note: str = "") -> Cell:
    if math.isnan(value):
        return Cell("—", None, note=note or "no score")
    return Cell(f"{100 * value:.1f}", 100 * value, best, note)


def benchmark(results: Mapping[str, Any]) -> Table | None:
    """Tasks down, models across, scores in points, the best of each row marked, the difference in points."""
    listed, models = reading.tasks(results), reading.rows(results)
    if not listed or not models:
        return None
    found = reading.differences(results)
    d_T = {} if found is None else {t.name: _mean(d_S) for t, d_S in zip(found.tasks, found.d_TS, strict=True)}
    mark = DAGGER if results.get("reasoning") is not None and variant_failed(results) else ""
    columns = [Column("task", "type, metric"), Column("difference", f"Emb{mark}, points")]
    for row in models:
        seeds = f", {len(row.seeds)} seeds" if len(row.seeds) > 1 else ""
        title = row.model + (mark if row.model.startswith("reasoning") else "")
        columns.append(Column(title, (row.attention or "reference") + seeds, row.model))
    body = []
    for task in listed:
        scores = [row.scores.get(task.name, math.nan) for row in models]
        top = np.nanmax(scores) if np.isfinite(scores).any() else math.nan
        cells = [
            _score(value, best=value == top, note=row.errors.get(task.name, ""))
            for value, row in zip(scores, models, strict=True)
        ]
        difference = d_T.get(task.name, math.nan)
        body.append((Cell(task.name, note=f"{task.type}, {task.metric}"), _difference(difference), *cells))
    means = [row.mean(listed) for row in models]
    top = np.nanmax(means) if np.isfinite(means).any() else math.nan
    footer = [_score(value, best=value == top, note="" if value == value else "a task is missing") for value in means]
    estimate, low, high, margin = effect(results)
    interval = "no interval" if math.isnan(low) else bracketed(low, high, margin)
    first = Cell(points(estimate, margin) if not math.isnan(estimate) else "—", note=interval)
    return Table(tuple(columns), tuple(body), (Cell("mean of tasks"), first, *footer))


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values))


def _difference(value: float) -> Cell:
    return Cell("—") if math.isnan(value) else Cell(points(value), value)


def by_type(results: Mapping[str, Any]) -> Table | None:
    """The difference by task type: a description, no verdict; no interval for a type with a single task."""
    found = reading.differences(results)
    if found is None:
        return None
    kept = [
        index for index in range(len(found.tasks)) if found.in_verdict[index] and np.isfinite(found.d_TS[index]).all()
    ]
    if not kept:
        return None
    body, margin = [], effect(results)[3]
    for group in by_group(found.d_TS[kept], [found.tasks[index].type for index in kept]):
        interval = (
            "one task: no interval"
            if group.low is None or group.high is None
            else bracketed(group.low, group.high, margin)
        )
        body.append((Cell(group.name), Cell(str(group.tasks)), Cell(points(group.estimate, margin)), Cell(interval)))
    titles = ("task type", "tasks", "reasoning-Emb minus base-Emb, points", "90% interval")
    return Table(tuple(Column(title) for title in titles), tuple(body))


_PROBES = (("base's", "probe_source", "probe_transfer", "probe_transfer_aligned"),
           ("reasoning's", "probe_transfer_reverse", "probe_target", "probe_transfer_aligned_reverse"))  # fmt: skip


def probe_matrix(results: Mapping[str, Any]) -> Table | None:
    """Whose probe reads whose vectors how well, at the last layer of each pair."""
    body = []
    for pair in PAIRS:
        for owner, *names in _PROBES:
            curves = [reading.pair_curve(results, pair, name) for name in names]
            cells = [Cell("not measured" if c is None else estimate_text(*c.at(c.last))) for c in curves]
            if any(c is not None for c in curves):
                body.append((Cell(f"{owner} probe", note=PAIR_LABELS[pair].split(" (")[0]), *cells))
    titles = ("probe", "on base", "on reasoning", "on the other one, rotated")
    return Table(tuple(Column(title) for title in titles), tuple(body)) if body else None


def realignment(results: Mapping[str, Any]) -> Table | None:
    """Last layer: backbones, embedding models, their gap, each with a 95% interval, and the layers that moved."""
    body = []
    for measure in REALIGNED:
        left, right = (reading.pair_curve(results, pair, measure) for pair in PAIRS)
        gap = reading.gap_curve(results, measure)
        if left is None and right is None and gap is None:
            continue
        layer = next(entry.last for entry in (gap, right, left) if entry is not None)
        value, low, high = gap.at(layer) if gap is not None else (math.nan,) * 3
        counts = gap_counts(results, measure)
        moved = "no gap interval" if counts is None else f"{counts[0]} more, {counts[1]} less, of {counts[2]}"
        body.append(
            (
                Cell(MEASURES[measure].short, note=f"{label(measure)}, layer\u00a0{layer}"),
                Cell(_at(left, layer)),
                Cell(_at(right, layer)),
                Cell("not measured" if math.isnan(value) else _signed(value, low, high)),
                Cell(_gap_reading(measure, low, high)),
                Cell(moved),
            )
        )
    titles = (
        "measure",
        "backbones",
        "embedding models",
        "gap (Emb - backbone)",
        "reading",
        "layers more or less alike",
    )
    return Table(tuple(Column(title) for title in titles), tuple(body)) if body else None


def _at(entry: reading.Curve | None, layer: int) -> str:
    return "not measured" if entry is None else estimate_text(*entry.at(layer))


def _signed(value: float, low: float, high: float) -> str:
    return f"{value:+.3f}" + (" (no interval)" if math.isnan(low) else f" [{low:+.3f}, {high:+.3f}]")


def _gap_reading(measure: str, low: float, high: float) -> str:
    if math.isnan(low) or math.isnan(high):
        return "cannot say"
    if low <= 0 <= high:
        return "no clear change"
    return "more alike" if (low > 0) == (MEASURES[measure].direction > 0) else "less alike"


def sinks(results: Mapping[str, Any]) -> Table | None:
    """Debiased CKA with attention sinks out and in, at the last layer and where they differ most."""
    body = []
    for pair in PAIRS:
        out, kept = (reading.pair_curve(results, pair, name) for name in ("cka", "cka_with_sinks"))
        if out is None or kept is None:
            continue
        apart = {
            int(at): abs(out.at(int(at))[0] - kept.at(int(at))[0]) for at in kept.layers
        }  # sinks kept: fewer layers
        apart = {at: value for at, value in apart.items() if not math.isnan(value)}
        if not apart:
            continue
        last, widest = max(apart), max(apart, key=apart.__getitem__)
        shown = [(last, "last layer"), (widest, "largest difference")]
        for layer, why in [(last, "last layer, largest difference")] if last == widest else shown:
            body.append(
                (
                    Cell(PAIR_LABELS[pair].split(" (")[0], note=PAIR_LABELS[pair].split(" (")[1].rstrip(")")),
                    Cell(f"{layer} ({why})"),
                    Cell(estimate_text(*out.at(layer))),
                    Cell(estimate_text(*kept.at(layer))),
                )
            )
    columns = (Column("pair"), Column("layer"), Column("CKA, sinks out"), Column("CKA, sinks kept"))
    return Table(columns, tuple(body)) if body else None


def reasoning(results: Mapping[str, Any]) -> Table | None:
    """Accuracy with its 95% Wilson interval and the loss on held-out solutions, before and after."""
    body = []
    for when, name in (("before", "base (before)"), ("after", "reasoning (after)")):
        entry = reading.accuracy(results, when)
        if entry is None:
            continue
        share = "not measured"
        if not math.isnan(entry.rate):
            share = f"{100 * entry.rate:.1f}% [{100 * entry.low:.1f}, {100 * entry.high:.1f}]"
        loss = estimate_text(entry.loss, entry.loss_low, entry.loss_high)
        asked = "not stated" if math.isnan(entry.n) else f"{entry.n:.0f}"
        body.append((Cell(name), Cell(asked), Cell(share), Cell(_length(results, when)), Cell(loss)))
    columns = (
        Column("model"),
        Column("questions"),
        Column("accuracy, 95% interval"),
        Column("answer length, tokens"),
        Column("solution loss, nats a token"),
    )
    return Table(columns, tuple(body)) if body else None


def _length(results: Mapping[str, Any], when: str) -> str:
    length = reading.number(((results.get("reasoning") or {}).get(when) or {}).get("mean_length"))
    return "not measured" if math.isnan(length) else f"{length:.1f}"

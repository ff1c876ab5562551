"""Realignment figures: gaps by layer, and slope charts from the backbones to the embedding models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from hrsa_jax.report import controls, reading
from hrsa_jax.report.hrsa_figures import CEILING_STYLE, INK, MUTED, NOT_ZERO, PAIR_COLOURS, draw, tick_positions
from hrsa_jax.report.measures import BACKBONES, CEILING, EMBEDDINGS, MEASURES, PAIRS, REALIGNED
from hrsa_jax.report.svg import COLOURS, panel, to_svg


@dataclass(frozen=True)
class _Slope:
    """One measure at one layer, turned so that up is more alike; ceiling, floor: NaN where not measured."""

    layer: int
    measure: str
    backbones: float
    embeddings: float
    ceiling: float
    floor: float
    clear: bool | None  # the gap's interval excludes 0; None without an interval

    @property
    def name(self) -> str:
        known = MEASURES[self.measure]
        return known.short if known.direction > 0 else f"1 - {known.short}"


def gap_curves(results: Mapping[str, Any], measure: str) -> str | None:
    """Embedding pair minus backbone pair by layer with its 95% band; dotted, the gap that two seeds would leave."""
    gap = reading.gap_curve(results, measure)
    if gap is None:
        return None
    full = _full_gap(results, measure)
    with panel(4.4, 2.5) as (figure, axes):
        axes.axhline(0, color=MUTED, linewidth=1)
        draw(axes, gap, COLOURS["embeddings"], "-")
        values = np.concatenate([gap.value, gap.low, gap.high, [0.0]])
        if full is not None:
            draw(axes, full, INK, CEILING_STYLE, band=False)
            values = np.concatenate([values, full.value])
        reach = 1.15 * max(float(np.nanmax(np.abs(values))), 1e-3)
        axes.set_ylim(-reach, reach)
        axes.set_xticks([int(gap.layers[index]) for index in tick_positions(len(gap.layers))])
        axes.set_xlabel("layer")
        axes.set_ylabel(f"change in {MEASURES[measure].short}", fontsize=8.5)
        up, down = ("more alike", "less alike") if MEASURES[measure].direction > 0 else ("less alike", "more alike")
        for text, y, side in ((f"↑ {up}", 0.985, "top"), (f"↓ {down}", 0.015, "bottom")):
            axes.text(0.012, y, text, transform=axes.transAxes, va=side, color=MUTED, fontsize=8.5)
        return to_svg(figure, f"gap-{measure}")


def _full_gap(results: Mapping[str, Any], measure: str) -> reading.Curve | None:
    """Seed ceiling minus backbones: the gap of embedding models as alike as two seeds of one backbone."""
    ceiling, left = (reading.pair_curve(results, pair, measure) for pair in (CEILING, BACKBONES))
    if ceiling is None or left is None or not np.array_equal(ceiling.layers, left.layers):
        return None
    missing = np.full(len(left.value), np.nan)
    return reading.Curve(left.layers, ceiling.value - left.value, missing, missing)


def slope_layers(results: Mapping[str, Any]) -> list[int]:
    """The layers of the slope charts: the middle one and the last that both pairs were measured at."""
    layers = sorted({line.layer for line in _slopes_at(results, None)})
    return sorted({layers[len(layers) // 2], layers[-1]}) if layers else []


def _slopes_at(results: Mapping[str, Any], layer: int | None) -> list[_Slope]:
    out = []
    for measure in REALIGNED:
        left, right = (reading.pair_curve(results, pair, measure) for pair in PAIRS)
        if left is None or right is None:
            continue
        gap = reading.gap_curve(results, measure)
        others = (reading.pair_curve(results, CEILING, measure), controls.floor_curve(results, measure))
        for at in left.layers if layer is None else [layer]:
            values = [left.at(int(at))[0], right.at(int(at))[0]]
            if not np.isfinite(values).all():
                continue
            values += [np.nan if entry is None else entry.at(int(at))[0] for entry in others]
            low, high = gap.at(int(at))[1:] if gap is not None else (np.nan, np.nan)
            clear = None if not np.isfinite(low) else bool(low > 0 or high < 0)
            a, b, ceiling, floor = (1 - value if MEASURES[measure].direction < 0 else value for value in values)
            out.append(_Slope(int(at), measure, a, b, ceiling, floor, clear))
    return out


def slope(results: Mapping[str, Any], layer: int) -> str | None:
    """Slope chart at one layer: each measure from the backbones to the embedding models, and on to two seeds."""
    lines = _slopes_at(results, layer)
    if not lines:
        return None
    last = 2 if any(np.isfinite(line.ceiling) for line in lines) else 1
    with panel(4.4, 3.6) as (figure, axes):
        for line in lines:
            _draw_slope(axes, line)
        values = np.array([[line.backbones, line.embeddings, line.ceiling, line.floor] for line in lines])
        lowest = float(np.nanmin(values))
        bottom = min(0.0, lowest) - 0.05 if lowest < 0.45 else lowest - 0.05
        axes.set_ylim(bottom, 1.03)
        if bottom > 0:
            axes.text(0.995, 0.02, NOT_ZERO, transform=axes.transAxes, ha="right", color=MUTED, fontsize=8)
        ends = [line.ceiling if np.isfinite(line.ceiling) and last == 2 else line.embeddings for line in lines]
        heights = _spread(ends, 0.062 * (1.03 - bottom))
        for y, line, end in zip(heights, lines, ends, strict=True):
            x = 2 if np.isfinite(line.ceiling) else 1
            axes.plot([x + 0.03 * last, last + 0.09 * last], [end, y], color=COLOURS["grid"], linewidth=0.9, zorder=1)
            axes.text(last + 0.1 * last, y, line.name, va="center", fontsize=8.5)
        axes.set_xlim(-0.06 * last, 1.75 * last)
        names = ["backbones", "embedding\nmodels", "two seeds\nof base-Emb"]
        axes.set_xticks(range(last + 1), names[: last + 1])
        axes.set_ylabel("similarity (1 = alike)")
        axes.spines["bottom"].set_visible(False)
        axes.grid(False, axis="x")
        return to_svg(figure, f"slope-{layer}")


def _draw_slope(axes: Axes, line: _Slope) -> None:
    weight, style = (1.9, "-") if line.clear else (1.2, "-" if line.clear is False else (0, (2, 2)))
    colour = INK if line.clear else MUTED
    axes.plot([0, 1], [line.backbones, line.embeddings], color=colour, linewidth=weight, linestyle=style, zorder=2)
    axes.plot([0], [line.backbones], "o", color=PAIR_COLOURS[BACKBONES], markersize=6, zorder=3)
    axes.plot([1], [line.embeddings], "o", color=PAIR_COLOURS[EMBEDDINGS], markersize=6, zorder=3)
    axes.plot([1, 2], [line.embeddings, line.ceiling], color=MUTED, linewidth=0.9, linestyle=CEILING_STYLE, zorder=2)
    axes.plot([2], [line.ceiling], "D", color=INK, markersize=4.5, zorder=3)
    axes.plot([0], [line.floor], "_", color=MUTED, markersize=13, markeredgewidth=1.8, zorder=2)


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights moved as little as needed so that labels stand at least `gap` apart, all below the top."""
    order = np.argsort(heights)
    placed = [float(heights[index]) for index in order]
    for _ in range(200):
        for i in range(len(placed) - 1):
            short = gap - (placed[i + 1] - placed[i])
            if short > 1e-9:
                placed[i] -= short / 2
                placed[i + 1] += short / 2
        over = max(0.0, placed[-1] - 1.02)
        placed[-1] -= over
    out = [0.0] * len(placed)
    for position, index in enumerate(order):
        out[index] = placed[position]
    return out

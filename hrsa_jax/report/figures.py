"""Benchmark, reasoning-variant and training figures. Each returns inline SVG, or None when there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from hrsa_jax.report import reading
from hrsa_jax.report.phrases import points
from hrsa_jax.report.svg import COLOURS, panel, shorten, to_svg
from hrsa_jax.report.verdict import effect

INK, MUTED = COLOURS["ink"], COLOURS["muted"]
WHOLE_COMMAND = "this command"  # the timing that is not a stage


def answer_strip(results: Mapping[str, Any]) -> str | None:
    """The one interval that matters, against 0 and the margin."""
    estimate, low, high, margin = effect(results)
    if any(math.isnan(value) for value in (estimate, low, high)):
        return None
    with panel(4.8, 1.25) as (figure, axes):
        reach = 1.15 * max(abs(low), abs(high), 0.0 if math.isnan(margin) else 1.6 * margin, 0.5)
        _margin_band(axes, margin)
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.plot([low, high], [0, 0], color=COLOURS["reasoning-Emb"], linewidth=5, alpha=0.45)
        axes.plot([estimate], [0], "o", color=COLOURS["reasoning-Emb"], markersize=9)
        axes.annotate(
            points(estimate, margin), (estimate, 0), (0, 9), textcoords="offset points", ha="center", weight="bold"
        )
        axes.set(xlim=(-reach, reach), ylim=(-1, 1.5), yticks=[])
        axes.set_xlabel("reasoning-Emb minus base-Emb (points)")
        axes.spines["left"].set_visible(False)
        axes.grid(False)
        axes.text(0.0, 1.0, "← base better", transform=axes.transAxes, color=MUTED, fontsize=8.5, va="top")
        axes.text(
            1.0, 1.0, "reasoning better →", transform=axes.transAxes, color=MUTED, fontsize=8.5, va="top", ha="right"
        )
        return to_svg(figure, "answer")


def _margin_band(axes: Axes, margin: float) -> None:
    if not math.isnan(margin):
        axes.axvspan(-margin, margin, color=COLOURS["band"], linewidth=0, zorder=0)


def forest(results: Mapping[str, Any]) -> str | None:
    """reasoning-Emb minus base-Emb per task (one small dot per seed, a large one for their mean) and over all."""
    found = reading.differences(results)
    if found is None:
        return None
    estimate, low, high, margin = effect(results)
    with panel(4.6, 0.95 + 0.37 * len(found.tasks)) as (figure, axes):
        _margin_band(axes, margin)
        axes.axvline(0, color=MUTED, linewidth=1)
        names = []  # each above its dot, so that the figure is narrow enough for a phone
        for index, (task, used) in enumerate(zip(found.tasks, found.in_verdict, strict=True)):
            y, d_S = len(found.tasks) - index, found.d_TS[index]
            names.append((y, shorten(task.name, 46) + ("" if used else " *")))
            if not np.isfinite(d_S).any():
                axes.text(0, y, " no score", color=MUTED, va="center", fontsize=8.5)
                continue
            if len(d_S) > 1:
                axes.plot(d_S, np.full(len(d_S), y), "o", color=MUTED, markersize=3.2, alpha=0.7, linewidth=0)
            fill = COLOURS["reasoning-Emb"] if used else "none"
            mean = float(np.nanmean(d_S))
            axes.plot([mean], [y], "o", color=COLOURS["reasoning-Emb"], markersize=7, markerfacecolor=fill)
        if not any(math.isnan(value) for value in (estimate, low, high)):
            axes.plot([low, high], [0, 0], color=INK, linewidth=2.4)
            axes.plot([estimate], [0], "D", color=INK, markersize=7)
            names.append((0, "mean, 90% interval"))
        for y, name in names:
            axes.text(0.0, y + 0.22, name, transform=axes.get_yaxis_transform(), fontsize=8.5, va="bottom")
        axes.set_yticks([y for y, _ in names], [""] * len(names))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(-0.45, len(found.tasks) + 0.75)
        reach = 1.1 * max(
            np.nanmax(np.abs(found.d_TS)), *(abs(v) for v in (low, high, margin) if not math.isnan(v)), 0.5
        )
        axes.set_xlim(-reach, reach)
        axes.set_xlabel("reasoning-Emb minus base-Emb (points)")
        return to_svg(figure, "forest")


def accuracy_panel(results: Mapping[str, Any]) -> str | None:
    """Share of held-out questions answered, before and after tuning, with 95% Wilson intervals."""
    found = [(name, reading.accuracy(results, when)) for name, when in (("base", "before"), ("reasoning", "after"))]
    drawn = [(name, entry) for name, entry in found if entry is not None and not math.isnan(entry.rate)]
    if not drawn:
        return None
    with panel(3.75, 2.0) as (figure, axes):
        for index, (name, entry) in enumerate(reversed(drawn)):
            axes.plot([100 * entry.low, 100 * entry.high], [index, index], color=COLOURS[name], linewidth=5, alpha=0.45)
            axes.plot([100 * entry.rate], [index], "o", color=COLOURS[name], markersize=8)
            axes.annotate(
                f"{100 * entry.rate:.1f}%", (100 * entry.rate, index), (0, 8), textcoords="offset points", ha="center"
            )
        labels = [f"{name} ({'before' if name == 'base' else 'after'})" for name, _ in reversed(drawn)]
        axes.set_yticks(range(len(drawn)), labels)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        top = max(100 * entry.high for _, entry in drawn if not math.isnan(entry.high)) if drawn else 100
        axes.set(ylim=(-0.6, len(drawn) - 0.2), xlim=(-0.1 * top, min(103.0, 1.15 * top + 2)))
        axes.set_xlabel("correct answers (%)")
        return to_svg(figure, "accuracy")


def training_curves(results: Mapping[str, Any], models: tuple[str, ...], key: str, ylabel: str) -> str | None:
    """Loss by optimiser step, one line per model; long runs get a running mean over the faint raw values."""
    traces = []
    recorded = dict(results.get("training") or {})
    if made := (results.get("reasoning") or {}).get("training"):
        recorded["reasoning"] = made
    for key_in_file, entry in sorted(recorded.items()):
        name = next((model for model in models if key_in_file == model or key_in_file.startswith(f"{model}-s")), None)
        step, loss = reading.numbers(entry["step"]), reading.numbers(entry["loss"])
        if name is not None and np.isfinite(loss).any():
            finite = np.isfinite(loss)
            traces.append((name, step[finite], loss[finite]))
    if not traces:
        return None
    with panel() as (figure, axes):
        for name in dict.fromkeys(name for name, *_ in traces):
            own = [(step, loss) for model, step, loss in traces if model == name]
            style: Any = "-" if models.index(name) == 0 else (0, (4, 1.5))
            _training_line(axes, name, own, style)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(ylabel)
        if len(models) > 1:
            handles = axes.get_legend_handles_labels()
            figure.legend(*handles, loc="outside upper center", ncols=2, handlelength=2.6, columnspacing=1.2)
        return to_svg(figure, key)


def _training_line(axes: Axes, name: str, own: list[tuple[np.ndarray, np.ndarray]], style: Any) -> None:
    """One model's loss: the mean of its seeds (or a running mean) over the faint raw values."""
    step, loss = own[0]
    if len(own) > 1 and all(np.array_equal(step, other) for other, _ in own):
        loss = np.mean([values for _, values in own], axis=0)
    window = max(1, len(loss) // 20)
    if window > 2 or len(own) > 1:
        for raw_step, raw in own:
            axes.plot(raw_step, raw, color=COLOURS[name], alpha=0.3, linewidth=0.8)
    x, y = (step, loss) if window <= 2 else _running_mean(step, loss, window)
    axes.plot(x, y, color=COLOURS[name], linestyle=style, label=name)
    if len(x) < 4:
        axes.plot(x, y, "o", color=COLOURS[name], markersize=5)


def _running_mean(step: np.ndarray, loss: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the last `window` losses at each step from the window-th on."""
    return step[window - 1 :], np.convolve(loss, np.full(window, 1 / window), mode="valid")


def stage_times(results: Mapping[str, Any]) -> str | None:
    """Seconds per stage as horizontal bars, in the order they ran."""
    entries = [(name, reading.number(entry.get("seconds"))) for name, entry in (results.get("timings") or {}).items()]
    entries = [(name, seconds) for name, seconds in entries if not math.isnan(seconds) and name != WHOLE_COMMAND]
    if not entries:
        return None
    with panel(4.8, 0.75 + 0.27 * len(entries)) as (figure, axes):
        seconds = [value for _, value in reversed(entries)]
        axes.barh(range(len(entries)), seconds, color=COLOURS["muted"], height=0.62)
        for index, value in enumerate(seconds):
            axes.annotate(
                f"{value:.0f} s", (value, index), (4, 0), textcoords="offset points", va="center", fontsize=8.5
            )
        axes.set_yticks(range(len(entries)), [shorten(name, 30) for name, _ in reversed(entries)])
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, 1.16 * max(seconds) + 1e-9)
        axes.set_xlabel("seconds")
        return to_svg(figure, "times")

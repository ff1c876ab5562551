"""Figures of the controls: what equal and what worse models differ by, and similarity while both are converted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from hrsa_jax.report import controls, reading
from hrsa_jax.report.hrsa_figures import CEILING_STYLE, FLOOR_STYLE
from hrsa_jax.report.measures import CEILING
from hrsa_jax.report.svg import COLOURS, panel, shorten, to_svg
from hrsa_jax.report.verdict import effect

INK, MUTED = COLOURS["ink"], COLOURS["muted"]


def controls_forest(results: Mapping[str, Any]) -> str | None:
    """The study's difference between what equal models (A/A) and a known worse one (positive control) show."""
    margin = effect(results)[3]
    entries = [(effect_.what, effect_, COLOURS["base-Emb"]) for effect_ in controls.aa(results)]
    control = controls.positive_control(results)
    if control is not None:
        entries.append(("positive control", control, MUTED))
    if not entries:
        return None
    entries.insert(0, ("reasoning minus base", controls.Effect("", *effect(results)), COLOURS["reasoning-Emb"]))
    drawn = [entry for entry in entries if not math.isnan(entry[1].estimate)]
    with panel(4.8, 0.95 + 0.3 * len(drawn)) as (figure, axes):
        if not math.isnan(margin):
            axes.axvspan(-margin, margin, color=COLOURS["band"], linewidth=0, zorder=0)
        axes.axvline(0, color=MUTED, linewidth=1)
        for y, (_, found, colour) in enumerate(reversed(drawn)):
            if not math.isnan(found.low):
                axes.plot([found.low, found.high], [y, y], color=colour, linewidth=5, alpha=0.45)
            axes.plot([found.estimate], [y], "o", color=colour, markersize=7)
        names = [name if name.startswith(("positive", "reasoning")) else f"base-Emb, {name}" for name, *_ in drawn]
        axes.set_yticks(range(len(drawn)), [shorten(name, 34) for name in reversed(names)])
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_ylim(-0.6, len(drawn) - 0.4)
        axes.set_xlabel("difference (points)")
        return to_svg(figure, "controls")


def variant_training(made: Mapping[str, Any], key: str) -> str | None:
    """One recorded quantity of the variant's training by optimiser step (reward, kl)."""
    column = made.get(key)
    if not isinstance(column, list) or len(column) != len(made.get("step") or []):
        return None
    step, value = reading.numbers(made["step"]), reading.numbers(column)
    finite = np.isfinite(value) & np.isfinite(step)
    if not finite.any():
        return None
    with panel() as (figure, axes):
        axes.plot(step[finite], value[finite], color=COLOURS["reasoning"])
        axes.plot(step[finite], value[finite], "o", color=COLOURS["reasoning"], markersize=3)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.set_xlabel("optimiser step")
        axes.set_ylabel({"reward": "mean reward", "kl": "KL (nats a token)"}.get(key, key))
        return to_svg(figure, f"variant-{key}")


def trajectory(results: Mapping[str, Any], measure: str) -> str | None:
    """Mean similarity over layers at each step of the conversion: step 0 the backbones, the last the embeddings."""
    recorded = results.get("trajectory") or {}
    entry = (recorded.get("measures") or {}).get(measure)
    if entry is None:
        return None
    steps, value = np.array(recorded["steps"], dtype=float), reading.numbers(entry["value"])
    intervals = [item or (None, None) for item in entry.get("interval95") or [None] * len(value)]
    low, high = reading.numbers([a for a, _ in intervals]), reading.numbers([b for _, b in intervals])
    if not np.isfinite(value).any():
        return None
    with panel() as (figure, axes):
        axes.fill_between(steps, low, high, color=COLOURS["embeddings"], alpha=0.18, linewidth=0)
        axes.plot(steps, value, color=COLOURS["embeddings"])
        axes.plot(steps[1:], value[1:], "s", color=COLOURS["embeddings"], markersize=4.5)
        axes.plot(steps[:1], value[:1], "o", color=COLOURS["backbones"], markersize=7)
        axes.annotate("backbones", (steps[0], value[0]), (7, -3), textcoords="offset points", fontsize=8.5)
        ends = (reading.pair_curve(results, CEILING, measure), controls.floor_curve(results, measure))
        for curve, shade, style in zip(ends, (INK, MUTED), (CEILING_STYLE, FLOOR_STYLE), strict=True):
            if curve is not None:
                axes.axhline(float(np.nanmean(curve.value)), color=shade, linestyle=style)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.margins(y=0.15)
        axes.set_xlabel("step of the conversion")
        axes.set_ylabel("mean over layers")
        return to_svg(figure, f"trajectory-{measure}")

"""HRSA figures: layer x layer heatmaps, matching-layer curves with bands, probes, slopes, realignment gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from hrsa_jax.report import controls, reading
from hrsa_jax.report.measures import BACKBONES, CEILING, EMBEDDINGS, MEASURES, PAIRS, REALIGNED
from hrsa_jax.report.svg import COLOURS, panel, to_svg

INK, MUTED = COLOURS["ink"], COLOURS["muted"]
PAIR_COLOURS = {BACKBONES: COLOURS["backbones"], EMBEDDINGS: COLOURS["embeddings"]}
PAIR_STYLES: dict[str, Any] = {BACKBONES: "-", EMBEDDINGS: (0, (5, 1.3))}
NOT_ZERO = "axis does not start at 0"
_AXES_OF = {BACKBONES: ("base", "reasoning"), EMBEDDINGS: ("base-Emb", "reasoning-Emb")}


def heatmap(results: Mapping[str, Any], pair: str, name: str = "cka_matrix") -> str | None:
    """Similarity of every layer of one model with every layer of the other, colour scale 0 to 1."""
    matrix = reading.pair_matrix(results, pair, name)
    if matrix is None:
        return None
    rows, columns = _AXES_OF.get(pair, ("model a", "model b"))
    with panel(4.4, 3.75) as (figure, axes):
        shown = np.ma.masked_invalid(np.clip(matrix.value, 0.0, 1.0))
        image = axes.imshow(shown, cmap="cividis", vmin=0.0, vmax=1.0, origin="lower", interpolation="none")
        for axis, layers, model in ((axes.xaxis, matrix.layers_b, columns), (axes.yaxis, matrix.layers_a, rows)):
            at = _tick_positions(len(layers))
            axis.set_ticks(at, [str(layers[index]) for index in at])
            axis.set_label_text(f"layer of {model}")
        axes.grid(False)
        axes.tick_params(length=2)
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, ticks=[0, 0.25, 0.5, 0.75, 1])
        bar.set_label("linear CKA (debiased)" if name == "cka_matrix" else name.replace("_", " "))
        bar.outline.set_visible(False)  # type: ignore[operator]
        return to_svg(figure, f"heat-{pair}-{name}")


def _tick_positions(count: int) -> list[int]:
    """Positions 0, 5, 10, ... (or fewer, wider steps for deep models)."""
    step = next(step for step in (1, 2, 5, 10, 20, 50) if count / step <= 9 or step == 50)
    return list(range(0, count, step))


def pair_curves(results: Mapping[str, Any], measure: str) -> str | None:
    """One measure over matching layers: both pairs, 95% bands, and the chance (or Haar) line."""
    found = {pair: reading.pair_curve(results, pair, measure) for pair in PAIRS}
    curves = {pair: entry for pair, entry in found.items() if entry is not None}
    if not curves:
        return None
    with panel() as (figure, axes):
        for pair, entry in curves.items():
            _draw(axes, entry, PAIR_COLOURS[pair], PAIR_STYLES[pair])
        ceiling = reading.pair_curve(results, CEILING, measure)
        if ceiling is not None:
            _draw(axes, ceiling, INK, (0, (1.2, 1.3)), band=False)
        floor = controls.floor_curve(results, measure)
        if floor is not None:
            _draw(axes, floor, MUTED, (0, (8, 2)), band=False)
        name = "random rotation (Haar)" if measure == "inverse_row_entropy" else "chance"
        _chance(axes, list(curves.values()), name)
        others = [found for found in (ceiling, floor) if found is not None]
        _finish(axes, [*curves.values(), *others], MEASURES[measure].short)
        return to_svg(figure, f"curve-{measure}")


def knn_by_k(results: Mapping[str, Any]) -> str | None:
    """Neighbour overlap at the last layer by the number of neighbours, both pairs, with chance."""
    ks = (5, 10, 50)
    found = {pair: [reading.pair_curve(results, pair, f"knn_{k}") for k in ks] for pair in PAIRS}
    drawn = {pair: [c for c in curves if c is not None] for pair, curves in found.items() if None not in curves}
    if not drawn:
        return None
    with panel() as (figure, axes):
        for place, (pair, curves) in enumerate(drawn.items()):
            at = np.arange(len(ks)) + 0.12 * (place - 0.5)
            values = np.array([curve.at(curve.last) for curve in curves])
            axes.vlines(at, values[:, 1], values[:, 2], color=PAIR_COLOURS[pair], linewidth=4, alpha=0.4)
            axes.plot(
                at, values[:, 0], "os"[place], color=PAIR_COLOURS[pair], linestyle=PAIR_STYLES[pair], markersize=6
            )
        chance = [np.nan if curve.chance is None else curve.chance[-1] for curve in next(iter(drawn.values()))]
        axes.plot(range(len(ks)), chance, color=MUTED, linestyle=(0, (1.2, 1.6)), linewidth=1.3)
        axes.annotate("chance", (0, chance[0]), (2, 3), textcoords="offset points", fontsize=8.5, color=MUTED)
        axes.set_xticks(range(len(ks)), [str(k) for k in ks])
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("neighbours compared (k)")
        axes.set_ylabel("overlap at the last layer")
        return to_svg(figure, "knn-by-k")


def variant_curves(results: Mapping[str, Any], pair: str, measures: Mapping[str, str], key: str) -> str | None:
    """Several variants of one measure for one pair (sinks in or out, biased or debiased), labelled in a legend."""
    found = {name: reading.pair_curve(results, pair, name) for name in measures}
    curves = {name: entry for name, entry in found.items() if entry is not None}
    if not curves:
        return None
    styles: list[Any] = ["-", (0, (5, 1.3)), (0, (1.2, 1.3)), (0, (6, 1.3, 1.2, 1.3))]
    shades = [PAIR_COLOURS[pair], INK, MUTED, INK]
    with panel() as (figure, axes):
        for name, style, shade in zip(measures, styles, shades, strict=False):
            if name in curves:
                _draw(axes, curves[name], shade, style, label=measures[name], band=name == next(iter(measures)))
        _finish(axes, list(curves.values()), "linear CKA")
        _legend(axes)
        return to_svg(figure, key)


PROBES: dict[str, tuple[str, str, Any]] = {
    "probe_source": ("base's own probe on base", "base", "-"),
    "probe_target": ("reasoning's own probe on reasoning", "reasoning", "-"),
    "probe_transfer": ("base's probe on reasoning, as is", "ink", (0, (5, 1.3))),
    "probe_transfer_aligned": ("base's probe on reasoning, rotated", "muted", (0, (1.2, 1.3))),
}


def probes(results: Mapping[str, Any], pair: str) -> str | None:
    """Probe accuracy by layer: own ceilings, raw transfer, rotated transfer."""
    found = {name: reading.pair_curve(results, pair, name) for name in PROBES}
    curves = {name: entry for name, entry in found.items() if entry is not None}
    if not curves:
        return None
    suffix = "-Emb" if pair == EMBEDDINGS else ""
    with panel(4.4, 3.4) as (figure, axes):
        for name, entry in curves.items():
            text, colour, style = PROBES[name]
            colour = colour + suffix if colour in ("base", "reasoning") else colour
            band = name in ("probe_source", "probe_transfer")
            _draw(axes, entry, COLOURS[colour], style, label=text, band=band)
        _chance(axes, list(curves.values()), "chance")
        _finish(axes, list(curves.values()), "accuracy")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=1, handlelength=2.6)
        return to_svg(figure, f"probe-{pair}")


def _draw(
    axes: Axes, entry: reading.Curve, colour: str, style: Any, *, label: str | None = None, band: bool = True
) -> None:
    if band and np.isfinite(entry.low).any():
        axes.fill_between(entry.layers, entry.low, entry.high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(entry.layers, entry.value, color=colour, linestyle=style, label=label)
    # A lone value between missing neighbours has no line: mark it.
    finite = np.concatenate([[False], np.isfinite(entry.value), [False]])
    lone = finite[1:-1] & ~finite[:-2] & ~finite[2:]
    axes.plot(entry.layers[lone], entry.value[lone], "o", color=colour, markersize=5)


def _chance(axes: Axes, curves: Sequence[reading.Curve], name: str) -> None:
    """The level that unrelated models would reach; drawn once, the pairs share their sample sizes."""
    entry = next((entry for entry in curves if entry.chance is not None), None)
    if entry is None or entry.chance is None:
        return
    axes.plot(entry.layers, entry.chance, color=MUTED, linestyle=(0, (1.2, 1.6)), linewidth=1.3)
    level = entry.chance[np.isfinite(entry.chance)][0]
    axes.annotate(
        f"{name} {level:.3f}", (float(entry.layers[0]), float(level)), (2, 3), textcoords="offset points",
        fontsize=8.5, color=MUTED,
    )  # fmt: skip


def _finish(axes: Axes, curves: Sequence[reading.Curve], ylabel: str) -> None:
    """Axis names, integer layer ticks, and a y axis from 0 unless that would flatten the curves."""
    values = np.concatenate([part for entry in curves for part in (entry.value, entry.low, entry.high)])
    if any(entry.chance is not None for entry in curves):
        values = np.concatenate([values, *(entry.chance for entry in curves if entry.chance is not None)])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    layers = np.unique(np.concatenate([entry.layers for entry in curves]))
    at = _tick_positions(len(layers))
    axes.set_xticks([int(layers[index]) for index in at])
    axes.set_xlabel("layer")
    if low > 0.6 * high:
        span = max(high - low, 0.02)
        axes.set_ylim(low - 0.12 * span, high + 0.08 * span)
        axes.text(0.995, 0.02, NOT_ZERO, transform=axes.transAxes, ha="right", color=MUTED, fontsize=8)
    else:
        axes.set_ylim(min(0.0, 1.08 * low), 1.06 * high if high > 0 else 1.0)
    axes.set_ylabel(ylabel, fontsize=8.5)


def _legend(axes: Axes) -> None:
    axes.figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, handlelength=2.2, columnspacing=1.2
    )  # type: ignore[call-arg]


def gap_curves(results: Mapping[str, Any], measure: str) -> str | None:
    """Embedding pair minus backbone pair by layer, with its 95% band around the zero line."""
    gap = reading.gap_curve(results, measure)
    if gap is None:
        return None
    with panel(4.4, 2.5) as (figure, axes):
        axes.axhline(0, color=MUTED, linewidth=1)
        _draw(axes, gap, COLOURS["embeddings"], "-")
        values = np.concatenate([gap.value, gap.low, gap.high, [0.0]])
        reach = 1.15 * max(float(np.nanmax(np.abs(values))), 1e-3)
        axes.set_ylim(-reach, reach)
        axes.set_xticks([int(gap.layers[index]) for index in _tick_positions(len(gap.layers))])
        axes.set_xlabel("layer")
        axes.set_ylabel(f"change in {MEASURES[measure].short}", fontsize=8.5)
        up, down = ("more alike", "less alike") if MEASURES[measure].direction > 0 else ("less alike", "more alike")
        for text, y, side in ((f"↑ {up}", 0.985, "top"), (f"↓ {down}", 0.015, "bottom")):
            axes.text(0.012, y, text, transform=axes.transAxes, va=side, color=MUTED, fontsize=8.5)
        return to_svg(figure, f"gap-{measure}")


def slope_layers(results: Mapping[str, Any]) -> list[int]:
    """The layers of the slope charts: the middle one and the last that both pairs were measured at."""
    shared = _slopes_at(results, None)
    layers = sorted({layer for layer, *_ in shared})
    return sorted({layers[len(layers) // 2], layers[-1]}) if layers else []


def _slopes_at(results: Mapping[str, Any], layer: int | None) -> list[tuple[int, str, float, float, bool | None]]:
    """(layer, measure, backbones, embeddings, gap excludes 0) with every measure turned so that up is more alike."""
    out: list[tuple[int, str, float, float, bool | None]] = []
    for measure in REALIGNED:
        left, right = (reading.pair_curve(results, pair, measure) for pair in PAIRS)
        if left is None or right is None:
            continue
        gap = reading.gap_curve(results, measure)
        for at in left.layers if layer is None else [layer]:
            a, b = left.at(int(at))[0], right.at(int(at))[0]
            if not (np.isfinite(a) and np.isfinite(b)):
                continue
            low, high = gap.at(int(at))[1:] if gap is not None else (np.nan, np.nan)
            clear = None if not np.isfinite(low) else bool(low > 0 or high < 0)
            turned = (1 - a, 1 - b) if MEASURES[measure].direction < 0 else (a, b)
            out.append((int(at), measure, *turned, clear))
    return out


def slope(results: Mapping[str, Any], layer: int) -> str | None:
    """Slope chart at one layer: each measure from the backbone pair to the embedding pair, up = more alike."""
    lines = _slopes_at(results, layer)
    if not lines:
        return None
    with panel(4.4, 3.6) as (figure, axes):
        for _, _, a, b, clear in lines:
            weight, style = (1.9, "-") if clear else (1.2, "-" if clear is False else (0, (2, 2)))
            axes.plot([0, 1], [a, b], color=INK if clear else MUTED, linewidth=weight, linestyle=style, zorder=2)
            axes.plot([0], [a], "o", color=PAIR_COLOURS[BACKBONES], markersize=6, zorder=3)
            axes.plot([1], [b], "o", color=PAIR_COLOURS[EMBEDDINGS], markersize=6, zorder=3)
        lowest = min(min(a, b) for _, _, a, b, _ in lines)
        bottom = min(0.0, lowest) - 0.05 if lowest < 0.45 else lowest - 0.1
        axes.set_ylim(bottom, 1.03)
        if bottom > 0:
            axes.text(0.995, 0.02, NOT_ZERO, transform=axes.transAxes, ha="right", color=MUTED, fontsize=8)
        heights = _spread([b for _, _, _, b, _ in lines], 0.062 * (1.03 - bottom))
        for y, (_, measure, _, b, _) in zip(heights, lines, strict=True):
            text = MEASURES[measure].short if MEASURES[measure].direction > 0 else f"1 - {MEASURES[measure].short}"
            axes.plot([1.03, 1.09], [b, y], color=COLOURS["grid"], linewidth=0.9, clip_on=False)
            axes.text(1.1, y, text, va="center", fontsize=8.5)
        axes.set_xlim(-0.06, 1.75)
        axes.set_xticks([0, 1], ["backbones", "embedding\nmodels"])
        axes.set_ylabel("similarity (1 = alike)")
        axes.spines["bottom"].set_visible(False)
        axes.grid(False, axis="x")
        return to_svg(figure, f"slope-{layer}")


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

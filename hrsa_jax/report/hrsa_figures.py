"""HRSA figures: layer x layer heatmaps, matching-layer curves with bands, neighbours by k, probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from hrsa_jax.report import controls, reading
from hrsa_jax.report.measures import BACKBONES, CEILING, EMBEDDINGS, MEASURES, PAIRS
from hrsa_jax.report.svg import COLOURS, panel, to_svg

INK, MUTED = COLOURS["ink"], COLOURS["muted"]
PAIR_COLOURS = {BACKBONES: COLOURS["backbones"], EMBEDDINGS: COLOURS["embeddings"]}
PAIR_STYLES: dict[str, Any] = {BACKBONES: "-", EMBEDDINGS: (0, (5, 1.3))}
CEILING_STYLE: Any = (0, (1.2, 1.3))
FLOOR_STYLE: Any = (0, (8, 2))
CHANCE_STYLE: Any = (0, (6, 2, 1, 2))
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
            at = tick_positions(len(layers))
            axis.set_ticks(at, [str(layers[index]) for index in at])
            axis.set_label_text(f"layer of {model}")
        axes.grid(False)
        axes.tick_params(length=2)
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, ticks=[0, 0.25, 0.5, 0.75, 1])
        bar.set_label("linear CKA (debiased)" if name == "cka_matrix" else "linear CKA (biased)")
        bar.outline.set_visible(False)  # type: ignore[operator]
        return to_svg(figure, f"heat-{pair}-{name}")


def tick_positions(count: int) -> list[int]:
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
            draw(axes, entry, PAIR_COLOURS[pair], PAIR_STYLES[pair])
        others = references(axes, results, measure)
        _finish(axes, [*curves.values(), *others], MEASURES[measure].short)
        _chance(axes, list(curves.values()), "random rotation (Haar)" if measure == "inverse_row_entropy" else "chance")
        return to_svg(figure, f"curve-{measure}")


def references(axes: Axes, results: Mapping[str, Any], measure: str, *, floor: bool = True) -> list[reading.Curve]:
    """Draws the seed ceiling (dotted) and the noise floor (long dashes) of a measure, as far as they were measured."""
    found = [(reading.pair_curve(results, CEILING, measure), INK, CEILING_STYLE)]
    if floor:
        found.append((controls.floor_curve(results, measure), MUTED, FLOOR_STYLE))
    for entry, colour, style in found:
        if entry is not None:
            draw(axes, entry, colour, style, band=False)
    return [entry for entry, *_ in found if entry is not None]


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
        _by_k_references(axes, results, ks)
        _limits(axes, np.concatenate([curve.at(curve.last) for curves in drawn.values() for curve in curves]))
        chance = [np.nan if curve.chance is None else curve.chance[-1] for curve in next(iter(drawn.values()))]
        ticks = [str(k) for k in ks]
        if np.nanmin([*chance, np.inf]) >= axes.get_ylim()[0]:
            axes.plot(range(len(ks)), chance, color=MUTED, linestyle=CHANCE_STYLE, linewidth=1.1)
            axes.annotate("chance", (0, chance[0]), (2, 3), textcoords="offset points", fontsize=8.5, color=MUTED)
        elif np.isfinite(chance).any():  # below the axis: said under each k
            ticks = [f"{tick}\nchance {level:.3f}" for tick, level in zip(ticks, chance, strict=True)]
        axes.set_xticks(range(len(ks)), ticks)
        axes.set_xlabel("neighbours compared (k)")
        axes.set_ylabel("overlap at the last layer")
        return to_svg(figure, "knn-by-k")


def _by_k_references(axes: Axes, results: Mapping[str, Any], ks: Sequence[int]) -> None:
    """The seed ceiling and the noise floor at the last layer, for the k that have them."""
    ceilings = [reading.pair_curve(results, CEILING, f"knn_{k}") for k in ks]
    floors = [controls.floor_curve(results, f"knn_{k}") for k in ks]
    for found, colour, style in ((ceilings, INK, CEILING_STYLE), (floors, MUTED, FLOOR_STYLE)):
        at = [(place, entry.at(entry.last)[0]) for place, entry in enumerate(found) if entry is not None]
        if at:
            axes.plot(*zip(*at, strict=True), "." if len(at) == 1 else "", color=colour, linestyle=style)


def variant_curves(results: Mapping[str, Any], pair: str, measures: Mapping[str, str], key: str) -> str | None:
    """Several variants of one measure for one pair (sinks in or out, biased or debiased), labelled in a legend.

    The seed ceiling and the noise floor are those of the first variant.
    """
    found = {name: reading.pair_curve(results, pair, name) for name in measures}
    curves = {name: entry for name, entry in found.items() if entry is not None}
    if not curves:
        return None
    styles: list[Any] = ["-", (0, (5, 1.3)), (0, (6, 1.3, 1.2, 1.3))]
    shades = [PAIR_COLOURS[pair], INK, MUTED]
    with panel() as (figure, axes):
        for name, style, shade in zip(measures, styles, shades, strict=False):
            if name in curves:
                first = name == next(iter(measures))
                draw(axes, curves[name], shade, style, label=measures[name], band=first, width=4.2 if first else 1.7)
                if len(curves[name].layers) < max(len(entry.layers) for entry in curves.values()):
                    axes.plot(curves[name].layers, curves[name].value, "o", color=shade, markersize=4)
        others = references(axes, results, next(iter(measures)))
        _finish(axes, [*curves.values(), *others], "linear CKA")
        _legend(axes)
        return to_svg(figure, key)


# What it is, its colour, its line and its width: a curve that lies on another one is seen on top of a wider one.
PROBES: dict[str, tuple[str, str, Any, float]] = {
    "probe_source": ("base's own probe on base", "base", "-", 5.0),
    "probe_target": ("reasoning's own probe on reasoning", "reasoning", "-", 2.8),
    "probe_transfer": ("base's probe on reasoning, as is", "ink", (0, (5, 1.3)), 1.6),
    "probe_transfer_aligned": ("base's probe on reasoning, rotated", "muted", (0, (6, 1.3, 1.2, 1.3)), 1.2),
}


def probes(results: Mapping[str, Any], pair: str) -> str | None:
    """Probe accuracy by layer: own ceilings, raw transfer, rotated transfer; of embedding models the seed ceiling too.

    The ceiling is the raw transfer between two seeds of base-Emb. There is no noise floor of probes.
    """
    found = {name: reading.pair_curve(results, pair, name) for name in PROBES}
    curves = {name: entry for name, entry in found.items() if entry is not None}
    if not curves:
        return None
    suffix = "-Emb" if pair == EMBEDDINGS else ""
    with panel(4.4, 3.4) as (figure, axes):
        for name, entry in curves.items():
            text, colour, style, width = PROBES[name]
            colour = colour + suffix if colour in ("base", "reasoning") else colour
            draw(axes, entry, COLOURS[colour], style, label=text, band=name == "probe_transfer", width=width)
        others = references(axes, results, "probe_transfer", floor=False) if pair == EMBEDDINGS else []
        drawn = [reading.pair_curve(results, either, name) for either in PAIRS for name in PROBES]
        _finish(axes, [*(entry for entry in drawn if entry is not None), *others], "accuracy")  # one scale for both
        _chance(axes, list(curves.values()), "chance")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=1, handlelength=2.6)
        return to_svg(figure, f"probe-{pair}")


def draw(
    axes: Axes,
    entry: reading.Curve,
    colour: str,
    style: Any,
    *,
    label: str | None = None,
    band: bool = True,
    width: float = 1.7,
) -> None:
    """One curve with its 95% band; where layers are missing, those that were measured are marked."""
    if band and np.isfinite(entry.low).any():
        axes.fill_between(entry.layers, entry.low, entry.high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(entry.layers, entry.value, color=colour, linestyle=style, label=label, linewidth=width)
    if entry.missing_layers():
        axes.plot(entry.layers, entry.value, "o", color=colour, markersize=3.2)


def _chance(axes: Axes, curves: Sequence[reading.Curve], name: str) -> None:
    """The level that unrelated models would reach: a line, or a word where it is below; once for both pairs."""
    entry = next((entry for entry in curves if entry.chance is not None), None)
    if entry is None or entry.chance is None:
        return
    level = entry.chance[np.isfinite(entry.chance)][0]
    if level < axes.get_ylim()[0]:
        _below(axes, f"{'Haar line' if 'Haar' in name else name} {level:.3f}, below")
        return
    axes.plot(entry.layers, entry.chance, color=MUTED, linestyle=CHANCE_STYLE, linewidth=1.1)
    axes.annotate(
        f"{name} {level:.3f}", (float(entry.layers[0]), float(level)), (2, 3), textcoords="offset points",
        fontsize=8.5, color=MUTED,
    )  # fmt: skip


def _finish(axes: Axes, curves: Sequence[reading.Curve], ylabel: str) -> None:
    """Axis names, integer layer ticks, and a y axis from 0 unless that would flatten the curves."""
    _limits(axes, np.concatenate([part for entry in curves for part in (entry.value, entry.low, entry.high)]))
    layers = np.unique(np.concatenate([entry.layers for entry in curves]))
    at = tick_positions(len(layers))
    axes.set_xticks([int(layers[index]) for index in at])
    axes.set_xlabel("layer")
    axes.set_ylabel(ylabel, fontsize=8.5)


def _limits(axes: Axes, values: np.ndarray) -> None:
    """A y axis from 0, unless that would flatten the curves: then around the values, and said so."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low > 0.6 * high:
        span = max(high - low, 0.05)
        axes.set_ylim(min(low, high - span) - 0.2 * span, high + 0.08 * span)
        axes.text(0.995, 0.02, NOT_ZERO, transform=axes.transAxes, ha="right", color=MUTED, fontsize=8)
    else:
        axes.set_ylim(min(0.0, 1.08 * low), 1.06 * high if high > 0 else 1.0)


def _below(axes: Axes, text: str) -> None:
    axes.text(0.012, 0.02, text, transform=axes.transAxes, color=MUTED, fontsize=8)


def _legend(axes: Axes) -> None:
    axes.figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, handlelength=2.2, columnspacing=1.2
    )  # type: ignore[call-arg]

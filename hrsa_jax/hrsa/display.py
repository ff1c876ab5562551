"""A comparison as people read it: a table of 80 columns, and a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from hrsa_jax.hrsa.results import Comparison, Curve

WIDTH = 80
_NAME, _CELL, _CHANCE = 24, 16, 8  # columns of the table


class Level(NamedTuple):
    """One of the three levels of HRSA: its measures in reading order, how to read them, the unit of its axis."""

    title: str
    names: tuple[str, ...]
    reading: str
    axis: str


LEVELS = (
    Level(
        "Representation",
        ("correlation", "procrustes_cosine", "procrustes_residual", "inverse_row_entropy"),
        "the same axes? correlation 1: every coordinate carries the same signal; cosine 1 and residual 0: one model is "
        "a rotation of the other; row entropy 1: that rotation sends axes to axes, at chance it smears each over all",
        "1 = alike (residual: 0)",
    ),
    Level(
        "Geometry",
        ("cka", "cka_biased", "knn_5", "knn_10", "knn_50"),
        "the same distances between tokens? cka 1: the same up to rotation and scale; knn_k: of all that either model "
        "counts among the k nearest neighbours, the share that both do",
        "1 = alike",
    ),
    Level(
        "Function",
        ("probe_source", "probe_target", "probe_transfer", "probe_transfer_aligned", "probe_agreement"),
        "the same use? share of held-out texts that get their right label: from a's own probe (source), from b's "
        "(target), from a's probe reading b (transfer), and that after a rotation (aligned); agreement: share on which "
        "a's probe says the same of both",
        "share of held-out texts",
    ),
)
# A thick line that others lie on is seen beneath them.
_LINES = (
    *(("#0072b2", "-", 3.4), ("#e69f00", "--", 2.6), ("#009e73", "-.", 2.0), ("#d55e00", ":", 1.8)),
    ("#b0568a", (0, (1, 1)), 1.4),
)
# Bands that would only lie on those of the other probes; the table has their intervals.
_NO_BAND = ("probe_target", "probe_transfer_aligned", "probe_agreement")


def comparison_table(comparison: Comparison) -> str:
    """First, middle and last layer of the measures of each level, with 95% intervals; then variants and notes."""
    lines = [_wrapped(text) for text in _heading(comparison.facts)]
    listed = [name for level in LEVELS for name in level.names if name in comparison.measures]
    if "cka" in listed and "cka_biased" in listed:
        listed.remove("cka_biased")  # a variant, where there is the debiased form
    for level in LEVELS:
        curves = {name: comparison.measures[name] for name in level.names if name in listed}
        if curves:
            lines += ["", *curve_lines(curves, level.title), _wrapped(f"  {level.reading}")]
    others = {name: curve for name, curve in comparison.measures.items() if name not in listed}
    if others:
        lines += ["", _variants(others)]
    lines += ["", *_remarks(comparison)]
    return "\n".join(lines).strip("\n")


def curve_lines(curves: Mapping[str, Curve], title: str = "measure") -> list[str]:
    """Two lines a curve: values at the first, middle and last layer and chance, and their 95% intervals below."""
    layers = max((curve.layers for curve in curves.values()), key=len)
    places = list(dict.fromkeys(layers[i] for i in (0, len(layers) // 2, len(layers) - 1)))
    columns = [f"layer {layer}" for layer in places]
    lines = [_row(title, columns, "chance")]
    lines.append("-" * len(lines[0]))
    for name, curve in curves.items():
        at = [curve.layers.index(layer) if layer in curve.layers else None for layer in places]
        values = [_number(curve.value[i]) if i is not None else "" for i in at]
        chance = None if curve.chance is None else np.broadcast_to(curve.chance, curve.value.shape)[-1]
        lines.append(_row(name, [value or "-" for value in values], "" if chance is None else _number(chance)))
        ends = [None if i is None or curve.interval95 is None else curve.interval95[i] for i in at]
        if any(pair is not None and np.isfinite(pair).all() for pair in ends):
            lines.append(_row("", [_interval(pair) for pair in ends], ""))
    return lines


def comparison_figure(comparison: Comparison) -> Any:
    """A matplotlib figure: the measured levels, curves with their bands, and CKA of all layer pairs."""
    from matplotlib.figure import Figure

    levels = []
    for level in LEVELS:
        found = {name: comparison.measures[name] for name in level.names if name in comparison.measures}
        curves = {name: curve for name, curve in found.items() if np.isfinite(curve.value).any()}
        if "cka" in curves:
            curves.pop("cka_biased", None)  # as in the table
        if curves:
            levels.append((level, curves))
    matrix = comparison.matrices.get("cka_matrix", comparison.matrices.get("cka_matrix_biased"))
    count = max(1, len(levels) + (matrix is not None))
    columns = count if count < 4 else 2
    rows = -(-count // columns)
    figure = Figure(figsize=(5 * columns, 4 * rows + 0.5), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, (level, curves) in zip(axes, levels, strict=False):
        _draw(axis, level, curves)
    if matrix is not None:
        image = axes[count - 1].imshow(matrix, origin="lower", vmin=0, vmax=1, cmap="viridis")
        axes[count - 1].set(title="CKA of all layer pairs", xlabel="layer of b", ylabel="layer of a")
        figure.colorbar(image, ax=axes[count - 1])
    heading = [*_heading(comparison.facts, 44), *_not_measured(comparison)]
    fitted = [textwrap.fill(text, 48 * columns, break_on_hyphens=False) for text in heading]
    figure.suptitle("\n".join(fitted), fontsize="medium", parse_math=False)
    return figure


def _heading(facts: Mapping[str, Any], room: int | None = None) -> list[str]:
    """Which models, in names of `room` characters at most, and over what."""
    models = facts.get("models") or {}
    named = [f"{side} = {clipped(models[side], room or len(models[side]))}" for side in ("a", "b") if models.get(side)]
    over = []
    if {"rows", "texts"} <= facts.keys():
        of = "texts" if facts.get("level") == "texts" else f"tokens of {facts['texts']} texts"
        out = f" ({facts['rows_left_out']} sink tokens left out)" if facts.get("rows_left_out") else ""
        over = [f"{facts['rows']} {of}{out}; 95% intervals over texts"]
    return ["; ".join(named)] * bool(named) + over


def _not_measured(comparison: Comparison) -> Iterable[str]:
    missing = [level.title.lower() for level in LEVELS if not any(name in comparison.measures for name in level.names)]
    if missing == ["function"] and not any(name.startswith("probe") for name in comparison.refused):
        return ["function: not measured, for want of labels (one class a text)"]
    return [f"not measured: {', '.join(missing)}"] if missing else []


def _variants(curves: Mapping[str, Curve]) -> str:
    """One paragraph: the other measures at the middle of their layers."""
    found: dict[int, list[str]] = {}
    for name, curve in curves.items():
        place = len(curve.layers) // 2
        found.setdefault(curve.layers[place], []).append(f"{name} {_number(curve.value[place]) or '-'}")
    at = [f"layer {layer}: {', '.join(texts)}" for layer, texts in found.items()]
    return _wrapped(f"Variants and checks (intervals in .measures and results.json), {'; '.join(at)}")


def _remarks(comparison: Comparison) -> list[str]:
    """What was refused, by reason; where a measure is not defined; and the notes."""
    reasons: dict[str, list[str]] = {}
    for name, why in comparison.refused.items():
        reasons.setdefault(why, []).append(name)
    lines = [_wrapped(f"refused  {', '.join(names)}: {why}") for why, names in reasons.items()]
    undefined: dict[tuple[int, ...], list[str]] = {}
    for name, curve in comparison.measures.items():
        layers = tuple(layer for layer, value in zip(curve.layers, curve.value, strict=True) if not np.isfinite(value))
        if layers:
            undefined.setdefault(layers, []).append(name)
    for layers, names in undefined.items():
        untold = [name for name in names if not any(note.startswith(f"{name} ") for note in comparison.notes)]
        if untold:
            lines.append(_wrapped(f"note  not defined at layer {layer_ranges(layers)}: {', '.join(untold)}"))
    lines += [_wrapped(f"note  {note}") for note in (*_not_measured(comparison), *comparison.notes)]
    return lines


def clipped(name: str, room: int) -> str:
    """A name within `room` characters: the end of a longer one, where paths differ."""
    return name if len(name) <= room else f"...{name[3 - room :]}"


def layer_ranges(numbers: Sequence[int]) -> str:
    """Layers as people read them: `0-3, 7`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _row(name: str, cells: Sequence[str], chance: str) -> str:
    start = name.ljust(_NAME)
    if len(name) >= _NAME:  # a line of its own
        start = f"{name}\n{' ' * _NAME}"
    return (start + "".join(cell.rjust(_CELL) for cell in cells) + chance.rjust(_CHANCE)).rstrip()


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else ""


def _interval(pair: np.ndarray | None) -> str:
    if pair is None or not np.isfinite(pair).all():
        return ""
    return f"[{pair[0]:.3f}, {pair[1]:.3f}]"


def _wrapped(text: str) -> str:
    indent = " " * (len(text) - len(text.lstrip()))
    more = "" if indent else "  "
    return textwrap.fill(text, WIDTH, subsequent_indent=indent + more, break_long_words=False, break_on_hyphens=False)


def _draw(axis: Any, level: Level, curves: Mapping[str, Curve]) -> None:
    for (name, curve), (colour, style, width) in zip(curves.items(), _LINES, strict=False):
        axis.plot(
            curve.layers,
            curve.value,
            color=colour,
            linestyle=style,
            linewidth=width,
            marker="." if len(curve.layers) == 1 else "",
            label=name.replace("_", " "),
        )
        if curve.interval95 is not None and name not in _NO_BAND:
            axis.fill_between(curve.layers, *curve.interval95.T, color=colour, alpha=0.2, linewidth=0)
    axis.set(title=level.title, xlabel="layer (0 = embeddings)", ylabel=level.axis)
    axis.set_ylim(top=max(1.02, axis.get_ylim()[1]))
    axis.legend(fontsize="small")

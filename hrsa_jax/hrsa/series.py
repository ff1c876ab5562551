"""One pair seen many times: by label of the texts, and over snapshots of training. When, and where, does what move?

A full `compare` at every point would cost minutes each; here a few measures of matching layers stand for the levels:
correlation, CKA over different texts, and k-NN overlap. L layers, N rows, G texts, S snapshots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hrsa_jax.hrsa import curves_geometry as geometry
from hrsa_jax.hrsa.curves_representation import PairRows, correlation_curve
from hrsa_jax.hrsa.display import WIDTH, clipped
from hrsa_jax.hrsa.results import Comparison, Curve
from hrsa_jax.hrsa.states import TokenStates, check_same_rows, shared_row_mask, unit_rms_rows
from hrsa_jax.hrsa.uncertainty import text_codes
from hrsa_jax.runtime.logging import counted

KS = (5, 10)
FEWEST_TEXTS = 8


def compare_quickly(a: TokenStates, b: TokenStates, *, row_mask: np.ndarray | None = None, seed: int = 0) -> Comparison:
    """correlation, cka (different texts) and knn_5, knn_10 of matching layers with their intervals.

    row_mask: (N,) bool, rows to keep (default: no sinks of either model). Raises as `analysis.compare`; ValueError for
    unequal depths or fewer than 8 texts.
    """
    check_same_rows(a, b)
    if a.num_layers != b.num_layers:
        raise ValueError(f"a has {a.num_layers} states and b has {b.num_layers}; matching layers need equal counts")
    keep = shared_row_mask(a, b) if row_mask is None else np.asarray(row_mask, bool)
    codes, num_texts = text_codes(a.groups_N[keep], int(keep.sum()))
    if num_texts < FEWEST_TEXTS:
        raise ValueError(f"a holds rows of {num_texts} texts; intervals over texts need at least {FEWEST_TEXTS}")
    x, y = unit_rms_rows(a.states_LND, keep), unit_rms_rows(b.states_LND, keep)
    pair = PairRows(x, y, codes, num_texts, None)
    result = Comparison({}, {}, facts={"rows": pair.num_rows, "texts": num_texts, "seed": seed})
    if a.width == b.width:
        result.measures["correlation"] = correlation_curve(pair, careful=True)
    else:
        result.refused["correlation"] = f"needs equal widths, the models have {a.width} and {b.width}"
    result.measures["cka"] = geometry.cka_curve(pair)
    ks = [k for k in KS if k < pair.num_rows // 2]
    result.measures.update(geometry.knn_curves(pair, ks, careful=True, seed=seed)[0])
    return result


def compare_by_label(
    a: TokenStates,
    b: TokenStates,
    labels: Mapping[int, Any] | Sequence[Any],
    *,
    row_mask: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[dict[str, Comparison], list[str]]:
    """`compare_quickly` on the texts of each label (easy, moderate, hard; or a domain), and notes on labels left out.

    labels: the label of text g (as `groups_N` numbers it). One row mask serves all labels. Sizes differ between labels
    and k-NN overlap depends on size: read each against its own chance level.
    """
    keep = shared_row_mask(a, b) if row_mask is None else np.asarray(row_mask, bool)
    of_row = np.array([str(labels[int(group)]) for group in a.groups_N])
    found, notes = {}, []
    for label in sorted(set(of_row.tolist())):
        rows = keep & (of_row == label)
        count = len(np.unique(a.groups_N[rows]))
        if count < FEWEST_TEXTS:
            notes.append(
                f"label {label!r} has {counted(count, 'text')}, too few for intervals (at least {FEWEST_TEXTS})"
            )
            continue
        found[label] = compare_quickly(a, b, row_mask=rows, seed=seed)
    return found, notes


@dataclass(frozen=True)
class Trajectory:
    """Comparisons of snapshots with one reference, in order; names are the snapshots' (steps, or files)."""

    names: tuple[str, ...]
    comparisons: tuple[Comparison, ...]

    def values(self, measure: str) -> np.ndarray:
        """(S, L) of one measure."""
        return np.stack([comparison.measures[measure].value for comparison in self.comparisons])

    def to_json(self) -> dict[str, Any]:
        """{snapshot: results.json fragment}."""
        pairs = zip(self.names, self.comparisons, strict=True)
        return {name: comparison.to_json() for name, comparison in pairs}

    def table(self) -> str:
        """Mean over layers of every measure, one line a snapshot."""
        names = list(self.comparisons[0].measures)
        sizes = [max(len(name), len("-0.000")) for name in names]
        room = max(12, WIDTH - sum(sizes) - 2 * len(sizes))
        shown = [clipped(name, room) for name in self.names]
        rows = [names] + [[_mean_text(found.measures[name]) for name in names] for found in self.comparisons]
        width = max(map(len, ["snapshot", *shown]))
        return "\n".join(
            "  ".join([first.ljust(width), *(cell.rjust(size) for cell, size in zip(row, sizes, strict=True))])
            for first, row in zip(["snapshot", *shown], rows, strict=True)
        )

    def plot(self) -> Any:
        """A matplotlib figure: snapshots x layers of every measure, one colour scale that ends at 1."""
        from matplotlib.figure import Figure

        names = list(self.comparisons[0].measures)
        lowest = np.nanmin([np.nanmin(self.values(name), initial=1.0) for name in names])
        scale = {"vmin": float(np.clip(np.floor(10 * lowest) / 10, 0.0, 0.9)), "vmax": 1.0, "cmap": "viridis"}
        figure = Figure(figsize=(3.2 * len(names) + 1.4, 3.4), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
        for axis, name in zip(axes, names, strict=True):
            image = axis.imshow(self.values(name), origin="lower", aspect="auto", **scale)
            axis.set(title=name.replace("_", " "), xlabel="layer")
        axes[0].set_yticks(range(len(self.names)), [clipped(name, 24) for name in self.names])
        figure.colorbar(image, ax=axes[-1]).set_label("similarity to the reference (1 = alike)")
        return figure


def trajectory(
    snapshots: Mapping[str, TokenStates], *, reference: TokenStates | None = None, seed: int = 0
) -> Trajectory:
    """Each snapshot against the reference (default: the first snapshot), all on the same rows.

    snapshots: states of one model along conversion or tuning, in order. The mask leaves out the sinks of any of them,
    so that a sink that moves during training does not look like a change of the rest.
    """
    if not snapshots:
        raise ValueError("snapshots is empty; give at least one")
    start = next(iter(snapshots.values())) if reference is None else reference
    mask = shared_row_mask(start, *snapshots.values())
    found = tuple(compare_quickly(start, states, row_mask=mask, seed=seed) for states in snapshots.values())
    return Trajectory(tuple(snapshots), found)


def _mean_text(curve: Curve) -> str:
    """The mean of the layers that have a value."""
    finite = curve.value[np.isfinite(curve.value)]
    return f"{finite.mean():.3f}" if len(finite) else "-"

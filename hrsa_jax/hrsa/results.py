"""What a comparison returns: curves over layers with intervals, matrices over layer pairs, and what was refused."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Curve:
    """One measure over layers.

    layers: layer numbers (0 = embeddings). value (len(layers),), NaN where it is not defined. interval95
    (len(layers), 2) or None. method: what was computed and what the interval covers, in words. replicates
    (R, len(layers)): the value on subsets of the texts, by `resampling`: "delete-one-text" or "half-samples";
    two curves made on the same texts have matching subsets, so that their difference has an interval too.
    chance: what unrelated models score, (len(layers),) or one number.
    """

    layers: tuple[int, ...]
    value: np.ndarray
    interval95: np.ndarray | None
    method: str
    replicates: np.ndarray | None = None
    chance: np.ndarray | float | None = None
    resampling: str | None = None

    def to_json(self) -> dict[str, Any]:
        """layers, value, interval95, method, chance; NaN is None."""
        return {
            "layers": list(self.layers),
            "value": plain(self.value),
            "interval95": plain(self.interval95),
            "method": self.method,
            "chance": plain(self.chance),
        }


@dataclass(frozen=True)
class Comparison:
    """measures and matrices (L_a, L_b) by name, notes in words, refused {measure: why}, facts (counts, settings)."""

    measures: dict[str, Curve]
    matrices: dict[str, np.ndarray]
    notes: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The results.json fragment of one pair: measures and matrices by name, then notes, refused, facts."""
        result: dict[str, Any] = {name: curve.to_json() for name, curve in self.measures.items()}
        for name, matrix in self.matrices.items():
            rows, columns = matrix.shape
            result[name] = {
                "layers_a": list(range(rows)),
                "layers_b": list(range(columns)),
                "value": plain(matrix),
            }
        return result | {"notes": list(self.notes), "refused": dict(self.refused), "facts": plain(self.facts)}

    def table(self) -> str:
        """First, middle and last layer of every measure with 95% intervals, as text; then notes and refusals."""
        header = ("measure", "first layer", "middle layer", "last layer", "chance")
        rows = [header] + [self._row(name, curve) for name, curve in self.measures.items()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "-" * max(map(len, lines)))
        lines += [f"refused  {name}: {why}" for name, why in self.refused.items()]
        lines += [f"note  {note}" for note in self.notes]
        return "\n".join(lines)

    @staticmethod
    def _row(name: str, curve: Curve) -> tuple[str, ...]:
        cells = []
        for place in (0, len(curve.layers) // 2, len(curve.layers) - 1):
            text = f"h{curve.layers[place]} {curve.value[place]:.3f}"
            if curve.interval95 is not None and np.isfinite(curve.interval95[place]).all():
                low, high = curve.interval95[place]
                text += f" [{low:.3f}, {high:.3f}]"
            cells.append(text)
        chance = "" if curve.chance is None else f"{np.broadcast_to(curve.chance, curve.value.shape)[-1]:.3f}"
        return (name, *cells, chance)

    def plot(self) -> Any:
        """A matplotlib figure: curves of the three levels with their bands, and CKA of all layer pairs."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 7.5), layout="constrained")
        axes = figure.subplots(2, 2).ravel()
        panels = {
            "Representation": ("correlation", "procrustes_residual", "procrustes_cosine", "inverse_row_entropy"),
            "Geometry": ("cka", "cka_with_sinks", "knn_5", "knn_10", "knn_50"),
            "Function": ("probe_source", "probe_target", "probe_transfer", "probe_transfer_aligned"),
        }
        for axis, (title, names) in zip(axes, panels.items(), strict=False):
            self._draw(axis, title, [name for name in names if name in self.measures])
        matrix = self.matrices.get("cka_matrix", self.matrices.get("cka_matrix_biased"))
        if matrix is not None:
            image = axes[3].imshow(matrix, origin="lower", vmin=0, vmax=1, cmap="viridis")
            axes[3].set(title="CKA of all layer pairs", xlabel="layer of model b", ylabel="layer of model a")
            figure.colorbar(image, ax=axes[3])
        return figure

    def _repr_png_(self) -> bytes:
        """What a notebook shows of a comparison: the figure."""
        picture = io.BytesIO()
        self.plot().savefig(picture, format="png", dpi=90)
        return picture.getvalue()

    def _draw(self, axis: Any, title: str, names: Sequence[str]) -> None:
        for name in names:
            curve = self.measures[name]
            line = axis.plot(curve.layers, curve.value, marker=".", label=name.replace("_", " "))[0]
            if curve.interval95 is not None:
                axis.fill_between(curve.layers, *curve.interval95.T, color=line.get_color(), alpha=0.2, linewidth=0)
        axis.set(title=title, xlabel="layer (0 = embeddings)", ylabel="value")
        if names:
            axis.legend(fontsize="small")
        else:
            axis.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axis.transAxes)


def plain(value: Any) -> Any:
    """JSON-ready copy: arrays as lists, numpy scalars as numbers, NaN and infinities as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value

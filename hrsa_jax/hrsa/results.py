"""What a comparison returns: curves over layers with intervals, matrices over layer pairs, and what was refused."""

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hrsa_jax.hrsa.display import comparison_figure, comparison_table


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
        """The measures of the three levels at the first, middle and last layer, with 95% intervals and how to read
        them, in 80 columns; then variants, what was refused, and notes."""
        return comparison_table(self)

    def plot(self) -> Any:
        """A matplotlib figure: curves of the levels that were measured with their bands, and CKA of all layer pairs."""
        return comparison_figure(self)

    def _repr_png_(self) -> bytes:
        """What a notebook shows of a comparison: the figure."""
        picture = io.BytesIO()
        self.plot().savefig(picture, format="png", dpi=90)
        return picture.getvalue()


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

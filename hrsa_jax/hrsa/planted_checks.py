"""Planted truths put through the measures at run time: does this installation diagnose what is known?

The tests hold every measure to tighter bounds; here a report can say that the code that made its numbers, on its
machine, told rotated, permuted, reshuffled, moved, identical and unrelated pairs apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hrsa_jax.hrsa import geometry
from hrsa_jax.hrsa import representation as rep
from hrsa_jax.hrsa.controls import Planted, PlantedKind, planted

N, D, K = 512, 16, 10

# Bounds (low, high) that the truth demands, at N rows of D numbers.
_EXPECTED: dict[PlantedKind, tuple[str, dict[str, tuple[float, float]]]] = {
    "identical": (
        "everything 1, residual 0",
        {"correlation": (0.999, 1.001), "residual": (-0.001, 0.001), "cka": (0.999, 1.001), "knn": (0.999, 1.001)},
    ),
    "rotated": (
        "another basis: correlation near 0, residual 0, CKA and k-NN 1",
        {"correlation": (-0.3, 0.3), "residual": (-0.001, 0.001), "cka": (0.999, 1.001), "knn": (0.99, 1.001)},
    ),
    "permuted": (
        "axes renamed: row entropy of the map 1, CKA 1",
        {"row_entropy": (0.999, 1.001), "cka": (0.999, 1.001), "residual": (-0.001, 0.001)},
    ),
    "local_reshuffle": ("global shape kept, neighbours lost", {"cka": (0.999, 1.001), "knn": (0.0, 0.15)}),
    "global_move": ("neighbours kept, global shape lost", {"cka": (-0.02, 0.05), "knn": (0.99, 1.001)}),
    "independent": ("nothing shared: everything at chance", {"cka": (-0.05, 0.05), "knn": (0.0, 0.05)}),
}


@dataclass(frozen=True)
class PlantedCheck:
    """name: of the planted pair. expected: its truth in words. found: measures. holds: all within their bounds."""

    name: str
    expected: str
    found: dict[str, float]
    holds: bool


def check_planted(*, seed: int = 0) -> list[PlantedCheck]:
    """Measures of planted pairs (HRSA.md, "Planted truths") against the bounds that their truth demands."""
    checks = []
    for kind, (expected, bounds) in _EXPECTED.items():
        found = _measured(planted(kind, N, D, seed=seed))
        holds = all(low <= found[name] <= high for name, (low, high) in bounds.items())
        checks.append(PlantedCheck(kind.replace("_", " "), expected, found, holds))
    return checks


def _measured(pair: Planted) -> dict[str, float]:
    x, y, half = pair.x, pair.y, len(pair.x) // 2
    fit = rep.orthogonal_procrustes(x[:half], y[:half])
    return {
        "correlation": float(np.nanmean(rep.dimension_correlation(x, y))),
        "residual": float(rep.procrustes_residual(fit, x[half:], y[half:])),
        "row_entropy": float(np.mean(rep.inverse_row_entropy(fit.map))),
        "cka": float(geometry.linear_cka(x, y, groups=pair.groups)),
        "knn": float(np.mean(geometry.knn_overlap(x - x.mean(0), y - y.mean(0), (K,))[K])),
    }

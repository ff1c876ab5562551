"""From backbones to embedding models: did the pair move closer, and how far towards the seed ceiling?

All comparisons must be on the same texts and rows; then their replicates (the value on subsets of the texts) match,
and differences and ratios have paired intervals.
"""

from __future__ import annotations

import numpy as np

from hrsa_jax.hrsa.results import Comparison, Curve
from hrsa_jax.hrsa.uncertainty import half_sample_interval, jackknife_interval


def realignment_gap(backbones: Comparison, embs: Comparison) -> dict[str, Curve]:
    """Emb minus backbone for every measure that both comparisons have, on the layers they share.

    Where both carry values on the same subsets of the same texts, the interval is that of the paired difference.
    """
    gaps = {}
    for name in backbones.measures:
        found = _shared((backbones, embs), name)
        if found is None:
            continue
        layers, (before, after), replicates, resampling = found
        value = after - before
        if replicates is None:
            gaps[name] = Curve(layers, value, None, "Emb minus backbone; no paired replicates, so no interval")
            continue
        spread = replicates[1] - replicates[0]
        method = f"Emb minus backbone, paired by text ({resampling})"
        gaps[name] = Curve(layers, value, _interval(value, spread, resampling), method, spread, 0.0, resampling)
    return gaps


def realignment_index(backbones: Comparison, embs: Comparison, ceiling: Comparison) -> dict[str, Curve]:
    """R = (S_Emb - S_backbone) / (S_ceiling - S_backbone): 0 = no realignment, 1 = as close as two seeds are.

    ceiling: two embedding models of one backbone that differ by their seed only. A layer is NaN where the interval of
    S_ceiling - S_backbone does not lie above 0 (there is no way to go); a measure without any layer, or without
    paired replicates, is left out. Measures where small means alike (residual) are turned round.
    """
    found = {}
    for name in backbones.measures:
        shared = _shared((backbones, embs, ceiling), name)
        if shared is None:
            continue
        layers, (before, after, top), replicates, resampling = shared
        if replicates is None:
            continue
        sign = -1.0 if name == "procrustes_residual" else 1.0
        way, ways = sign * (top - before), sign * (replicates[2] - replicates[0])
        open_way = _interval(way, ways, resampling)[:, 0] > 0
        if not open_way.any():
            continue
        ratio = np.where(open_way, sign * (after - before) / np.where(open_way, way, 1.0), np.nan)
        ratios = sign * (replicates[1] - replicates[0]) / np.where(open_way, ways, np.nan)
        method = "(Emb - backbone) / (seed ceiling - backbone), paired by text; only where the ceiling is higher"
        interval = _interval(ratio, ratios, resampling)
        found[name] = Curve(layers, ratio, interval, f"{method} ({resampling})", ratios, 0.0, resampling)
    return found


def _interval(value: np.ndarray, replicates: np.ndarray, resampling: str | None) -> np.ndarray:
    if resampling == "half-samples":
        return half_sample_interval(value, replicates)
    return jackknife_interval(value, replicates)


def _shared(
    comparisons: tuple[Comparison, ...], name: str
) -> tuple[tuple[int, ...], list[np.ndarray], list[np.ndarray] | None, str | None] | None:
    """Layers, values and matching replicates of a measure in all comparisons; None where they share nothing."""
    curves = [comparison.measures.get(name) for comparison in comparisons]
    present = [curve for curve in curves if curve is not None]
    if len(present) < len(curves):
        return None
    layers = tuple(layer for layer in present[0].layers if all(layer in curve.layers for curve in present))
    if not layers:
        return None
    places = [[curve.layers.index(layer) for layer in layers] for curve in present]
    values = [curve.value[place] for curve, place in zip(present, places, strict=True)]
    replicates = [
        curve.replicates[:, place] for curve, place in zip(present, places, strict=True) if curve.replicates is not None
    ]
    paired = (
        len(replicates) == len(present)
        and len({len(draws) for draws in replicates}) == 1
        and len({curve.resampling for curve in present}) == 1
    )
    return layers, values, replicates if paired else None, present[0].resampling

"""Representation-level curves of one comparison: correlation, held-out Procrustes, inverse row entropy.

L matching layers, N rows of G texts, D width. `PairRows` is what all token-level measures of a comparison share.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np

from hrsa_jax.hrsa.controls import isotropic_noise
from hrsa_jax.hrsa.display import layer_ranges
from hrsa_jax.hrsa.inputs import matmul
from hrsa_jax.hrsa.knn_texts import halves_of_texts
from hrsa_jax.hrsa.representation import (
    dimension_correlation_matrix,
    inverse_row_entropy,
    inverse_row_entropy_haar,
    orthogonal_procrustes,
)
from hrsa_jax.hrsa.results import Curve
from hrsa_jax.hrsa.uncertainty import (
    correlation_jackknife,
    half_sample_interval,
    jackknife_interval,
    ratio_replicates,
    text_sums,
)

HALF_SAMPLES = 8


@dataclass(frozen=True)
class PairRows:
    """Both models' unit-RMS rows (L, N, D), each row's text as 0..G-1, and its token id where there is one."""

    x_LND: np.ndarray
    y_LND: np.ndarray
    codes_N: np.ndarray
    num_texts: int
    token_ids_N: np.ndarray | None

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(range(len(self.x_LND)))

    @property
    def num_rows(self) -> int:
        return self.x_LND.shape[1]

    @cached_property
    def row_counts(self) -> np.ndarray:
        """Rows of each text (G,)."""
        return np.bincount(self.codes_N, minlength=self.num_texts).astype(float)

    def subset(self, layers: tuple[int, ...]) -> "PairRows":
        """The same rows of a few layers."""
        chosen = list(layers)
        return replace(self, x_LND=self.x_LND[chosen], y_LND=self.y_LND[chosen])


def jackknifed(
    layers: tuple[int, ...], value: Any, replicates: Any, method: str, chance: Any = None, *, careful: bool = True
) -> Curve:
    """A curve whose interval is the delete-one-text jackknife; without interval and replicates unless careful."""
    value, replicates = np.asarray(value, np.float64), np.asarray(replicates, np.float64)
    if not careful:
        return Curve(layers, value, None, method, chance=chance)
    method += "; 95% by delete-one-text jackknife, t quantiles"
    interval = jackknife_interval(value, replicates)
    return Curve(layers, value, interval, method, replicates, chance, "delete-one-text")


def correlation_curve(pair: PairRows, *, careful: bool) -> Curve:
    """Mean dimension-wise correlation of matching layers."""
    value, replicates = correlation_jackknife(pair.x_LND, pair.y_LND, pair.codes_N)
    method = "mean Pearson r over dimensions that vary in both models"
    return jackknifed(pair.layers, value, replicates, method, 0.0, careful=careful)


def correlation_matrix(x_LND: np.ndarray, y_MND: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Mean correlation of all layer pairs (L, M); degenerate dimensions and the last layers' histogram as facts."""
    r_LMD = np.asarray(dimension_correlation_matrix(x_LND, y_MND))
    degenerate = np.isnan(r_LMD)
    counts = (~degenerate).sum(2)
    mean = np.where(counts > 0, np.where(degenerate, 0, r_LMD).sum(2) / np.maximum(counts, 1), np.nan)
    last = r_LMD[-1, -1]
    histogram, edges = np.histogram(last[~np.isnan(last)], bins=20, range=(-1, 1))
    diagonal = range(min(degenerate.shape[:2]))
    facts = {
        "degenerate_dimensions": [int(degenerate[i, i].sum()) for i in diagonal],
        "correlation_histogram_last_layer": {"edges": edges, "count": histogram},
    }
    return mean, facts


def procrustes_curves(
    pair: PairRows, *, careful: bool, seed: int, control_layers: tuple[int, ...]
) -> tuple[dict[str, Curve], dict[str, Any], list[str]]:
    """procrustes_residual, procrustes_cosine, inverse_row_entropy and its noise control; facts; notes.

    Careful: two maps a layer, each fitted on half of the texts and scored on the other half. Otherwise one map,
    fitted and scored on all rows as published.
    """
    first = halves_of_texts(pair.num_texts, draws=2, seed=seed)[0] if careful else np.ones(pair.num_texts, bool)
    splits = ((first, ~first), (~first, first)) if careful else ((first, first),)
    layers = pair.layers
    scored = {name: np.zeros((len(layers), pair.num_rows)) for name in ("error", "total", "cosine")}
    entropies, identified, ranks = np.full((len(splits), len(layers)), np.nan), [], []
    for place in range(len(layers)):
        x, y = pair.x_LND[place], pair.y_LND[place]
        for number, (fitting, scoring) in enumerate(splits):
            rows, others = fitting[pair.codes_N], scoring[pair.codes_N]
            fit = orthogonal_procrustes(x[rows], y[rows])
            for values, name in zip(_score(fit, x[others], y[others]), scored, strict=True):
                scored[name][place, others] = values
            entropies[number, place] = _entropy(fit, int(rows.sum()))
        identified.append(bool(np.isfinite(entropies[:, place]).all()))
        ranks.append(int(fit.rank))
    sums = {name: text_sums(values, pair.codes_N, pair.num_texts) for name, values in scored.items()}
    residual, residual_without = ratio_replicates(sums["error"], sums["total"])
    cosine, cosine_without = ratio_replicates(
        sums["cosine"], np.broadcast_to(pair.row_counts[:, None], sums["cosine"].shape)
    )
    how = "map fitted on half of the texts, scored on the other" if careful else "fitted and scored on all rows"
    curves = {
        "procrustes_residual": jackknifed(
            layers, residual, residual_without, f"residual variance ratio at unit RMS; {how}", careful=careful
        ),
        "procrustes_cosine": jackknifed(
            layers, cosine, cosine_without, f"mean cosine of mapped and target rows; {how}", 0.0, careful=careful
        ),
    }
    rows_fitted = int(splits[0][0][pair.codes_N].sum())
    facts = {"procrustes_rows": rows_fitted, "procrustes_identified": identified, "procrustes_rank": ranks}
    entropy, control, by_rows, notes = _entropy_curves(
        pair, entropies.mean(0), residual, splits[0][0], careful=careful, seed=seed, control_layers=control_layers
    )
    curves["inverse_row_entropy"] = entropy
    if control is not None:
        curves["inverse_row_entropy_noise_control"] = control
    return curves, facts | {"inverse_row_entropy_by_rows": by_rows}, notes


@jax.jit
def _score(fit: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
    """Squared error, squared size and cosine of each row, centred by the fit's means."""
    mapped, target = matmul(x - fit.mean_x, fit.map), y - fit.mean_y
    sizes = jax.numpy.sqrt((mapped**2).sum(1) * (target**2).sum(1))
    return ((mapped - target) ** 2).sum(1), (target**2).sum(1), (mapped * target).sum(1) / sizes


def _entropy(fit: Any, rows: int) -> float:
    """Mean inverse row entropy, NaN when the rows do not identify the map."""
    if rows <= max(fit.map.shape) or not bool(fit.identified):
        return float("nan")
    return float(np.mean(np.asarray(inverse_row_entropy(fit.map))))


def _entropy_curves(
    pair: PairRows,
    entropy: np.ndarray,
    residual: np.ndarray,
    fitting: np.ndarray,
    *,
    careful: bool,
    seed: int,
    control_layers: tuple[int, ...],
) -> tuple[Curve, Curve | None, dict[str, dict[str, float]], list[str]]:
    """The entropy curve with its half-sample interval, the isotropic-noise control, the n-curve, notes."""
    layers, width = pair.layers, max(pair.x_LND.shape[2], pair.y_LND.shape[2])
    rows = int(fitting[pair.codes_N].sum())
    method = f"1 = axes match up to order and sign; maps of about {rows} rows, comparable only at equal n"
    haar = inverse_row_entropy_haar(pair.y_LND.shape[2])
    notes = []
    if not np.isfinite(entropy).all():
        missing = [layer for layer, value in zip(layers, entropy, strict=True) if not np.isfinite(value)]
        notes.append(
            f"inverse_row_entropy is not given at layer {layer_ranges(missing)}: {rows} rows do not identify a map "
            f"of {width} dimensions there"
        )
    if not careful:
        return Curve(layers, entropy, None, method, chance=haar), None, {}, notes
    places = [layers.index(layer) for layer in control_layers if np.isfinite(entropy[layers.index(layer)])]
    halves = np.full((HALF_SAMPLES, len(layers)), np.nan)
    control, by_rows = np.full(len(layers), np.nan), {}
    members = np.flatnonzero(fitting)
    keep = halves_of_texts(len(members), draws=HALF_SAMPLES, seed=seed + 1) if len(members) >= 4 else None
    for place in places:
        x, y = pair.x_LND[place], pair.y_LND[place]
        chosen = np.flatnonzero(fitting[pair.codes_N])
        control[place] = _noise_control(x[chosen], residual[place], seed)
        if keep is None:
            continue
        parts = [np.flatnonzero(np.isin(pair.codes_N, members[half])) for half in keep]
        halves[:, place] = [_entropy(orthogonal_procrustes(x[part], y[part]), len(part)) for part in parts]
        mean_rows = int(np.mean([len(part) for part in parts]))
        by_rows[str(layers[place])] = {str(mean_rows): float(halves[:, place].mean()), str(rows): float(entropy[place])}
    interval = half_sample_interval(entropy, halves)
    if places and not np.isfinite(halves[:, places]).any():
        notes.append("inverse_row_entropy has no interval: half of the fitted texts do not identify the maps")
    method += (
        f"; 95% by the spread over {HALF_SAMPLES} half-samples of the fitted texts, at layers {list(control_layers)}"
    )
    curve = Curve(layers, entropy, interval, method, halves, haar, "half-samples")
    noise = Curve(
        tuple(layers[place] for place in places),
        control[places],
        None,
        "what isotropic noise of equal residual scores WITHOUT any rotation, at the same n",
        chance=haar,
    )
    return curve, noise if places else None, by_rows, notes


def _noise_control(x: np.ndarray, residual: float, seed: int) -> float:
    """Entropy of the map from x to x plus isotropic noise that leaves the same residual variance ratio."""
    if not 0 < residual < 1:
        return float("nan")
    noisy = isotropic_noise(x, residual / (1 - residual), seed=seed)
    return _entropy(orthogonal_procrustes(x, noisy), len(x))

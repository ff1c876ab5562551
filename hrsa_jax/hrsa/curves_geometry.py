"""Geometry-level curves of one comparison: CKA and its variants, k-NN overlap and its variants."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hrsa_jax.hrsa.curves_representation import PairRows, jackknifed
from hrsa_jax.hrsa.geometry import (
    cka_jackknife,
    cka_matrix,
    cka_pass,
    cka_permutation_mean,
    knn_chance,
    nearest_neighbors,
    neighbor_overlap,
)
from hrsa_jax.hrsa.inputs import constant, matmul, unit_rms
from hrsa_jax.hrsa.knn_texts import halves_of_texts, knn_half_samples
from hrsa_jax.hrsa.results import Curve
from hrsa_jax.hrsa.uncertainty import half_sample_interval

KNN_HALF_SAMPLES = 24
LIST_FACTOR = 2.3  # listed neighbours per k: half of them must survive when half of the texts are left out
OTHER_TEXTS = "pairs of rows from different texts only"


def cka_curve(pair: PairRows, *, what: str = "") -> Curve:
    """Debiased CKA of matching layers over pairs of rows of different texts."""
    value, without = cka_jackknife(pair.x_LND, pair.y_LND, pair.codes_N)
    return jackknifed(pair.layers, value, without, f"debiased linear CKA, {OTHER_TEXTS}{what}", 0.0)


def cka_of_all_layers(
    x_LND: np.ndarray, y_MND: np.ndarray, codes_N: np.ndarray, *, careful: bool
) -> tuple[dict[str, np.ndarray], dict[str, Curve]]:
    """Matrices of all layer pairs and, for equal depths, the curves of matching layers, from one pass.

    cka_matrix_biased and cka_biased (with the mean over all row permutations); when careful also cka_matrix and
    cka: debiased, over different texts, with delete-one-text intervals.
    """
    if careful:
        found = cka_pass(x_LND, y_MND, codes_N)
        matrices = {"cka_matrix_biased": np.asarray(found.biased), "cka_matrix": np.asarray(found.texts)}
    else:
        matrices = {"cka_matrix_biased": np.asarray(cka_matrix(x_LND, y_MND, debiased=False))}
    if len(x_LND) != len(y_MND):
        return matrices, {}
    layers = tuple(range(len(x_LND)))
    curves = {}
    if careful:
        words = f"debiased linear CKA, {OTHER_TEXTS}"
        curves["cka"] = jackknifed(layers, found.curve, found.without, words, 0.0)
        chance = np.asarray(found.permutation_mean, np.float64)
    else:
        chance = np.array([float(cka_permutation_mean(x, y)) for x, y in zip(x_LND, y_MND, strict=True)])
    diagonal = np.diag(matrices["cka_matrix_biased"]).astype(float)
    curves["cka_biased"] = Curve(layers, diagonal, None, "biased linear CKA, as published", chance=chance)
    return matrices, curves


def cka_variants(pair: PairRows, layers: tuple[int, ...]) -> dict[str, Curve]:
    """cka_zscored and cka_top_pc_removed at a few layers."""
    chosen = pair.subset(layers)
    found = {}
    for name, change, words in (
        ("cka_zscored", _z_scored, ", every dimension at unit variance"),
        ("cka_top_pc_removed", _without_top_component, ", each side without its first principal component"),
    ):
        sides = [np.stack([np.asarray(change(x)) for x in side]) for side in (chosen.x_LND, chosen.y_LND)]
        changed = PairRows(sides[0], sides[1], pair.codes_N, pair.num_texts, None)
        curve = cka_curve(changed, what=words)
        found[name] = Curve(
            layers, curve.value, curve.interval95, curve.method, curve.replicates, 0.0, curve.resampling
        )
    return found


@jax.jit
def _z_scored(x: jax.Array) -> jax.Array:
    still = constant(x)
    return (x - x.mean(0)) / jnp.where(still, jnp.inf, x.std(0))


@jax.jit
def _without_top_component(x: jax.Array) -> jax.Array:
    x = unit_rms(x)
    axis = jnp.linalg.eigh(matmul(x.T, x))[1][:, -1]
    return x - matmul(x, axis)[:, None] * axis


def knn_curves(
    pair: PairRows,
    ks: Sequence[int],
    *,
    careful: bool,
    seed: int,
    suffix: str = "",
    groups_N: np.ndarray | None = None,
    layers: tuple[int, ...] | None = None,
    centred: bool = True,
) -> tuple[dict[str, Curve], dict[str, Any]]:
    """knn_K + suffix for every k, from one search a layer; hubness of both models at the middle k as a fact.

    groups_N: rows of one group are no neighbours of each other (texts, or token ids). The chance level is that of
    as many candidates as a row has on average. `pair` holds only the layers in `layers` when given.
    """
    layers = pair.layers if layers is None else layers
    candidates = pair.num_rows - 1
    if groups_N is not None:
        sizes = np.unique(groups_N, return_counts=True)[1]
        candidates = int(pair.num_rows - (sizes**2).sum() / pair.num_rows)
        available = pair.num_rows - sizes.max()
    else:
        available = candidates
    depth = min(int(np.ceil(LIST_FACTOR * max(ks))) if careful else max(ks), available)
    keep = halves_of_texts(pair.num_texts, draws=KNN_HALF_SAMPLES, seed=seed) if careful else None
    values, halves, skew = [], [], []
    middle = sorted(ks)[len(ks) // 2]
    for x, y in zip(pair.x_LND, pair.y_LND, strict=True):
        found = [np.asarray(nearest_neighbors(side, depth, groups=groups_N)) for side in (x, y)]
        overlap = neighbor_overlap(found[0][:, : max(ks)], found[1][:, : max(ks)], ks)
        values.append([float(overlap[k].mean()) for k in ks])
        skew.append([occurrence_skew(lists[:, :middle]) for lists in found])
        if keep is not None:
            halves.append(np.asarray(knn_half_samples(found[0], found[1], ks, pair.codes_N, keep)))
    method = "mean Jaccard overlap of the k nearest rows by cosine, " + ("centred" if centred else "as they are")
    method += "" if groups_N is None else ", own group excluded"
    curves = {}
    for place, k in enumerate(ks):
        value = np.array(values)[:, place]
        chance = knn_chance(candidates + 1, k)[1]
        if not careful:
            curves[f"knn_{k}{suffix}"] = Curve(layers, value, None, method, chance=chance)
            continue
        spread = np.stack([layer[:, place] for layer in halves], 1)  # (H, L)
        words = f"{method}; 95% by the spread over {KNN_HALF_SAMPLES} half-samples of the texts"
        interval = np.clip(half_sample_interval(value, spread, degrees=pair.num_texts - 1), 0.0, 1.0)  # shares
        curves[f"knn_{k}{suffix}"] = Curve(layers, value, interval, words, spread, chance, "half-samples")
    return curves, {f"hubness_{middle}{suffix}": {"layers": list(layers), "a_and_b": skew}}


def occurrence_skew(lists_NK: np.ndarray) -> float:
    """Skewness of how often each row is listed as a neighbour; NaN when all occur equally often."""
    counts = np.bincount(lists_NK.ravel(), minlength=len(lists_NK)) - lists_NK.shape[1]
    variance = np.mean(counts**2)
    return float(np.mean(counts**3.0) / variance**1.5) if variance > 0 else float("nan")

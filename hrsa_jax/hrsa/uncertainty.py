"""Intervals and null levels whose independent unit is the text, never the token (HRSA.md, "Uncertainty").

G texts (groups), L layers, N samples (rows), D dimensions. Which interval goes with which measure was settled by
simulation with dependent tokens (tests/hrsa/test_uncertainty.py):

    CKA (same-text pairs left out)          delete-one-text jackknife, t quantiles
    mean correlation                        delete-one-text jackknife, t quantiles
    Procrustes residual, cosine (held out)  delete-one-text jackknife over the scored texts, the map fixed
    k-NN overlap                            spread over half-samples of the texts (knn_texts.py)
    probe accuracies                        Wilson score interval with the texts' effective number, the probes fixed
    inverse row entropy                     spread over half-samples of the texts

Token-level or percentile bootstraps of CKA are not offered as intervals: they cover 8-25%.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hrsa_jax.hrsa.inputs import centre, constant, power_of_two, to_pair
from hrsa_jax.hrsa.neighbors import neighbor_overlap

Statistic = Callable[[Any, Any], ArrayLike]


def text_codes(groups: ArrayLike, num_rows: int) -> tuple[np.ndarray, int]:
    """Each row's text as 0..G-1 (in sorted order of the labels) and G. ValueError below two texts."""
    labels = np.asarray(groups)
    if labels.shape != (num_rows,):
        raise ValueError(f"groups has shape {labels.shape} for {num_rows} rows; pass one text label per row")
    _, codes = np.unique(labels, return_inverse=True)
    if codes.max() < 1:
        raise ValueError("groups holds one text; an interval over texts needs at least two")
    return codes, int(codes.max()) + 1


def text_sums(values: ArrayLike, codes: np.ndarray, num_texts: int) -> np.ndarray:
    """Float64 sums of values (..., N) over the rows of each text: (G, ...)."""
    rows = np.moveaxis(np.asarray(values, np.float64), -1, 0)
    sums = np.zeros((num_texts, *rows.shape[1:]))
    np.add.at(sums, codes, rows)
    return sums


# ---- resampling any statistic ------------------------------------------------------------------------------------


def cluster_bootstrap(
    fn: Statistic, x: ArrayLike, y: ArrayLike, groups: ArrayLike, *, draws: int, seed: int
) -> np.ndarray:
    """fn on whole texts drawn with replacement: (draws,), or (draws, ...) when fn returns an array.

    Args: x (N, p), y (N, q), groups (N,) the text of each row. Not for CKA or inverse row entropy: copies of a
    text are pairs of identical rows, which both statistics read as structure.
    """
    a, b, codes, num_texts = _rows(x, y, groups)
    members = _members(codes, num_texts)
    random = np.random.default_rng(seed)

    def one_draw() -> np.ndarray:
        rows = np.concatenate([members[text] for text in random.integers(0, num_texts, num_texts)])
        return np.asarray(fn(a[rows], b[rows]))

    return np.stack([one_draw() for _ in range(_positive("draws", draws))])


def permutation_null(
    fn: Statistic, x: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, *, draws: int, seed: int
) -> np.ndarray:
    """fn(x, y with its texts in random order): (draws,), or (draws, ...) for array statistics.

    Whole texts move, so the dependence inside a text stays; without groups every row is a text. When fn
    returns one value per layer, all layers share each permutation, as a maximum over layers needs.
    """
    labels = np.arange(len(np.asarray(x))) if groups is None else groups
    a, b, codes, num_texts = _rows(x, y, labels)
    random = np.random.default_rng(seed)
    orders = (permuted_rows(codes, num_texts, random) for _ in range(_positive("draws", draws)))
    return np.stack([np.asarray(fn(a, b[order])) for order in orders])


def knn_permutation_null(
    neighbors_x: ArrayLike, neighbors_y: ArrayLike, k: int, groups: ArrayLike, *, draws: int, seed: int
) -> np.ndarray:
    """Mean Jaccard overlap when y's texts are permuted: (draws, ...) by relabelling neighbour lists, no new search.

    Args: neighbors_x, neighbors_y (..., N, K) from `nearest_neighbors`, K >= k; groups (N,).
    """
    a, b = np.asarray(neighbors_x), np.asarray(neighbors_y)
    codes, num_texts = text_codes(groups, a.shape[-2])
    random = np.random.default_rng(seed)

    def one_draw() -> np.ndarray:
        order = permuted_rows(codes, num_texts, random)
        place = np.argsort(order)  # row order[i] of y now sits at row i
        return np.asarray(neighbor_overlap(a, place[b[..., order, :]], (k,))[k]).mean(-1)

    return np.stack([one_draw() for _ in range(_positive("draws", draws))])


def permuted_rows(codes: np.ndarray, num_texts: int, random: np.random.Generator) -> np.ndarray:
    """A row order (N,) that puts another text's rows opposite each text's rows, inner order kept.

    Texts of unequal length are laid end to end, so every row is used once whatever the lengths.
    """
    members = _members(codes, num_texts)
    order = np.empty(len(codes), int)
    order[np.concatenate(members)] = np.concatenate([members[text] for text in random.permutation(num_texts)])
    return order


def calibrate(observed: float, null: ArrayLike, *, alpha: float = 0.05) -> tuple[float, float, float]:
    """A similarity against its null draws (K,): (score, p, tau).

    tau: the ceil((1 - alpha)(K + 1))-th smallest of null and observed; score = clip((observed - tau) / (1 - tau),
    0, 1), 0 = no better than chance; p = (1 + #{null >= observed}) / (K + 1), one-sided.
    """
    draws = np.asarray(null, np.float64)
    if draws.ndim != 1 or len(draws) == 0 or not np.all(np.isfinite(draws)):
        raise ValueError(f"null must be a vector of finite draws, got shape {draws.shape}")
    if not np.isfinite(observed):
        raise ValueError(f"observed is {observed}; it must be finite")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must lie between 0 and 1")
    pooled = np.sort(np.append(draws, observed))
    tau = float(pooled[math.ceil((1 - alpha) * len(pooled) - 1e-9) - 1])
    score = float(np.clip((observed - tau) / (1 - tau), 0, 1)) if tau < 1 else 0.0
    return score, float((1 + np.sum(draws >= observed)) / len(pooled)), tau


# ---- delete-one-text jackknife -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Jackknife:
    """value (...), replicates (G, ...) with one text left out (sorted order of labels), interval (..., 2)."""

    value: np.ndarray
    replicates: np.ndarray
    interval: np.ndarray


def jackknife(fn: Statistic, x: ArrayLike, y: ArrayLike, groups: ArrayLike, *, level: float = 0.95) -> Jackknife:
    """Delete-one-text jackknife of any statistic by recomputing it G times, t quantiles with G - 1 degrees.

    For CKA use `geometry.cka_jackknife` and for correlation `correlation_jackknife`: the same values from sums.
    """
    a, b, codes, num_texts = _rows(x, y, groups)
    value = np.asarray(fn(a, b), np.float64)
    replicates = np.stack([np.asarray(fn(a[codes != t], b[codes != t]), np.float64) for t in range(num_texts)])
    return Jackknife(value, replicates, jackknife_interval(value, replicates, level=level))


def jackknife_interval(value: ArrayLike, replicates: ArrayLike, *, level: float = 0.95) -> np.ndarray:
    """value -+ t sqrt((G - 1)/G sum (replicate - mean)^2) from replicates (G, ...): (..., 2)."""
    from scipy.stats import t as student

    left_out = np.asarray(replicates, np.float64)
    num_texts = len(left_out)
    if num_texts < 2:
        raise ValueError(f"replicates holds {num_texts} text; a jackknife needs at least two")
    spread = np.sqrt((num_texts - 1) / num_texts * ((left_out - left_out.mean(0)) ** 2).sum(0))
    return _around(value, student.ppf((1 + level) / 2, num_texts - 1) * spread)


def ratio_replicates(numerators: ArrayLike, denominators: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """sum(numerators) / sum(denominators) over texts (G, ...), and the same with each text left out (G, ...).

    Covers means over rows (sums and row counts per text) and ratios of sums such as the residual variance.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return above.sum(0) / below.sum(0), (above.sum(0) - above) / (below.sum(0) - below)


def correlation_jackknife(xs_LND: ArrayLike, ys_LND: ArrayLike, groups: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Mean dimension-wise correlation of matching layers (L,) and its delete-one-text values (G, L).

    From the texts' moments, without touching the rows again. Constant dimensions are left out as in
    `dimension_correlation`; NaN where a layer has none left.
    """
    a, b = to_pair(xs_LND, ys_LND, ndims=(3,), minimum=2)
    if a.shape != b.shape:
        raise ValueError(f"xs_LND has shape {a.shape} and ys_LND {b.shape}; correlation needs equal layers and widths")
    codes, num_texts = text_codes(groups, a.shape[1])
    values, replicates = [], []
    for x, y in zip(a, b, strict=True):
        sums, still = _moments(x, y, jnp.asarray(codes), num_texts)
        moments = np.asarray(sums, np.float64)  # (6, G, D)
        left_out = moments.sum(1, keepdims=True) - moments
        valid = ~np.asarray(still)
        values.append(_mean_correlation(moments.sum(1)[:, None], valid)[0])
        replicates.append(_mean_correlation(left_out, valid))
    return np.array(values), np.stack(replicates, 1)


@partial(jax.jit, static_argnames="num_texts")
def _moments(x: jax.Array, y: jax.Array, codes: jax.Array, num_texts: int) -> tuple[jax.Array, jax.Array]:
    """Text sums (6, G, D) of 1, x, y, x^2, y^2, xy for centred columns of unit size, and which columns are constant."""
    still = constant(x) | constant(y)

    def tame(side: jax.Array) -> jax.Array:
        side = centre(side * power_of_two(jnp.abs(side).max(0)))
        return side * power_of_two(jnp.abs(side).max(0))

    x, y = tame(x), tame(y)
    rows = jnp.stack([jnp.ones_like(x), x, y, x * x, y * y, x * y], 1)
    return jnp.moveaxis(jax.ops.segment_sum(rows, codes, num_texts), 1, 0), still


def _mean_correlation(moments: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Mean Pearson r over valid dimensions from moment sums (6, G, D): (G,)."""
    n, x, y, xx, yy, xy = moments[:, :, valid]
    if not valid.any():
        return np.full(moments.shape[1], np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        r = (xy - x * y / n) / np.sqrt((xx - x * x / n) * (yy - y * y / n))
    finite = np.isfinite(r)  # a dimension may vary in one text only and become constant without it
    return np.where(finite, r, 0).sum(1) / np.maximum(finite.sum(1), 1)


# ---- intervals of means, accuracies and half-samples -------------------------------------------------------------


def text_bootstrap_interval(
    sums_GL: ArrayLike, counts_GL: ArrayLike, *, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> np.ndarray:
    """Percentile bootstrap over texts of sum / count, e.g. of k-NN overlap: (L, 2). The estimand is new texts.

    Args: per-text sums (G, L) and row counts (G,) or (G, L). One set of draws serves all layers.
    """
    sums, counts = np.asarray(sums_GL, np.float64), np.asarray(counts_GL, np.float64)
    num_texts = len(sums)
    if num_texts < 2:
        raise ValueError(f"sums_GL holds {num_texts} text; a bootstrap needs at least two")
    counts = counts[:, None] if counts.ndim < sums.ndim else counts
    random = np.random.default_rng(seed)
    weights = random.multinomial(num_texts, np.full(num_texts, 1 / num_texts), _positive("draws", draws))
    means = (weights @ sums) / (weights @ np.broadcast_to(counts, sums.shape))
    return np.moveaxis(np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0), 0, -1)


def accuracy_interval(correct: ArrayLike, groups: ArrayLike | None = None, *, level: float = 0.95) -> np.ndarray:
    """Wilson score interval of an accuracy from correct (..., N) booleans: (..., 2), for fixed probes and new texts.

    With groups, N is replaced by the number of independent rows that would give the variance between groups
    (never more than N). Unlike a jackknife it keeps its width when every row is right.
    """
    from scipy.stats import t as student

    hits = np.asarray(correct, np.float64)
    codes, num_texts = text_codes(np.arange(hits.shape[-1]) if groups is None else groups, hits.shape[-1])
    sums, counts = text_sums(hits, codes, num_texts), text_sums(np.ones(hits.shape[-1]), codes, num_texts)
    rate = hits.mean(-1)
    residual = sums - rate * counts.reshape(-1, *[1] * rate.ndim)
    variance = num_texts / (num_texts - 1) * (residual**2).sum(0) / hits.shape[-1] ** 2
    plain = rate * (1 - rate)
    effective = np.where(variance > 0, plain / np.where(variance > 0, variance, 1), num_texts)
    effective = np.minimum(effective, hits.shape[-1])
    quantile = student.ppf((1 + level) / 2, num_texts - 1)
    shrunk = rate + quantile**2 / (2 * effective)
    half = quantile * np.sqrt(plain / effective + (quantile / (2 * effective)) ** 2)
    return np.stack([shrunk - half, shrunk + half], -1) / (1 + quantile**2 / effective)[..., None]


def half_sample_interval(
    value: ArrayLike, halves: ArrayLike, *, degrees: int | None = None, level: float = 0.95
) -> np.ndarray:
    """value -+ t x standard deviation of a statistic over random halves of the texts (H, ...): (..., 2).

    degrees: of freedom of t (default H - 1); G - 1 when H is large enough to add no uncertainty of its own.

    The delete-half jackknife: with half the texts out, the spread around the halves' own mean estimates the
    sampling spread at full size, and a bias that depends on n (inverse row entropy) does not enter.
    """
    from scipy.stats import t as student

    draws = np.asarray(halves, np.float64)
    if len(draws) < 2:
        raise ValueError(f"halves holds {len(draws)} draw; the spread needs at least two")
    return _around(value, student.ppf((1 + level) / 2, degrees or len(draws) - 1) * draws.std(0, ddof=1))


def _around(value: ArrayLike, half_width: np.ndarray) -> np.ndarray:
    middle = np.asarray(value, np.float64)
    return np.stack([middle - half_width, middle + half_width], -1)


def _rows(x: ArrayLike, y: ArrayLike, groups: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    a, b = np.asarray(x), np.asarray(y)
    if len(a) != len(b):
        raise ValueError(f"x has {len(a)} rows and y has {len(b)}; row i of both must be the same sample")
    return a, b, *text_codes(groups, len(a))


def _members(codes: np.ndarray, num_texts: int) -> list[np.ndarray]:
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.cumsum(np.bincount(codes, minlength=num_texts))[:-1])


def _positive(name: str, count: int) -> int:
    if count < 1:
        raise ValueError(f"{name} is {count}; it must be at least 1")
    return count

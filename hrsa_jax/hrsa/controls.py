"""Controls: what the measures say when the answer is known. Floors, ceilings, random maps, noise, planted truths.

A similarity is read between its noise floor (a model against itself, computed a little differently) and its seed
ceiling (two trainings that differ by their seed only), and a measure is trusted for what it says of planted pairs.
Controls take arrays; running the models is the caller's job.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

import numpy as np
from jax.typing import ArrayLike

from hrsa_jax.hrsa.inputs import to_float

Measure = Callable[[ArrayLike, ArrayLike], ArrayLike]
PlantedKind = Literal[
    "identical",
    "rotated",
    "permuted",
    "local_reshuffle",
    "global_move",
    "label_direction",
    "independent",
]


# ---- floors and ceilings -----------------------------------------------------------------------------------------


def noise_floor(measure: Measure, reference: ArrayLike, variants: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    """The measure of a model against itself: {variant: measure(reference, variant)}.

    Args: reference, the model's activations; variants, the same rows of the same model from other runs, for example
    {"bfloat16": ..., "batch of 1": ..., "left padding": ...}. No difference between two models below this is real.
    """
    if not variants:
        raise ValueError("variants is empty; give at least one other run of the same model")
    for name, variant in variants.items():
        if np.shape(variant) != np.shape(reference):
            raise ValueError(
                f"variants[{name!r}] has shape {np.shape(variant)} and reference has {np.shape(reference)}"
            )
    return {name: np.asarray(measure(reference, variant)) for name, variant in variants.items()}


@dataclass(frozen=True)
class SeedCeiling:
    """The measure between trainings that differ by seed only: mean over pairs, and every pair (pairs, ...)."""

    mean: np.ndarray
    pairs: np.ndarray


def seed_ceiling(measure: Measure, runs: Sequence[ArrayLike]) -> SeedCeiling:
    """The measure between all pairs of `runs`: activations of one backbone trained with different seeds."""
    if len(runs) < 2:
        raise ValueError(f"runs holds {len(runs)} run; a ceiling needs at least two seeds")
    pairs = np.stack([np.asarray(measure(a, b)) for a, b in combinations(runs, 2)])
    return SeedCeiling(pairs.mean(0), pairs)


# ---- random maps and noise ---------------------------------------------------------------------------------------


def random_rotation(d: int, *, seed: int) -> np.ndarray:
    """A Haar-distributed orthogonal matrix (d, d), float64: QR of a Gaussian with the signs of R's diagonal fixed."""
    if d < 1:
        raise ValueError(f"d is {d}; it must be at least 1")
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


def isotropic_noise(x: ArrayLike, ratio: float, *, seed: int) -> np.ndarray:
    """x (n, d) plus Gaussian noise, equal in every direction, of exactly `ratio` times the variance of x.

    The control for inverse row entropy: noise alone, without any rotation, lowers it. Choose `ratio` so that
    `procrustes_residual` equals that of the pair under study. Returns the dtype of x.
    """
    if not ratio >= 0:
        raise ValueError(f"ratio is {ratio}; it must be at least 0")
    data = np.asarray(to_float("x", x))
    wide = data.astype(np.float64)
    noise = np.random.default_rng(seed).standard_normal(data.shape)
    noise -= noise.mean(0)
    size = np.linalg.norm(noise)
    scale = np.sqrt(ratio) * np.linalg.norm(wide - wide.mean(0)) / size if size > 0 else 0.0
    return (wide + scale * noise).astype(data.dtype)


# ---- planted truths ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planted:
    """A pair whose truth is known. x, y (n, d) float32; labels (n,) 0/1, linearly readable
    from x, and from y unless independent; clusters (n,) which rows lie together; groups (n,) the text of each row."""

    kind: PlantedKind
    x: np.ndarray
    y: np.ndarray
    labels: np.ndarray
    clusters: np.ndarray
    groups: np.ndarray


CLUSTERS = 8  # the corners of a cube
CORNERS = np.array([[1 if c >> bit & 1 else -1 for bit in range(3)] for c in range(CLUSTERS)], np.float64)
# Products of the corner coordinates: also eight distinct corners, and uncorrelated with the first three.
MOVED_CORNERS = np.stack([CORNERS[:, 0] * CORNERS[:, 1], CORNERS[:, 0] * CORNERS[:, 2], CORNERS.prod(1)], axis=1)


def planted(kind: PlantedKind, n: int = 1024, d: int = 32, *, rows_per_text: int = 8, seed: int = 0) -> Planted:
    """A pair with a known truth (HRSA.md, "Planted truths"), n a multiple of 8, d >= 8.

    identical        y = x: every measure is 1, residual 0.
    rotated          y = x R + shift, R Haar: correlation falls, inverse row entropy is Haar's, residual 0, CKA and k-NN
                     1, the raw probe transfer falls, the aligned one keeps its ceiling.
    permuted         y has the axes of x in another order with signs: inverse row entropy 1, residual 0, CKA 1.
    local_reshuffle  eight far clusters; rows change places inside theirs, the label stays: CKA > 0.999, k-NN near 0,
                     the probe transfers.
    global_move      eight far clusters move to uncorrelated places, nothing moves inside: CKA near 0, k-NN 1.
    label_direction  the label moves from axis 0 to axis 1, both of small variance, and axis 1 to axis 0: correlation,
                     CKA and k-NN of everything else stay, only the raw transfer probe falls.
    independent      nothing is shared, y has no label: everything is at chance.

    Examples:
        >>> pair = planted("permuted", n=64, d=8)
        >>> pair.x.shape, sorted(set(pair.labels.tolist()))
        ((64, 8), [0, 1])
    """
    if kind not in get_args(PlantedKind):
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(get_args(PlantedKind))}")
    if n % CLUSTERS or n < 4 * CLUSTERS or d < 8:
        raise ValueError(f"n is {n} and d is {d}; n must be a multiple of {CLUSTERS} from 32 up, and d at least 8")
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 2)
    if kind in ("local_reshuffle", "global_move"):
        x, y, clusters = _clustered(kind, n, d, labels, rng)
    else:
        x, clusters = _spread(n, d, labels, rng), np.zeros(n, np.int64)
        y = _partner(kind, x, labels, rng)
    return Planted(kind, x.astype(np.float32), y.astype(np.float32), labels, clusters, np.arange(n) // rows_per_text)


def _spread(n: int, d: int, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian cloud with a falling spectrum; axis 0 is narrow and carries the label, axis 1 narrow without it."""
    scale = np.arange(1, d + 1) ** -0.5
    scale[:2] = 0.1
    cloud = rng.standard_normal((n, d)) * scale
    cloud[:, 0] = 0.1 * (2 * labels - 1 + 0.2 * rng.standard_normal(n))
    return cloud


def _partner(kind: PlantedKind, x: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n, d = x.shape
    if kind == "identical":
        return x.copy()
    if kind == "rotated":
        return x @ random_rotation(d, seed=int(rng.integers(2**31))) + rng.standard_normal(d)
    if kind == "permuted":
        return x[:, rng.permutation(d)] * rng.choice([-1.0, 1.0], d)
    if kind == "label_direction":
        return x[:, [1, 0, *range(2, d)]]
    other = _spread(n, d, labels, rng)
    other[:, 0] = rng.permutation(other[:, 0])  # a shared label would make the two clouds alike
    return other


def _clustered(
    kind: PlantedKind, n: int, d: int, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clusters at the corners of a cube in three axes, structure inside them in the others.

    Equal distances of all corners from the origin, and axes of their own, make cosines inside a cluster the same
    wherever the cluster lies.
    """
    clusters = rng.permutation(np.arange(n) % CLUSTERS)
    inside = rng.standard_normal((n, d - 3))
    inside[:, 0] = 0.1 * (2 * labels - 1 + 0.2 * rng.standard_normal(n))  # too narrow to matter to neighbours
    far = 10 * np.sqrt(d)
    x = np.concatenate([far * CORNERS[clusters], inside], axis=1)
    if kind == "global_move":
        return x, np.concatenate([far * MOVED_CORNERS[clusters], inside], axis=1), clusters
    places = np.arange(n)
    for cluster in range(CLUSTERS):
        rows = np.flatnonzero(clusters == cluster)
        places[rows] = rng.permutation(rows)
    moved = np.concatenate([inside[:, :1], inside[places, 1:]], axis=1)
    return x, np.concatenate([far * CORNERS[clusters], moved], axis=1), clusters

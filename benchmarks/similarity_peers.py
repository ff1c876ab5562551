"""The same measures as users write them today: plain torch, scipy and scikit-learn, one layer or pair at a time."""

from __future__ import annotations

from typing import Any

import numpy as np


def cka_matrices(x: np.ndarray, y: np.ndarray, *, debiased: bool) -> list[np.ndarray]:
    """Biased CKA of all layer pairs (and HSIC_1's, from the same products): a double loop, self terms once a layer."""
    import torch

    n = x.shape[1]
    xs = [torch.from_numpy(a - a.mean(0)) for a in x]
    ys = [torch.from_numpy(b - b.mean(0)) for b in y]

    def products(a: Any, b: Any) -> tuple[Any, Any]:
        cross = (a.T @ b).norm() ** 2
        if not debiased:
            return cross, cross
        p, q = (a**2).sum(1).double(), (b**2).sum(1).double()
        return cross, cross.double() - (p @ q) * n / (n - 2) + p.sum() * q.sum() / (n - 1) / (n - 2)

    own_x, own_y = [products(a, a) for a in xs], [products(b, b) for b in ys]
    out = np.zeros((2, len(xs), len(ys)))
    for i, a in enumerate(xs):
        for j, b in enumerate(ys):
            found = products(a, b)
            for kind in range(2 if debiased else 1):
                out[kind, i, j] = found[kind] / (own_x[i][kind].sqrt() * own_y[j][kind].sqrt())
    return list(out[: 2 if debiased else 1])


def knn(x: np.ndarray, y: np.ndarray, ks: tuple[int, ...], groups: np.ndarray | None = None) -> list[float]:
    """Mean Jaccard overlap at several k: torch topk once a side, Python sets."""
    import torch

    lists = []
    for side in (x, y):
        unit = torch.nn.functional.normalize(torch.from_numpy(side - side.mean(0)), dim=1)
        scores = unit @ unit.T
        if groups is None:
            scores.fill_diagonal_(-2)
        else:
            scores[torch.from_numpy(groups[:, None] == groups)] = -2
        lists.append(scores.topk(max(ks), dim=1).indices.numpy())
    return [
        float(
            np.mean([len(set(a[:k]) & set(b[:k])) / len(set(a[:k]) | set(b[:k])) for a, b in zip(*lists, strict=True)])
        )
        for k in ks
    ]


def correlation_loop(x: np.ndarray, y: np.ndarray) -> list[float]:
    """scipy's pearsonr, dimension by dimension."""
    from scipy.stats import pearsonr

    return [pearsonr(x[:, k], y[:, k]).statistic for k in range(x.shape[1])]


def correlation_matrix(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean dimension-wise correlation of all layer pairs: numpy, whole layers at a time."""
    units = [[(a - a.mean(0)) / (a.std(0) * np.sqrt(len(a))) for a in side] for side in (x, y)]
    return np.array([[(a * b).sum(0).mean() for b in units[1]] for a in units[0]])


def procrustes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """scipy's orthogonal Procrustes of centred rows."""
    from scipy.linalg import orthogonal_procrustes

    return orthogonal_procrustes(x - x.mean(0), y - y.mean(0))[0]


def probe(x: np.ndarray, labels: np.ndarray, l2: float) -> Any:
    """scikit-learn's logistic regression on standardised features, run until it has converged."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = LogisticRegression(C=1 / l2, tol=1e-8, max_iter=100_000)
    return make_pipeline(StandardScaler(), model).fit(x.astype(np.float64), labels)


def probe_transfer(x: np.ndarray, y: np.ndarray, labels: np.ndarray, grid: tuple[float, ...]) -> tuple[float, ...]:
    """Probes of one layer of both models: strength by validation, both ceilings, both transfers."""
    from sklearn.metrics import log_loss

    train, test = np.arange(len(labels)) % 5 < 3, np.arange(len(labels)) % 5 >= 3
    fitting = train & (np.arange(len(labels)) % 4 != 0)
    probes = []
    for side in (x, y):
        losses = [log_loss(labels[train & ~fitting], probe(side[fitting], labels[fitting], l2).predict_proba(
            side[train & ~fitting].astype(np.float64))) for l2 in grid]  # fmt: skip
        probes.append(probe(side[train], labels[train], grid[int(np.argmin(losses))]))
    own = [model.score(side[test], labels[test]) for model, side in zip(probes, (x, y), strict=True)]
    scaled = [model[0].transform(side[test]) for model, side in zip(probes, (x, y), strict=True)]
    return (*own, probes[0][1].score(scaled[1], labels[test]), probes[1][1].score(scaled[0], labels[test]))


def held_out_residual(x: np.ndarray, y: np.ndarray) -> float:
    """Residual variance ratio of two maps, each fitted on one half of the rows and scored on the other."""
    half = len(x) // 2
    error = total = 0.0
    for fit, score in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
        o = procrustes(x[fit], y[fit])
        target = y[score] - y[fit].mean(0)
        error += float((((x[score] - x[fit].mean(0)) @ o - target) ** 2).sum())
        total += float((target**2).sum())
    return error / total

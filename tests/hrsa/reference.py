"""float64 numpy references, written from the definitions in HRSA.md and not from the code under test."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from scipy.special import digamma
from scipy.stats import hypergeom


def f64(x) -> np.ndarray:
    return np.asarray(x, np.float64)


def centred(x) -> np.ndarray:
    x = f64(x)
    return x - x.mean(0)


def correlation(x, y) -> np.ndarray:
    x, y = centred(x), centred(y)
    return (x * y).sum(0) / np.sqrt((x**2).sum(0) * (y**2).sum(0))


def procrustes(x, y):
    """(map, mean_x, mean_y, singular values)."""
    u, s, vt = np.linalg.svd(centred(x).T @ centred(y), full_matrices=False)
    return u @ vt, f64(x).mean(0), f64(y).mean(0), s


def residual(fit, x, y) -> float:
    o, mean_x, mean_y, _ = fit
    target = f64(y) - mean_y
    return float((((f64(x) - mean_x) @ o - target) ** 2).sum() / (target**2).sum())


def cosine(fit, x, y) -> np.ndarray:
    o, mean_x, mean_y, _ = fit
    mapped, target = (f64(x) - mean_x) @ o, f64(y) - mean_y
    return (mapped * target).sum(1) / np.linalg.norm(mapped, axis=1) / np.linalg.norm(target, axis=1)


def distance(x, y) -> tuple[float, float]:
    """Size-and-shape distance and angle by the nuclear norm."""
    x, y = centred(x), centred(y)
    nuclear = np.linalg.svd(x.T @ y, compute_uv=False).sum()
    size = (x**2).sum() + (y**2).sum()
    angle = np.arccos(np.clip(nuclear / np.linalg.norm(x) / np.linalg.norm(y), -1, 1))
    return float(np.sqrt(max(size - 2 * nuclear, 0))), float(angle)


def inverse_row_entropy(o) -> np.ndarray:
    share = f64(o) ** 2
    share = share / share.sum(1, keepdims=True)
    logs = np.log(np.where(share > 0, share, 1.0))
    return 1 + (share * logs).sum(1) / np.log(share.shape[1])


def inverse_row_entropy_haar(d: int) -> float:
    return float(1 - (digamma(d / 2 + 1) - digamma(1.5)) / np.log(d))


def hsic_1(k, l) -> float:  # noqa: E741 - the literature's letter
    """Song et al. 2012, equation 5, from the two kernel matrices."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    return float(
        ((k * l).sum() + k.sum() * l.sum() / (n - 1) / (n - 2) - 2 / (n - 2) * (k.sum(0) * l.sum(0)).sum())
        / (n * (n - 3))
    )


def hsic_0(k, l) -> float:  # noqa: E741
    k = k - k.mean(0)
    return float(((k - k.mean(1, keepdims=True)) * l).sum())  # one centred side is enough


def cka(k, l, hsic) -> float:  # noqa: E741
    return float(hsic(k, l) / np.sqrt(hsic(k, k)) / np.sqrt(hsic(l, l)))


def linear_cka(x, y, *, debiased=True) -> float:
    x, y = centred(x), centred(y)
    return cka(x @ x.T, y @ y.T, hsic_1 if debiased else hsic_0)


def linear_cka_wide(x, y, *, debiased=True) -> float:
    """`linear_cka` for many rows: HSIC_1 from feature covariances, never an (n, n) matrix."""
    x, y = centred(x), centred(y)
    n = len(x)

    def hsic(a, b):
        cross = ((a.T @ b) ** 2).sum()
        p, q = (a**2).sum(1), (b**2).sum(1)
        if not debiased:
            return cross
        return (cross - (p * q).sum() * n / (n - 2) + p.sum() * q.sum() / (n - 1) / (n - 2)) / n / (n - 3)

    return float(hsic(x, y) / np.sqrt(hsic(x, x)) / np.sqrt(hsic(y, y)))


def hsic_texts(k, l, groups) -> float:  # noqa: E741
    """Mean of k_ij l_ij + k_ij l_uv - 2 k_ij l_iu over rows of four different texts, by four loops over texts."""
    names = np.unique(groups)
    total, count = 0.0, 0.0
    members = {name: np.flatnonzero(groups == name) for name in names}
    for s, t, u, v in permutations(names, 4):
        i, j, a, b = members[s], members[t], members[u], members[v]
        product = (k * l)[np.ix_(i, j)].sum() * len(a) * len(b)
        quad = k[np.ix_(i, j)].sum() * l[np.ix_(a, b)].sum()
        triple = (k[np.ix_(i, j)].sum(1) * l[np.ix_(i, a)].sum(1)).sum() * len(b)
        total += product + quad - 2 * triple
        count += len(i) * len(j) * len(a) * len(b)
    return total / count


def linear_cka_texts(x, y, groups) -> float:
    x, y = f64(x), f64(y)  # deliberately not centred: the statistic does not depend on the origin
    return cka(x @ x.T, y @ y.T, lambda k, l: hsic_texts(k, l, np.asarray(groups)))  # noqa: E741


def rbf_kernel(x, bandwidth=0.5) -> np.ndarray:
    x = f64(x)
    squared = ((x[:, None] - x[None]) ** 2).sum(-1)
    return np.exp(-squared / (2 * bandwidth**2 * np.median(squared)))


def participation_ratio(x) -> float:
    values = np.linalg.eigvalsh(centred(x).T @ centred(x))
    return float(values.sum() ** 2 / (values**2).sum())


def neighbors(x, k, *, metric="cosine", groups=None) -> np.ndarray:
    """Sort by similarity, then by index; float64."""
    x = f64(x)
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        score = x @ x.T
    else:
        score = -((x[:, None] - x[None]) ** 2).sum(-1)
    own = np.eye(len(x), dtype=bool)
    if groups is not None:
        own = np.asarray(groups)[:, None] == np.asarray(groups)[None]
    score[own] = -np.inf
    return np.argsort(-score, axis=1, kind="stable")[:, :k]


def jaccard(a, b) -> np.ndarray:
    return np.array([len(set(i) & set(j)) / len(set(i) | set(j)) for i, j in zip(a, b, strict=True)])


def knn_chance(n, k) -> tuple[float, float]:
    shared = np.arange(k + 1)
    weight = hypergeom(n - 1, k, k).pmf(shared)
    return float((weight * shared).sum() / k), float((weight * shared / (2 * k - shared)).sum())

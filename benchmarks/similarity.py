"""All-pairs CKA, neighbour overlap and correlation of two models' layers against plain torch and scipy."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from benchmarks.measure import Measurement, in_turns
from hrsa_jax.hrsa.geometry import cka_matrix, knn_overlap
from hrsa_jax.hrsa.representation import dimension_correlation

_LAYERS, _ROWS, _WIDTH = 31, 2048, 576


def measurements() -> Iterator[Measurement]:
    """31 layers of 576 dimensions over 2,048 rows."""
    import torch
    from scipy.stats import pearsonr

    random = np.random.default_rng(0)
    x = random.normal(size=(_LAYERS, _ROWS, _WIDTH)).astype(np.float32)
    y = (x @ (random.normal(size=(_WIDTH, _WIDTH)).astype(np.float32) / np.sqrt(_WIDTH)) + x).astype(np.float32)

    def torch_cka() -> torch.Tensor:
        out = torch.zeros(_LAYERS, _LAYERS)
        xs = [torch.from_numpy(a - a.mean(0)) for a in x]
        ys = [torch.from_numpy(b - b.mean(0)) for b in y]
        for i, a in enumerate(xs):
            for j, b in enumerate(ys):
                out[i, j] = (a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
        return out

    def torch_knn() -> float:
        lists = []
        for side in (x[0], y[0]):
            unit = torch.nn.functional.normalize(torch.from_numpy(side), dim=1)
            scores = unit @ unit.T
            scores.fill_diagonal_(-2)
            lists.append(scores.topk(50, dim=1).indices.numpy())
        return float(np.mean([len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in zip(*lists, strict=True)]))

    def scipy_correlation() -> list[float]:
        return [pearsonr(x[0][:, k], y[0][:, k]).statistic for k in range(_WIDTH)]

    seconds = in_turns(lambda: np.asarray(cka_matrix(x, y, debiased=False)), torch_cka, repeats=1, clock="cpu")
    yield Measurement(f"CKA of all pairs, n = {_ROWS}", *seconds[:2], "torch double loop", goal=8.0, clock="cpu")
    seconds = in_turns(lambda: jax.block_until_ready(knn_overlap(x[0], y[0], (50,))), torch_knn, clock="cpu")
    yield Measurement(f"k-NN overlap at 50, n = {_ROWS}", *seconds[:2], "torch topk + sets", goal=1.5, clock="cpu")
    seconds = in_turns(lambda: jax.block_until_ready(dimension_correlation(x[0], y[0])), scipy_correlation, clock="cpu")
    yield Measurement(f"correlation, n = {_ROWS}", *seconds[:2], "scipy pearsonr loop", goal=10.0, clock="cpu")

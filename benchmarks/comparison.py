"""A whole `compare`, careful preset with intervals and controls, against a plain pipeline without any."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from benchmarks import similarity_peers as peers
from benchmarks.measure import Measurement
from benchmarks.similarity import KS, LAYERS, activations
from hrsa_jax.hrsa.analysis import compare
from hrsa_jax.hrsa.function import L2_GRID
from hrsa_jax.hrsa.states import TokenStates

ROWS, TEXTS, LABELLED = 2048, 64, 400
PROBED = (0, 15, 30)  # the peer's probes take minutes at all layers: three are timed and stand for 31
VARIANTS = (0, 8, 15, 22, 30)


def measurements() -> Iterator[Measurement]:
    """2,048 tokens of 64 texts and 400 labelled texts of two models, 31 states of 576 dimensions."""
    x, y, groups = activations(ROWS, texts=TEXTS)
    pooled_x, pooled_y, labels = activations(LABELLED, texts=5)
    a, b = TokenStates(x, groups.astype(np.int32)), TokenStates(y, groups.astype(np.int32))

    def ours() -> object:
        return compare(a, b, texts_a=pooled_x, texts_b=pooled_y, labels=labels)

    started = time.process_time()
    ours()
    cold = time.process_time() - started
    started = time.process_time()
    ours()
    warm = time.process_time() - started
    peer = _pipeline(x, y, groups) + _probe_seconds(pooled_x, pooled_y, labels)
    note = (
        f"ours with intervals, nulls and controls ({cold:.0f} s with all compilations); the peer has none of them, "
        f"and its probes are timed at {len(PROBED)} layers and scaled to {LAYERS}"
    )
    yield Measurement("whole compare, n = 2048, compiled", warm, peer, "torch, scipy, sklearn", 4.0, "cpu", 0.0, note)
    yield Measurement("whole compare, n = 2048, first run", cold, peer, "torch, scipy, sklearn", None, "cpu")


def _pipeline(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> float:
    """CPU-seconds of every token-level measure of `compare`, without intervals."""
    started = time.process_time()
    peers.cka_matrices(x, y, debiased=True)
    peers.correlation_matrix(x, y)
    for layer in range(LAYERS):
        peers.knn(x[layer], y[layer], KS)
        peers.held_out_residual(x[layer], y[layer])
    for layer in VARIANTS:
        peers.knn(x[layer], y[layer], KS, groups)
        scored = [(side[layer] - side[layer].mean(0)) / side[layer].std(0) for side in (x, y)]
        peers.cka_matrices(scored[0][None], scored[1][None], debiased=True)
        removed = []
        for side in (x, y):
            rows = side[layer] - side[layer].mean(0)
            axis = np.linalg.eigh(rows.T @ rows)[1][:, -1]
            removed.append((rows - (rows @ axis)[:, None] * axis)[None])
        peers.cka_matrices(removed[0], removed[1], debiased=True)
    return time.process_time() - started


def _probe_seconds(x: np.ndarray, y: np.ndarray, labels: np.ndarray) -> float:
    order = np.random.default_rng(1).permutation(len(labels))
    started = time.process_time()
    for layer in PROBED:
        peers.probe_transfer(x[layer][order], y[layer][order], labels[order], L2_GRID)
    return (time.process_time() - started) * LAYERS / len(PROBED)

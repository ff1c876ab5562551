"""Each measure of HRSA against plain torch, scipy and scikit-learn on the same activations, in CPU-seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from benchmarks import similarity_peers as peers
from benchmarks.measure import Measurement, in_turns
from hrsa_jax.hrsa.function import fit_probe
from hrsa_jax.hrsa.geometry import cka_matrix, knn_overlap
from hrsa_jax.hrsa.representation import dimension_correlation, orthogonal_procrustes

LAYERS, WIDTH = 31, 576
KS = (5, 10, 50)


def activations(rows: int, *, layers: int = LAYERS, texts: int = 64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y (layers, rows, 576) with a falling spectrum, layers that resemble their neighbours, and text numbers."""
    rng = np.random.default_rng(0)
    spectrum = (np.arange(1, WIDTH + 1) ** -0.4).astype(np.float32)
    groups = np.sort(np.arange(rows) % texts)
    x = np.empty((layers, rows, WIDTH), np.float32)
    state = rng.standard_normal((texts, WIDTH), np.float32)[groups] * spectrum
    for layer in range(layers):
        state = state + 0.4 * rng.standard_normal((rows, WIDTH), np.float32) * spectrum
        x[layer] = state
    y = x + 0.5 * rng.standard_normal(x.shape, np.float32) * spectrum
    return x, y, groups


def once(ours: Callable[[], object], peer: Callable[[], object]) -> tuple[float, float]:
    """CPU-seconds of one run of each, ours after the run that compiles it: for what takes a minute."""
    ours()
    seconds = []
    for call in (ours, peer):
        started = time.process_time()
        call()
        seconds.append(time.process_time() - started)
    return seconds[0], seconds[1]


def measurements() -> Iterator[Measurement]:
    """31 layers of 576 dimensions over 2,048 and 8,192 rows."""
    for rows, goal in ((2048, 8.0), (8192, 2.5)):
        x, y, _ = activations(rows)
        found = np.asarray(cka_matrix(x[:2], y[:2], debiased=False))
        gap = np.abs(found - peers.cka_matrices(x[:2], y[:2], debiased=False)[0]).max()
        assert gap < 1e-4, gap
        seconds = once(
            lambda x=x, y=y: np.asarray(cka_matrix(x, y, debiased=False)),
            lambda x=x, y=y: peers.cka_matrices(x, y, debiased=False),
        )
        yield Measurement(f"CKA of all pairs, n = {rows}", *seconds, "torch double loop", goal=goal, clock="cpu")
        timings = in_turns(
            lambda x=x, y=y: jax.block_until_ready(knn_overlap(x[-1] - x[-1].mean(0), y[-1] - y[-1].mean(0), KS)),
            lambda x=x, y=y: peers.knn(x[-1], y[-1], KS),
            repeats=2,
            clock="cpu",
        )
        name = f"k-NN overlap at 5, 10, 50, one layer, n = {rows}"
        yield Measurement(name, *timings[:2], "torch topk + sets", goal=1.5, clock="cpu", spread=timings[2])
        timings = in_turns(
            lambda x=x, y=y: jax.block_until_ready(orthogonal_procrustes(x[-1], y[-1]).map),
            lambda x=x, y=y: peers.procrustes(x[-1], y[-1]),
            repeats=3,
            clock="cpu",
        )
        name = f"Procrustes, one layer, n = {rows}"
        yield Measurement(name, *timings[:2], "scipy", goal=2.0, clock="cpu", spread=timings[2])
    x, y, _ = activations(2048, layers=1)
    timings = in_turns(
        lambda: jax.block_until_ready(dimension_correlation(x[0], y[0])),
        lambda: peers.correlation_loop(x[0], y[0]),
        clock="cpu",
    )
    name = "correlation, one layer, n = 2048"
    yield Measurement(name, *timings[:2], "scipy pearsonr loop", goal=10.0, clock="cpu", spread=timings[2])
    yield _probes()


def _probes() -> Measurement:
    """Eight layers of 400 texts, five classes, l2 = 10: the same optimum, checked by its objective."""
    layers = 8
    x, _, groups = activations(400, layers=layers, texts=5)
    order = np.random.default_rng(1).permutation(400)
    x, labels = x[:, order], groups[order]
    ours = fit_probe(x, labels, l2=10.0)

    def peer() -> list:
        return [peers.probe(layer, labels, 10.0) for layer in x]

    gaps = []
    for layer, theirs in enumerate(peer()):
        values = []
        for weights, intercept in (
            (ours.weights[layer], ours.intercept[layer]),
            (theirs[1].coef_, theirs[1].intercept_),
        ):
            logits = theirs[0].transform(x[layer].astype(np.float64)) @ weights.T + intercept
            top = logits.max(1, keepdims=True)
            losses = np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(400), labels]
            values.append(losses.sum() + 5.0 * (weights**2).sum())
        gaps.append(values[0] / values[1] - 1)
    seconds = in_turns(lambda: fit_probe(x, labels, l2=10.0), peer, repeats=2, clock="cpu")
    return Measurement(
        f"logistic probe, {layers} layers of 400 texts, 5 classes", *seconds[:2], "scikit-learn, converged",
        goal=10.0, clock="cpu", spread=seconds[2], note=f"objective above scikit-learn's by at most {max(gaps):.0e}",
    )  # fmt: skip

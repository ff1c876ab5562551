"""The pictures of docs/concepts.md, made by the measures themselves from pairs whose truth is known.

python docs/pictures.py docs/pictures
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

from hrsa_jax.hrsa.controls import PlantedKind, isotropic_noise, planted, random_rotation
from hrsa_jax.hrsa.function import cross_model_probe
from hrsa_jax.hrsa.geometry import knn_overlap, linear_cka
from hrsa_jax.hrsa.representation import dimension_correlation, orthogonal_procrustes, procrustes_residual

# Same bytes every time: no date, no random ids.
STYLE: dict[str, Any] = {"svg.hashsalt": "hrsa", "svg.fonttype": "path", "font.size": 9, "axes.grid": False}
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"  # told apart by colour-blind readers
KINDS: tuple[PlantedKind, ...] = (
    *("identical", "rotated", "permuted", "local_reshuffle"),
    *("global_move", "label_direction", "independent"),
)
N, D, K = 512, 16, 10


def main(folder: Path) -> None:
    """Writes the three pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for name, figure in (("changes", changes()), ("truths", truths()), ("noise", noise())):
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
            plt.close(figure)


def measures(x: np.ndarray, y: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """What HRSA says of two clouds of the same rows, (n, d) each."""
    half = len(x) // 2
    fit = orthogonal_procrustes(x[:half], y[:half])
    probe = cross_model_probe(x[:half], y[:half], labels[:half], x[half:], y[half:], labels[half:], l2=1.0)
    return {
        "correlation": float(np.mean(np.asarray(dimension_correlation(x, y)))),
        "after rotation": 1.0 - float(procrustes_residual(fit, x[half:], y[half:])),
        "CKA": float(linear_cka(x, y)),
        f"k-NN, k = {K}": float(np.mean(np.asarray(knn_overlap(x, y, [K], metric="euclidean")[K]))),
        "probe transfer": float(np.mean(probe.correct["transfer"])),
    }


def changes() -> Any:
    """One cloud of eight clusters, and what four changes do to it (two of its axes)."""
    random = np.random.default_rng(1)
    clusters = np.arange(200) % 4
    cloud = np.array([[-3, 1], [2, 3], [3, -2], [-1, -3]])[clusters] + 0.7 * random.standard_normal((200, 2))
    rotation = random_rotation(2, seed=5)
    moved = np.array([[2, 3], [-3, 1], [-1, -3], [3, -2]])[clusters] + cloud
    moved -= np.array([[-3, 1], [2, 3], [3, -2], [-1, -3]])[clusters]
    shuffled = cloud.copy()
    for cluster in range(4):
        rows = np.flatnonzero(clusters == cluster)
        shuffled[rows] = cloud[random.permutation(rows)]
    panels = {
        "before": cloud,
        "another basis": cloud @ rotation,
        "neighbours reshuffled": shuffled,
        "clusters moved": moved,
    }
    figure, axes = plt.subplots(1, 4, figsize=(9, 2.5), sharex=True, sharey=True)
    first = cloud[clusters == 0]
    followed = 4 * np.array([first[:, 0].argmin(), first[:, 0].argmax(), first[:, 1].argmax()])  # of one cluster
    for axis, (title, points) in zip(axes, panels.items(), strict=True):
        for cluster, colour in enumerate((BLUE, ORANGE, GREEN, PURPLE)):
            axis.scatter(*points[clusters == cluster].T, s=5, color=colour)
        axis.plot(*points[[*followed, followed[0]]].T, color="black", linewidth=1, marker="o", markersize=4)
        axis.set(title=title, xticks=[], yticks=[])
    return figure


def truths() -> Any:
    """Every measure of every planted pair: which of them sees which change."""
    rows = []
    for kind in KINDS:
        pair = planted(kind, N, D, seed=0)
        rows.append(measures(pair.x, pair.y, pair.labels))
    values = np.array([list(row.values()) for row in rows])
    figure, axis = plt.subplots(figsize=(7, 3.4))
    axis.imshow(np.clip(values, 0, 1), cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        axis.text(j, i, f"{value:.2f}".replace("-0.00", "0.00"), ha="center", va="center")
    axis.set_xticks(range(len(rows[0])), list(rows[0]))
    axis.set_yticks(range(len(KINDS)), [kind.replace("_", " ") for kind in KINDS])
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    return figure


def noise() -> Any:
    """How fast each measure falls when one cloud is covered with more and more noise."""
    pair = planted("identical", N, D, seed=0)
    ratios = np.array([0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0])
    found = [measures(pair.x, isotropic_noise(pair.x, r, seed=1), pair.labels) for r in ratios]
    figure, axis = plt.subplots(figsize=(7, 3))
    for name, colour, marker in zip(found[0], (BLUE, ORANGE, GREEN, PURPLE, "black"), "os^Dv", strict=True):
        axis.plot(range(len(ratios)), [row[name] for row in found], color=colour, marker=marker, label=name)
    axis.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
    axis.set(xlabel="variance of the noise, in variances of the cloud", ylabel="value", ylim=(-0.05, 1.05))
    axis.legend(frameon=False, loc="lower left", ncols=2)
    return figure


if __name__ == "__main__":
    main(Path(sys.argv[1]))

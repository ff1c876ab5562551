"""Function-level curves of one comparison: probes of both models on pooled, labelled texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hrsa_jax.hrsa.function import L2_GRID, ProbeTransfer, cross_model_probe, group_split
from hrsa_jax.hrsa.results import Curve
from hrsa_jax.hrsa.uncertainty import accuracy_interval, ratio_replicates, text_codes, text_sums

TEST_SHARE = 0.4
RECOMMENDED_TEXTS = 400
NAMES = {
    "probe_source": ("source", "accuracy of model a's own probe"),
    "probe_target": ("target", "accuracy of model b's own probe"),
    "probe_transfer": ("transfer", "a's probe reading b through b's scaler"),
    "probe_transfer_reverse": ("transfer_reverse", "b's probe reading a through a's scaler"),
    "probe_transfer_aligned": ("transfer_aligned", "a's probe reading b after a Procrustes map without labels"),
    "probe_transfer_aligned_reverse": ("transfer_aligned_reverse", "b's probe reading a after the map"),
}


def probe_curves(
    x_LND: np.ndarray,
    y_LND: np.ndarray,
    labels: Sequence[Any],
    *,
    groups: Sequence[Any] | None,
    careful: bool,
    seed: int,
) -> tuple[dict[str, Curve], dict[str, Any], list[str]]:
    """Curves of every probe accuracy and of the agreement, facts, notes. x, y: pooled texts (L, n, width).

    60% of the texts train (a quarter of them choose the strength), 40% test; groups never cross a split.
    """
    classes = np.asarray(labels)
    members = np.arange(len(classes)) if groups is None else np.asarray(groups)
    codes, num_groups = text_codes(members, len(classes))
    test = group_split(classes, members, share=TEST_SHARE, seed=seed)
    result = cross_model_probe(
        x_LND[:, ~test],
        y_LND[:, ~test],
        classes[~test],
        x_LND[:, test],
        y_LND[:, test],
        classes[test],
        groups_train=members[~test],
        l2=L2_GRID if careful else 1.0,
        seed=seed,
    )
    tested = codes[test]
    layers = tuple(range(len(x_LND)))
    curves = {
        name: _curve(layers, result.correct[key], tested, words, result.chance, careful)
        for name, (key, words) in NAMES.items()
        if key in result.correct
    }
    same = result.correct.get("agreement")
    if same is not None:
        words = "share of test texts on which a's probe says the same of both models"
        curves["probe_agreement"] = _curve(layers, same, tested, words, None, careful)
        curves["probe_kappa"] = Curve(layers, result.kappa, None, "Cohen's kappa of the same two readings", chance=0.0)
    return curves, _facts(result, classes, test, num_groups), _notes(classes)


def _curve(layers, correct_LN, codes, words: str, chance: float | None, careful: bool) -> Curve:
    value = correct_LN.mean(1)
    if not careful:
        return Curve(layers, value, None, words, chance=chance)
    present, compact = np.unique(codes, return_inverse=True)
    sums = text_sums(correct_LN, compact, len(present))
    counts = np.bincount(compact).astype(float)[:, None]
    replicates = ratio_replicates(sums, np.broadcast_to(counts, sums.shape))[1]
    words += "; 95% Wilson score over test texts, the probes fixed"
    return Curve(layers, value, accuracy_interval(correct_LN, compact), words, replicates, chance, "delete-one-text")


def _facts(result: ProbeTransfer, labels: np.ndarray, test: np.ndarray, num_groups: int) -> dict[str, Any]:
    return {
        "probe_texts": {"train": int((~test).sum()), "test": int(test.sum()), "groups": num_groups},
        "probe_classes": len(np.unique(labels)),
        "probe_l2": {"source": result.l2_source, "target": result.l2_target},
    }


def _notes(labels: np.ndarray) -> list[str]:
    if len(labels) >= RECOMMENDED_TEXTS:
        return []
    return [f"probes use {len(labels)} labelled texts; at least {RECOMMENDED_TEXTS} are recommended"]

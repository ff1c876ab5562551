"""Function level: does a probe trained on one model read the other? (HRSA.md, "Function level".)

L layers, N samples (pooled texts), p and q features of the source X and the target Y, K classes. The published
protocol reports one number, the source's probe on the target's features; without each model's own ceiling, the
other direction and an aligned variant that number cannot tell a lost feature from a moved axis.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hrsa_jax.hrsa.inputs import is_traced
from hrsa_jax.hrsa.probes import (
    Array,
    Probe,
    Scaler,
    check_features,
    encode_labels,
    fit_probe,
    fit_stack,
    in_double,
    one_hot,
    scaler,
)
from hrsa_jax.hrsa.representation import orthogonal_procrustes

__all__ = [
    "Probe",
    "ProbeTransfer",
    "Scaler",
    "cohen_kappa",
    "cross_model_probe",
    "disagreement",
    "fit_probe",
    "group_split",
    "scaler",
]

L2_GRID = (1.0, 10.0, 100.0, 1e3, 1e4)
VALIDATION_SHARE = 0.25


@dataclass(frozen=True)
class ProbeTransfer:
    """Probe accuracies in [0, 1] on the test rows, each () or (L,) for a stack of layers.

    source, target: each model's own probe (the ceilings). transfer: the source's probe on the target's features
    through the target's scaler (the published measure; NaN when the widths differ); transfer_reverse: the target's
    probe on the source. transfer_aligned and its reverse: the features are first carried over by an orthogonal
    Procrustes map (means and overall scale matched) fitted on the training rows, without labels. agreement and
    kappa compare what the SOURCE probe says about the two models' features of one text, raw; `_aligned` after
    the map. l2_source, l2_target: the strengths chosen. chance: the test share of the largest training class.
    correct: for every accuracy, which test rows were right, (N,) or (L, N) bool; `agreement` likewise.
    """

    source: np.ndarray
    target: np.ndarray
    transfer: np.ndarray
    transfer_reverse: np.ndarray
    transfer_aligned: np.ndarray
    transfer_aligned_reverse: np.ndarray
    agreement: np.ndarray
    kappa: np.ndarray
    agreement_aligned: np.ndarray
    kappa_aligned: np.ndarray
    l2_source: np.ndarray
    l2_target: np.ndarray
    chance: float
    correct: dict[str, np.ndarray]


def cross_model_probe(
    x_train: Array,
    y_train: Array,
    labels_train: Array | Sequence,
    x_test: Array,
    y_test: Array,
    labels_test: Array | Sequence,
    *,
    groups_train: Array | Sequence | None = None,
    l2: float | Sequence[float] = L2_GRID,
    seed: int = 0,
) -> ProbeTransfer:
    """Logistic probes of both models, read on both models (X source, Y target; rows are the same texts).

    Args:
      x_train, x_test: (N, p), or (L, N, p) for a stack of layers; y_train, y_test: the same with q.
      labels_train, labels_test: one label per row; every test label must occur in training.
      groups_train: rows of one group stay on one side of the validation split (default: each row its own).
      l2: one strength, or the grid from which each model and layer chooses by log loss on a quarter of the
        training groups (ties go to the stronger one), before the fit on all training rows.

    Raises ValueError on misshapen or non-finite input, a class with one training example, unknown test labels.

    Examples:
        >>> x = np.random.default_rng(0).standard_normal((80, 4)).astype(np.float32)
        >>> labels = x[:, 0] > 0
        >>> probe = cross_model_probe(x[:60], x[:60], labels[:60], x[60:], x[60:], labels[60:], l2=0.1)
        >>> bool(probe.correct["transfer"].mean() > 0.9)
        True
    """
    train, test, stacked = _check_pair(x_train, y_train, x_test, y_test)
    classes, codes = encode_labels("labels_train", labels_train, train[0].shape[1])
    wanted = np.asarray(labels_test)
    if wanted.shape != (test[0].shape[1],):
        raise ValueError(f"labels_test has shape {wanted.shape} for {test[0].shape[1]} test rows")
    unknown = sorted(set(wanted.tolist()) - set(classes))
    if unknown:
        raise ValueError(f"labels_test holds {unknown[0]!r}, which labels_train does not")
    grid = np.sort(np.atleast_1d(np.asarray(l2, np.float64)))
    held_out = group_split(codes, groups_train, share=VALIDATION_SHARE, seed=seed) if len(grid) > 1 else None
    strengths = [_choose_l2(features, codes, len(classes), grid, held_out) for features in train]
    probes = [fit_probe(f, np.asarray(labels_train), l2=s) for f, s in zip(train, strengths, strict=True)]
    predicted = _predictions(probes, train, test)

    layers = slice(None) if stacked else 0
    correct = {name: (labels == wanted)[layers] for name, labels in predicted.items()}
    if "transfer" in predicted:
        correct["agreement"] = (predicted["source"] == predicted["transfer"])[layers]
    nothing = np.full(train[0].shape[0], np.nan)[layers]

    def accuracy(name: str) -> np.ndarray:
        return correct[name].mean(-1) if name in correct else nothing

    def compare(name: str, measure: Any) -> np.ndarray:
        if name not in predicted:
            return nothing
        own, other = predicted["source"], predicted[name]
        return np.array([measure(a, b) for a, b in zip(own, other, strict=True)])[layers]

    names = ("source", "target", "transfer", "transfer_reverse", "transfer_aligned", "transfer_aligned_reverse")
    return ProbeTransfer(
        **{name: accuracy(name) for name in names},
        agreement=compare("transfer", lambda a, b: 1 - disagreement(a, b)),
        kappa=compare("transfer", cohen_kappa),
        agreement_aligned=compare("transfer_aligned", lambda a, b: 1 - disagreement(a, b)),
        kappa_aligned=compare("transfer_aligned", cohen_kappa),
        l2_source=strengths[0][layers],
        l2_target=strengths[1][layers],
        chance=float(np.mean(wanted == classes[np.bincount(codes).argmax()])),
        correct=correct,
    )


def _check_pair(x_train: Array, y_train: Array, x_test: Array, y_test: Array):
    named = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    for name, value in named.items():
        check_features(name, value, (2, 3))
        if value.ndim != x_train.ndim or value.shape[:-2] != x_train.shape[:-2]:
            raise ValueError(f"{name} has shape {value.shape}, which does not match x_train's {x_train.shape}")
    for a, b in (("x_train", "y_train"), ("x_test", "y_test")):
        if named[a].shape[-2] != named[b].shape[-2]:
            raise ValueError(f"{a} has {named[a].shape[-2]} rows and {b} {named[b].shape[-2]}; pass the same texts")
    for a, b in (("x_train", "x_test"), ("y_train", "y_test")):
        if named[a].shape[-1] != named[b].shape[-1]:
            raise ValueError(f"{a} has {named[a].shape[-1]} features and {b} {named[b].shape[-1]}")
    stacked = x_train.ndim == 3
    x_train, y_train, x_test, y_test = (np.asarray(v) if stacked else np.asarray(v)[None] for v in named.values())
    return (x_train, y_train), (x_test, y_test), stacked


def group_split(labels: Array | Sequence, groups: Array | Sequence | None, *, share: float, seed: int) -> np.ndarray:
    """Which rows are held out, (N,) bool: about `share` of each class's groups, whole groups only.

    A group belongs to the class of its first row. A class keeps at least two rows on the fitting side, even if
    that leaves it without held-out rows. Raises ValueError when nothing can be held out.
    """
    labels = np.asarray(labels)
    members = np.arange(len(labels)) if groups is None else np.asarray(groups)
    if members.shape != labels.shape:
        raise ValueError(f"groups has shape {members.shape} for {len(labels)} labels; pass one group per row")
    _, first, group_of_row = np.unique(members, return_index=True, return_inverse=True)
    random = np.random.default_rng(seed)
    held_groups = np.zeros(len(first), bool)
    for value in np.unique(labels):
        own = random.permutation(np.flatnonzero(labels[first] == value))
        for group in own[: max(1, round(share * len(own)))] if len(own) > 1 else ():
            held_groups[group] = True
            counts = [
                np.sum((labels == v) & ~held_groups[group_of_row]) for v in np.unique(labels[group_of_row == group])
            ]
            held_groups[group] = min(counts) >= 2
    if not held_groups.any():
        raise ValueError("groups: no group can be held out and leave two rows of every class; pass more texts")
    return held_groups[group_of_row]


def _choose_l2(features_LNP: np.ndarray, codes: np.ndarray, num_classes: int, grid: np.ndarray, held_out) -> np.ndarray:
    """(L,) strengths of least held-out log loss; all grid points and layers are one compiled fit."""
    if held_out is None:
        return np.full(len(features_LNP), grid[0])
    strengths = np.broadcast_to(grid, (len(features_LNP), len(grid)))
    wanted = one_hot(codes, num_classes)
    fit = in_double(fit_stack, features_LNP[:, ~held_out], wanted[~held_out], strengths, "logistic")
    losses_LM = in_double(_held_out_loss, features_LNP[:, held_out], wanted[held_out], *fit[:4])
    return grid[len(grid) - 1 - losses_LM[:, ::-1].argmin(1)]


@jax.jit
def _held_out_loss(x_LNP, wanted_NK, weights_LMKP, intercept_LMK, mean_LP, scale_LP):
    inputs = (x_LNP - mean_LP[:, None]) / scale_LP[:, None]
    logits = jnp.einsum("lnp,lmkp->lmnk", inputs, weights_LMKP) + intercept_LMK[:, :, None]
    if wanted_NK.shape[1] == 1:
        return (jax.nn.softplus(logits) - wanted_NK * logits).sum((-1, -2))
    return (jax.nn.logsumexp(logits, axis=-1) - (logits * wanted_NK).sum(-1)).sum(-1)


def _predictions(probes: list[Probe], train: tuple, test: tuple) -> dict[str, np.ndarray]:
    """Predicted labels (L, N) of both probes on both models' test features, raw and aligned."""
    (source, target), (x_test, y_test) = probes, test
    result = {"source": np.asarray(source.predict(x_test)), "target": np.asarray(target.predict(y_test))}
    if x_test.shape[-1] == y_test.shape[-1]:
        result["transfer"] = np.asarray(source.predict(y_test, scaler=target.scaler))
        result["transfer_reverse"] = np.asarray(target.predict(x_test, scaler=source.scaler))
    carried = [_align(*layer) for layer in zip(*train, *test, strict=True)]
    result["transfer_aligned"] = np.asarray(source.predict(np.stack([to_x for to_x, _ in carried])))
    result["transfer_aligned_reverse"] = np.asarray(target.predict(np.stack([to_y for _, to_y in carried])))
    return result


def _align(x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray):
    """Test rows of Y carried into X's space and of X into Y's, by one Procrustes map of the training rows.

    With fewer rows than features the map is fitted between the spans of the training rows: outside them the data
    say nothing about it, and the carried rows get zero there instead of an arbitrary rotation.
    """
    mean_x, mean_y = x_train.mean(0, dtype=np.float64), y_train.mean(0, dtype=np.float64)
    rows_x, rows_y = x_train - mean_x, y_train - mean_y
    size_x, size_y = np.linalg.norm(rows_x), np.linalg.norm(rows_y)
    if size_x == 0 or size_y == 0:
        return np.broadcast_to(mean_x, (len(y_test), len(mean_x))), np.broadcast_to(mean_y, (len(x_test), len(mean_y)))
    span_x, span_y = _span(rows_x), _span(rows_y)
    with jax.enable_x64(True):
        fitted = np.asarray(orthogonal_procrustes(rows_y @ span_y, rows_x @ span_x).map)
    y_to_x = span_y @ fitted @ span_x.T
    to_x = mean_x + (size_x / size_y) * ((y_test - mean_y) @ y_to_x)
    to_y = mean_y + (size_y / size_x) * ((x_test - mean_x) @ y_to_x.T)
    return to_x, to_y


def _span(rows_NP: np.ndarray) -> np.ndarray:
    """Orthonormal basis (P, R) of the rows' span; the identity when there are more rows than features."""
    num_rows, num_features = rows_NP.shape
    return np.linalg.qr(rows_NP.T)[0] if num_rows < num_features else np.eye(num_features)


def cohen_kappa(a: Array, b: Array) -> Array:
    """Cohen's kappa of two label vectors (N,): agreement beyond what their marginals give; NaN if both constant."""
    xp, a, b = _label_pair(a, b)
    observed = xp.mean(a == b)
    ordered = xp.sort(b)
    matches = xp.searchsorted(ordered, a, side="right") - xp.searchsorted(ordered, a, side="left")
    expected = xp.mean(matches / b.shape[0])
    certain = expected == 1
    return xp.where(certain, xp.nan, (observed - expected) / xp.where(certain, 1, 1 - expected))


def disagreement(a: Array, b: Array) -> Array:
    """Share of rows in [0, 1] on which two label vectors (N,) differ."""
    xp, a, b = _label_pair(a, b)
    return xp.mean(a != b)


def _label_pair(a: Array, b: Array) -> tuple[Any, Any, Any]:
    xp: Any = jnp if is_traced(a, b) else np
    a, b = xp.asarray(a), xp.asarray(b)
    if a.ndim != 1 or a.shape != b.shape or a.shape[0] == 0:
        raise ValueError(f"a and b must be label vectors of one length, got shapes {a.shape} and {b.shape}")
    return xp, a, b

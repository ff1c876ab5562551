"""Linear probes of one layer or of a stack of layers (HRSA.md, "Function level").

L layers, N samples (texts), P features, K classes. Every probe works on standardised inputs (`Scaler`);
single-layer arrays are (N, P), stacks of layers (L, N, P), and a stack is fitted in one compilation.
Arrays are fitted in float64 on entry; inside `jax.jit` the caller's dtype is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from hrsa_jax.hrsa.inputs import is_traced
from hrsa_jax.hrsa.probe_solver import reduce_features, solve_logistic, solve_ridge

Array = jax.Array | np.ndarray
Kind = Literal["logistic", "ridge"]


@partial(jax.tree_util.register_dataclass, data_fields=["mean", "scale"], meta_fields=[])
@dataclass(frozen=True)
class Scaler:
    """Standardisation of one model's features: `mean` and `scale` are (..., P)."""

    mean: Array
    scale: Array

    def __call__(self, x: Array) -> Array:
        """(..., N, P) -> standardised (..., N, P)."""
        return (x - self.mean[..., None, :]) / self.scale[..., None, :]


def scaler(x: Array) -> Scaler:
    """Column means and population standard deviations of (..., N, P); a constant column gets scale 1.

    Constant means that all its values are equal, whatever their size: rounding in the mean must not turn
    a constant column into noise of unit variance.
    """
    xp, values = _namespace(x)
    mean = values.mean(-2)
    deviation = xp.sqrt(((values - mean[..., None, :]) ** 2).mean(-2))
    constant = values.max(-2) == values.min(-2)
    return Scaler(xp.where(constant, values[..., 0, :], mean), xp.where(constant, 1.0, deviation))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["weights", "intercept", "scaler", "gradient_norm"],
    meta_fields=["kind", "classes"],
)
@dataclass(frozen=True)
class Probe:
    """A fitted linear readout of standardised features.

    `weights` is (K, P) for K > 2 classes, (1, P) for two (the sigmoid gives the second class), and for ridge
    (P,) or (Q, P) as the targets were (N,) or (N, Q); a stack of layers puts L in front. `intercept` drops
    the last axis. `classes` holds the labels in sorted order, None for ridge. `gradient_norm` is the norm
    of the objective's gradient at the returned point (0 for ridge, which is solved exactly).
    """

    weights: Array
    intercept: Array
    scaler: Scaler
    gradient_norm: Array
    kind: Kind
    classes: tuple[Any, ...] | None

    def scores(self, x: Array, *, scaler: Scaler | None = None) -> Array:
        """Linear outputs for features (..., N, P): (..., N, K), or (..., N) for one-dimensional ridge targets."""
        xp, values = _namespace(x)
        inputs = (self.scaler if scaler is None else scaler)(values)
        if self.kind == "ridge" and self.weights.ndim == self.scaler.mean.ndim:
            return xp.einsum("...np,...p->...n", inputs, self.weights) + self.intercept[..., None]
        return xp.einsum("...np,...kp->...nk", inputs, self.weights) + self.intercept[..., None, :]

    def predict(self, x: Array, *, scaler: Scaler | None = None) -> Array:
        """Class labels (logistic) or values (ridge) for features (..., N, P).

        `scaler` replaces the probe's own: a transfer probe reads the target model through the target's scaler.
        """
        scores = self.scores(x, scaler=scaler)
        if self.classes is None:
            return scores
        index = (scores[..., 0] > 0).astype(int) if len(self.classes) == 2 else scores.argmax(-1)
        labels = jnp.asarray(self.classes) if isinstance(index, jax.Array) else np.asarray(self.classes)
        return labels[index]


def fit_probe(x: Array, targets: Array | Sequence, *, kind: Kind = "logistic", l2: float | Array = 1.0) -> Probe:
    """Fit a linear probe on standardised features, the intercept unpenalised.

    Args:
      x: (N, P), or (L, N, P) for a stack of layers that share the targets.
      targets: N class labels of any type (logistic), or (N,) / (N, Q) numbers (ridge).
      kind: "logistic": summed cross-entropy + l2 |w|^2 / 2 (scikit-learn's C = 1/l2), by L-BFGS to a gradient
        norm below 1e-5; "ridge": summed squared errors + l2 |w|^2.
      l2: positive; one number, or (L,) numbers for a stack.

    Raises ValueError on non-finite or misshapen input, fewer than two classes, or a class with one example.
    """
    check_features("x", x, (2, 3))
    if kind not in ("logistic", "ridge"):
        raise ValueError(f"kind is {kind!r}; choose 'logistic' or 'ridge'")
    if not is_traced(l2) and not np.all((np.asarray(l2) > 0) & np.isfinite(l2)):
        raise ValueError(f"l2 must be positive and finite, got {l2}")
    stacked = x.ndim == 3
    classes: tuple[Any, ...] | None = None
    if kind == "logistic":
        classes, codes = encode_labels("targets", targets, x.shape[-2])
        wanted: Array = one_hot(codes, len(classes))
        flat = False
    else:
        wanted = targets if isinstance(targets, jax.Array) else np.asarray(targets, np.float64)
        if wanted.ndim not in (1, 2) or wanted.shape[0] != x.shape[-2]:
            raise ValueError(f"targets has shape {wanted.shape} for {x.shape[-2]} rows of x; pass one row each")
        flat = wanted.ndim == 1
        wanted = wanted[:, None] if flat else wanted
    strengths = jnp.broadcast_to(jnp.asarray(l2), (x.shape[0] if stacked else 1,))[:, None]
    fit = in_double(fit_stack, x if stacked else x[None], wanted, strengths, kind)
    weights, intercept, mean, scale, norm = (a[:, 0] if a.ndim > 2 else a for a in fit)
    norm = norm[:, 0]
    if flat:
        weights, intercept = weights[:, 0], intercept[:, 0]
    if not stacked:
        weights, intercept, mean, scale, norm = (a[0] for a in (weights, intercept, mean, scale, norm))
    return Probe(weights, intercept, Scaler(mean, scale), norm, kind, classes)


@partial(jax.jit, static_argnames="kind")
def fit_stack(x_LNP: Array, wanted_NK: Array, l2_LM: Array, kind: Kind):
    """All layers and strengths in one program.

    Returns weights (L, M, K, P), intercepts (L, M, K), means and scales (L, P), gradient norms (L, M).
    """
    x_LNP = jnp.asarray(x_LNP).astype(jnp.result_type(float))
    scale = scaler(x_LNP)
    features, basis, spectrum = reduce_features(jnp.asarray(scale(x_LNP)))
    wanted_NK, l2_LM = jnp.asarray(wanted_NK, x_LNP.dtype), jnp.asarray(l2_LM, x_LNP.dtype)
    if kind == "ridge":
        weights, intercept = solve_ridge(features, spectrum, wanted_NK, l2_LM)
        norm = jnp.zeros(l2_LM.shape, x_LNP.dtype)
    else:
        weights, intercept, norm = solve_logistic(features, spectrum, wanted_NK, l2_LM)
    full = jnp.einsum("lpr,lmkr->lmkp", basis, weights, precision="highest")
    return full, intercept, scale.mean, scale.scale, norm


def encode_labels(name: str, labels: Array | Sequence, num_rows: int) -> tuple[tuple[Any, ...], np.ndarray]:
    """Sorted distinct labels and each row's index among them; at least two classes of two examples each."""
    if is_traced(labels):
        raise ValueError(f"{name} must be concrete under jit: close over the labels instead of passing them")
    values = np.asarray(labels)
    if values.shape != (num_rows,):
        raise ValueError(f"{name} has shape {values.shape} for {num_rows} rows; pass one label per row")
    if values.dtype.kind == "f" and not np.all(np.isfinite(values)):
        raise ValueError(f"{name} contains NaN or inf")
    classes, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"{name} holds {len(classes)} class; a probe needs at least two")
    if counts.min() < 2:
        lonely = classes.tolist()[counts.argmin()]
        raise ValueError(f"{name}: class {lonely!r} has one example; give it another or drop it")
    return tuple(classes.tolist()), codes


def one_hot(codes: np.ndarray, num_classes: int) -> np.ndarray:
    """(N, K) indicators, or one column (N, 1) for two classes."""
    indicators = np.eye(num_classes)[codes]
    return indicators[:, 1:] if num_classes == 2 else indicators


def _namespace(x: Array) -> tuple[Any, Array]:
    """jax.numpy under tracing, else numpy in float64: standardisation must not lose digits to fp32 means."""
    if is_traced(x):
        return jnp, x
    return np, np.asarray(x, np.float64)


def in_double(function: Callable, *args: Any) -> Any:
    """Run a jitted function in float64 and return numpy; under tracing keep the caller's precision."""
    if is_traced(*args):
        return function(*args)
    args = tuple(np.asarray(a) if isinstance(a, jax.Array) else a for a in args)
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*args))


def check_features(name: str, x: Array, ndims: tuple[int, ...]) -> None:
    if x.ndim not in ndims:
        raise ValueError(f"{name} has shape {x.shape}; pass (samples, features), or layers in front")
    if x.shape[-2] < 2:
        raise ValueError(f"{name} has {x.shape[-2]} rows; a probe needs at least two")
    if not is_traced(x) and not np.all(np.isfinite(np.asarray(x))):
        raise ValueError(f"{name} contains NaN or inf")

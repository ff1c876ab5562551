"""HSIC with its rounding in view, and CKA as a ratio of HSICs: shared by the single, stacked, text and one-pass forms.

A debiased HSIC is a small difference of large terms when one row carries nearly all the variance, or when n << d.
Every HSIC therefore travels with the size of what was subtracted. Where the difference has fewer than about
three digits the CKA is NaN rather than noise; outside jit the same program is then run once more in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hrsa_jax.hrsa.inputs import Array, is_traced

NOISE = 1e4  # a difference below NOISE x eps of its terms is not told from rounding
ENOUGH = 0.02  # above this share of its terms an fp32 difference is good to 1e-5


class Term(NamedTuple):
    """An HSIC up to a factor shared by the three HSICs of a CKA, and the summed size of its terms."""

    value: Any
    size: Any


class Resolved(NamedTuple):
    """CKA values and the smallest share that a self HSIC keeps of its terms."""

    cka: Any
    share: Any


def hsic(cross: Any, g: Any, norms: Any, n: Any) -> Term:
    """n (n - 3) HSIC_1 (Song et al. 2012) of centred rows: |Xc'Yc|^2 - g n/(n-2) + P Q/((n-1)(n-2)).

    cross = |Xc'Yc|^2, g = sum_a |x_a|^2 |y_a|^2, norms = P Q with P = sum |x_a|^2, Q = sum |y_a|^2; n >= 4.
    """
    own, both = g * (n / (n - 2)), norms / (n - 1) / (n - 2)
    return Term(cross - own + both, cross + own + both)


def biased(cross: Any) -> Term:
    """The biased HSIC is one sum of squares: nothing is subtracted."""
    return Term(cross, cross)


def cka_ratio(xy: Any, xx: Term, yy: Term, *, eps: float | None = None, xp: Any = jnp) -> Resolved:
    """xy / sqrt(xx) / sqrt(yy): NaN where a self term is not positive, or is not told from rounding.

    eps: the rounding of the products behind the terms, by default that of their dtype.
    Separate square roots: the product of two HSICs of massive activations overflows fp32.
    """
    shares, roots, valid = [], [], True
    for value, size in (xx, yy):
        share = value / xp.where(size > 0, size, 1.0)
        good = (value > 0) & (share > NOISE * (eps or jnp.finfo(share.dtype).eps))
        shares.append(xp.where(size > 0, share, 1.0))
        roots.append(xp.sqrt(xp.where(good, value, 1.0)))
        valid = valid & good
    return Resolved(xp.where(valid, xy / roots[0] / roots[1], xp.nan), xp.minimum(*shares))


def resolve(program: Callable[..., Resolved], *arrays: Array) -> Array:
    """The CKA of `program(*arrays)`; run again in float64 where fp32 left too few digits (never under jit)."""
    found = program(*arrays)
    if is_traced(*arrays, found.cka) or found.cka.dtype == jnp.float64 or bool((found.share > ENOUGH).all()):
        return found.cka
    dtype = found.cka.dtype
    host = [np.asarray(array, np.float64 if jnp.issubdtype(array.dtype, jnp.floating) else None) for array in arrays]
    with jax.enable_x64(True):
        wide = np.asarray(program(*(jnp.asarray(array) for array in host)).cka)
    return jnp.asarray(wide.astype(dtype))

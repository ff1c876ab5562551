"""Numbers that stay right however they are batched: a mean is kept as (sum, count) until it is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mean:
    """total: float32 (), the sum of `count` values. Parts of a batch, of devices or of steps merge exactly.

    logarithm: what is read is the logarithm of the mean.
    """

    total: Any
    count: Any
    logarithm: bool = field(default=False, metadata={"static": True})

    @classmethod
    def of(cls, values: jax.Array, weights: jax.Array | None = None, *, logarithm: bool = False) -> Mean:
        """The mean of the entries of an array; entries of weight 0 do not count, whatever they hold."""
        values = jnp.asarray(values, jnp.float32)
        if weights is None:
            return cls(values.sum(), jnp.float32(values.size), logarithm)
        weights = jnp.asarray(weights, jnp.float32)
        return cls(jnp.where(weights > 0, values * weights, 0.0).sum(), weights.sum(), logarithm)

    def merge(self, other: Mean) -> Mean:
        """The mean over both sets of values."""
        return Mean(self.total + other.total, self.count + other.count, self.logarithm)

    @property
    def value(self) -> jax.Array:
        """float32 (): total / count, 0 over no values; usable inside jit."""
        mean = self.total / jnp.maximum(self.count, 1.0)
        return jnp.log(jnp.maximum(mean, 1e-30)) if self.logarithm else mean


def read(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a step (scalars or Means, on the devices) as Python numbers; waits for them."""
    host = jax.device_get(dict(metrics))
    return {name: np.asarray(value.value if isinstance(value, Mean) else value).item() for name, value in host.items()}


def merge(rows: Iterable[Mapping[str, Any]]) -> dict[str, Mean]:
    """The Means of several steps or parts by name; values that are no Means are left out."""
    merged: dict[str, Mean] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, Mean):
                merged[name] = merged[name].merge(value) if name in merged else value
    return merged

"""Model FLOPs utilisation: what share of the devices' matmul speed a training run turns into model FLOPs."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from hrsa_jax.runtime.hardware import HARDWARE

# Dense bf16 FLOP/s of one device by a part of jax's device_kind (first match counts): makers' numbers.
_PEAK = {
    "v6 lite": HARDWARE["v6e"].bf16_flops,
    "v5 lite": HARDWARE["v5e"].bf16_flops,
    "v4": 275e12,
    "v3": 123e12,
    "L40S": 362e12,
    "L4": 121e12,
    "4090": 165e12,
    **{name: item.bf16_flops for name, item in HARDWARE.items()},
    "TPU v5": HARDWARE["v5p"].bf16_flops,
}


def training_flops_per_token(parameters: int, trainable: int) -> float:
    """Model FLOPs of one training token: 2 a parameter forward, 2 for the activations' gradients, 2 a trained weight.

    Attention scores and what rematerialisation computes twice are not counted, as is usual for this measure.

    Args:
        parameters: of the layers (an embedding table that is only looked up costs nothing).
        trainable: how many of the layers' parameters have gradients.
    """
    return 4.0 * parameters + 2.0 * trainable


def matmul_flops(traced: Any) -> float:
    """FLOPs of the matrix products of a traced program (`jit(f).trace(...).jaxpr`), over all devices.

    Loops count as often as they run and recomputation counts; results that nobody reads do not.
    """
    jaxpr, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    return _products(jaxpr)


def _products(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
            continue
        inner = [_products(getattr(sub, "jaxpr", sub)) for sub in _called(equation.params)]
        total += (max(inner, default=0.0) if "branches" in equation.params else sum(inner)) * equation.params.get(
            "length", 1
        )
    return total


def _called(params: dict[str, Any]) -> list[Any]:
    """The programs an equation runs: bodies of loops, branches, functions."""
    values = [item for value in params.values() for item in (value if isinstance(value, tuple | list) else (value,))]
    return [value for value in values if hasattr(getattr(value, "jaxpr", value), "eqns")]


@functools.cache
def peak_flops() -> float:
    """bf16 FLOP/s of all devices together: the makers' numbers, measured on a CPU, 0 where neither is known."""
    kind = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu":
        return _measured()
    return next((peak for name, peak in _PEAK.items() if name.lower() in kind.lower()), 0.0) * jax.device_count()


def _measured(size: int = 1024) -> float:
    """The best of three matmuls with bf16 operands and float32 sums (simulated devices share the same cores)."""
    x = jnp.ones((size, size), jnp.bfloat16)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    product(x).block_until_ready()
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        product(x).block_until_ready()
        best = max(best, 2.0 * size**3 / (time.perf_counter() - started))
    return best

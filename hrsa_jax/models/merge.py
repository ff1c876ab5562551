"""Interpolation of two models of one architecture, tensor by tensor: the straight line, or the great circle."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from hrsa_jax.models.decoder import Decoder
from hrsa_jax.runtime.errors import InputError

Path = Literal["linear", "spherical"]
_PARALLEL = 1e-6  # radians: below it the circle is the line


def interpolate(a: Decoder, b: Decoder, share: float, path: Path = "linear") -> Decoder:
    """The model `share` of the way from a to b; exactly a at 0 and exactly b at 1.

    Args:
        share: 0 to 1.
        path: "linear": (1 - share) a + share b. "spherical": every tensor's direction turns at even speed from a's to
            b's (slerp) while its norm changes evenly; a stacked layer is a tensor of its own.

    Raises:
        InputError: a share outside [0, 1], adapters that are not merged, or two architectures; the first difference
            is named.
    """
    if not 0 <= share <= 1:
        raise InputError(f"merge: share={share} is outside 0 .. 1: give a share of the way from a to b")
    if path not in ("linear", "spherical"):
        raise InputError(f"merge: path={path!r} is not one of 'linear', 'spherical'")
    _check_alike(a, b)
    graphdef, state_a = nnx.split(a)
    state_b = nnx.state(b)
    if share in (0.0, 1.0):
        return nnx.merge(graphdef, state_a if share == 0.0 else state_b)
    stacked = {keys for keys, _ in nnx.to_flat_state(state_a) if keys[0] == "blocks"}
    mixed = []
    for (keys, left), (_, right) in zip(nnx.to_flat_state(state_a), nnx.to_flat_state(state_b), strict=True):
        mix = jax.vmap(_mix, in_axes=(0, 0, None, None)) if keys in stacked else _mix
        value = mix(left.get_value(), right.get_value(), share, path == "spherical")
        mixed.append((keys, left.replace(value.astype(left.get_value().dtype))))
    return nnx.merge(graphdef, nnx.from_flat_state(mixed))


def _mix(a: jax.Array, b: jax.Array, share: float, spherical: bool) -> jax.Array:
    """One tensor of any shape, in float32."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    line = a + share * (b - a)
    if not spherical:
        return line
    norm_a, norm_b = jnp.linalg.norm(a.ravel()), jnp.linalg.norm(b.ravel())
    # atan2 of the difference and the sum of the unit vectors keeps small angles, which arccos of a cosine loses
    unit_a, unit_b = a / jnp.maximum(norm_a, 1e-30), b / jnp.maximum(norm_b, 1e-30)
    apart, together = jnp.linalg.norm((unit_b - unit_a).ravel()), jnp.linalg.norm((unit_b + unit_a).ravel())
    angle = 2 * jnp.arctan2(apart, together)
    sine = jnp.where(jnp.sin(angle) > _PARALLEL, jnp.sin(angle), 1.0)
    turned = (jnp.sin((1 - share) * angle) * unit_a + jnp.sin(share * angle) * unit_b) / sine
    norm = norm_a + share * (norm_b - norm_a)
    return jnp.where((jnp.sin(angle) > _PARALLEL) & (norm_a > 0) & (norm_b > 0), norm * turned, line)


def _check_alike(a: Decoder, b: Decoder) -> None:
    left, right = ({keys: v.get_value().shape for keys, v in nnx.to_flat_state(nnx.state(m))} for m in (a, b))
    for keys in sorted(left.keys() | right.keys(), key=str):
        if left.get(keys) != right.get(keys):
            name = ".".join(map(str, keys))
            raise InputError(
                f"merge: {name} has shape {left.get(keys)} in a and {right.get(keys)} in b: merge models of one "
                "architecture, with their adapters merged"
            )
    differing = [name for name in a.config.__dataclass_fields__ if getattr(a.config, name) != getattr(b.config, name)]
    if differing:
        name = differing[0]
        raise InputError(
            f"merge: config.{name} is {getattr(a.config, name)!r} in a and {getattr(b.config, name)!r} in b: "
            "merge models of one architecture"
        )

"""The device mesh, and the one table that says which array axis is split over which mesh axis.

A mesh has the axes ("data", "fsdp", "tensor"). Arrays name their axes logically ("vocab", "heads", ...); RULES maps
those names to mesh axes. An axis whose size the mesh does not divide is replicated instead, so that 3 kv heads on
a tensor axis of 2 are simply held twice.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import counted

MESH_AXES = ("data", "fsdp", "tensor")

#: logical axis -> mesh axes that may split it (in this order; those that do not divide are dropped)
RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "vocab": ("tensor", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices with axes ("data", "fsdp", "tensor"); one size may be -1 (what is left).

    Raises:
        InputError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size == 0 or size < -1 for size in sizes.values()):
        raise InputError(
            f"mesh sizes {sizes} are not usable: give positive sizes, at most one of them -1 (what is left)"
        )
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    if free and len(devices) % known == 0:
        sizes[free[0]] = len(devices) // known
    if int(np.prod(list(sizes.values()))) != len(devices):
        raise InputError(
            f"mesh sizes {sizes} do not fit {counted(len(devices), 'device')}: choose sizes whose product is "
            f"{len(devices)}"
        )
    # Auto axes: the Explicit default refuses look-ups in a sharded embedding.
    return jax.make_mesh(
        tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices
    )


def batch_parts(mesh_shape: Mapping[str, int]) -> int:
    """Into how many parts a mesh of these sizes splits a batch."""
    return math.prod(mesh_shape[axis] for axis in RULES["batch"])


def partition_spec(
    mesh_shape: Mapping[str, int],
    logical_axes: Sequence[str | None],
    shape: Sequence[int],
    units: Sequence[int] | None = None,
) -> PartitionSpec:
    """The PartitionSpec of an array whose axes carry logical names, given the sizes of the mesh axes.

    `units` (default `shape`) counts the indivisible pieces of each axis: a kernel of K heads x H features has K
    units on that axis, so that no head is ever cut in two. A mesh axis is used at most once per array.
    """
    if len(logical_axes) != len(shape):
        raise ValueError(f"logical_axes {tuple(logical_axes)} do not match the shape {tuple(shape)}")
    used: set[str] = set()
    spec: list[Any] = []
    for name, pieces in zip(logical_axes, shape if units is None else units, strict=True):
        chosen: list[str] = []
        if name is not None and name not in RULES:
            raise ValueError(f"unknown logical axis {name!r}; known: {', '.join(RULES)}")
        for axis in RULES[name] if name is not None else ():
            size = mesh_shape.get(axis, 1)
            split = int(np.prod([mesh_shape[a] for a in chosen])) * size
            if size > 1 and axis not in used and pieces % split == 0:
                chosen.append(axis)
        used.update(chosen)
        spec.append(None if not chosen else chosen[0] if len(chosen) == 1 else tuple(chosen))
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def named_sharding(
    mesh: Mesh,
    logical_axes: Sequence[str | None],
    shape: Sequence[int],
    units: Sequence[int] | None = None,
) -> NamedSharding:
    """`partition_spec` bound to a mesh."""
    return NamedSharding(mesh, partition_spec(dict(mesh.shape), logical_axes, shape, units))


def constrain(x: jax.Array, logical_axes: Sequence[str | None]) -> jax.Array:
    """Ask the compiler to lay `x` out by RULES on the mesh of `jax.set_mesh`; without a mesh, returns `x` as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    automatic = {
        name: size
        for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        if kind == AxisType.Auto  # inside shard_map an axis is Manual and cannot be constrained
    }
    if not any(size > 1 for size in automatic.values()):
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(automatic, logical_axes, x.shape))


def to_host(array: Any) -> np.ndarray:
    """The whole array in this process's memory; every process that holds a part of it must call this."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        assert isinstance(array.sharding, NamedSharding)
        array = _everywhere(NamedSharding(array.sharding.mesh, PartitionSpec()))(array)
    return np.asarray(array)


@cache
def _everywhere(sharding: NamedSharding) -> Any:
    return jax.jit(lambda array: array, out_shardings=sharding)


def shard_batch(mesh: Mesh, tree: Any) -> Any:
    """Numpy leaves -> jax arrays split over ("data", "fsdp") on axis 0 (replicated where that does not divide).

    On several hosts every process passes the same global arrays and keeps its own part.
    """

    def place(leaf: Any) -> jax.Array:
        array = to_host(leaf)
        axes = ("batch",) + (None,) * (array.ndim - 1) if array.ndim else ()
        sharding = named_sharding(mesh, axes, array.shape)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, tree)

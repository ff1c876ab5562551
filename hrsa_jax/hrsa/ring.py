"""CKA and nearest neighbours of samples sharded over devices: no device ever holds all rows.

Covariance form: plain jit over sharded rows, whose only communication is the all-reduce of (p, q) products. Gram form
and neighbours: every device keeps its rows while the others' blocks travel around a ring of collective-permutes.
Rows that do not divide over the devices are padded and count for nothing.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from hrsa_jax.hrsa.cka_core import Resolved
from hrsa_jax.hrsa.cka_stack import (
    Hsics,
    all_pairs,
    covariance_hsics,
    gram_hsics,
    gram_is_cheaper,
    symmetric_products,
    tile_products,
    tiling,
)
from hrsa_jax.hrsa.inputs import Array, matmul, to_pair, unit_rms
from hrsa_jax.hrsa.neighbors import LANES, Metric, checked, comparable

BLOCK = 256  # rows of one device scored at a time


def shard_rows(x: Array, mesh: Mesh, axis: str) -> Array:
    """x (..., n, d) with n padded to the devices of `axis` and sharded along it."""
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, -x.shape[-2] % mesh.shape[axis]), (0, 0)])
    spec = PartitionSpec(*(None,) * (x.ndim - 2), axis, None)
    return jax.device_put(padded, NamedSharding(mesh, spec))


def sharded_cka_matrix(
    xs_LND: ArrayLike, ys_MND: ArrayLike, mesh: Mesh, *, axis: str = "data", debiased: bool = True
) -> Array:
    """`geometry.cka_matrix` (L, M) of samples sharded along the mesh axis `axis`, by the cheaper exact form."""
    a, b = to_pair(xs_LND, ys_MND, ndims=(3,))
    n = a.shape[1]
    if n < (4 if debiased else 2):
        return jnp.full((len(a), len(b)), jnp.nan, a.dtype)
    by_gram = gram_is_cheaper(len(a), len(b), n, a.shape[2], b.shape[2])
    program = gram_program if by_gram else covariance_program
    return program(shard_rows(a, mesh, axis), shard_rows(b, mesh, axis), n, mesh, axis, debiased).cka


@partial(jax.jit, static_argnames=("n", "mesh", "axis", "debiased"))
def covariance_program(xs: Array, ys: Array, n: int, mesh: Mesh, axis: str, debiased: bool) -> Resolved:
    """CKA from all-reduced covariances; xs, ys padded and sharded, n the true number of rows."""
    kept = jnp.arange(xs.shape[1]) < n
    xs, ys = (jax.lax.map(lambda x: unit_rms(x, kept), stack) for stack in (xs, ys))
    return all_pairs(covariance_hsics(xs, ys, debiased, n))


@partial(jax.jit, static_argnames=("n", "mesh", "axis", "debiased"))
def gram_program(xs: Array, ys: Array, n: int, mesh: Mesh, axis: str, debiased: bool) -> Resolved:
    """CKA from Gram tiles around a ring; xs, ys padded and sharded, n the true number of rows."""
    kept = jnp.arange(xs.shape[1]) < n
    xs, ys = (jax.lax.map(lambda x: unit_rms(x, kept), stack) for stack in (xs, ys))
    rows = PartitionSpec(None, axis, None)
    around = partial(_ring_products, axis=axis, devices=mesh.shape[axis], debiased=debiased)
    crosses = jax.shard_map(
        around, mesh=mesh, in_specs=(rows, rows), out_specs=Hsics(*[PartitionSpec()] * 3), check_vma=False
    )(xs, ys)
    return all_pairs(gram_hsics(crosses, xs, ys, debiased, n))


def _ring_products(xs: Array, ys: Array, *, axis: str, devices: int, debiased: bool) -> Hsics:
    """This device's rows against its own and half of the others' blocks: the Gram matrices are symmetric."""
    count, tile = tiling(xs.shape[1])
    first, second = (grid.ravel() for grid in np.indices((count, count)))
    backwards = [(device, (device - 1) % devices) for device in range(devices)]

    def step(carry: tuple[tuple[Array, Array], Hsics], number: Array) -> tuple[tuple, None]:
        visitors, total = carry
        visitors = jax.tree.map(lambda v: jax.lax.ppermute(v, axis, backwards), visitors)
        times = jnp.where(2 * number == devices, 1.0, 2.0)  # opposite devices both see this pair of blocks
        pairs = first, second, times * jnp.ones(len(first), xs.dtype)
        found = tile_products((xs, ys), visitors, pairs, tile, None)
        return (visitors, jax.tree.map(jnp.add, total, found)), None

    total = symmetric_products(xs, ys, (lambda i, j: i != j) if debiased else None, None)
    if devices > 1:
        (_, total), _ = jax.lax.scan(step, ((xs, ys), total), jnp.arange(1, devices // 2 + 1))
    return jax.lax.psum(total, axis)


# ---- nearest neighbours --------------------------------------------------------------------------------------------


def sharded_nearest_neighbors(
    x: ArrayLike,
    k: int,
    mesh: Mesh,
    *,
    axis: str = "data",
    metric: Metric = "cosine",
    groups: ArrayLike | None = None,
) -> Array:
    """`geometry.nearest_neighbors` (n, k) of rows x (n, d) sharded along the mesh axis `axis`."""
    array, labels = checked("x", x, k, metric, groups, ndims=(2,))
    rows, offsets = comparable(array, metric)
    block = min(BLOCK, -(-len(rows) // mesh.shape[axis] // 8) * 8)
    padding = -len(rows) % (block * mesh.shape[axis])
    rows = jnp.pad(rows, ((0, padding), (0, -rows.shape[1] % LANES)))
    offsets = jnp.pad(offsets, (0, padding), constant_values=-jnp.inf)
    labels = jnp.pad(labels, (0, padding), constant_values=-1)
    spec = NamedSharding(mesh, PartitionSpec(axis))
    sharded = [jax.device_put(part, spec) for part in (rows, offsets, labels)]
    return neighbor_program(*sharded, k, block, mesh, axis)[: len(array)]


@partial(jax.jit, static_argnames=("k", "block", "mesh", "axis"))
def neighbor_program(rows: Array, offsets: Array, labels: Array, k: int, block: int, mesh: Mesh, axis: str) -> Array:
    """The k best of all rows for every row of this device, one visiting block of rows after another."""
    spec = PartitionSpec(axis)
    around = partial(_ring_neighbors, k=k, block=block, axis=axis, devices=mesh.shape[axis])
    search = jax.shard_map(around, mesh=mesh, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False)
    return search(rows, offsets, labels)


def _ring_neighbors(
    rows: Array, offsets: Array, labels: Array, *, k: int, block: int, axis: str, devices: int
) -> Array:
    n, home = len(rows), jax.lax.axis_index(axis)
    backwards = [(device, (device - 1) % devices) for device in range(devices)]
    mine = rows.reshape(-1, block, rows.shape[1]), labels.reshape(-1, block)

    def step(carry: tuple, number: Array) -> tuple[tuple, None]:
        (theirs, their_offsets, their_labels), best = carry
        first = (home + number) % devices * n

        def one_block(block_rows: tuple[Array, ...]) -> tuple[Array, Array]:
            own, own_labels, scores, indices = block_rows
            found = matmul(own, theirs.T) + their_offsets
            found = jnp.where(own_labels[:, None] == their_labels, -jnp.inf, found)
            found = jnp.where(found == 0, 0.0, found)
            new_scores, new = jax.lax.top_k(found, min(k, n))
            # blocks do not arrive in index order: sort by score, then by index
            all_scores = jnp.concatenate([scores, new_scores], 1)
            all_indices = jnp.concatenate([indices, new.astype(jnp.int32) + first], 1)
            ranked = jax.lax.sort((-all_scores, all_indices), dimension=1, num_keys=2)
            return -ranked[0][:, :k], ranked[1][:, :k]

        best = jax.lax.map(one_block, (*mine, *best))
        visitor = jax.tree.map(lambda v: jax.lax.ppermute(v, axis, backwards), (theirs, their_offsets, their_labels))
        return (visitor, best), None

    shape = (len(mine[0]), block, k)
    best = jnp.full(shape, -jnp.inf, rows.dtype), jnp.full(shape, jnp.iinfo(jnp.int32).max, jnp.int32)
    (_, best), _ = jax.lax.scan(step, ((rows, offsets, labels), best), jnp.arange(devices))
    return best[1].reshape(n, k)

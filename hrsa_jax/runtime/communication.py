"""What a compiled program sends between devices: read from its HLO text, and predicted for the conversion step.

Bytes are those that one device receives, counted as ring algorithms move them: of S bytes over a group of n devices
an all-gather (S: its result) or a reduce-scatter (S: its operand) moves S (n - 1) / n, an all-reduce twice that, a
collective-permute S. Loops count as often as they run.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hrsa_jax.runtime.mesh import partition_spec

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
_LINE = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (?P<type>.*?) (?P<kind>{'|'.join(_KINDS)})(?P<start>-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(r"(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')
_SIZES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}


@dataclass(frozen=True)
class Collective:
    """One collective instruction.

    shapes: of its result, one (dtype, dimensions) an array. group: devices that take part together. axes: the mesh
    axes it crosses (() where no mesh was given, or for a permutation). times: how often it runs. bytes: received by
    one device, all times together. operation: the JAX operation it comes from.
    """

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    group: int
    axes: tuple[str, ...]
    times: int
    bytes: float
    operation: str


def collectives(hlo: str, mesh_shape: Mapping[str, int] | None = None) -> list[Collective]:
    """The collectives of a compiled program.

    Args:
        hlo: `jit(f).lower(...).compile().as_text()`.
        mesh_shape: sizes by axis, in the mesh's order, to tell which axes each collective crosses.
    """
    computations, entry = _computations(hlo)
    times = _times(computations, entry)
    devices = math.prod(mesh_shape.values()) if mesh_shape else _device_count(hlo)
    found = []
    for name, lines in computations.items():
        for line in lines:
            match = _LINE.match(line)
            if match and times[name]:
                found.append(_collective(line, match, times[name], devices, mesh_shape))
    return found


def bytes_by_kind(hlo: str) -> dict[str, float]:
    """Bytes that one device receives in one run of a compiled program, by kind of collective; those it has only."""
    total: dict[str, float] = defaultdict(float)
    for one in collectives(hlo):
        total[one.kind] += one.bytes
    return dict(total)


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    found: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in hlo.splitlines():
        head = None if line.startswith(" ") else _COMPUTATION.match(line)
        if head:
            lines = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    return found, entry


def _times(computations: dict[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation runs; a loop whose count the compiler does not know counts once."""
    times: dict[str, int] = defaultdict(int)

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in computations.get(name, ()):
            trips = _TRIPS.search(line) if " while(" in line else None
            called = [(role, other) for role, other in _CALLED.findall(line)]
            for listed in _BRANCHES.findall(line):
                called += [("branch", other.strip().lstrip("%")) for other in listed.split(",")]
            for role, other in called:
                if role != "to_apply" or " call(" in line:  # elsewhere to_apply is a reduction's sum
                    visit(other, count * (int(trips[1]) if trips else 1))

    visit(entry, 1)
    return times


def _collective(
    line: str, match: re.Match[str], times: int, devices: int, mesh_shape: Mapping[str, int] | None
) -> Collective:
    kind = match["kind"]
    shapes = [
        (dtype, tuple(map(int, dims.split(",") if dims else ()))) for dtype, dims in _ARRAY.findall(match["type"])
    ]
    if match["start"] and kind == "collective-permute":
        shapes = shapes[:1]  # (operand, result, and two counters)
    elif match["start"] and kind != "all-reduce":
        shapes = shapes[len(shapes) // 2 :]  # (operands, results)
    groups = _groups(line, devices)
    group = 2 if kind == "collective-permute" else groups.shape[1]
    size = sum(_width(dtype) * math.prod(shape) for dtype, shape in shapes)
    if kind == "collective-permute":
        moved = float(size)
    else:
        whole = size * group if kind == "reduce-scatter" else size
        moved = whole * (group - 1) / group * (2 if kind == "all-reduce" else 1)
    axes = () if mesh_shape is None or kind == "collective-permute" else _axes(groups, mesh_shape)
    operation = re.search(r'op_name="([^"]*)"', line)
    return Collective(kind, tuple(shapes), group, axes, times, moved * times, operation[1] if operation else "")


def _width(dtype: str) -> float:
    return _SIZES.get(dtype) or int(re.sub(r"\D", "", dtype) or 8) / 8


def _device_count(hlo: str) -> int:
    found = re.search(r"num_partitions=(\d+)", hlo)
    return int(found[1]) if found else 1


def _groups(line: str, devices: int) -> np.ndarray:
    """int (groups, devices of a group), from any of the three ways in which XLA writes them."""
    explicit = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", line)
    if explicit:
        return np.array([[int(d) for d in part.split(",")] for part in re.findall(r"\{([\d, ]+)\}", explicit[1])])
    iota = re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", line)
    if iota:
        return _iota(iota[1])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?[^)]*)\))? ?\{([^}]*)\}", line)
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        order = named[2] and re.match(r"(\[[\d,]+\])(T\([\d,]+\))?", named[2])
        ids = np.arange(devices)
        if order:
            ids = _iota(f"[{devices}]<={order[1]}{order[2] or ''}").reshape(-1)
        inside = [name for name in sizes if f"'{name}'" in named[3]]
        outside = [name for name in sizes if name not in inside]
        places = list(sizes)
        grid = ids.reshape(tuple(sizes.values())).transpose([places.index(name) for name in (*outside, *inside)])
        return grid.reshape(-1, math.prod(sizes[name] for name in inside))
    return np.arange(devices)[None]


def _iota(text: str) -> np.ndarray:
    """`[4,2]<=[2,2,2]T(2,1,0)`: the numbers from 0, shaped as on the right, transposed, shaped as on the left."""
    left, right = text.split("<=")
    base = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", right)
    assert base is not None
    dims = [int(size) for size in base[1].split(",")]
    ids = np.arange(math.prod(dims)).reshape(dims)
    if base[2]:
        ids = ids.transpose([int(axis) for axis in base[2].split(",")])
    return ids.reshape([int(size) for size in left.strip("[]").split(",")])


def _axes(groups: np.ndarray, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    places = np.unravel_index(groups, tuple(mesh_shape.values()))
    return tuple(axis for axis, place in zip(mesh_shape, places, strict=True) if (place != place[:, :1]).any())


class ModelShape(Protocol):
    """The sizes of a decoder (models/config.ModelConfig has them)."""

    @property
    def num_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


@dataclass(frozen=True)
class Traffic:
    """Bytes that one device receives in one step. purpose: weights, gradients, activations or vectors (of texts)."""

    purpose: str
    axes: tuple[str, ...]
    bytes: float


def conversion_bytes(
    model: ModelShape,
    mesh_shape: Mapping[str, int],
    *,
    rows: int,
    row_length: int,
    segments: int,
    queries: int,
    passages: int,
    chunks: int = 1,
    remat: bool = True,
    weight_bytes: int = 4,
    lora_rank: int | None = None,
    reduce_scatter: bool = False,
) -> list[Traffic]:
    """What one conversion step sends, by purpose and mesh axes, under the rules of runtime/mesh.py.

    Args:
        mesh_shape: sizes of data, fsdp and tensor.
        rows, row_length, segments: of the whole batch; texts that a row can hold.
        queries, passages: of the whole batch.
        chunks, remat: of the recipe.
        weight_bytes: of a gathered weight (2 where the computation is bfloat16 and the compiler casts before it sends).
        lora_rank: of adapters on every linear layer; None trains every weight.
        reduce_scatter: gradients of split weights are reduced and scattered in one (GPU, TPU), not all-reduced (CPU).
    """
    data, fsdp, tensor = (mesh_shape.get(axis, 1) for axis in ("data", "fsdp", "tensor"))
    group, D, L = data * fsdp, model.hidden_size, model.num_layers
    found: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
    # Each chunk reads a block's weights forward and backward, and forward again where whole chunks are recomputed.
    passes = chunks * (2 + (chunks > 1))

    def add(purpose: str, axes: tuple[str, ...], size: float, *, reduced: bool, times: float = 1.0) -> None:
        members = math.prod(mesh_shape.get(axis, 1) for axis in axes)
        if members > 1:
            crossed = tuple(axis for axis in axes if mesh_shape.get(axis, 1) > 1)
            found[purpose, crossed] += times * size * (members - 1) / members * (2 if reduced else 1)

    for shape, axes, units, times in _kernels(model):
        split = [axis for part in partition_spec(mesh_shape, axes, shape, units) if part for axis in _listed(part)]
        held = math.prod(shape) / (tensor if "tensor" in split else 1)
        once = axes[0] == "vocab"  # the table: gathered once for all chunks, and again by each that is recomputed
        # A block is recomputed in the backward pass up to the input of its last product (mlp -> embed).
        reads = (1 + chunks * (chunks > 1)) if once else times * (passes + chunks * (remat and axes[0] != "mlp"))
        if "fsdp" in split:
            add("weights", ("fsdp",), held * weight_bytes, reduced=False, times=reads)
        if lora_rank is not None:
            continue
        if "fsdp" in split and not once:
            add("gradients", ("fsdp",), 4 * held, reduced=not reduce_scatter, times=times * chunks)
            add("gradients", ("data",), 4 * held / fsdp, reduced=True, times=times * chunks)
        else:
            add("gradients", ("data", "fsdp"), 4 * held, reduced=True, times=times * chunks)
    if lora_rank is None:
        add("gradients", ("data", "fsdp"), 4 * D * (2 * L * chunks + 1), reduced=True)
    else:
        adapters = sum(
            lora_rank * sum(shape) * times for shape, axes, _, times in _kernels(model) if axes[0] != "vocab"
        )
        add("gradients", ("data", "fsdp"), 4 * adapters, reduced=True, times=chunks)
    tokens = rows / group * row_length
    # Two sums a block forward and five backward (one for each linear layer that reads the norm), one of the look-up.
    # An adapter's inner vector is summed wherever its layer's result or gradient is.
    sums = 7 * L + L * remat + 2 * L * (chunks > 1)
    add("activations", ("tensor",), 4 * tokens * (D + (lora_rank or 0)), reduced=True, times=sums)
    add("activations", ("tensor",), 4 * tokens * D, reduced=True, times=1 + (chunks > 1))
    vectors = 4 * D * (7 * passages + 4 * queries)
    add("vectors", ("data", "fsdp"), vectors, reduced=False)
    add("vectors", ("tensor",), 4 * rows / group * segments * D, reduced=True, times=2)
    return [Traffic(purpose, axes, size) for (purpose, axes), size in found.items()]


def _kernels(model: ModelShape) -> list[tuple[tuple[int, int], tuple[str, str | None], tuple[int, int], int]]:
    """(shape, logical axes, units, how many) of the matrices that a conversion reads."""
    D, F, N, K, H = (
        model.hidden_size,
        model.intermediate_size,
        model.num_heads,
        model.num_kv_heads,
        model.head_dim,
    )
    L, V = model.num_layers, model.vocab_size
    return [
        ((D, N * H), ("embed", "heads"), (D, N), L),
        ((D, K * H), ("embed", "kv_heads"), (D, K), 2 * L),
        ((N * H, D), ("heads", "embed"), (N, D), L),
        ((D, F), ("embed", "mlp"), (D, F), 2 * L),
        ((F, D), ("mlp", "embed"), (F, D), L),
        ((V, D), ("vocab", None), (V, D), 1),
    ]


def _listed(part: str | tuple[str, ...]) -> tuple[str, ...]:
    return (part,) if isinstance(part, str) else part

"""Which mesh and which chunk a conversion should use on given hardware: the least computing and sending that fits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
from jax.sharding import Mesh

from hrsa_jax.embedding.cost import ModelArrays, StepCost, bytes_over_axes, model_arrays, seconds_over_axes, step_cost
from hrsa_jax.embedding.recipe import ConversionConfig
from hrsa_jax.models.attention import BLOCK
from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.lora import LoRAConfig
from hrsa_jax.runtime.communication import Traffic, conversion_bytes
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.hardware import Hardware, link_bandwidths
from hrsa_jax.runtime.mesh import batch_parts, make_mesh
from hrsa_jax.runtime.optim import OptimConfig

_TRIES = 2  # chunk sizes that are compiled after the first two
_LEADING = 3  # meshes that are compiled where the guessed chunks, on which the order of `ranked` rests, are wrong


@dataclass(frozen=True)
class Workload:
    """A conversion step: slots are token slots of a batch, in rows of `row_length`."""

    model: ModelConfig
    recipe: ConversionConfig
    optim: OptimConfig
    lora: LoRAConfig | None
    slots: int
    row_length: int


@dataclass(frozen=True)
class Fit:
    """A step on a mesh. rows: of a device's batch; chunks: it is computed in; expected: bytes of a device by the line
    through two sizes compiled before, or by `formula_bytes` where there were none; guessed: chunks before any was
    compiled; larger: bytes that one chunk fewer would take, where that was compiled."""

    mesh_shape: dict[str, int]
    arrays: ModelArrays
    cost: StepCost
    rows: int
    chunks: int
    expected: float
    guessed: int
    larger: float | None = None

    @property
    def group(self) -> int:
        """Devices that split the batch."""
        return batch_parts(self.mesh_shape)


def mesh_shapes(devices: int, heads: int) -> Iterator[dict[str, int]]:
    """Every (data, fsdp, tensor) of so many devices; a tensor axis divides the heads."""
    for tensor in (size for size in range(1, devices + 1) if devices % size == 0 and heads % size == 0):
        rest = devices // tensor
        for fsdp in (size for size in range(1, rest + 1) if rest % size == 0):
            yield {"data": rest // fsdp, "fsdp": fsdp, "tensor": tensor}


def best_fit(load: Workload, item: Hardware, shapes: Sequence[Mapping[str, int]], budget: float) -> Fit:
    """Of the first meshes that fit `budget` bytes a device, each with the largest chunk that does: the fastest.

    Raises:
        InputError: none fits.
    """
    found: list[Fit] = []
    reasons = []
    for shape in ranked(load, item, shapes, budget):
        try:
            found.append(fit(load, shape, budget))
        except InputError as error:
            reasons.append(str(error))
            continue
        if len(found) == _LEADING or found[-1].chunks == found[-1].guessed:
            break  # the order holds from here on
    if found:
        return min(found, key=lambda one: _seconds(load, item, one))
    if not reasons:
        reasons = ["weights, gradients and optimiser state alone are too large on every mesh"]
    raise InputError(f"{reasons[0]}: use more devices, LoRA, or hardware with more memory than {item.name}'s")


def _seconds(load: Workload, item: Hardware, found: Fit) -> float:
    """Of a step at the hardware's peak: what is computed (recomputation included), then what is sent."""
    sizes = bytes_over_axes(traffic(load, found.mesh_shape, found.rows, found.chunks))
    computing = found.cost.flops / (item.bf16_flops * math.prod(found.mesh_shape.values()))
    return computing + seconds_over_axes(sizes, link_bandwidths(item, found.mesh_shape))


def ranked(
    load: Workload, item: Hardware, shapes: Sequence[Mapping[str, int]], budget: float
) -> list[Mapping[str, int]]:
    """The meshes whose state leaves room for activations, those that spend the least time sending first."""
    found: list[tuple[float, int, int, Mapping[str, int]]] = []
    for shape in shapes:
        mesh = _mesh(shape)
        room = _room(load, model_arrays(load.model, load.optim, load.lora, mesh), shape, budget)
        if room < 1:
            continue
        rows = rows_per_device(load, batch_parts(shape))
        chunks = -(-rows // int(room))
        sent = seconds_over_axes(bytes_over_axes(traffic(load, shape, rows, chunks)), link_bandwidths(item, shape))
        found.append((sent, shape["tensor"], len(found), shape))
    return [shape for *_, shape in sorted(found, key=lambda entry: entry[:3])]


def fit(load: Workload, shape: Mapping[str, int], budget: float) -> Fit:
    """The largest equal chunks on this mesh whose compiled step fits `budget` bytes a device.

    Memory is a convex function of the chunk (the larger of the update's and the chunk's), so a line between two sizes
    lies above it: what the line says fits does.

    Raises:
        InputError: not even one row a device fits.
    """
    mesh = _mesh(shape)
    arrays = model_arrays(load.model, load.optim, load.lora, mesh)
    rows = rows_per_device(load, batch_parts(shape))
    compiled: dict[int, Fit] = {}

    def at(chunks: int) -> Fit:
        if chunks not in compiled:
            held = -(-rows // chunks) * chunks
            recipe = replace(load.recipe, chunks=chunks, chunk_tokens=None, layout="packed")
            total = held * batch_parts(shape)
            cost = step_cost(arrays, recipe, mesh, rows=total, row_length=load.row_length)
            size = -(-rows // chunks)
            line = _line([(-(-rows // one.chunks), one.cost.total) for one in compiled.values()], size)
            expected = formula_bytes(load, arrays, shape, size * load.row_length, chunks) if line is None else line
            compiled[chunks] = Fit(dict(shape), arrays, cost, held, chunks, expected, asked)
        return compiled[chunks]

    asked = _asked(load, rows, arrays, shape, budget)
    found = at(asked)
    if load.recipe.chunks == 1 and load.recipe.chunk_tokens is None and (asked > 1 or found.cost.total > budget):
        at(min(rows, 2 * asked))
        for _ in range(_TRIES):
            size = _size_for(budget, [(-(-rows // one.chunks), one.cost.total) for one in compiled.values()])
            chunks = -(-rows // min(rows, max(1, size)))
            if chunks in compiled:
                break
            at(chunks)
        if all(one.cost.total > budget for one in compiled.values()):
            at(rows)
    fitting = [one for one in compiled.values() if one.cost.total <= budget]
    if not fitting:
        least = min(compiled.values(), key=lambda one: one.cost.total)
        raise InputError(
            f"{_words(shape)} in {least.chunks} chunks needs {least.cost.total / 1e9:.1f} GB a device, of which "
            f"{budget / 1e9:.1f} GB may be used"
        )
    best = min(fitting, key=lambda one: one.chunks)
    beyond = compiled.get(best.chunks - 1)
    return best if beyond is None else replace(best, larger=float(beyond.cost.total))


def _asked(load: Workload, rows: int, arrays: ModelArrays, shape: Mapping[str, int], budget: float) -> int:
    """The recipe's chunks, or a first guess where it leaves them open."""
    if load.recipe.chunk_tokens is not None:
        return min(rows, -(-rows * load.row_length * batch_parts(shape) // load.recipe.chunk_tokens))
    if load.recipe.chunks > 1:
        return min(rows, load.recipe.chunks)
    return -(-rows // min(rows, max(1, int(_room(load, arrays, shape, budget)))))


def _room(load: Workload, arrays: ModelArrays, shape: Mapping[str, int], budget: float) -> float:
    """About how many rows of a device fit `budget` beside the state."""
    held = sum(arrays.bytes_per_device.values())
    return (budget - held) / activation_bytes(load.model, load.row_length, shape["tensor"]) / load.row_length


def _size_for(budget: float, points: Sequence[tuple[int, int]]) -> int:
    """Rows a chunk at which the line through the two points nearest to the budget reaches it."""
    (few, less), (many, more) = sorted(sorted(points, key=lambda point: abs(point[1] - budget))[:2])
    slope = (more - less) / max(many - few, 1)
    return int(few + (budget - less) / slope) if slope > 0 else many


def traffic(
    load: Workload, shape: Mapping[str, int], rows: int, chunks: int, *, reduce_scatter: bool = True
) -> list[Traffic]:
    """The formula's bytes of a step of `rows` rows a device; reduce_scatter: as accelerators do, and CPUs do not."""
    queries = load.recipe.batch_size
    return conversion_bytes(
        load.model,
        shape,
        rows=rows * batch_parts(shape),
        row_length=load.row_length,
        segments=load.recipe.max_segments,
        queries=queries,
        passages=queries * (1 + load.recipe.hard_negatives),
        chunks=chunks,
        remat=load.recipe.remat,
        lora_rank=None if load.lora is None else load.lora.rank,
        reduce_scatter=reduce_scatter,
    )


def formula_bytes(load: Workload, arrays: ModelArrays, shape: Mapping[str, int], tokens: int, chunks: int) -> float:
    """About what a device needs for chunks of so many tokens: state, gradients (and their sum over chunks), the
    gathered embedding table and its gradient, and the chunk's activations."""
    held = arrays.bytes_per_device
    table = 8.0 * load.model.vocab_size * load.model.hidden_size if shape["fsdp"] > 1 else 0.0
    sums = held["gradients"] if chunks > 1 else 0
    return sum(held.values()) + sums + table + tokens * activation_bytes(load.model, load.row_length, shape["tensor"])


def activation_bytes(model: ModelConfig, row_length: int, tensor: int) -> float:
    """About what a token of a chunk takes with remat: every block's input, and one block's insides. A first guess."""
    D, split = model.hidden_size, tensor
    scores = 2 * model.num_heads * min(BLOCK, row_length) / split
    return 4.0 * (D * (model.num_layers + 10) + 7 * model.intermediate_size / split + scores)


def rows_per_device(load: Workload, group: int) -> int:
    """Rows of a device's share of the batch."""
    return max(1, -(-load.slots // (load.row_length * group)))


def _line(points: Sequence[tuple[int, float]], at: int) -> float | None:
    """The line through the two points nearest to `at`; None with fewer than two."""
    nearest = sorted(points, key=lambda point: abs(point[0] - at))[:2]
    if len(nearest) < 2 or nearest[0][0] == nearest[1][0]:
        return None
    (x, y), (u, v) = nearest
    return y + (v - y) * (at - x) / (u - x)


def _mesh(shape: Mapping[str, int]) -> Mesh:
    count = math.prod(shape.values())
    return make_mesh(**shape, devices=jax.devices()[:count])


def _words(shape: Mapping[str, int]) -> str:
    return "mesh " + " x ".join(f"{axis} {size}" for axis, size in shape.items() if size > 1)

"""What a conversion step takes before it is run: it is traced, partitioned and compiled on abstract arrays.

Nothing is allocated and no weights are read, so a model of any size can be looked at on a laptop. Blocks are stacked
and scanned: compiling takes the same time for 2 layers and for 80.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, SingleDeviceSharding

from hrsa_jax.data.packing import PackedRows
from hrsa_jax.embedding.batches import ContrastiveBatch
from hrsa_jax.embedding.recipe import ConversionConfig
from hrsa_jax.embedding.step import contrastive_loss_fn
from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.lora import LoRAConfig, add_lora, split_trainable
from hrsa_jax.runtime.communication import Collective, collectives
from hrsa_jax.runtime.flops import matmul_flops
from hrsa_jax.runtime.loop import make_optimizer, optimizer_shardings, update_program
from hrsa_jax.runtime.mesh import named_sharding
from hrsa_jax.runtime.optim import OptimConfig

_STEPS = 1000  # of the schedule, whose length changes nothing here
_QUICK = {"xla_backend_optimization_level": 0}  # machine code is not wanted; buffers are laid out before it


@dataclass(frozen=True)
class ModelArrays:
    """A model split for training, as ShapeDtypeStructs that know their shardings; `saved` is a TrainState's."""

    graphdef: Any
    saved: dict[str, Any]
    frozen: Any
    optimizer: Any

    @property
    def bytes_per_device(self) -> dict[str, int]:
        """weights, gradients and optimizer, as they lie on the mesh."""
        trainable = _held(self.saved["trainable"])
        return {
            "weights": trainable + _held(self.frozen),
            "gradients": trainable,
            "optimizer": _held(self.saved["opt_state"]),
        }


@dataclass(frozen=True)
class StepCost:
    """A compiled step. Bytes are of one device: arguments (state and batch), temporary, all of it together.

    flops: of all matrix products of all devices, what is computed twice included.
    """

    arguments: int
    temporary: int
    total: int
    flops: float
    traffic: tuple[Collective, ...]


def model_arrays(config: ModelConfig, optim: OptimConfig, lora: LoRAConfig | None, mesh: Mesh | None) -> ModelArrays:
    """The arrays of a conversion's training state, laid out by runtime/mesh.py; nothing is allocated."""

    def build() -> Decoder:
        decoder = Decoder(config)
        return decoder if lora is None else add_lora(decoder, lora, seed=0)

    def place(variable: Any) -> Any:
        value, facts = variable.get_value(), variable.get_metadata()
        return variable.replace(_array(mesh, value.shape, value.dtype, facts["logical_axes"], facts["units"]))

    graph, state = nnx.split(nnx.eval_shape(build))
    placed = [(keys, place(variable)) for keys, variable in nnx.to_flat_state(state)]
    decoder = nnx.merge(graph, nnx.from_flat_state(placed))
    graphdef, trainable, frozen = split_trainable(decoder, lora=lora is not None)
    optimizer = make_optimizer(optim, _STEPS * optim.accumulate)
    moments = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(optimizer.init, trainable),
        optimizer_shardings(optimizer, trainable),
    )
    saved = {"step": _array(mesh, (), jnp.int32), "trainable": trainable, "opt_state": moments}
    return ModelArrays(graphdef, saved, frozen, optimizer)


def step_cost(
    arrays: ModelArrays, recipe: ConversionConfig, mesh: Mesh | None, *, rows: int, row_length: int
) -> StepCost:
    """Compiles one update of a batch of `rows` rows of `row_length` tokens, in the recipe's chunks."""
    loss_fn = contrastive_loss_fn(arrays.graphdef, recipe)
    batch = abstract_batch(recipe, mesh, rows, row_length)
    with jax.set_mesh(mesh) if mesh is not None else nullcontext():
        traced = update_program(loss_fn, arrays.optimizer, arrays.saved).trace(arrays.saved, arrays.frozen, batch)
        flops = matmul_flops(traced.jaxpr)
        program = traced.lower().compile(compiler_options=_QUICK)
    memory: Any = program.memory_analysis()
    arguments = int(memory.argument_size_in_bytes)
    kept = int(memory.output_size_in_bytes - memory.alias_size_in_bytes)
    temporary = int(memory.temp_size_in_bytes)
    sent = () if mesh is None else tuple(collectives(program.as_text(), dict(mesh.shape)))
    return StepCost(arguments, temporary, arguments + kept + temporary, flops, sent)


def abstract_batch(recipe: ConversionConfig, mesh: Mesh | None, rows: int, row_length: int) -> ContrastiveBatch:
    """The shapes of one step's batch, every query with its hard negatives."""
    queries = recipe.batch_size
    passages = queries * (1 + recipe.hard_negatives)

    def split(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return _array(mesh, shape, dtype, ("batch", *(None,) * (len(shape) - 1)) if shape else ())

    ints = split((rows, row_length), jnp.int32)
    taught = split((queries, passages // queries), jnp.float32) if recipe.distillation_weight else None
    return ContrastiveBatch(
        blocks=(PackedRows(ints, ints, ints, split((rows, row_length), jnp.bool_)),),
        query_slot_Q=split((queries,), jnp.int32),
        passage_slot_P=split((passages,), jnp.int32),
        positive_Q=split((queries,), jnp.int32),
        mask_QP=split((queries, passages), jnp.bool_),
        teacher_QK=taught,
        tokens=split((), jnp.float32),
        purity=split((), jnp.float32),
    )


def bytes_over_axes(traffic: Sequence[Any]) -> dict[tuple[str, ...], float]:
    """Bytes that one device receives in a step, by the mesh axes they cross; of Collectives or of Traffic."""
    found: dict[tuple[str, ...], float] = {}
    for one in traffic:
        found[one.axes] = found.get(one.axes, 0.0) + one.bytes
    return {axes: size for axes, size in sorted(found.items()) if size}


def seconds_over_axes(sizes: Mapping[tuple[str, ...], float], bandwidths: Mapping[str, float]) -> float:
    """Seconds to receive them one after the other, each at the speed of the slowest axis it crosses."""
    slowest = min(bandwidths.values())
    return sum(size / min((bandwidths[axis] for axis in axes), default=slowest) for axes, size in sizes.items())


def _array(
    mesh: Mesh | None,
    shape: tuple[int, ...],
    dtype: Any,
    axes: Sequence[str | None] = (),
    units: Sequence[int] | None = None,
) -> jax.ShapeDtypeStruct:
    alone = SingleDeviceSharding(jax.devices()[0])
    sharding = alone if mesh is None else named_sharding(mesh, axes, shape, units)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _held(tree: Any) -> int:
    """Bytes of a tree's arrays on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))

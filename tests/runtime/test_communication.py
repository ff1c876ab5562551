"""What compiled conversion steps send is what the formula of docs/scaling.md says, within a tenth, in every form."""

import sys
from itertools import product
from pathlib import Path

import pytest

from hrsa_jax.embedding.cost import model_arrays, step_cost
from hrsa_jax.embedding.fit import Workload, traffic
from hrsa_jax.embedding.recipe import ConversionConfig
from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.lora import LoRAConfig
from hrsa_jax.runtime.loop import OptimConfig
from hrsa_jax.runtime.mesh import batch_parts, make_mesh

sys.path.append(str(Path(__file__).parents[1] / "experiments"))
import tiny

MODEL = ModelConfig.from_hf(tiny.CONFIG)
OPTIM = OptimConfig(1e-4)
MESHES = {"data 8": (8, 1, 1), "fsdp 8": (1, 8, 1), "2 x 2 x 2": (2, 2, 2)}
# In CI: chunks and remat over fsdp, and adapters over all three axes. The rest is slow.
FAST = {("fsdp 8", None, True, 2), ("2 x 2 x 2", 5, True, 1)}


def forms():
    for form in product(MESHES, (None, 5), (False, True), (1, 2)):
        yield pytest.param(*form, marks=() if form in FAST else pytest.mark.slow)


@pytest.mark.parametrize(("mesh", "rank", "remat", "chunks"), forms())
def test_bytes_of_a_step_are_those_of_the_formula(mesh, rank, remat, chunks):
    shape = dict(zip(("data", "fsdp", "tensor"), MESHES[mesh], strict=True))
    lora = None if rank is None else LoRAConfig(rank=rank)
    recipe = ConversionConfig(
        steps=1, batch_size=16, hard_negatives=1, chunks=chunks, remat=remat, layout="packed", max_segments=8
    )
    load = Workload(MODEL, recipe, OPTIM, lora, slots=32 * 64, row_length=64)
    devices = make_mesh(**shape)
    found = step_cost(model_arrays(MODEL, OPTIM, lora, devices), recipe, devices, rows=32, row_length=64)
    predicted = traffic(load, shape, 32 // batch_parts(shape), chunks, reduce_scatter=False)

    assert sum(one.bytes for one in found.traffic) == pytest.approx(sum(part.bytes for part in predicted), rel=0.1)
    table = {MODEL.vocab_size, MODEL.vocab_size // shape["tensor"]}
    gathers = [
        one
        for one in found.traffic
        if one.kind == "all-gather" and ("while" in one.operation or table & {size for _, (size, *_) in one.shapes})
    ]
    assert all(one.axes == ("fsdp",) for one in gathers)
    weights = sum(part.bytes for part in predicted if part.purpose == "weights")
    assert sum(one.bytes for one in gathers) == pytest.approx(weights, rel=0.02)

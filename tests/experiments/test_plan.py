"""The plan's numbers are those of the compiled program, and bad requests are one sentence."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from test_launch import ROOT, check, launch
from tiny import CONFIG

from experiments.plan import run
from hrsa_jax.embedding.cost import bytes_over_axes, model_arrays, seconds_over_axes
from hrsa_jax.embedding.fit import Workload, mesh_shapes, ranked, rows_per_device
from hrsa_jax.embedding.recipe import ConversionConfig
from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.lora import LoRAConfig, add_lora
from hrsa_jax.runtime.communication import Traffic
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.flops import matmul_flops
from hrsa_jax.runtime.hardware import HARDWARE, hardware, link_bandwidths
from hrsa_jax.runtime.mesh import make_mesh
from hrsa_jax.runtime.optim import OptimConfig

MODEL = ModelConfig.from_hf(CONFIG)
OPTIM = OptimConfig(1e-4)


def settings(**changes):
    return {
        "model": "tiny",
        "architectures": ({"name": "tiny", **CONFIG},),
        "hardware": "h100",
        "devices": 8,
        "recipe": {"epochs": 1.0, "batch_size": 16, "hard_negatives": 1, "chunks": 2},
        "optim": {"learning_rate": 1e-4},
        "texts": {"query": 8, "passage": 12, "padding": 0.1, "row_length": 32},
        "study": {"pairs": 1600, "seeds": 2, "evaluation_tokens": 1e6, "hrsa_tokens": 1000},
        **changes,
    }


def test_a_plan_without_weights_on_a_given_mesh(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))  # and nothing else
    assert run(settings(model=str(tmp_path), mesh={"data": 2, "fsdp": 2, "tensor": 2})) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 or "/" in line for line in lines)
    shown = {line.split("  ", 1)[0].strip() or line.split("  ")[1]: line for line in lines}
    assert "data 2 x fsdp 2 x tensor 2" in shown["mesh"]
    assert "2 chunks a step" in shown["chunk"]
    assert "100 steps, 5.12e+04 tokens" in shown["one conversion"]
    assert "4 (two backbones, 2 seeds)" in shown["conversions"]
    assert {"memory", "bytes over fsdp", "bytes over tensor", "seconds a step", "whole study"} <= set(shown)


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2)])
def test_state_bytes_equal_those_of_real_arrays(lora):
    mesh = make_mesh(data=1, fsdp=8)
    found = model_arrays(MODEL, OPTIM, lora, mesh)
    decoder = Decoder(MODEL) if lora is None else add_lora(Decoder(MODEL), lora, seed=0)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(decoder))
    alone = model_arrays(MODEL, OPTIM, lora, None).bytes_per_device
    assert alone["weights"] == whole
    assert alone["optimizer"] - 2 * alone["gradients"] == 8  # two counters
    split = found.bytes_per_device
    assert whole / 8 < split["weights"] < whole / 2
    assert split["optimizer"] - 2 * split["gradients"] == 8


def test_products_are_counted_as_often_as_they_run_and_only_where_they_are_read():
    def f(w, x):
        unused = x @ x.T
        looped = jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, length=5)[0]
        del unused
        return jax.lax.cond(x[0, 0] > 0, lambda y: y @ w, lambda y: y, looped)

    traced = jax.jit(f).trace(jnp.ones((4, 4)), jnp.ones((3, 4))).jaxpr
    assert matmul_flops(traced) == 6 * 2 * 3 * 4 * 4


def test_axes_beyond_a_node_run_at_the_speed_of_the_network():
    item = HARDWARE["H100"]
    assert link_bandwidths(item, {"data": 2, "fsdp": 4, "tensor": 2}) == {
        "data": item.network,
        "fsdp": item.link,
        "tensor": item.link,
    }
    sent = [Traffic("a", ("data",), 50e9), Traffic("b", ("data", "fsdp"), 25e9), Traffic("c", ("tensor",), 450e9)]
    speeds = link_bandwidths(item, {"data": 2, "fsdp": 4, "tensor": 2})
    assert seconds_over_axes(bytes_over_axes(sent), speeds) == pytest.approx(2.5)


def test_meshes_that_fit_come_in_order_of_what_they_send():
    shapes = list(mesh_shapes(8, MODEL.num_kv_heads))
    assert all(shape["data"] * shape["fsdp"] * shape["tensor"] == 8 for shape in shapes)
    assert {shape["tensor"] for shape in shapes} == {1, 2}
    recipe = ConversionConfig(steps=1, batch_size=16)
    load = Workload(MODEL, recipe, OPTIM, None, slots=4096, row_length=32)
    assert rows_per_device(load, 8) == 16
    roomy = ranked(load, hardware("H100"), shapes, 80e9)
    assert roomy[0] == {"data": 8, "fsdp": 1, "tensor": 1}  # replicated weights: gradients alone are sent
    whole = sum(model_arrays(MODEL, OPTIM, None, None).bytes_per_device.values())
    assert roomy[0] not in ranked(load, hardware("H100"), shapes, 0.9 * whole)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hardware": "H1000"}, "hardware 'H1000' is not known: it is one of v5e, v5p, v6e, A100, H100, H200"),
        ({"mesh": {"data": 3, "fsdp": 1, "tensor": 1}}, "does not fit 8 devices"),
        ({"devices": 1_000}, "JAX runs with 8 devices"),
        ({"memory_share": 1e-9}, "use more devices, LoRA, or hardware with more memory than H100's"),
        ({"model": "nowhere/at-all"}, "names that need no files: tiny"),
        ({"texts": {"padding": 1.0}}, "padding is a share below 1"),
        ({"mfu": 0.0}, "config.mfu=0.0"),
    ],
)
def test_bad_requests_are_one_sentence(changes, words):
    assert jax.device_count() == 8  # started: the plan can simulate no more
    with pytest.raises(InputError) as error:
        run(settings(**changes))
    assert words in str(error.value)


def test_a_plan_has_no_workdir(tmp_path):
    check(launch("--config=configs/plan.py", f"--workdir={tmp_path}"), "plan writes nothing")


@pytest.mark.slow
@pytest.mark.parametrize(("hardware", "devices"), [("H100", 8), ("v5e", 64)])
def test_a_plan_at_full_size_takes_under_two_minutes_and_its_line_is_right(hardware, devices, monkeypatch):
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    found = launch("--config=configs/plan.py", f"--config.hardware={hardware}", f"--config.devices={devices}")
    assert found.returncode == 0, found.stderr
    shown = dict(line.split("  ", 1) for line in found.stdout.splitlines() if not line.startswith(" "))
    took = re.fullmatch(r"(?:(\d+) min ?)?(?:([\d.]+) s)?", shown["planned in"].strip())
    assert took is not None
    assert 60 * int(took[1] or 0) + float(took[2] or 0) < 120
    assert max(map(len, found.stdout.splitlines())) <= 80
    off = next(line for line in found.stdout.splitlines() if "predicted" in line).rsplit("(", 1)[1]
    assert abs(float(off.rstrip("%)"))) < 15


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_real_step_takes_the_memory_that_was_compiled(kind):
    script = Path(__file__).parent / "peak_of_step.py"
    command = [sys.executable, str(script), "32", "128", "2", kind]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["measured"] == pytest.approx(found["compiled"], rel=0.15), found
    assert found["measured"] == pytest.approx(found["formula"], rel=0.15), found

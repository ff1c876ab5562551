"""Faults of runs on several devices: a process of two dies or is asked to stop; checkpoints move between meshes."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hrsa_jax.runtime import processes
from hrsa_jax.runtime.checkpoint import Checkpoints
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.mesh import make_mesh, named_sharding
from hrsa_jax.runtime.processes import LOST_PEER, joining

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "experiments"))
import tiny  # noqa: E402

CONFIG = """
from ml_collections import config_dict
def get_config():
    return config_dict.ConfigDict({config!r})
"""


def test_a_checkpoint_of_eight_devices_is_restored_onto_one_and_onto_two_by_four(tmp_path):
    values = {"kernel": np.arange(256.0, dtype=np.float32).reshape(16, 16), "step": np.int32(7)}
    wide = make_mesh(data=1, fsdp=8)
    saved = {
        "kernel": jax.device_put(values["kernel"], named_sharding(wide, ("embed", "mlp"), (16, 16))),
        "step": jax.device_put(values["step"], named_sharding(wide, (), ())),
    }
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (5, 6, 7):
            checkpoints.save(step, saved)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["6", "7"]  # the rest is gone
    layouts = [
        jax.sharding.SingleDeviceSharding(jax.devices()[0]),
        named_sharding(make_mesh(data=2, fsdp=4), ("embed", "mlp"), (16, 16)),
        named_sharding(make_mesh(data=1, fsdp=2, tensor=4), ("embed", "mlp"), (16, 16)),
    ]
    for layout in layouts:
        empty = {"kernel": jax.device_put(jnp.zeros((16, 16)), layout), "step": jnp.int32(0)}
        with Checkpoints(tmp_path) as checkpoints:
            found = checkpoints.restore(empty)
        assert found["kernel"].sharding == layout
        jax.tree.map(np.testing.assert_array_equal, found, values)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match="cannot be restored"):
        checkpoints.restore({"kernel": jnp.zeros((16, 8)), "step": jnp.int32(0)})


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_can_be_read(tmp_path):
    tree = {"kernel": jnp.arange(64.0)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree)
        checkpoints.save(2, tree)
    for data in (tmp_path / "2" / "state" / "d").iterdir():
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(InputError, match=r"checkpoint 2 .* cannot be restored"):
            checkpoints.restore(tree)
        np.testing.assert_array_equal(checkpoints.restore(tree, 1)["kernel"], tree["kernel"])


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ((None, None, None), {}, None),
        ((None, None, None), {"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, None),
        ((None, None, None), {"SLURM_NTASKS": "8"}, None),  # a batch script, outside srun
        ((None, 1, None), {"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "n[1-8]"}, None),
        ((None, None, None), {"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "n[1-8]", "SLURM_PROCID": "3"}, "SLURM"),
        (("h:1", 2, 0), {"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "n[1-8]"}, "--coordinator=h:1"),
        ((None, None, None), {"JAX_PLATFORMS": "tpu"}, "TPU metadata"),
        ((None, None, None), {"JAX_PLATFORMS": "cpu"}, None),
    ],
)
def test_who_joins_whom(flags, environment, expected):
    found = joining(*flags, environment, on_tpu=environment.get("JAX_PLATFORMS") is not None)
    assert (found.how if found else None) == expected


def test_one_task_a_node_takes_all_its_devices():
    node = {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_GPUS_ON_NODE": "4"}
    found = joining(None, None, None, node | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, on_tpu=False)
    assert found is not None
    assert found.arguments["local_device_ids"] == [0, 1, 2, 3]
    found = joining(None, None, None, node | {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, on_tpu=False)
    assert found is not None
    assert "local_device_ids" not in found.arguments


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("h:1", None, 0), r"--num_processes missing"),
        ((None, 2, 0), r"--coordinator missing"),
        (("h", 2, 0), r"not host:port"),
        (("h:1", 2, 2), r"processes count from 0"),
    ],
)
def test_flags_that_do_not_go_together_are_one_sentence(flags, message):
    with pytest.raises(InputError, match=message):
        joining(*flags, {})


def test_only_the_first_process_keeps_what_all_write(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "agreed", lambda value: value)
    for number, kept in ((1, False), (0, True)):
        monkeypatch.setitem(processes._here, "index", number)
        with processes.written_once(tmp_path / "model") as place:
            place.mkdir()
            (place / "file").write_text("x")
        assert (tmp_path / "model" / "file").exists() == kept


# ---- a pair of real processes through launch.py --------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A conversion of a tiny model in 12 steps, as a config file."""
    folder = tmp_path_factory.mktemp("pair")
    tiny.write_model(folder / "model")
    texts = [f"the sum of {i} and {i * 7 % 11} is {i + i * 7 % 11}" for i in range(100)]
    rows = [{"query": texts[i], "pos": [texts[i + 1]], "neg": [texts[i + 2]]} for i in range(48)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"steps": 12, "batch_size": 8, "hard_negatives": 1, "row_length": 64, "max_segments": 8}
    settings = {
        "experiment": "convert",
        "backbone": {"source": str(folder / "model")},
        "mesh": {"data": 2, "fsdp": 2, "tensor": -1},
        "convert": {
            "files": ({"path": str(folder / "rows.jsonl")},),
            "lora": None,
            "checkpoint_every": 1,
            "recipe": recipe | {"max_query_length": 64, "max_passage_length": 64, "dtype": "float32"},
            "optim": {"learning_rate": 1e-2, "schedule": "constant"},
        },
    }
    path = folder / "config.py"
    path.write_text(CONFIG.format(config=settings))
    return path


def start_pair(config: Path, work: Path) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "HRSA_CACHE": str(config.parent / "cache")}
    command = [sys.executable, str(ROOT / "launch.py"), f"--config={config}", f"--workdir={work}"]
    command += [f"--coordinator=localhost:{port}", "--num_processes=2"]
    return [
        subprocess.Popen(
            [*command, f"--process_id={rank}"], stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
        for rank in range(2)
    ]


def finish(pair: list[subprocess.Popen[str]]) -> None:
    said = [run.communicate(timeout=400)[1] for run in pair]
    assert [run.returncode for run in pair] == [0, 0], said
    assert "hrsa_jax conversion of" in said[0]
    assert "conver" not in said[1].lower(), said[1]  # process 1 reports nothing


def await_steps(pair: list[subprocess.Popen[str]], log: Path, count: int) -> None:
    """Returns when process 0 wrote down `count` steps."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (log.exists() and len(log.read_text().splitlines()) >= count):
        assert all(run.poll() is None for run in pair)
        time.sleep(0.02)


def weights(work: Path) -> bytes:
    return (work / "stages" / "convert" / "base-Emb-s0" / "model" / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_pair_continues_bit_for_bit(config, tmp_path, victim):
    whole = config.parent / "whole"
    if not whole.exists():
        finish(start_pair(config, whole))
    work = tmp_path / "cut"
    pair = start_pair(config, work)
    log = work / "metrics.jsonl"
    await_steps(pair, log, 4)
    pair[victim].kill()
    killed = time.monotonic()
    said = pair[1 - victim].communicate(timeout=60)[1]
    print(f"process {victim} killed: the other ended after {time.monotonic() - killed:.1f} s")
    assert pair[1 - victim].returncode == LOST_PEER, said
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"error: process {1 - victim} lost another process of this run"), said
    assert "Check failure stack trace" not in said
    pair[victim].communicate()
    steps = len(log.read_text().splitlines())
    assert steps < 12
    finish(start_pair(config, work))
    assert weights(work) == weights(whole)
    assert json.loads((work / "results.json").read_text())["kind"] == "conversion"


@pytest.mark.slow
def test_sigterm_of_one_process_stops_both_after_the_same_step_with_a_checkpoint(config, tmp_path):
    whole = config.parent / "whole"
    if not whole.exists():
        finish(start_pair(config, whole))
    work = tmp_path / "stopped"
    pair = start_pair(config, work)
    await_steps(pair, work / "metrics.jsonl", 2)
    pair[1].terminate()
    began = time.monotonic()
    said = [run.communicate(timeout=60)[1].strip().splitlines()[-1] for run in pair]
    print(f"SIGTERM to process 1: both ended after {time.monotonic() - began:.1f} s; {said[0]}")
    assert [run.returncode for run in pair] == [143, 143], said
    stopped = [re.search(r"stopped after step (\d+) of 12; its checkpoint is saved: run the same", one) for one in said]
    steps = {int(one[1]) if one else None for one in stopped}
    assert len(steps) == 1, said
    saved = [path.name for path in (work / "stages").rglob("checkpoints/*") if path.name.isdigit()]
    assert steps == {max(map(int, saved))}
    assert max(map(int, saved)) < 12
    finish(start_pair(config, work))
    assert weights(work) == weights(whole)
